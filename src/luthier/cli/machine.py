"""luthier doctor."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal import Terminal, print_json
from luthier.errors import ConfigError
from luthier.records import Finding


def doctor(
    config: Annotated[Path | None, typer.Argument(help="Also say whether the run of this luthier.yaml fits.", show_default=False)] = None,
    network: Annotated[bool, typer.Option(help="Also ask the model hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine this machine: libraries, driver, devices, number formats, memory, disk.

    Example: luthier doctor luthier.yaml
    """
    from luthier.config.load import load_config
    from luthier.recipes.doctor import examine

    loaded, of_settings = None, list[Finding]()
    try:
        loaded = load_config(config) if config else None
    except ConfigError as error:  # what was found of the machine is shown all the same
        of_settings = [Finding("error", "settings", f"{error.where}: {error.problem}", error.next_step)]
    findings = examine(loaded, network=network) + of_settings
    if as_json:
        print_json([{"status": one.status, "subject": one.subject, "seen": one.seen, "mend": one.mend, "details": one.details} for one in findings])
    else:
        terminal = Terminal()
        for one in findings:
            terminal.say(f"{one.status:<8} {one.subject:<18} {one.seen}" + (f"\n{'':<27} Try: {one.mend}" if one.mend else ""))
    if any(one.status == "error" for one in findings):
        raise typer.Exit(1)
