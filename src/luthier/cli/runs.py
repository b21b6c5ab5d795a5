"""luthier runs list | show | rm."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from luthier import files, run_folder, run_lock
from luthier.cli.terminal import Terminal, print_json
from luthier.run_folder import RunFolder

Name = Annotated[str, typer.Argument(help="A run folder, its name in --output-dir, or last.")]
Folder = Annotated[Path, typer.Option(help="Parent of the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
RUNS = Path("runs")


def list_runs(output_dir: Folder = RUNS, as_json: Json = False) -> None:
    """All runs of a folder, oldest first.

    Example: luthier runs list
    """
    known = [_summary(run) for run in run_folder.list_runs(output_dir)]
    if as_json:
        print_json(known)
        return
    terminal = Terminal()
    if not known:
        terminal.say(f"no runs in {output_dir}")
        return
    terminal.table(
        ["run", "state", "steps", "last loss"], [[str(one["name"]), str(one["state"]), str(one["steps"]), str(one["loss"])] for one in known]
    )


def show(name: Name, output_dir: Folder = RUNS, as_json: Json = False) -> None:
    """What a run did: state, loss, scores, files.

    Example: luthier runs show last
    """
    run = run_folder.open_run(name, output_dir)
    summary = _summary(run)
    if as_json:
        print_json(summary)
        return
    terminal = Terminal()
    for key, value in summary.items():
        terminal.say(f"{key:<10} {value}")
    if run.scorecard.exists():
        terminal.scorecard(run.read_scorecard())


def remove(
    name: Name,
    output_dir: Folder = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run folder.

    Example: luthier runs rm demo-2026-11-22-1431
    """
    run = run_folder.open_run(name, output_dir)
    run_lock.require_free(run.path)
    if not yes and not typer.confirm(f"Delete {run.path} ({files.folder_bytes(run.path) / 1e6:,.0f} MB)?"):
        raise typer.Exit(1)
    with run_lock.held(run.path, "rm"):
        files.remove_folder(run.path)
    Terminal().say(f"deleted {run.path}")


def _summary(run: RunFolder) -> dict[str, object]:
    steps, holder = run.read_metrics("train"), run_lock.holder(run.path)
    at_rest = "finished" if run.trained.is_dir() else "not finished"
    return {
        "name": run.name,
        "path": str(run.path),
        "state": f"running ({holder.doing})" if holder else at_rest,
        "steps": steps[-1]["step"] if steps else 0,
        "loss": round(steps[-1]["loss"], 4) if steps else None,
        "megabytes": round(files.folder_bytes(run.path) / 1e6, 1),
        "report": str(run.report) if run.report.exists() else None,
    }


COMMANDS: dict[str, Callable[..., None]] = {"list": list_runs, "show": show, "rm": remove}
