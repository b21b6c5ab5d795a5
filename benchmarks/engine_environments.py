"""Each peer in an environment of its own, since their pins exclude each other. What does not install is listed with the reason."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STAMP = "installed.json"
# torch comes first and by itself: a peer's own requirement would bring gigabytes of CUDA to a machine without a GPU.
TORCH = "torch==2.13.0"
PEERS = {
    # tool           what pip installs beside torch
    "trl":           ["trl==1.16.0", "peft==0.21.2", "transformers==5.23.0"],
    "transformers":  ["peft==0.21.2", "transformers==5.23.0"],
    "llama_factory": ["llamafactory==0.9.5"],
    "ms_swift":      ["ms-swift==4.6.0"],
    "litgpt":        ["litgpt==0.5.13"],
}  # fmt: skip
# What they bring that cannot be loaded beside torch for the CPU (it is built for CUDA), and that rows of text do not need.
UNLOADABLE = {"llama_factory": ["torchvision", "torchaudio"]}
# These need the same libraries, so one environment serves both.
SHARED = {"transformers": "trl"}


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that could not be installed, and why."""

    reason: str


def python_of(tool: str, folder: Path, torch: str) -> Path | Missing:
    """The Python of the peer's environment, made first where it is not there yet (minutes, and up to 2 GB of disk)."""
    tool = SHARED.get(tool, tool)
    environment = folder / tool
    python = environment / "bin" / "python"
    wanted = [torch, *PEERS[tool]]
    stamp = environment / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return python
    print(f"{tool}: installing {', '.join(wanted)} into {environment}", flush=True)
    pip = [str(python), "-m", "pip"]
    install = [*pip, "install", "--quiet", "--no-input"]
    commands = [[sys.executable, "-m", "venv", "--clear", str(environment)], [*install, torch], [*install, *wanted]]
    if unloadable := UNLOADABLE.get(tool):
        commands.append([*pip, "uninstall", "--quiet", "--yes", *unloadable])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            return Missing(next((line for line in said if "ERROR" in line), said[-1] if said else f"{command[0]} ended with {done.returncode}"))
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return python
