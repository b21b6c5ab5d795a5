"""Luthier: fine-tune open language models, and see at every step that nothing was lost.

run = luthier.fit("luthier.yaml")
run.evaluate()
run.chat("Where is the nearest luthier?")
run.export("merged")
"""

from __future__ import annotations

import logging
import os

# Torch's OpenMP threads wait by spinning for milliseconds. Beside other busy processes on 2 cores an update then took up to 82 s; asleep
# at once they are half as fast on an idle machine. A short spin is nearly as fast as the one and as steady as the other
# (docs/decisions/0004). Read when torch is loaded, so it is set before anything else is.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# oneDNN keeps the code it made for the last 1,024 shapes, and every update has shapes of its own: 40 updates grew by 1.1 GB, so by 0.7.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.version import VERSION as __version__

if TYPE_CHECKING:
    from luthier.config.load import Config
    from luthier.plan.choose import Plan
    from luthier.records import Scorecard
    from luthier.reporting import Reporter

__all__ = ["Run", "__version__", "fit", "load_config", "make_plan", "open_run"]

# PEFT loads bitsandbytes and torchao wherever they are installed, and these then name kernels that nobody asked for.
for _library in ("bitsandbytes", "torchao"):
    logging.getLogger(_library).setLevel(logging.ERROR)
# torch warns of how torchao speaks to it.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())


@dataclass(frozen=True, slots=True)
class Run:
    """A trained run. Everything it knows lies in the folder `path`."""

    path: Path

    def evaluate(self, data: str | None = None, *, reporter: Reporter | None = None) -> Scorecard:
        """Base beside tuned on the held-out rows, or on the rows of the file `data`."""
        from luthier.recipes import evaluation
        from luthier.run_folder import RunFolder

        return evaluation.evaluate(RunFolder(self.path), reporter, data=data)

    def chat(self, text: str, *, system: str | None = None) -> str:
        """The tuned model's greedy answer to one message; `system` replaces the message the run was trained with."""
        from luthier.recipes import conversation
        from luthier.run_folder import RunFolder

        return "".join(conversation.open_talk(RunFolder(self.path), system=system).ask(text))

    def export(self, to: str, *, folder: str | Path | None = None, precision: str | None = None) -> Path:
        """Write the artifact `to` (merged, adapter, gguf, awq ...), compare it with the trained model (parity.json), and return its folder.

        `precision` is its number format. Raises ParityError for one that does not answer as the trained model does.
        """
        from luthier.recipes import handover
        from luthier.run_folder import RunFolder

        return handover.require(*handover.export(RunFolder(self.path), to, folder=Path(folder) if folder else None, precision=precision))


def fit(config: str | Path, overrides: list[str] | None = None, *, reporter: Reporter | None = None) -> Run:
    """Train as the YAML file `config` says, on as many devices. `overrides` are "section.name=value". Raises LuthierError for what a user can
    mend."""
    from luthier.launch import starting
    from luthier.recipes import training

    read = load_config(config, overrides)
    if line := starting.line_of(read.settings, [str(read.file), *(overrides or [])], starting.Here()):
        return Run(starting.run(line) or training.newest(read).path)
    return Run(training.fit(read, reporter).path)


def load_config(config: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and check a YAML file of settings."""
    from luthier.config import load

    return load.load_config(config, overrides)


def make_plan(config: str | Path, overrides: list[str] | None = None) -> Plan:
    """What a run would do and cost on this machine."""
    from luthier.recipes import planning

    return planning.make_plan(load_config(config, overrides))


def open_run(name: str) -> Run:
    """A run by its folder, by its name in ./runs, or "last"."""
    from luthier import run_folder

    return Run(run_folder.open_run(name).path)
