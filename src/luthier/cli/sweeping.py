"""luthier sweep, and what luthier plan --sweep prints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.plan.choose import Plan

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def sweep(
    config: Annotated[Path, typer.Argument(help="The settings file, or the folder of a search that was stopped, to go on with it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")] = None,
    space: Annotated[Path | None, typer.Option(help="A file that says what to try (default: what luthier plan CONFIG --sweep proposes).")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Runs in all.")] = None,
    metric: Annotated[str | None, typer.Option(help="The held-out number that counts (default: loss).")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run the trials at once, on this machine or the Ray cluster that it belongs to.")] = False,
    cpus: Annotated[int, typer.Option(min=1, help="With --ray: processors of a trial.")] = 1,
    as_json: Json = False,
) -> None:
    """Search settings: runs of the same rows, each with other values; the first is the file as it stands. Poor ones are given up early.

    Example: luthier sweep my-project/luthier.yaml --trials 12
    """
    if config.is_dir():
        _require_alone(overrides, space, metric)
    from luthier.config.load import load_config
    from luthier.config.search import load_search

    terminal = Terminal(quiet=as_json)
    loaded = None if config.is_dir() else load_config(config, overrides)
    search, places = load_search(space) if space else (None, {})
    with heavy_imports():
        from luthier.recipes import sweep as recipe
        from luthier.recipes import sweep_on_ray

    if loaded is None:
        begun = recipe.reopen(config, trials)
    else:
        begun = recipe.begin(loaded, overrides or [], terminal, search=search, trials=trials, metric=metric, places=places)
    terminal.say(f"search: {begun.path}")
    ended = sweep_on_ray.run(begun, terminal, cpus=cpus) if ray else recipe.run(begun, terminal)
    if as_json:
        print_json({"sweep": str(ended.path), "best": ended.best, "trials": ended.trials})


def _require_alone(overrides: list[str] | None, space: Path | None, metric: str | None) -> None:
    given = ["settings"] * bool(overrides) + ["--space"] * bool(space) + ["--metric"] * bool(metric)
    if given:
        problem = f"a search that goes on has its own settings, and {', '.join(given)} would change what its trials mean"
        raise CallError(problem, where="luthier sweep", next_step="leave them out, or begin a new search with the settings file")


def print_proposal(plan: "Plan", config: Path, overrides: list[str], as_json: bool) -> None:
    """The search that fits a plan, on standard output, so that it can go into a file."""
    from luthier.config.search import search_to_yaml
    from luthier.plan.search import cost_lines, propose

    search = propose(plan)
    if as_json:
        print_json({"search": search.model_dump(), "seconds_estimated": search.trials * plan.seconds})
        return
    sys.stdout.write(search_to_yaml(search, cost_lines(search, plan, config, overrides)))
