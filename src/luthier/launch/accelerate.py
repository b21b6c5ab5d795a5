"""`accelerate launch scripts/train.py luthier.yaml`: what it has said, by its variables and its default_config.yaml, as our own line.

With GPUs it starts a process for each of them, and each is a worker. On a CPU it starts one process, whatever its file says: that one starts
as many as the file asks for. What luthier.yaml says itself counts first.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from luthier.config.load import Config, load_config
from luthier.errors import ConfigError, LuthierError
from luthier.launch import starting, worker

# Which process this is, where one has been given a number already.
RANK = "RANK"


@dataclass(frozen=True, slots=True)
class Asked:
    """What accelerate's file asks for: processes on each host, hosts, which of them this is, and where they meet ("" and None: not said)."""

    processes: int = 1
    hosts: int = 1
    number: int = 0
    head: str = ""
    port: int | None = None


def config_file(environment: Mapping[str, str]) -> Path:
    """Where accelerate keeps what `accelerate config` asked."""
    cache = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(cache) / "accelerate" / "default_config.yaml"


def read(file: Path) -> Asked:
    """What the file says; one process where there is none. Raises ConfigError for one that cannot be read."""
    if not file.is_file():
        return Asked()
    try:
        tree = YAML(typ="safe").load(file.read_text(encoding="utf-8")) or {}
        hosts = int(tree.get("num_machines") or 1)
        processes = max(1, int(tree.get("num_processes") or 1) // hosts)
        port = tree.get("main_process_port")
        number, head = int(tree.get("machine_rank") or 0), str(tree.get("main_process_ip") or "")
        return Asked(processes, hosts, number, head, None if port is None else int(port))
    except (YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"cannot be read as accelerate's settings ({error})", where=str(file), next_step="accelerate config writes it anew"
        ) from error


def settings_of(asked: Asked, config: Config) -> list[str]:
    """Overrides that luthier.yaml leaves to accelerate."""
    wanted = {"devices": asked.processes, "nodes": asked.hosts, "launch.head": asked.head if asked.head and asked.hosts > 1 else None}
    return [f"{name}={value}" for name, value in wanted.items() if name not in config.given and value not in (1, None)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Be a worker, or start as many as accelerate's file asks for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if RANK in os.environ or not arguments:
        worker.main(arguments)
        return
    try:
        asked = read(config_file(os.environ))
        config = load_config(arguments[0], [one for one in arguments[1:] if not one.startswith("-") and "=" in one])
        arguments += settings_of(asked, config)
        config = load_config(arguments[0], [one for one in arguments[1:] if not one.startswith("-") and "=" in one])
        line = starting.line_of(config.settings, arguments, starting.Here(asked.number if asked.hosts > 1 else None, "", asked.port))
        if line is not None:
            starting.run(line)
            return
    except LuthierError as error:
        print(f"luthier: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    worker.main(arguments)
