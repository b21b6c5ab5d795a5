"""luthier watch."""

import itertools
import sys
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from luthier import run_folder
from luthier.cli.terminal import Terminal, harmless, numbers_table
from luthier.diagnose.curves import blocks
from luthier.errors import CallError
from luthier.recipes import watching
from luthier.recipes.watching import State

CURVE_COLUMNS = 60
SAID = {
    # how it stands   what is said of it
    "running":        "running",
    "ended":          "ended",
    "stopped":        "stopped before its end",
    "died":           "its process is gone",
}  # fmt: skip


def watch(
    run: Annotated[str, typer.Argument(help="A run folder (also one on shared storage), its name in ./runs, or last.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands now, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Pass the lines of metrics.jsonl through as they come.")] = False,
) -> None:
    """Follow a run from another terminal or machine, until it ends.

    Example: luthier watch last --once
    """
    folder = run_folder.open_run(run)
    if once and as_json:
        raise CallError("--once shows a picture and --json passes lines through", where="luthier watch", next_step="leave one of the two out")
    terminal = Terminal()
    if once:
        terminal.console.print(_picture(watching.look(folder)))
        return
    state = None
    if terminal.console.is_terminal and not as_json:
        with Live(console=terminal.console, auto_refresh=False) as live:
            for state in watching.follow(folder, every):
                live.update(_picture(state), refresh=True)
    else:
        for state in watching.follow(folder, every):
            _pass_on(state, terminal, as_json)
    assert state is not None
    watching.require_ended_well(folder, state)


def _pass_on(state: State, terminal: Terminal, as_json: bool) -> None:
    """What is new, in lines for a pipe."""
    if as_json:
        sys.stdout.writelines(f"{line}\n" for line in state.new)
        sys.stdout.flush()
        return
    numbers = watching.numbers_of(state)
    said = "  ".join(f"{name} {number}" for name, number in numbers.items())
    terminal.say(f"{state.name}: {SAID[state.ended]}  {said or harmless(state.last_said)}".rstrip())


def _picture(state: State) -> Group:
    losses, held_out = [row["loss"] for row in state.steps], [row["loss"] for row in state.evaluations if row["loss"] is not None]
    curves = {"loss": sparkline(losses), "held-out": sparkline(held_out)}
    who = f" by {state.doing}" if state.doing else ""
    parts: list[RenderableType] = [Text(f"{state.name}: {SAID[state.ended]}{who}"), numbers_table(watching.numbers_of(state))]
    parts += [numbers_table({name: curve for name, curve in curves.items() if curve}), Text(harmless(state.last_said))]
    return Group(*parts)


def sparkline(values: list[float], columns: int = CURVE_COLUMNS) -> str:
    """Values as a line of blocks between the least and the greatest of them, with both in numbers; "" for fewer than two.

    Where there are more values than columns a column is the mean of those that fall on it.
    """
    if len(values) < 2:
        return ""
    edges = [place * len(values) // min(columns, len(values)) for place in range(min(columns, len(values)) + 1)]
    parts = [values[start:end] for start, end in itertools.pairwise(edges)]
    means = [sum(part) / len(part) for part in parts]
    return f"{blocks(parts, min(means), max(means))}  {min(means):.3g} to {max(means):.3g}"
