"""A job file for a cluster's own tool: written from a template, checked, and submitted on request. The tool starts `luthier train` on each
host (Kubeflow: torchrun, which reads the variables that its runtime sets); nothing of the run is decided here."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from luthier import files
from luthier.config.launch import bounds_of
from luthier.config.load import Config
from luthier.config.settings import Settings
from luthier.errors import CallError, ConfigError, LuthierError
from luthier.launch import checks
from luthier.plan.machine import usable_cores
from luthier.version import VERSION

MADE = "Written by `luthier launch`. Yours to edit: it is read again, and not written anew."
IMAGE = "ghcr.io/your-organization/luthier:latest"


@dataclass(frozen=True, slots=True)
class Tool:
    """How one tool takes a job: the file's ending, the lines that ask for GPUs (count filled in), what the hosts are told of where they meet,
    and the command that submits the file."""

    ending: str
    gpus: str
    meeting: str
    submit: tuple[str, ...]


# What every shell knows once its job file has set head_address, port and, for some, address.
_MET = " launch.head=$head_address --port $port"
TOOLS = {
    # name       ending            lines that ask for GPUs                            where the hosts meet, and which one this is
    "slurm":    Tool("sbatch",     "#SBATCH --gpus-per-node={}\n",                    _MET + " --host $SLURM_PROCID",
                     ("sbatch", "{file}")),
    "sky":      Tool("yaml",       "  accelerators: A100:{}\n",                       _MET + " --host $SKYPILOT_NODE_RANK --address $address",
                     ("sky", "jobs", "launch", "--yes", "{file}")),
    "kubeflow": Tool("yaml",       '        nvidia.com/gpu: "{}"\n',                  "",
                     ("kubectl", "create", "--filename", "{file}")),
    "dstack":   Tool("yaml",       "  gpu: A100:{}\n",                                " launch.head=$DSTACK_MASTER_NODE_IP --host $DSTACK_NODE_RANK",
                     ("dstack", "apply", "--yes", "--file", "{file}")),
    "ray":      Tool("py",         ', "GPU": {}',                                     "",
                     ("ray", "job", "submit", "--working-dir", "{folder}", "--runtime-env-json", "{kept_here}", "--", "python", "{name}")),
    "ssh":      Tool("sh",         "",                                                _MET + " --host $rank --address $address",
                     ("bash", "{file}")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """A job file, whether it was there before, the command that submits it, and what its check said."""

    file: Path
    was_there: bool
    command: tuple[str, ...]
    checked: str

    def submit(self) -> None:
        """Run the command. Raises LuthierError where the tool is missing or refuses the job."""
        try:
            ended = subprocess.run(self.command)
        except FileNotFoundError as error:
            raise LuthierError(f"{self.command[0]} is not installed here", where=str(self.file), next_step=f"where it is: {self}") from error
        if ended.returncode:
            raise LuthierError(f"{self.command[0]} answered {ended.returncode}", where=str(self.file), next_step="mend what it says above")

    def __str__(self) -> str:
        return shlex.join(self.command)


def write(config: Config, overrides: Sequence[str], on: str, hosts: Sequence[str] = (), to: Path | None = None) -> Job:
    """The job file of a run for one of TOOLS, beside the settings file or at `to`. One that is there is checked and not written anew.

    Raises CallError for what a job of this kind cannot be, LuthierError where the tool's own reader refuses the file.
    """
    tool, folder = TOOLS[on], config.file.resolve().parent
    file = (to or folder / f"{config.file.stem}.{on}.{tool.ending}").resolve()
    was_there = file.exists()
    if not was_there:
        files.write_text(file, text_of(config, overrides, on, hosts))
    # Ray sends the folder to its nodes, and runs in it are large.
    kept_here = json.dumps({"excludes": [f"/{os.path.relpath(config.beside(config.settings.output_dir), file.parent)}/"]})
    names = {"file": str(file), "folder": str(file.parent), "name": file.name, "kept_here": kept_here}
    command = tuple(part.format(**names) for part in tool.submit)
    return Job(file, was_there, command, checks.check(on, file))


def text_of(config: Config, overrides: Sequence[str], on: str, hosts: Sequence[str] = ()) -> str:
    """The job file's text. Paths are those of this machine; what differs elsewhere stands at its head, to be edited."""
    settings, folder, tool = config.settings, config.file.resolve().parent, TOOLS[on]
    least, most = _hosts_of(settings, on, hosts)
    devices = _devices_of(settings)
    name = _name(config)
    call = shlex.join([config.file.name, *overrides, "resume=auto"])
    values = {
        "made": MADE,
        "name": name,
        "folder": shlex.quote(str(folder)),
        "folder_quoted": json.dumps(str(folder)),
        "mounted": json.dumps(f"{folder}:project"),
        "environment": shlex.quote(sys.prefix),
        "image": IMAGE,
        "version": VERSION,
        "nodes": str(most),
        "nodes_range": str(most) if least == most else f"{least}-{most}",
        "devices": str(devices),
        "cores": str(usable_cores()),
        "gpu_lines": "" if settings.device == "cpu" else tool.gpus.format(devices),
        "restarts": str(settings.launch.max_restarts),
        "port": str(settings.launch.port),
        "hosts": " ".join(map(shlex.quote, hosts)),
        "call": call,
        "call_quoted": json.dumps(call),
        # Where a host's own disk goes with it, runs lie on what is mounted there; a call that names another place knows why.
        "kept": "" if any(one.startswith("output_dir=") for one in overrides) else " output_dir=/runs",
        "arguments": json.dumps([f"/project/{config.file.name}", *overrides, "resume=auto"]),
        "meeting": tool.meeting if most > 1 else "",
    }
    template = resources.files("luthier.launch").joinpath("templates", f"{on}.template").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _name(config: Config) -> str:
    """What a job is called, in the letters that every tool takes."""
    words = f"{config.file.resolve().parent.name}-{config.file.stem}" if config.file.stem == "luthier" else config.file.stem
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].strip("-") or "luthier"


def _devices_of(settings: Settings) -> int:
    if settings.devices == "auto":
        problem = "devices: auto is counted where a run starts, and a job asks for a number of them"
        raise ConfigError(problem, where="devices", next_step="devices=8, or as many as a host has")
    return settings.devices


def _hosts_of(settings: Settings, on: str, hosts: Sequence[str]) -> tuple[int, int]:
    """The least and the most hosts. Raises CallError where a list of them is missing, or is of another length, or is not for this tool."""
    least, most = bounds_of(settings.nodes)
    if on != "ssh":
        if hosts:
            raise CallError(f"--on {on} chooses its hosts itself", where="--hosts", next_step="take --hosts out")
        if least != most and on != "slurm":
            raise ConfigError(f"--on {on} has a fixed number of hosts, and nodes is {settings.nodes}", where="nodes", next_step=f"nodes={most}")
        return least, most
    if not least <= len(hosts) <= most:
        problem = f"{len(hosts)} hosts are named, and nodes is {settings.nodes}"
        raise CallError(problem, where="--hosts", next_step="--hosts FIRST,SECOND ... as ssh knows them, as many as nodes says")
    return len(hosts), len(hosts)
