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


class Environment(StrEnum):
    conda = "conda"
    docker = "docker"
    uv = "uv"
    colab = "colab"


def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the new project; with --script: the project or its luthier.yaml.", show_default=False)
    ] = None,
    format: Annotated[Format | None, typer.Option(help="Form of the example rows (default: chat).")] = None,
    script: Annotated[Script | None, typer.Option(help="Write the run of a project as a plain Transformers script instead.")] = None,
    env: Annotated[Environment | None, typer.Option(help="Write an environment with the tested versions instead (without a folder: here).")] = None,
) -> None:
    """Write a project to fill in: settings, example rows, scripts.

    Example: luthier init my-project --format chat
    """
    terminal = Terminal()
    if env:
        _refuse_beside("--env", {"--format": format, "--script": script})
        from luthier.recipes.environments import write_environment

        write_environment(folder or Path(), env.value, terminal)
        return
    if folder is None:
        raise CallError("a new project needs a folder", where="luthier init", next_step="luthier init my-project")
    if script:
        _refuse_beside("--script", {"--format": format})
        from luthier.config.load import load_config
        from luthier.recipes.trainer_script import write_trainer_script

        config_file = folder / "luthier.yaml" if folder.is_dir() else folder
        script_file = write_trainer_script(load_config(config_file), config_file.parent / "scripts" / "train_with_trainer.py", terminal)
        terminal.say(f"Run it: python {script_file}")
        return
    from luthier.recipes.new_project import write_project

    write_project(folder, format=(format or Format.chat).value, reporter=terminal)


def _refuse_beside(option: str, others: dict[str, StrEnum | None]) -> None:
    for name, given in others.items():
        if given:
            raise CallError(f"{name} has no effect with {option}", where="luthier init", next_step="leave one of the two out")
