"""The curves of a run, from its metrics.jsonl: for the page as SVG, and for slides as PNG (run_plots.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.diagnose.curves import Point, Series, finite, line_chart, smooth
from luthier.diagnose.page import text
from luthier.diagnose.scores import metric_name
from luthier.run_folder import RunFolder

# Curves of preference tuning, by TRL's names.
JUDGMENTS = {"rewards/margins": "Margin of the rewards", "rewards/accuracies": "Pairs whose better answer has the higher reward"}


@dataclass(frozen=True, slots=True)
class Figure:
    """Lines that belong together. `name` is for a file's name, `words` say what the lines do."""

    name: str
    caption: str
    words: str
    series: tuple[Series, ...]
    x_label: str = "update"

    @property
    def drawn(self) -> tuple[Series, ...]:
        return tuple(one for one in self.series if finite(one.points))


def steps_of(run: RunFolder, kind: str = "train") -> list[dict[str, Any]]:
    """One row an update (or an evaluation: eval), in order; where a run was resumed, the later row of an update counts."""
    rows = {row["step"]: row for row in run.read_metrics(kind)}
    return [rows[step] for step in sorted(rows)]


def points(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of each row that has a finite value (null: it had none): one that is not would spoil every average after it."""
    return finite([(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None])


def figures(run: RunFolder) -> list[Figure]:
    """Every curve that the run has values for."""
    steps, evaluations = steps_of(run), steps_of(run, "eval")
    found = [_loss(steps, evaluations), _rate(steps), *_judgments(steps, evaluations), *_in_loop(run, evaluations), *drift_figures(evaluations)]
    return [figure for figure in found if figure.drawn]


def _loss(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> Figure:
    losses, held_out = points(steps, "loss"), points(evaluations, "loss")
    unit = "Loss of the objective" if any("metrics" in row for row in steps) else "Loss in nats per trained token"
    words = _course("The training loss", losses) + (" " + _course("The held-out loss", held_out) if held_out else "")
    return Figure("loss", unit, words, _three(losses, held_out))


def _three(each: list[Point], held_out: list[Point]) -> tuple[Series, ...]:
    return Series("each update", each, "faint"), Series("smoothed", smooth(each), "main"), Series("held-out rows", held_out, "second")


def _rate(steps: list[dict[str, Any]]) -> Figure:
    rates = points(steps, "learning_rate")
    return Figure("learning_rate", "Learning rate", _course("The rate", rates), (Series("learning rate", rates, "main"),))


def _judgments(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[Figure]:
    """The curves of preference tuning; none for a run that learns answers."""
    found = []
    for name, caption in JUDGMENTS.items():
        seen, held_out = (_inside(rows, "metrics", name) for rows in (steps, evaluations))
        found.append(Figure(name.replace("/", "_"), caption, _course(caption, seen), _three(seen, held_out)))
    return found


def _in_loop(run: RunFolder, evaluations: list[dict[str, Any]]) -> list[Figure]:
    """Task metrics that were counted while the run trained, with the base's value as a level line beside them."""
    base = next(iter(run.read_metrics("base")), {}).get("metrics", {})
    names = dict.fromkeys(name for row in evaluations for name in row.get("metrics", {}) if name not in JUDGMENTS)
    found = []
    for name in names:
        values = _inside(evaluations, "metrics", name)
        level = [(x, float(base[name])) for x, _ in (values[:1] + values[-1:])] if base.get(name) is not None and values else []
        caption = f"{metric_name(name)} on held-out rows"
        series = (Series("tuned", values, "main"), Series("base", level, "second"))
        found.append(Figure(f"metric_{name.replace('/', '_').replace('=', '_')}", caption, _course(caption, values), series))
    return found


def drift_figures(evaluations: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """How far the model moved on general texts while it was trained."""
    kl, general, base = (_inside(evaluations, "drift", name) for name in ("kl", "general_loss", "base_general_loss"))
    loss = (Series("tuned", general, "main"), Series("base", base, "second"))
    return [
        Figure("drift_kl", "Drift: KL(tuned || base) on general texts, nats a token", _course("KL", kl), (Series("KL", kl, "main"),)),
        Figure("general_loss", "Loss on general texts, nats a token", _course("The loss on general texts", general), loss),
    ]


def _inside(rows: Sequence[Mapping[str, Any]], part: str, name: str) -> list[Point]:
    return points([{"step": row["step"], name: row[part].get(name)} for row in rows if row.get(part)], name)


def _course(what: str, found: Sequence[Point]) -> str:
    return f"{what} goes from {found[0][1]:.4g} to {found[-1][1]:.4g} over {len(found)} values." if found else ""


def figure_html(figure: Figure) -> str:
    """A figure with its caption and the key to its lines."""
    chart = line_chart(f"{figure.caption} over the updates", figure.words, figure.series, figure.x_label)
    keys = figure.drawn if len(figure.drawn) > 1 or any(one.style.startswith("line") for one in figure.drawn) else ()
    legend = "".join(f' <span class="legend"><span class="key {one.style}"></span>{text(one.name)}</span>' for one in keys)
    return f"<figure><figcaption>{text(figure.caption)}{legend}</figcaption>{chart}</figure>" if chart else ""


def charts_html(found: Sequence[Figure]) -> str:
    return f'<div class="charts">{"".join(map(figure_html, found))}</div>' if found else ""
