"""luthier data check | clean | show."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from luthier.cli.terminal import Terminal, harmless, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.config.load import Config
    from luthier.data.quality.check import Finding
    from luthier.diagnose.data_report import DataReport, Lengths
    from luthier.records import Rejected

DEFAULT_MODEL = "smollm2-135m-instruct"
Target = Annotated[Path, typer.Argument(help="A settings file (luthier.yaml), or rows: a file, a folder, a pattern, or - for standard input.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")]
Model = Annotated[str | None, typer.Option(help=f"Whose tokenizer to use, where TARGET is rows (default: {DEFAULT_MODEL}).")]
Only = Annotated[str | None, typer.Option(metavar="NAMES", help="These checks alone, with commas between them.")]
Skip = Annotated[str | None, typer.Option(metavar="NAMES", help="All checks but these.")]
# Trained text green, control tokens on a shade; what is neither is only read.
STYLES = {(True, False): "green", (True, True): "black on green", (False, True): "black on bright_black", (False, False): "default"}
VERDICT_STYLES = {"good": "green", "look": "yellow", "stop": "bold red"}
DO_NOT_TRAIN = 3
LISTED = 5
ALWAYS_SHOWN = ("length", "size", "balance", "diversity")  # worth reading where nothing is wrong, too
WIDEST_BAR = 40


def check(
    target: Target,
    overrides: Overrides = None,
    model: Model = None,
    only: Only = None,
    skip: Skip = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without a tokenizer: tokens are not counted.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots too, and the plots as PNG beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print ledger, checks and verdict as JSON.")] = False,
) -> None:
    """Read and check all rows: what is used, what is set aside and why, what is wrong with them.

    Ends with 0 where the verdict is "good" or "look here", and with 3 where it is "do not train".

    Example: luthier data check my-project/luthier.yaml --html check.html
    """
    terminal = Terminal(quiet=as_json)
    if quick and model:
        raise CallError("--model has no effect beside --quick", where="luthier data check", next_step="leave one of the two out")
    config = _config(target, overrides, model)
    from luthier.diagnose import data_report
    from luthier.recipes import data_check

    if html:
        data_check.check_page(html)  # before the work, not after it
    names = {"only": _names(only), "skip": _names(skip)}
    report = data_check.check(config, str(target), **names, quick=quick, needs_model=bool(model or config.given), reporter=terminal)
    if as_json:
        print_json(data_report.as_json(report))
    else:
        _say_report(report, terminal)
    if html:
        written = data_check.write_page(report, html, terminal)
        terminal.say(f"page: {html}" + (f", plots: {written[1].parent}" if len(written) > 1 else ""))
    if not as_json:
        terminal.say(f"Next: {data_report.next_step(report)}")
    if report.verdict == "stop":
        raise typer.Exit(DO_NOT_TRAIN)


def clean(
    target: Target,
    to: Annotated[Path, typer.Option(help="The file of the rows that are kept (.jsonl); those taken out go to the same name with .removed.jsonl.")],
    overrides: Overrides = None,
    only: Only = None,
    skip: Skip = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write a new file without the rows that certainly harm; the rest stays as it is, to the letter. The original is not touched.

    Rows that cannot be read or trained always go. Beside them: exact duplicates (the first is kept) and rows that are held out too. --only
    takes out what other checks found (luthier data check names them).

    Example: luthier data clean rows.jsonl --to clean.jsonl --only duplicates,near_duplicates
    """
    terminal = Terminal(quiet=as_json)
    config = _config(target, overrides, None)
    from luthier.recipes import data_clean

    cleaned = data_clean.clean(config, to, only=_names(only), skip=_names(skip), reporter=terminal)
    if as_json:
        print_json(data_clean.as_json(cleaned))
        return
    for note in [*config.notes, *cleaned.notes]:
        terminal.say(harmless(note))
    terminal.say(f"rows: {cleaned.read:,} read = {cleaned.kept:,} kept + {cleaned.removed:,} taken out")
    for reason, count in cleaned.reasons.items():
        terminal.say(f"  {count:,} {reason}")
    if sum(cleaned.reasons.values()) > cleaned.removed:
        terminal.say("  (a row may have several reasons)")
    terminal.say(f"kept: {cleaned.kept_file}\ntaken out: {cleaned.removed_file}\nNext: luthier data check {shlex.quote(str(cleaned.kept_file))}")


def show(
    target: Target,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(min=1, help="First training example to show (1 is the first that is trained).")] = 1,
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
    from luthier.run_folder import SCHEMA

    shown = data_check.show(config, row, rows, terminal)
    if not shown.rows:
        raise CallError(f"there is no training example {row}", where="--row", next_step="luthier data check counts the rows")
    if as_json:
        print_json({"schema": SCHEMA, "template": shown.template, "rows": [_spelled_json(one) for one in shown.rows]})
        return
    terminal.say(f"template: {shown.template}")
    for one in shown.rows:
        terminal.say(f"{one.source}  {one.tokens} tokens, {one.trained_tokens} trained")
        for number, message in enumerate(one.messages, 1):
            terminal.say(f"  {number} {message.role:<10} {message.learned}")
        terminal.console.print(_painted(one.pieces, plain=not terminal.console.is_terminal))
    if not terminal.console.is_terminal:
        terminal.say("([[ ]] stands around what is trained)")


def _spelled_json(one: Any) -> dict[str, Any]:
    keys = ("text", "trained", "special")
    return {
        "source": str(one.source),
        "tokens": one.tokens,
        "trained_tokens": one.trained_tokens,
        "messages": [{"role": message.role, "learned": message.learned} for message in one.messages],
        "pieces": [dict(zip(keys, piece, strict=True)) for piece in one.pieces],
    }


def _say_report(report: "DataReport", terminal: Terminal) -> None:
    from luthier.diagnose import data_report

    for note in report.notes:
        terminal.say(harmless(note))
    _say_rejected(report.rejected, sum(report.ledger["rows"]["rejected"].values()), terminal)
    _say_ledger(report.ledger, terminal)
    terminal.say("")
    _say_findings(report.findings, terminal)
    for finding in report.concerns:
        terminal.say(f"\n{finding.check}: {harmless(data_report.cure(report, finding))}")
        _say_worst(finding, terminal)
    if report.lengths:
        _say_lengths(report.lengths, terminal)
    for one in report.left_out:
        terminal.say(f"left out: {one}")
    if report.stopped:
        terminal.say(f"training would stop: {harmless(report.stopped)}")
    terminal.console.print(Text(data_report.headline(report), style=VERDICT_STYLES[report.verdict]))


def _say_rejected(rejected: "Sequence[Rejected]", total: int, terminal: Terminal) -> None:
    """The first rows of each reason."""
    said: Counter[str] = Counter()
    for row in rejected:
        said[row.reason] += 1
        if said[row.reason] <= LISTED:
            terminal.say(harmless(f"  {row.source}: {row.reason}: {row.detail}"))
    more = total - sum(min(count, LISTED) for count in said.values())
    if more:
        terminal.say(f"  and {more:,} more")


def _say_ledger(ledger: Any, terminal: Terminal) -> None:
    rows, tokens = ledger["rows"], ledger.get("tokens")
    set_aside = sum(rows["rejected"].values())
    terminal.say(f"rows: {rows['read']:,} read = {rows['train']:,} to train on + {rows['eval']:,} held out + {set_aside:,} set aside")
    if tokens:
        repeated = f" + {tokens['repeated']:,} repeated" if tokens["repeated"] else ""
        parts = f"{tokens['trained']:,} trained + {tokens['masked']:,} masked + {tokens['cut']:,} cut"
        terminal.say(f"tokens to train on: {tokens['read']:,} read{repeated} = {parts}")
    if len(ledger["sources"]) > 1 and tokens:
        head = ["file", "rows", "used", "set aside", "tokens", "trained", "masked", "cut"]
        terminal.table(head, [_source_cells(source) for source in ledger["sources"]])


def _source_cells(source: Any) -> list[str]:
    tokens = source["tokens"]
    numbers = [source["rows"], source["used"], sum(source["rejected"].values())]
    return [source["file"], *(f"{number:,}" for number in [*numbers, *(tokens[name] for name in ("read", "trained", "masked", "cut"))])]


def _say_findings(findings: "Sequence[Finding]", terminal: Terminal) -> None:
    """A line for each finding; those that found nothing stand in one, and those that could not run in another."""
    shown = [one for one in findings if one.verdict != "good" or one.found or (one.check in ALWAYS_SHOWN and one.of)]
    width = max((len(one.check) for one in shown), default=0)
    for one in shown:
        line = Text.assemble((f"{one.verdict:<5}", VERDICT_STYLES[one.verdict]), f" {one.check:<{width}}  {harmless(one.said)}")
        terminal.console.print(line)
    rest = [one for one in findings if one not in shown]
    nothing = ", ".join(one.check for one in rest if one.of)
    not_run = ", ".join(f"{one.check} ({harmless(one.said.removeprefix('not run: '))})" for one in rest if not one.of)
    if nothing:
        terminal.console.print(Text.assemble(("good ", VERDICT_STYLES["good"]), f" nothing was found by {nothing}"))
    if not_run:
        terminal.say(f"not run: {not_run}")


def _say_worst(finding: "Finding", terminal: Terminal) -> None:
    for concern in finding.worst[:LISTED]:
        beside = f" (beside {concern.other})" if concern.other and str(concern.other) not in concern.detail else ""
        terminal.say(harmless(f"  {concern.source}: {concern.detail}{beside}"))
    if finding.found > LISTED < len(finding.worst):
        terminal.say(f"  and {finding.found - LISTED:,} more")


def _say_lengths(lengths: "Lengths", terminal: Terminal) -> None:
    """The histogram, a line a column."""
    labels = [lengths.label(place) for place in range(len(lengths.counts))]
    width, most = max(map(len, labels)), max(lengths.counts)
    terminal.say(f"\nlength in {lengths.unit}: half have up to {lengths.median:,}, 99 % up to {lengths.p99:,}, the longest {lengths.longest:,}")
    for label, count in zip(labels, lengths.counts, strict=True):
        bar = "█" * max(round(WIDEST_BAR * count / most), 1 if count else 0)
        terminal.say(f"  {label:>{width}}  {bar} {count:,}")
    if lengths.max_length:
        terminal.say(f"  max_length is {lengths.max_length:,}")
    terminal.say("")


def _painted(pieces: list[tuple[str, bool, bool]], *, plain: bool) -> Text:
    """The row in color, or with [[ ]] around what is trained where there is no color."""
    text = Text()
    before = False
    for piece, trained, special in pieces:
        if plain and trained != before:
            text.append("[[" if trained else "]]")
        text.append(harmless(piece), style="" if plain else STYLES[trained, special])
        before = trained
    if plain and before:
        text.append("]]")
    return text


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()] if given else []


def _config(target: Path, overrides: list[str] | None, model: str | None) -> "Config":
    """The settings in `target`, or settings around rows."""
    from luthier.config.load import config_of_rows, load_config

    if target.suffix in (".yaml", ".yml"):
        if model:
            raise CallError("--model has no effect beside a settings file", where=str(target), next_step=f"model={model} replaces the file's")
        return load_config(target, overrides)
    return config_of_rows(target, model or DEFAULT_MODEL, overrides)


COMMANDS: dict[str, Callable[..., None]] = {"check": check, "clean": clean, "show": show}
