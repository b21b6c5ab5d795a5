"""luthier doctor."""

from typing import Annotated

import typer

from luthier.cli.terminal import Terminal, print_json


def doctor(
    network: Annotated[bool, typer.Option(help="Also ask the model hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine this machine: libraries, devices, disk, number formats.

    Example: luthier doctor
    """
    from luthier.recipes.doctor import examine

    findings = examine(network=network)
    if as_json:
        print_json([{"status": one.status, "subject": one.subject, "seen": one.seen, "mend": one.mend} for one in findings])
    else:
        terminal = Terminal()
        for one in findings:
            terminal.say(f"{one.status:<8} {one.subject:<16} {one.seen}" + (f"\n{'':<25} Try: {one.mend}" if one.mend else ""))
    if any(one.status == "error" for one in findings):
        raise typer.Exit(1)
