"""The table of commands, and the one place where an error becomes a line and an exit code."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from luthier.cli import (
    chatting,
    comparing,
    data,
    demo,
    diagnosing,
    evaluating,
    exporting,
    judging,
    launching,
    machine,
    making,
    merging,
    models,
    planning,
    predicting,
    project,
    retrieval,
    runs,
    serving,
    sweeping,
    tokenizers,
    training,
    verifying,
    watching,
)
from luthier.errors import LuthierError, MachineError, is_shortage
from luthier.stopping import EndedAtOnce, ending_on_signals
from luthier.version import VERSION

Command = Callable[..., None]
# What `pip install luthier` leaves out, by the names they are imported by.
TRAIN_LIBRARIES = {"torch", "transformers", "peft", "safetensors", "tokenizers", "gguf", "huggingface_hub", "jaxtyping"}
COMMANDS: dict[str, tuple[Command, str]] = {
    # verb       function             panel of --help
    "demo": (demo.demo, "Start"),
    "init": (project.init, "Start"),
    "doctor": (machine.doctor, "Start"),
    "plan": (planning.plan, "Train"),
    "verify": (verifying.verify, "Train"),
    "train": (training.train, "Train"),
    "launch": (launching.launch, "Train"),
    "sweep": (sweeping.sweep, "Train"),
    "watch": (watching.watch, "Train"),
    "logs": (launching.logs, "Train"),
    "eval": (evaluating.evaluate, "After training"),
    "judge": (judging.judge, "After training"),
    "compare": (comparing.compare, "After training"),
    "report": (comparing.report, "After training"),
    "diagnose": (diagnosing.diagnose, "After training"),
    "chat": (chatting.chat, "After training"),
    "predict": (predicting.predict, "After training"),
    "serve": (serving.serve, "After training"),
    "export": (exporting.export, "After training"),
    "merge": (merging.merge, "After training"),
}
GROUPS: dict[str, tuple[dict[str, Command], str, str]] = {
    # verb       commands            panel             help
    "data": ({**data.COMMANDS, **tokenizers.COMMANDS, **making.COMMANDS, **retrieval.DATA_COMMANDS}, "Train", "Check, clean and make rows."),
    "data tokenizer": (tokenizers.TOKENIZER_COMMANDS, "", "Train a tokenizer, or compare two."),
    "models": (models.COMMANDS, "Start", "Models that can be fine-tuned."),
    "rag": (retrieval.RAG_COMMANDS, "After training", "Documents beside a model: found, answered from, and compared with tuning."),
    "runs": (runs.COMMANDS, "After training", "Runs in this folder."),
    "cache": (models.CACHE_COMMANDS, "Start", "Downloaded models."),
}


class _Ended(Exception):
    """A signal, on its way through typer, which would make 130 of each."""

    def __init__(self, error: KeyboardInterrupt) -> None:
        super().__init__(str(error))
        self.exit_code = 128 + (error.signal if isinstance(error, EndedAtOnce) else signal.SIGINT)


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Ended(error) from error


def _build() -> typer.Typer:
    app = typer.Typer(cls=_Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", help=HELP)
    app.callback()(_root)
    for name, (function, panel) in COMMANDS.items():
        app.command(name, rich_help_panel=panel)(function)
    groups = {"": app}
    for path, (commands, panel, text) in GROUPS.items():
        groups[path] = group = typer.Typer(no_args_is_help=True, help=text)
        for command, function in commands.items():
            group.command(command)(function)
        above, _, name = path.rpartition(" ")
        groups[above].add_typer(group, name=name, rich_help_panel=panel or None)
    return app


HELP = """Fine-tune open language models, and see at every step that nothing was lost.

Begin with: [bold]luthier demo[/bold]  (US addresses to JSON on this machine, no account and no model hub)
or: [bold]luthier init my-project[/bold], then [bold]luthier train my-project/luthier.yaml[/bold]"""


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"luthier {VERSION}")
        raise typer.Exit
    return value


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # Both are acted on elsewhere, and stand here for --help: the version in its callback, --debug in main.
    return


def main() -> None:
    """Run the command line. Exit codes: docs/runs.md lists them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # What libraries announce to each other is nothing that a user can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
    debug = "--debug" in sys.argv
    # --debug counts anywhere in the line, not only before the verb.
    arguments = training.with_run_to_resume([argument for argument in sys.argv[1:] if argument != "--debug"])
    try:
        with ending_on_signals():
            _build()(args=arguments, prog_name="luthier")
    except LuthierError as error:
        if debug:
            raise
        typer.echo(f"luthier: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").partition(".")[0] not in TRAIN_LIBRARIES:
            raise
        typer.echo(f'luthier: {error.name} is not installed, and this verb needs it\n  Try: pip install "luthier[train]"', err=True)
        sys.exit(1)
    except (_Ended, EndedAtOnce) as error:
        ended = error if isinstance(error, _Ended) else _Ended(error)
        typer.echo(f"luthier: {ended}", err=True)
        sys.exit(ended.exit_code)
    except OSError as error:
        if debug:
            raise
        typer.echo(
            f"luthier: {error.filename or 'this machine'}: {error.strerror or error}\n"
            "  Try: more room or other rights there; LUTHIER_HOME=FOLDER and TMPDIR=FOLDER name other places for the cache and for temporary files",
            err=True,
        )
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if is_shortage(error):
            typer.echo(f"luthier: the memory is not enough ({error})\n  Try: a smaller model, shorter rows, or a machine with more memory", err=True)
            sys.exit(MachineError.exit_code)
        typer.echo(
            f"luthier: a fault of ours: {type(error).__name__}: {error}\n  Try: the same command with --debug, and report what it shows", err=True
        )
        sys.exit(1)
