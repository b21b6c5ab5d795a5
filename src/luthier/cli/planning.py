"""luthier plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.sweeping import print_proposal
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError
from luthier.plan import in_words

if TYPE_CHECKING:
    from luthier.plan.choose import Plan
    from luthier.plan.levers import Neighbor
    from luthier.recipes.planning import Overview, Simulation

# Letters of the longest bar.
BAR = 40


def plan(
    config: Annotated[Path, typer.Argument(help="The settings file, such as luthier.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")] = None,
    prices: Annotated[Path | None, typer.Option(help="A file with what an hour of a device costs you (default: the one that is shipped).")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Print a small search around this plan instead, as a file for luthier sweep.")] = False,
    devices: Annotated[str, typer.Option(help="Show the run on other numbers of devices instead, from arithmetic alone: 1,8,64.")] = "",
    device: Annotated[str, typer.Option(help="For --devices: their kind, a name such as h100 (default: this machine's).")] = "this",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What a run would do and cost here: whether to tune and how, every auto with its reason and source, memory, time and money.

    Example: luthier plan my-project/luthier.yaml plan.domain=far
    """
    from luthier.config.load import load_config
    from luthier.recipes import planning

    terminal = Terminal(quiet=as_json or sweep)
    loaded = load_config(config, overrides)
    for note in loaded.notes:
        terminal.say(note)
    if sweep:
        print_proposal(planning.make_plan(loaded, terminal), config, overrides or [], as_json)
        return
    if devices:
        simulation = planning.on_more_devices(loaded, _counts(devices), device, terminal)
        if as_json:
            print_json(simulation.as_json())
        else:
            _show_scaling(terminal, simulation)
        return
    found = planning.overview(loaded, terminal, prices)
    if as_json:
        print_json(found.as_json())
        return
    _show(terminal, found, found.decision.command(config, overrides or [], loaded.given))


def _counts(text: str) -> list[int]:
    """Numbers of devices, as 1,8,64 gives them. Raises CallError for another text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 1_000_000 for part in parts):
        raise CallError(f"{text!r} is no list of numbers of devices", where="--devices", next_step="--devices 1,8,64,512")
    return [int(part) for part in parts]


def _show_scaling(terminal: Terminal, found: "Simulation") -> None:
    rows = [
        [
            f"{one.devices:,}",
            f"{one.hosts:,}",
            one.wrapping,
            f"{'' if one.fits else 'no: '}{in_words.size(one.needs_bytes)}",
            in_words.size(one.sent_bytes),
            f"{one.update_seconds:.3g} s",
            f"{one.speedup:.1f}x",
            f"{one.efficiency:.0%}",
            in_words.duration(one.seconds),
        ]
        for one in found.scaled
    ]
    columns = ["devices", "hosts", "wrapping", "memory of each", "each sends", "an update", "faster", "efficiency", "the run"]
    terminal.table(columns, rows, title=f"the run on more devices like {found.device} (arithmetic, not measured)")
    for one in found.assumptions:
        terminal.say(f"assumed: {one}")


def _show(terminal: Terminal, found: "Overview", way_to_take_it: str) -> None:
    plan = found.plan
    for line in found.decision.lines():
        terminal.say(line)
    if way_to_take_it:
        terminal.say(f"  {way_to_take_it}")
    terminal.say("")
    terminal.table(["setting", "value", "usual", "why", "source"], _settings(found))
    terminal.say(f"\nupdates: {plan.updates:,} of {plan.settings.training.batch_size} examples")
    for line in plan.device_lines:
        terminal.say(line)
    _show_memory(terminal, plan)
    terminal.say("")
    title = "what fits where, on a GPU in bf16, by its memory (estimates)"
    terminal.table(["GB", *(f"{size / 1e9:.0f}" for size in _cards(found))], _methods(found), title=title)
    terminal.say("")
    _show_time(terminal, found)
    if not plan.fits:
        terminal.say(f"\ndoes not fit in {plan.room}. Try: {plan.next_step}")
        terminal.table(["change", "the largest row then needs"], [[change, in_words.size(size)] for change, size in found.levers])
    for note in plan.notes:
        terminal.say(note)


def _settings(found: "Overview") -> list[list[str]]:
    """A row for each setting that was auto, then for those that were not and have a usual range."""
    usual = {one.name: one for one in found.ranges}
    rows = [[choice.name, _value(choice.value), str(usual.get(choice.name, "")), choice.why, choice.source] for choice in found.plan.resolved]
    autos = {choice.name for choice in found.plan.resolved}
    return rows + [[one.name, f"{one.value:g}", str(one), f"not auto; {one.why}", one.source] for one in found.ranges if one.name not in autos]


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show_memory(terminal: Terminal, plan: "Plan") -> None:
    """A bar for each part of the peak."""
    needs = sum(plan.memory_bytes.values())
    terminal.say(f"memory: about {in_words.size(needs)} at its peak; the run may take {plan.room} (an estimate)")
    parts = {name: size for name, size in plan.memory_bytes.items() if size}
    width, most = max(map(len, parts)), max(parts.values())
    for name, size in parts.items():
        terminal.say(f"  {name:{width}}  {in_words.size(size):>8}  {'#' * max(1, round(BAR * size / most))}")


def _cards(found: "Overview") -> list[int]:
    return sorted({one.card_bytes for one in found.neighbors})


def _methods(found: "Overview") -> list[list[str]]:
    """A row for each method: what it needs on each card, or why not."""
    methods = list(dict.fromkeys(one.method for one in found.neighbors))
    by_place = {(one.method, one.card_bytes): one for one in found.neighbors}
    return [[method, *(_fit(by_place[method, card]) for card in _cards(found))] for method in methods]


def _fit(one: "Neighbor") -> str:
    return f"{one.needs_bytes / 1e9:.3g}" if one.fits else f"no: {one.needs_bytes / 1e9:.3g}"


def _show_time(terminal: Terminal, found: "Overview") -> None:
    plan, prices = found.plan, found.prices
    here = prices.of("this", plan.seconds)
    of_price = f", {here:.2f} {prices.currency}" if here is not None else ""
    terminal.say(f"time: about {in_words.duration(plan.seconds)} of training on {plan.machine.name}{of_price} (an estimate)")
    rows: list[list[Any]] = [
        [
            one.device,
            "yes" if one.fits else f"no: {in_words.size(one.needs_bytes)}",
            one.time_in_words,
            one.price_in_words,
        ]
        for one in found.devices
    ]
    title = f"the same run elsewhere (estimates from data sheets; prices of {prices.date}, --prices FILE: your own)"
    terminal.table(["device", "fits", "time", prices.currency or "price"], rows, title=title)
