"""luthier models choose | audit."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from luthier.cli.terminal import Terminal, print_json

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
USES = "research, internal, commercial (a product or weights that others receive) or saas (a service that others call)"


def choose(
    task: Annotated[str | None, typer.Option(help="classification, extraction, rewriting, summarization, translation, rag, chat ...")] = None,
    domain: Annotated[str | None, typer.Option(help="near or far: how far your texts are from what is usual on the web.")] = None,
    rows: Annotated[int | None, typer.Option(help="How many rows there are.")] = None,
    device: Annotated[
        str | None, typer.Option(help="this (the machine here), t4, l4, rtx-4090, a40, l40s, a100-40gb, a100-80gb, h100 or h200.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="The device's memory where it is another: 12GB.")] = None,
    use: Annotated[str | None, typer.Option(help=f"{USES}.")] = None,
    language: Annotated[str | None, typer.Option(help="Codes of the languages: en,de.")] = None,
    context: Annotated[int | None, typer.Option(help="The longest text in tokens.")] = None,
    latency: Annotated[float | None, typer.Option(help="Most milliseconds for a token of an answer.")] = None,
    hours: Annotated[int | None, typer.Option(help="Most hours of training.")] = None,
    open_data: Annotated[bool | None, typer.Option("--open-data", help="Prefer models whose training data is published.")] = None,
    profile: Annotated[str | None, typer.Option(help="Presets: startup, enterprise, edge or research.")] = None,
    top: Annotated[int, typer.Option(help="How many to show.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Which model to tune: candidates with reasons and what their licenses ask, and what was refused and why. Asks where no flag says it.

    Example: luthier models choose --task extraction --rows 2000 --device t4 --use saas
    """
    from luthier import files
    from luthier.plan import machine
    from luthier.plan.candidates import choose as choose_model
    from luthier.plan.wishes import make_wishes

    given: dict[str, Any] = {
        "task": task, "domain": domain, "rows": rows, "device": device, "memory": memory, "use": use, "language": language, "context": context,
        "latency": latency, "hours": hours, "open_data": open_data,
    }  # fmt: skip
    if not any(value is not None for value in (*given.values(), profile)) and sys.stdin.isatty():
        given |= _ask()
    here = machine.stored_machine(files.home()) or machine.this_machine_without_torch()
    wishes = make_wishes(given, here, profile)
    choice = choose_model(wishes)
    if as_json:
        print_json({"wishes": dataclasses.asdict(wishes), **dataclasses.asdict(choice)})
        return
    _show(Terminal(), choice, wishes, top)


def _ask() -> dict[str, str]:
    from luthier.plan.wishes import questions

    answers: dict[str, str] = {}
    for name, (question, usual, possible) in questions().items():
        among = f" ({' | '.join(possible)})" if possible else ""
        answers[name] = typer.prompt(question + among, default=usual)
    return answers


def _show(terminal: Terminal, choice: Any, wishes: Any, top: int) -> None:
    terminal.say(f"{wishes.task} with {wishes.rows:,} rows on {wishes.device.name}, for {wishes.use} use")
    for place, candidate in enumerate(choice.candidates[:top], start=1):
        terminal.say(f"\n{place}. {candidate.name}   {candidate.points} points   method: {candidate.method}   {candidate.hub}")
        for line in (*candidate.reasons, *(f"  to do: {one}" for one in candidate.license.obligations)):
            terminal.say(f"   {line}")
    if not choice.candidates:
        terminal.say("\nno model of the catalog does all of this")
    if more := [candidate.name for candidate in choice.candidates[top:]]:
        terminal.say(f"\nalso possible: {', '.join(more)}")
    terminal.say(f"\nrefused ({len(choice.refused)}):")
    for refusal in choice.refused:
        terminal.say(f"   {refusal.name}: {'; '.join(refusal.reasons)}")
    for line in choice.advice:
        terminal.say(f"note: {line}")


def audit(
    model: Annotated[str, typer.Argument(help="A name of the catalog, a folder or a hub id.")],
    use: Annotated[str, typer.Option(help=f"{USES}.")] = "commercial",
    as_json: Json = False,
) -> None:
    """Whether a model's license allows a use, what it asks for, and the text to include. A summary, no legal advice.

    Example: luthier models audit llama-3.2-1b-instruct --use saas
    """
    from luthier.models import audit as auditing
    from luthier.models import licenses

    found = auditing.audit(model, licenses.check_use(use))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    terminal = Terminal()
    terminal.say(f"{found.model}, {found.use}: {found.verdict}")
    terminal.say(f"license: {found.license}{f'  {found.url}' if found.url else ''}")
    for title, lines in (("to do", found.obligations), ("text to include", found.include), ("note", found.notes)):
        for line in lines:
            terminal.say(f"{title}: {line}")
    terminal.say(f"may its answers train other models: {found.trains_others}")


COMMANDS: dict[str, Callable[..., None]] = {"choose": choose, "audit": audit}
