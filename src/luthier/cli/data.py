"""luthier data check | show."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.config.load import Config

DEFAULT_MODEL = "smollm2-135m-instruct"
Target = Annotated[Path, typer.Argument(help="A settings file (luthier.yaml) or a file of rows.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")]
Model = Annotated[str | None, typer.Option(help=f"Whose tokenizer to use, where TARGET is a file of rows (default: {DEFAULT_MODEL}).")]
# Trained text green, control tokens on a shade; what is neither is only read.
STYLES = {(True, False): "green", (True, True): "black on green", (False, True): "black on bright_black", (False, False): "default"}


def check(
    target: Target,
    overrides: Overrides = None,
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
) -> None:
    """Read and judge all rows: what is used, what is set aside and why.

    Example: luthier data check my-project/luthier.yaml
    """
    terminal = Terminal(quiet=as_json)
    config = _config(target, overrides, model)
    from luthier.recipes import data_check

    prepared = data_check.check(config, terminal)
    if as_json:
        print_json(prepared.ledger)
        return
    rows, tokens = prepared.ledger["rows"], prepared.ledger["tokens"]
    for note in [*config.notes, *prepared.rows.notes]:
        terminal.say(note)
    for row in prepared.rows.rejected:
        terminal.say(f"  {row.source}: {row.reason}: {row.detail}")
    set_aside = sum(rows["rejected"].values())
    terminal.say(f"rows: {rows['read']:,} read = {len(prepared.train):,} to train on + {len(prepared.held_out):,} held out + {set_aside:,} set aside")
    terminal.say(f"tokens to train on: {tokens['read']:,} read = {tokens['trained']:,} trained + {tokens['masked']:,} masked + {tokens['cut']:,} cut")


def show(
    target: Target,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(min=1, help="First row to show (1 is the first that is trained).")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the pieces as JSON.")] = False,
) -> None:
    """Show rows as the model sees them: what is trained in green, control tokens shaded.

    Example: luthier data show my-project/luthier.yaml --row 3
    """
    terminal = Terminal(quiet=as_json)
    config = _config(target, overrides, model)
    from luthier.recipes import data_check

    spelled = data_check.show(config, row, rows, terminal)
    if not spelled:
        raise CallError(f"there is no training row {row}", where="--row", next_step="luthier data check counts the rows")
    if as_json:
        keys = ("text", "trained", "special")
        print_json([{"source": str(one.source), "pieces": [dict(zip(keys, piece, strict=True)) for piece in one.pieces]} for one in spelled])
        return
    for one in spelled:
        terminal.say(f"{one.source}  {one.tokens} tokens, {one.trained_tokens} trained")
        terminal.console.print(_painted(one.pieces, plain=not terminal.console.is_terminal))
    if not terminal.console.is_terminal:
        terminal.say("([[ ]] stands around what is trained)")


def _painted(pieces: list[tuple[str, bool, bool]], *, plain: bool) -> Text:
    """The row in color, or with [[ ]] around what is trained where there is no color."""
    text = Text()
    before = False
    for piece, trained, special in pieces:
        if plain and trained != before:
            text.append("[[" if trained else "]]")
        text.append(piece, style="" if plain else STYLES[trained, special])
        before = trained
    if plain and before:
        text.append("]]")
    return text


def _config(target: Path, overrides: list[str] | None, model: str | None) -> "Config":
    """The settings in `target`, or settings around a file of rows."""
    from luthier.config.load import config_of_rows, load_config

    if target.suffix in (".yaml", ".yml"):
        if model:
            raise CallError("--model has no effect beside a settings file", where=str(target), next_step=f"model={model} replaces the file's")
        return load_config(target, overrides)
    if overrides:
        raise CallError(f"{overrides[0]} has no effect on a file of rows", where=str(target), next_step="name a luthier.yaml, or leave it out")
    return config_of_rows(target, model or DEFAULT_MODEL)


COMMANDS: dict[str, Callable[..., None]] = {"check": check, "show": show}
