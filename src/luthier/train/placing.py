"""Where runs may stand."""

import os
from pathlib import Path

from luthier.config.load import Config
from luthier.errors import ConfigError


def require_own_folder(config: Config) -> None:
    """Raises ConfigError where runs would stand among files that are read as rows or as a model, or among everything else."""
    asked = config.settings
    target = Path(config.beside(asked.output_dir)).resolve()
    held_out = [asked.data.eval_source.path] if asked.data.eval_source else []
    taken = {Path(config.beside(path)).resolve(): "the folder of the rows" for path in [*(source.path for source in asked.data.sources), *held_out]}
    taken[Path(config.beside(asked.model)).resolve()] = "the folder of the model"
    among = next((f"is in {what}" for folder, what in taken.items() if folder.is_dir() and target.is_relative_to(folder)), "")
    if target == Path(target.anchor):
        among = "is the whole disk"
    if target == Path(os.path.expanduser("~")).resolve():
        among = "is a home folder"
    if among:
        raise ConfigError(
            f"{target} {among}: runs would stand among other files",
            where=config.given.get("output_dir", str(config.file)),
            next_step="output_dir: a folder of its own for runs, beside the rows and the model",
        )
