"""luthier train."""

from pathlib import Path
from typing import Annotated

import typer

from luthier import run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")]
RunName = Annotated[str, typer.Argument(help="A run folder, its name in ./runs, or last.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def train(
    config: Annotated[str | None, typer.Argument(help="The settings file, such as luthier.yaml.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with a run that was stopped: its folder, its name, or last; without a RUN: the newest stopped one of CONFIG."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the line that would start the run, and start nothing.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where the hosts of a run meet, instead of launch.port.")] = None,
    host: Annotated[int | None, typer.Option(min=0, help="Which of the hosts this is; 0: where they meet (default: by launch.head).")] = None,
    address: Annotated[str, typer.Option(help="This host's own address, where the others of the run cannot reach it by its name.")] = "",
    as_json: Json = False,
) -> None:
    """Fine-tune as a settings file says, on one device or on many.

    Example: luthier train my-project/luthier.yaml training.learning_rate=1e-4
    """
    if config and "=" in config and not Path(config).is_file():
        overrides, config = [config, *(overrides or [])], None  # --resume RUN section.name=value
    if resume and Path(resume).name == "config.yaml" and run_folder.RunFolder(Path(resume).parent).plan.is_file():
        resume = str(Path(resume).parent)  # --resume RUN/config.yaml
    elif config is None and resume and Path(resume).is_file():
        config, resume = resume, ""  # --resume CONFIG
    if config is None and not resume:
        raise CallError(
            "a settings file is needed, or --resume RUN (which has its own)", where="luthier train", next_step="luthier train luthier.yaml"
        )
    from luthier.config.load import load_config

    loaded = load_config(config, overrides) if config else None
    stopped = run_folder.open_run(resume, Path(loaded.beside(loaded.settings.output_dir)) if loaded else Path("runs")) if resume else None
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.launch import starting
        from luthier.recipes import planning, training

    if stopped and loaded is None:
        loaded = load_config(stopped.config, overrides)
    assert loaded is not None
    going_on = ["--resume", str((stopped or training.newest_stopped(loaded)).path)] if resume is not None else []
    worker = [str(loaded.file), *(overrides or []), *going_on]
    line = starting.line_of(loaded.settings, worker, starting.Here(host, address, port))
    if dry_run:
        said = planning.make_plan(loaded, terminal).lines()
        if as_json:
            print_json({"plan": said, "starts": str(line) if line else None})
        for text in [*said, f"starts: {line or 'one process, in this one'}"]:
            terminal.say(text)
        return
    if line is not None:
        path = starting.run(line, quiet=as_json)
        if path is None:  # the run's leader is on another host, and says what came of it
            return
        run = run_folder.RunFolder(path)
    else:
        run = training.fit(loaded, terminal, resume=stopped or (training.newest_stopped(loaded) if resume == "" else None))
    if as_json:
        print_json({"run": str(run.path), run.trained.name: str(run.trained), "report": str(run.report)})
        return
    terminal.say(f"run: {run.path}\nNext: luthier eval {run.path}   luthier chat {run.path}   luthier export {run.path}")


def with_run_to_resume(arguments: list[str]) -> list[str]:
    """The same arguments where --resume has a value: "" where no run follows it, but nothing, an option or an override.

    typer knows no option whose value may be left out.
    """
    if arguments[:1] != ["train"]:
        return arguments
    following = [*arguments[1:], "--"]
    return [
        "--resume=" if argument == "--resume" and (after.startswith("-") or ("=" in after and not run_folder.is_run(after))) else argument
        for argument, after in zip(arguments, following, strict=True)
    ]
