"""Runs beside each other, from their folders alone: the settings that differ, their curves over each other, their scorecards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import load_config
from luthier.diagnose.curves import Point, Series, blocks, smooth
from luthier.diagnose.page import page, section, table, text
from luthier.diagnose.run_charts import Figure, charts_html, figures, steps_of
from luthier.diagnose.scores import difference_in_words, flat, in_words, interval, metric_name, model_name
from luthier.errors import LuthierError
from luthier.records import Metric, Scorecard
from luthier.run_folder import RunFolder
from luthier.version import VERSION

# Lines of a page's style; more runs begin again with the first.
STYLES = ("line0", "line1", "line2", "line3", "line4", "line5")
SPARKS = 40
# Where a run was made says nothing of how.
NOT_COMPARED = {"output_dir"}
# The curves that are laid over each other: in each run the smoothed line, or what is measured on held-out rows or general texts.
SMOOTHED = {"smoothed", "learning rate", "tuned", "KL"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run was in numbers; None where it has not happened yet."""

    updates: int
    seconds: float | None
    peak_bytes: int | None
    first_loss: float | None
    last_loss: float | None
    held_out_loss: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs beside each other. `settings`: name -> a value for each run, of those that differ. `differences`: of each run to the first one
    by the metric, over the rows that both answered (paired bootstrap); a row that has no answer of both is in none of them."""

    runs: list[str]
    settings: dict[str, list[Any]]
    facts: list[Facts]
    scorecards: list[Scorecard | None]
    figures: list[Figure]
    differences: list[dict[str, Metric]]
    notes: list[str]


def compare(runs: Sequence[RunFolder], differences: list[dict[str, Metric]]) -> Comparison:
    """What the folders of runs say. What cannot be read is named in the notes, and left out."""
    notes: list[str] = []
    settings = [_settings(run, notes) for run in runs]
    scorecards = [_scorecard(run, notes) for run in runs]
    return Comparison(
        runs=_names(runs),
        settings=_differing(settings),
        facts=[_facts(run) for run in runs],
        scorecards=scorecards,
        figures=_over_each_other(runs),
        differences=differences,
        notes=notes,
    )


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Folders of the same name are told apart by their paths."""
    names = [run.name for run in runs]
    return [str(run.path) if names.count(run.name) > 1 else run.name for run in runs]


def _settings(run: RunFolder, notes: list[str]) -> dict[str, str]:
    """Every setting by its dotted name, with what was chosen in place of `auto`."""
    try:
        loaded = load_config(run.config).settings.model_dump(mode="json")
        resolved = files.read_json(run.plan).get("resolved", []) if run.plan.exists() else []
    except LuthierError as error:
        notes.append(str(error))
        return {}
    return dict(flat(loaded)) | {row["name"]: str(row["value"]) for row in resolved}


def _differing(settings: Sequence[Mapping[str, str]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for one in settings for name in one if name not in NOT_COMPARED)
    found = {name: [one.get(name) for one in settings] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _scorecard(run: RunFolder, notes: list[str]) -> Scorecard | None:
    try:
        return run.read_scorecard() if run.scorecard.exists() else None
    except LuthierError as error:
        notes.append(str(error))
        return None


def _facts(run: RunFolder) -> Facts:
    steps, evaluations = steps_of(run), steps_of(run, "eval")
    losses = [loss for _, loss in smooth([(row["step"], row["loss"]) for row in steps if row.get("loss") is not None])]
    return Facts(
        updates=len(steps),
        seconds=sum(row["seconds"] for row in steps) if steps else None,
        peak_bytes=max(row["peak_bytes"] for row in steps) if steps else None,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        held_out_loss=next((row["loss"] for row in reversed(evaluations) if row.get("loss") is not None), None),
    )


def _over_each_other(runs: Sequence[RunFolder]) -> list[Figure]:
    """One figure a curve, with a line for each run that has it."""
    found: dict[str, Figure] = {}
    for run, name, place in zip(runs, _names(runs), range(len(runs)), strict=True):
        style = STYLES[place % len(STYLES)]
        for figure in figures(run):
            for part, series in _compared(figure):
                one = found.get(part.name, replace(part, series=()))
                found[part.name] = replace(one, series=(*one.series, Series(name, series, style)))
    return list(found.values())


def _compared(figure: Figure) -> list[tuple[Figure, list[Point]]]:
    """The lines of a figure that are compared, each as a figure of its own."""
    parts = []
    for one in figure.drawn:
        if one.name in SMOOTHED:
            parts.append((replace(figure, caption=figure.caption + (", smoothed" if one.name == "smoothed" else ""), words=""), one.points))
        elif one.name == "held-out rows":
            parts.append((replace(figure, name=f"{figure.name}_held_out", caption=f"{figure.caption}, held-out rows", words=""), one.points))
    return parts


def _laid_out(points: Sequence[Point], low: float, high: float, x_high: float) -> str:
    """A curve as blocks, on a scale that several share: from `low` to `high`, and from 0 to `x_high` across."""
    columns: list[list[float]] = [[] for _ in range(SPARKS)]
    for x, y in points:
        columns[min(SPARKS - 1, int(SPARKS * x / x_high)) if x_high else 0].append(y)
    return blocks(columns, low, high).rstrip()


def sparklines(figure: Figure) -> list[tuple[str, str]]:
    """(run, blocks with the first and the last value) of each line of a figure, all on one scale."""
    values = [y for one in figure.drawn for _, y in one.points]
    x_high = max((x for one in figure.drawn for x, _ in one.points), default=0.0)
    return [
        (one.name, f"{_laid_out(one.points, min(values), max(values), x_high)}  {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}")
        for one in figure.drawn
    ]


def settings_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    return ["setting", *found.runs], [[name, *("" if value is None else str(value) for value in values)] for name, values in found.settings.items()]


def facts_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Rows of names and a value for each run."""
    rows = [
        ["updates", *(f"{one.updates:,}" for one in found.facts)],
        ["training time, s", *(_number(one.seconds, ".1f") for one in found.facts)],
        ["peak memory, GB", *(_number(one.peak_bytes and one.peak_bytes / 1e9, ".2f") for one in found.facts)],
        ["training loss, smoothed", *(_number(one.last_loss, ".4f") for one in found.facts)],
        ["held-out loss, last", *(_number(one.held_out_loss, ".4f") for one in found.facts)],
    ]
    return ["", *found.runs], rows


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def scores_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row a metric and model, a column a run; the paired difference to the first run below the tuned model's."""
    names = dict.fromkeys((metric, model) for card in found.scorecards if card for model, row in card.models.items() for metric in row)
    rows = []
    for metric, model in names:
        rows.append([f"{metric_name(metric)}, {model_name(model)}", *(_cell(card, model, metric) for card in found.scorecards)])
        if model == "tuned" and any(metric in one for one in found.differences):
            paired = [f"{difference_in_words(metric, one[metric])}, n = {one[metric].n}" if metric in one else "" for one in found.differences]
            rows.append([f"  difference to {found.runs[0]}, row by row", *paired])
    return ["metric (95 %)", *found.runs], rows


def _cell(card: Scorecard | None, model: str, metric: str) -> str:
    found = card.models.get(model, {}).get(metric) if card else None
    return f"{in_words(metric, found)} ({interval(metric, found)})" if found else "not measured"


def write_page(found: Comparison, path: Path) -> None:
    """The comparison as one self-contained page, never over a file that exists."""
    files.refuse_existing(path)
    settings, scores = settings_table(found), scores_table(found)
    parts = [
        f'<header><p class="over">Luthier compare</p><h1>{text(" beside ".join(found.runs))}</h1></header>',
        "".join(f'<p class="bad">{text(note)}</p>' for note in found.notes),
        section("Scores", table(*scores) if scores[1] else '<p class="absent">No run has a scorecard yet.</p>'),
        section("In short", table(*facts_table(found))),
        section("Curves over each other", charts_html(found.figures) or '<p class="absent">No run has a curve yet.</p>'),
        section("Settings that differ", table(*settings) if settings[1] else "<p>None: the runs were asked for the same.</p>"),
        f"<footer>Luthier {text(VERSION)}. Made from the folders of these runs alone.</footer>",
    ]
    files.make_folder(path.parent)
    files.write_text(path, page("Luthier compare", "\n".join(parts)))
