"""luthier diagnose."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json, short
from luthier.cli.training import Json, RunName

if TYPE_CHECKING:
    from luthier.diagnose.mending import Mended


def diagnose(
    run: RunName,
    apply: Annotated[
        bool, typer.Option("--apply", help="Also write the mended settings to a new file in the run folder, and show the difference.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="From the run folder and the rows alone: the model is not asked.")] = False,
    as_json: Json = False,
) -> None:
    """What is wrong with a run, by what it shows, and what mends it. Exit code 0, with findings too.

    Example: luthier diagnose last
    """
    folder = run_folder.open_run(run)
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.diagnose import mending
        from luthier.recipes import diagnosing

    found, not_looked = diagnosing.diagnose(folder, terminal, model=not quick)
    mended = mending.mend(folder, found) if apply else None
    if as_json:
        settings = {"mended": mended.file and str(mended.file), "left_out": list(mended.left_out)} if mended else {}
        print_json({"run": str(folder.path), "findings": [dataclasses.asdict(one) for one in found], "not_looked": not_looked, **settings})
        return
    if found:
        terminal.table(["finding", "severity", "seen"], [[one.id, one.severity, one.seen] for one in found])
    else:
        terminal.say("no findings: the run looks healthy")
    for one in found:
        terminal.say(f"{one.id}: {one.why}")
        for cure in one.cures:
            terminal.say(f"  Try: {cure.what}")
    for name, why in not_looked.items():
        terminal.say(f"not looked at: {name} ({why})")
    if folder.suspect_rows.is_file():
        terminal.say(f"rows to read: {short(folder.suspect_rows)}")
    if mended:
        _show(terminal, mended)


def _show(terminal: Terminal, mended: "Mended") -> None:
    for line in mended.left_out:
        terminal.say(f"left out: {line}")
    if mended.file is None:
        terminal.say("no finding is mended by a setting: nothing was written")
        return
    terminal.say(mended.difference)
    terminal.say(f"Next: luthier train {short(mended.file)}")
