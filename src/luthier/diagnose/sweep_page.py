"""What a search found: its table, a page, and the plots as PNG and SVG for slides and papers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.search import Range, Search
from luthier.diagnose.curves import Series, line_chart
from luthier.diagnose.page import page, section, table, text, tiles
from luthier.diagnose.plots import COLORS, DOTS_PER_INCH
from luthier.records import Trial
from luthier.version import VERSION

PANEL_INCHES, HEIGHT_INCHES = 3.4, 3.2


def table_of(search: Search, trials: Sequence[Trial], best: Trial | None) -> tuple[list[str], list[list[str]]]:
    """The head and a row a trial: what it tried, how it ended, its value, updates and seconds of training."""
    head = ["trial", *(name.rpartition(".")[2] for name in search.settings), search.metric, "how it ended", "updates", "seconds"]
    rows = [
        [
            str(trial.number),
            *(str(trial.values.get(name, "")) for name in search.settings),
            "" if trial.value is None else f"{trial.value:.4f}",
            _how_it_ended(trial, best),
            str(trial.updates),
            f"{trial.seconds:.1f}",
        ]
        for trial in trials
    ]
    return head, rows


def _how_it_ended(trial: Trial, best: Trial | None) -> str:
    words = f"{trial.state}: {trial.why}" if trial.why else trial.state
    marks = ["best"] * (best is not None and trial.number == best.number) + ["the settings as they stood"] * (trial.number == 1)
    return f"{words} ({', '.join(marks)})" if marks else words


def write(folder: Path, search: Search, trials: Sequence[Trial], best: Trial | None) -> list[Path]:
    """Write sweep.html, sweep.png and sweep.svg into `folder` and return their paths."""
    files.write_text(folder / "sweep.html", _page(folder.name, search, trials, best))
    figure = _figure(search, trials, best)
    for kind in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=kind)
        files.write_bytes(folder / f"sweep.{kind}", content.getvalue())
    return [folder / f"sweep.{kind}" for kind in ("html", "png", "svg")]


def _page(name: str, search: Search, trials: Sequence[Trial], best: Trial | None) -> str:
    headline = f"Trial {best.number} of {len(trials)} is the best: {search.metric} {best.value:.4f}" if best else "No trial came to its end"
    words = f'<p class="over">Search {text(name)}</p><h1>{text(headline)}</h1>'
    counts = {state: sum(trial.state == state for trial in trials) for state in ("done", "pruned", "diverged", "failed")}
    facts = [(state.capitalize(), str(count)) for state, count in counts.items() if count or state in ("done", "pruned")]
    # Runs of different numbers of updates share the axis: it is the part of the run that is over.
    series = [
        Series(f"trial {trial.number}", [(float(part), trial.curve[part]) for part in sorted(trial.curve)], _style(trial, best)) for trial in trials
    ]
    chart = line_chart(f"Held-out {search.metric}", f"the {search.metric} of each trial over its run", series, "eighth of the run")
    key = "The best trial and the settings as they stood are drawn in color, all others faint."
    parts = [
        f"<header>{words}{tiles([*facts, ('Seconds of training', f'{sum(trial.seconds for trial in trials):,.0f}')])}</header>",
        section("The trials", table(*table_of(search, trials, best))),
        section(f"Held-out {search.metric}", f"<figure><figcaption>{text(key)}</figcaption>{chart}</figure>"),
        f"<footer>Luthier {text(VERSION)}. Each trial is a run of its own below trials/.</footer>",
    ]
    return page(f"{name}: search", "\n".join(parts))


def _style(trial: Trial, best: Trial | None) -> str:
    if best is not None and trial.number == best.number:
        return "main"
    return "second" if trial.number == 1 else "faint"


def _figure(search: Search, trials: Sequence[Trial], best: Trial | None) -> Any:
    """One panel with the curves, and one for each setting: what came of its values."""
    from matplotlib.figure import Figure

    panels = 1 + len(search.settings)
    figure: Any = Figure(figsize=(PANEL_INCHES * panels, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for trial in trials:
        parts = sorted(trial.curve)
        axes[0].plot(parts, [trial.curve[part] for part in parts], marker=".", color=COLORS[_style(trial, best)])
    axes[0].set_xlabel("eighth of the run", fontsize=9)
    axes[0].set_ylabel(f"held-out {search.metric}", fontsize=9)
    for panel, (name, values) in zip(axes[1:], search.settings.items(), strict=True):
        _draw_setting(panel, name, values, trials, best)
    for panel in axes:
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure


def _draw_setting(panel: Any, name: str, values: Any, trials: Sequence[Trial], best: Trial | None) -> None:
    """Trials that ended as dots, those given up as crosses at the last value of theirs."""
    names = None if isinstance(values, Range) else [str(value) for value in values]
    for trial in trials:
        reached = trial.value if trial.value is not None else trial.curve.get(max(trial.curve, default=0))
        tried = trial.values.get(name)
        if reached is None or (names is not None and str(tried) not in names):
            continue
        place = tried if names is None else names.index(str(tried))
        panel.scatter([place], [reached], marker="o" if trial.state == "done" else "x", color=COLORS[_style(trial, best)])
    if names is not None:
        panel.set_xticks(range(len(names)), names, fontsize=8)
    elif values.log:
        panel.set_xscale("log")
    panel.set_xlabel(name.replace("$", r"\$"), fontsize=9)
