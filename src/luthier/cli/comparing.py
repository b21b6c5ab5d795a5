"""luthier compare | report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import files, run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json

if TYPE_CHECKING:
    from luthier.diagnose.comparison import Comparison

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Plots = Annotated[Path | None, typer.Option(help="Also write each curve as PNG into this folder (needs the extra data).")]


def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs: folders, names in ./runs, or last.")],
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page.")] = None,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Runs beside each other: settings that differ, curves over each other, scores with paired intervals.

    Example: luthier compare runs/support-2026-11-22-1431 last --html compare.html
    """
    folders = [run_folder.open_run(name) for name in runs]
    with heavy_imports():
        from luthier.diagnose import comparison, run_plots
        from luthier.recipes import comparing

    for path in filter(None, (html, plots)):
        files.refuse_existing(path)
    found = comparing.compare(folders)
    terminal = Terminal(quiet=as_json)
    if html:
        comparison.write_page(found, html)
    for path in run_plots.write_plots(found.figures, plots) if plots else []:
        terminal.say(f"plot: {path}")
    if as_json:
        print_json(found)
        return
    _say(found, terminal)
    if html:
        terminal.say(f"page: {html}")


def _say(found: "Comparison", terminal: Terminal) -> None:
    from luthier.diagnose import comparison

    for note in found.notes:
        terminal.say(note)
    for title, (head, rows) in {
        "settings that differ": comparison.settings_table(found),
        "in short": comparison.facts_table(found),
        "scores": comparison.scores_table(found),
    }.items():
        if rows:
            terminal.table(head, rows, title=title)
        else:
            terminal.say(f"{title}: none")
    for figure in found.figures:
        terminal.table([figure.caption, ""], [list(line) for line in comparison.sparklines(figure)])


def report(
    run: Annotated[str, typer.Argument(help="A run folder, its name in ./runs, or last.")],
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="The curves as PNG in RUN/plots too (needs the extra data).")] = True,
    as_json: Json = False,
) -> None:
    """Write a run's report.html and model_card.md anew, and its curves as PNG.

    Example: luthier report last
    """
    from luthier.diagnose import run_charts, run_plots
    from luthier.diagnose.report import write_report

    folder = run_folder.open_run(run)
    page = write_report(folder)
    written = run_plots.write_plots(run_charts.figures(folder), folder.path / "plots") if plots else []
    if as_json:
        print_json({"report": str(page), "model_card": str(folder.path / "model_card.md"), "plots": [str(path) for path in written]})
        return
    terminal = Terminal()
    for path in (page, folder.path / "model_card.md", *written):
        terminal.say(str(path))
