"""luthier data synth | split | mix | convert | schema: rows that are made, divided, mixed and rewritten."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.endpoint import Concurrency, InputPrice, KeyEnv, OutputPrice, RequestsPerMinute, TimeoutSeconds
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.data.conversations import Reading
    from luthier.recipes.mix import Portion
    from luthier.recipes.synth import Made

Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
Seed = Annotated[int, typer.Option(help="What is drawn by chance is drawn by this number.")]
Format = Annotated[str, typer.Option(help="How the rows are built; auto finds it from the columns and says it.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="Our name of a column = its name in the file: --column question=Frage.")]
Encoding = Annotated[str, typer.Option(help="How text files are encoded.")]
Files = Annotated[list[str], typer.Argument(help="Files, folders or patterns of rows; - reads standard input.")]


def synth(
    endpoint: Annotated[str, typer.Option(help="Address of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    source: Annotated[str, typer.Option("--from", help="A file of seed rows, or a document or a folder of documents (.txt, .md).")],
    to: Annotated[Path, typer.Option(help="The .jsonl file to make. The same call goes on with it.")],
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows it should have.")] = 500,
    how: Annotated[str, typer.Option(help="From seeds: bootstrap (new questions like them) or evolve (harder ones out of them).")] = "bootstrap",
    key_env: KeyEnv = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of one answer.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Sent where given; else the server's own.")] = None,
    requests_per_minute: RequestsPerMinute = None,
    concurrency: Concurrency = 4,
    timeout_s: TimeoutSeconds = 120,
    seed: Seed = 0,
    price_per_million_input: InputPrice = None,
    price_per_million_output: OutputPrice = None,
    as_json: Json = False,
) -> None:
    """Make rows with a model: from seed rows, or from documents. What is answered is kept; the same call goes on after a stop.

    Example: luthier data synth --endpoint http://127.0.0.1:8080/v1 --model my-model --from seeds.jsonl -n 500 --to made.jsonl
    """
    from luthier.recipes import synth as recipe

    if how not in ("bootstrap", "evolve"):
        raise CallError(f"there is no such way{_near(how, ['bootstrap', 'evolve'])}", where=f"--how {how}", next_step="bootstrap or evolve")
    terminal = Terminal(quiet=as_json)
    call = recipe.Call(
        endpoint=endpoint,
        model=model,
        source=source,
        rows=rows,
        to=to,
        way=how,  # type: ignore[arg-type]  # checked above
        key_env=key_env,
        max_tokens=max_tokens,
        temperature=temperature,
        requests_per_minute=requests_per_minute,
        concurrency=concurrency,
        timeout_s=timeout_s,
        seed=seed,
        price_per_million_input=price_per_million_input,
        price_per_million_output=price_per_million_output,
    )
    made = recipe.synth(call, terminal)
    _print(made) if as_json else _say_made(made, terminal)


def _say_made(made: "Made", terminal: Terminal) -> None:
    bill = made.bill
    terminal.say(f"{made.file}: {made.rows:,} rows from {bill.requests:,} answers")
    if made.rejected:
        terminal.say(f"{made.rejected_file}: {sum(made.rejected.values()):,} set aside: {_counted(made.rejected)}")
    unknown = f"; {bill.unmetered:,} answers came without a count" if bill.unmetered else ""
    cost = "" if made.cost is None else f"; cost {made.cost:,.4f}"
    terminal.say(f"tokens, as the server counted: {bill.prompt_tokens:,} sent + {bill.completion_tokens:,} made{unknown}{cost}")
    if bill.again:
        terminal.say(f"{bill.again:,} answers needed more than one try: a server may bill a try whose answer never arrived")


def split(
    rows: Files,
    eval: Annotated[str, typer.Option(help="Share of the rows to evaluate on, such as 5%.")],
    to: Annotated[Path, typer.Option(help="The new folder: train.jsonl, eval.jsonl and test.jsonl in it.")],
    test: Annotated[str | None, typer.Option(help="Share of the rows to test on in the end.")] = None,
    by: Annotated[str, typer.Option(help="A column; rows with the same value there (a customer, a document) stay on one side.")] = "",
    near: Annotated[bool, typer.Option("--near", help="Near duplicates stay on one side, too.")] = False,
    seed: Seed = 0,
    format: Format = "auto",
    column: Columns = None,
    encoding: Encoding = "utf-8",
    as_json: Json = False,
) -> None:
    """Divide rows into train, eval and test. Rows that ask the same stay on one side; each part gets its share of each category.

    Example: luthier data split rows.jsonl --eval 5% --test 5% --to parts
    """
    from luthier.recipes import split as recipe

    shares = {name: _share(f"--{name}", text) for name, text in (("eval", eval), ("test", test)) if text is not None}
    terminal = Terminal(quiet=as_json)
    divided = recipe.split(rows, to, shares, _reading(format, column, encoding), seed=seed, by=by, near=near, reporter=terminal)
    if as_json:
        _print(divided)
        return
    parts = " + ".join(f"{count:,} {name}" for name, count in divided.rows.items())
    terminal.say(f"{divided.folder}: {divided.read:,} rows read = {parts} + {sum(divided.rejected.values()):,} set aside")
    if divided.rejected:
        terminal.say(f"{divided.folder}/rejected.jsonl: {_counted(divided.rejected)}")
    if divided.categories:
        table = [[name, *(str(count.get(part, 0)) for part in divided.rows)] for name, count in divided.categories.items()]
        terminal.table(["category", *divided.rows], table)


def mix(
    sources: Annotated[list[str], typer.Argument(help="Sources, each with its weight (a.jsonl:0.9 b.jsonl:0.1), or all without: every row.")],
    to: Annotated[Path, typer.Option(help="The new .jsonl file.")],
    add: Annotated[list[str] | None, typer.Option(help="general.jsonl:10% adds one row of it for every ten others.")] = None,
    rows: Annotated[int | None, typer.Option("-n", "--rows", min=1, help="How many rows in all; without it no weighted row is used twice.")] = None,
    origins: Annotated[bool, typer.Option("--origins", help="Add a column mixed_from with each row's file and line.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Mix sources by weight, or add a share of general rows to your own, so that a model does not forget what it could.

    Example: luthier data mix mine.jsonl --add general.jsonl:10% --to mixed.jsonl
    """
    from luthier.recipes import mix as recipe

    added = [_portion(text) for text in add or []]
    for portion in added:
        if portion.weight is None:
            raise CallError("needs its share", where=f"--add {portion.path}", next_step=f"--add {portion.path}:10%")
    terminal = Terminal(quiet=as_json)
    mixed = recipe.mix([_portion(text) for text in sources], added, to, rows=rows, seed=seed, origins=origins, reporter=terminal)
    if as_json:
        _print(mixed)
        return
    terminal.say(f"{mixed.file}: {mixed.rows:,} rows" + (f", all turned into {mixed.converted}" if mixed.converted else ", verbatim"))
    for one in mixed.taken:
        often = f" (each up to {-(-one.rows // one.available)} times)" if one.rows > one.available else ""
        aside = f"; {one.rejected:,} set aside" if one.rejected else ""
        terminal.say(f"  {one.rows:,} ({one.rows / max(1, mixed.rows):.1%}) of {one.available:,} in {one.path} [{one.format}]{often}{aside}")
    if mixed.rejected:
        terminal.say(f"{mixed.rejected_file}: {_counted(mixed.rejected)}")


def convert(
    rows: Files,
    target: Annotated[str, typer.Option("--to", help="messages, openai, sharegpt or alpaca.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new .jsonl file.")],
    only_good: Annotated[
        bool, typer.Option("--only-good", help="Of pairs keep the better answer, of labeled rows the good ones: rows to learn from.")
    ] = False,
    format: Format = "auto",
    column: Columns = None,
    encoding: Encoding = "utf-8",
    as_json: Json = False,
) -> None:
    """Write rows in another format. Rows that it cannot hold are listed beside the output.

    Example: luthier data convert rows.csv --column question=Frage --column answer=Antwort --to messages -o rows.jsonl
    """
    from luthier.data.formats.write import TARGETS
    from luthier.recipes import convert as recipe

    if target not in TARGETS:
        raise CallError(f"there is no such target{_near(target, TARGETS)}", where=f"--to {target}", next_step=f"one of {', '.join(sorted(TARGETS))}")
    terminal = Terminal(quiet=as_json)
    converted = recipe.convert(rows, target, output, _reading(format, column, encoding), terminal, only_good=only_good)
    if as_json:
        _print(converted)
        return
    gathered = "" if converted.written == converted.used else f" (in {converted.written:,} conversations)"
    aside = sum(converted.rejected.values())
    terminal.say(f"{converted.file}: {converted.read:,} rows read = {converted.used:,} written{gathered} + {aside:,} set aside")
    if converted.rejected:
        terminal.say(f"{converted.rejected_file}: {_counted(converted.rejected)}")


def schema(format: Annotated[str, typer.Argument(help="A format's name, such as messages.")]) -> None:
    """Print the JSON Schema of a format's rows.

    Example: luthier data schema messages
    """
    from luthier.data.formats.schema import schema as schema_of

    _check_format(format)
    print_json(schema_of(format))


def _check_format(name: str) -> None:
    from luthier.data.formats.table import FORMATS

    if name not in FORMATS:
        raise CallError(f"there is no such format{_near(name, FORMATS)}", where=name, next_step=f"one of {', '.join(FORMATS)}")


def _reading(format: str, column: list[str] | None, encoding: str) -> "Reading":
    from luthier.data.conversations import Reading

    if format != "auto":
        _check_format(format)
    columns = {}
    for text in column or []:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise CallError("is not OUR_NAME=THEIR_NAME", where=f"--column {text}", next_step="such as --column question=Frage")
        columns[ours] = theirs
    return Reading(format, columns, encoding)


def _share(option: str, text: str) -> Fraction:
    from luthier.data.portions import share_of

    share = share_of(text)
    if share is None or share >= 1:
        raise CallError("is not a share above 0% and below 100%", where=f"{option} {text}", next_step=f"{option} 5%")
    return share


def _portion(text: str) -> "Portion":
    """`file:weight` or a file: a path may hold colons, so only what looks like a weight is one."""
    from luthier.data.portions import share_of
    from luthier.recipes.mix import Portion

    path, colon, weight = text.rpartition(":")
    if not colon or (share := share_of(weight)) is None:
        if colon and weight[:1] in set("-0123456789") and not Path(text).exists():
            raise CallError(f"the weight {weight} is not a number above 0", where=text, next_step=f"{path}:0.5 or {path}:10%")
        return Portion(text, None)
    return Portion(path, share)


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; nearest: {found[0]}" if found else ""


def _print(done: Any) -> None:
    from luthier.run_folder import SCHEMA

    print_json({"schema": SCHEMA, **dataclasses.asdict(done)})


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


COMMANDS: dict[str, Callable[..., None]] = {"synth": synth, "split": split, "mix": mix, "convert": convert, "schema": schema}
