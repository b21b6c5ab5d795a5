"""luthier init."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal import Terminal
from luthier.errors import CallError


class Format(StrEnum):
    instruction = "instruction"
    chat = "chat"
    completion = "completion"


class Script(StrEnum):
    trainer = "trainer"


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new project; with --script: the project or its luthier.yaml.")],
    format: Annotated[Format | None, typer.Option(help="Form of the example rows (default: chat).")] = None,
    script: Annotated[Script | None, typer.Option(help="Write the run of a project as a plain Transformers script instead.")] = None,
) -> None:
    """Write a project to fill in: settings, example rows, scripts.

    Example: luthier init my-project --format chat
    """
    terminal = Terminal()
    if script:
        if format:
            raise CallError("--format has no effect with --script", where="luthier init", next_step="leave one of the two out")
        from luthier.config.load import load_config
        from luthier.recipes.trainer_script import write_trainer_script

        config_file = folder / "luthier.yaml" if folder.is_dir() else folder
        script_file = write_trainer_script(load_config(config_file), config_file.parent / "scripts" / "train_with_trainer.py", terminal)
        terminal.say(f"Run it: python {script_file}")
        return
    from luthier.recipes.new_project import write_project

    write_project(folder, format=(format or Format.chat).value, reporter=terminal)
