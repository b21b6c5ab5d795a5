"""luthier launch | logs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier import run_folder
from luthier.cli.terminal import Terminal, harmless, print_json


class On(StrEnum):
    slurm = "slurm"
    sky = "sky"
    kubeflow = "kubeflow"
    dstack = "dstack"
    ray = "ray"
    ssh = "ssh"


def launch(
    config: Annotated[Path, typer.Argument(help="The settings file, such as luthier.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")] = None,
    on: Annotated[On, typer.Option(help="The tool that starts it.")] = On.slurm,
    hosts: Annotated[str, typer.Option(help="For ssh: the hosts, the first is where they meet (a,b,c).")] = "",
    to: Annotated[Path | None, typer.Option(help="The job file (default: beside the settings file).")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit it as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write a job file for a cluster, check it, and print the command that submits it.

    Example: luthier launch my-project/luthier.yaml --on slurm devices=8 nodes=2
    """
    from luthier.config.load import load_config
    from luthier.launch import jobs

    terminal = Terminal(quiet=as_json)
    job = jobs.write(load_config(config, overrides), overrides or [], on.value, [host for host in hosts.split(",") if host], to)
    if as_json:
        print_json({"file": str(job.file), "was_there": job.was_there, "command": list(job.command), "checked": job.checked})
    else:
        terminal.say(f"{job.file}: {'as it was there (delete it to have it anew)' if job.was_there else 'written; the lines to edit stand first'}")
        terminal.say(f"checked: {job.checked}")
        terminal.say(f"{'submits' if submit else 'submit it with'}: {job}")
    if submit:
        job.submit()


def logs(
    run: Annotated[str, typer.Argument(help="A run folder (also one on shared storage), its name in ./runs, or last.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until nobody works in the run.")] = False,
    lines: Annotated[int, typer.Option(min=1, help="How many of the newest lines to begin with.")] = 50,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """What a run has said, all its processes in one place.

    Example: luthier logs last --follow
    """
    from luthier.recipes import watching

    terminal = Terminal()
    for line in watching.said(run_folder.open_run(run), lines, every if follow else None):
        terminal.say(harmless(line))
