"""luthier data tokens, and luthier data tokenizer train | compare."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from luthier.cli.terminal import Terminal, harmless, print_json, short
from luthier.errors import CallError, DataError

if TYPE_CHECKING:
    from luthier.recipes.tokenizing import Compared, Piece

DEFAULT_MODEL = "smollm2-135m-instruct"
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def tokens(
    text: Annotated[str | None, typer.Argument(help="The text.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Take the text from a file.")] = None,
    model: Annotated[str, typer.Option(help="Whose tokenizer: a model, or a folder with a tokenizer.")] = DEFAULT_MODEL,
    as_json: Json = False,
) -> None:
    """Show a text as tokens: its pieces, their ids, and the count against the model's context.

    Example: luthier data tokens "Where is the nearest luthier?" --model smollm2-135m-instruct
    """
    if (text is None) == (file is None):
        raise CallError("give either a text or --file FILE", where="luthier data tokens", next_step='luthier data tokens "a text"')
    terminal = Terminal(quiet=as_json)
    from luthier.recipes import tokenizing

    found = tokenizing.tokens(_read(file) if file is not None else str(text), model, terminal)
    if as_json:
        pieces = [dataclasses.asdict(piece) for piece in found.pieces]
        _print({"tokens": found.count, "context": found.context, "ids": [piece["id"] for piece in pieces], "pieces": pieces})
        return
    for line in _lines(found.pieces, painted=terminal.console.is_terminal):
        terminal.console.print(line)
    share = f" = {found.count / found.context:.1%} of the model's context ({found.context:,})" if found.context else ""
    special = sum(piece.special for piece in found.pieces)
    marked = f", {special} of them control tokens (marked *)" if special else ""
    terminal.say(f"{found.count:,} tokens{share}{marked}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(file), next_step="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} is not UTF-8", where=str(file), next_step="save the file as UTF-8") from error


def _lines(pieces: "list[Piece] | Any", *, painted: bool) -> list[Text]:
    """One line a token: id, mark, and the piece in quotes, so that its spaces are seen."""
    lines = []
    for piece in pieces:
        shown = harmless(piece.text).replace("\n", "\\n").replace("\t", "\\t")
        line = Text(f"{piece.id:>8} {'*' if piece.special else ' '} ")
        lines.append(line.append(f'"{shown}"', style="black on bright_black" if piece.special and painted else ""))
    return lines


def train(
    paths: Annotated[list[str], typer.Argument(metavar="FILES", help="Files of rows, or .txt and .md.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write; it must not exist.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=1, help="Pieces, with control tokens and bytes.")] = 32000,
    model: Annotated[Literal["bpe", "unigram"], typer.Option("--model", help="How pieces are found.")] = "bpe",
    base: Annotated[
        str, typer.Option("--base", help="Whose control tokens and chat template are kept, and whom it is measured against.")
    ] = DEFAULT_MODEL,
    no_template: Annotated[bool, typer.Option("--no-template", help="Do not keep the base's chat template.")] = False,
    as_json: Json = False,
) -> None:
    """Train a tokenizer on your own text, and say how many tokens it saves.

    Example: luthier data tokenizer train data/train.jsonl --vocab-size 8000 --model bpe --to my-tokenizer
    """
    terminal = Terminal(quiet=as_json)
    from luthier.recipes import tokenizing

    trained = tokenizing.train(paths, model, vocab_size, to, base, terminal, with_template=not no_template)
    if as_json:
        sides = {"trained": trained.fit.as_json(2048), "base": trained.base_fit.as_json(2048)}
        _print({"folder": str(trained.folder), "pieces": trained.pieces, "held_out": trained.held_out} | sides)
        return
    if trained.pieces < trained.asked:
        terminal.say(f"{trained.pieces:,} pieces and not {trained.asked:,}: the text holds no more")
    where = "text that was held out" if trained.held_out else "the text it was trained on (too little to hold some out)"
    for name, fit in (("this tokenizer", trained.fit), (base, trained.base_fit)):
        terminal.say(f"{name}: {fit.tokens_per_word:.2f} tokens a word, {fit.tokens_per_letter:.3f} a character, on {fit.words:,} words of {where}")
    saved = 1 - trained.fit.tokens / max(1, trained.base_fit.tokens)
    terminal.say(f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} tokens than {base}. It lies in {short(trained.folder)}")
    terminal.say(f"to train with it: tokenizer: {trained.folder}, and lora: {{modules_to_save: [embed_tokens, lm_head]}}")


def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A model, or a folder with a tokenizer.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    data: Annotated[list[str], typer.Option("--data", help="A file of rows, or .txt (may be given more than once).")],
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Tokens a text may have.")] = 2048,
    as_json: Json = False,
) -> None:
    """Compare two tokenizers on your text: tokens a word, what they cannot spell, what they share, and how much more fits.

    Example: luthier data tokenizer compare smollm2-135m-instruct my-tokenizer --data data/train.jsonl
    """
    terminal = Terminal(quiet=as_json)
    from luthier.recipes import tokenizing

    found = tokenizing.compare(one, other, data, max_length, terminal)
    if as_json:
        sides = {
            side: {"name": found.names[place], "pieces": found.sizes[place]} | found.fits[place].as_json(max_length)
            for place, side in enumerate("ab")
        }
        _print(sides | {"shared_pieces": found.shared, "max_length": max_length})
        return
    _show(found, terminal)


def _show(found: "Compared", terminal: Terminal) -> None:
    rows = [
        [
            name,
            f"{size:,}",
            f"{fit.tokens_per_word:.3f}",
            f"{fit.tokens_per_letter:.3f}",
            f"{fit.unknown / max(1, fit.tokens):.2%}",
            f"{fit.bytes / max(1, fit.tokens):.2%}",
            f"{fit.fitting(found.max_length):,} of {len(fit.lengths):,}",
        ]
        for name, size, fit in zip(found.names, found.sizes, found.fits, strict=True)
    ]
    terminal.table(["tokenizer", "pieces", "tokens/word", "tokens/character", "unknown", "byte pieces", f"texts <= {found.max_length:,}"], rows)
    smaller = min(found.sizes)
    terminal.say(f"{found.shared:,} pieces are spelled alike ({found.shared / smaller:.0%} of the smaller vocabulary)")
    one, other = found.fits
    more = one.tokens / max(1, other.tokens) - 1
    words = f"{more:.0%} more" if more >= 0 else f"{-more:.0%} less"
    terminal.say(f"with {found.names[1]} {words} text fits into the same tokens; texts of at most {found.max_length:,} tokens stand in the table")


def _print(found: dict[str, Any]) -> None:
    from luthier.run_folder import SCHEMA

    print_json({"schema": SCHEMA, **found})


COMMANDS: dict[str, Callable[..., None]] = {"tokens": tokens}
TOKENIZER_COMMANDS: dict[str, Callable[..., None]] = {"train": train, "compare": compare}
