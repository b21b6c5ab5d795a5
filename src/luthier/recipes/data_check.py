"""Look at the rows before anything is trained: what is used, what is set aside and why, what the checks find, and what exactly is learned."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from luthier import files
from luthier.config.checks import CheckSettings
from luthier.config.load import Config
from luthier.config.preference import ROWS
from luthier.data import judging, prepare
from luthier.data.conversations import JUDGED, LEARNERS, keep_good
from luthier.data.prepare import Prepared, Rows
from luthier.data.quality.check import Finding, Given
from luthier.data.quality.run import run_checks
from luthier.data.quality.table import CHECKS
from luthier.data.store import Picked, Places, TokenStore
from luthier.diagnose.data_page import OURS, data_page
from luthier.diagnose.data_plots import write_plots
from luthier.diagnose.data_report import DataReport, charts
from luthier.errors import CallError, ConfigError, DataError, ModelError
from luthier.models import facts, find
from luthier.plan import choose, counts, shape
from luthier.records import Conversation, Source, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import SCHEMA

# What was set aside before the checks looked at the rows, by the check that would have found it.
SET_ASIDE = {"duplicates": "duplicate", "overlap": "also_in_eval", "empty_or_tiny_answer": "empty_answer"}
SHOWN_REJECTED = 20
WITHOUT_TOKENS = "tokens: they are not counted without a tokenizer"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a shown row, and how much of its text is learned: all, none, or a part."""

    role: str
    learned: str


@dataclass(frozen=True, slots=True)
class Spelled:
    """One row as the model sees it: pieces of (text, trained, special)."""

    source: Source
    pieces: list[tuple[str, bool, bool]]
    tokens: int
    trained_tokens: int
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Shown:
    """Rows as the model sees them, and the template that they are written with."""

    template: str
    rows: list[Spelled]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Rows as tokens, or why there are none."""

    prepared: Prepared | None = None
    tokenizer: Any = None
    max_length: int | None = None
    left_out: str = ""
    stopped: str = ""


def check(
    config: Config,
    target: str,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    quick: bool = False,
    needs_model: bool = True,
    reporter: Reporter | None = None,
) -> DataReport:
    """Read, tokenize and check the rows of a config. Raises DataError where no row can be read; other obstacles stand in the report.

    `quick` leaves the tokenizer out. Without `needs_model` so does a model that cannot be had, and the report says so.
    """
    reporter = reporter or Silent()
    settings = config.settings
    chosen = chosen_checks(settings.checks, only, skip)
    rows = prepare.load_rows(settings.data, config.file.parent, settings.seed, reporter)
    tokens = _Tokens(left_out=f"{WITHOUT_TOKENS} (--quick)") if quick else _tokens(config, rows, needs_model, reporter)
    places = np.unique(rows.train.places)
    looked_at = Picked(rows.every, places)
    given = Given(
        settings=chosen,
        held_out=rows.held_out,
        token_counts=_token_counts(tokens.prepared, rows, places, split=settings.data.too_long == "split") if tokens.prepared else None,
        tokenizer=tokens.tokenizer,
        max_length=tokens.max_length,
        losses=_losses(config, tokens.prepared, places, reporter) if tokens.prepared and _is_on("hard_rows", chosen) else None,
        judge=partial(judging.judge, settings=chosen) if _is_on("judge", chosen) and _judge_is_named(chosen) else None,
    )
    with reporter.bar("checking", max(1, len(looked_at))) as bar:
        findings = run_checks(looked_at, given, bar.advance)
    ledger = tokens.prepared.ledger if tokens.prepared else _rows_only(rows)
    return DataReport(
        target=target,
        is_settings=bool(config.given),
        notes=[*config.notes, *(tokens.prepared.rows if tokens.prepared else rows).notes, *_judged(rows, settings.objective)],
        ledger=ledger,
        findings=[_with_set_aside(_decided(finding, settings.data.too_long), ledger) for finding in findings],
        judged_is_learned=settings.objective in ROWS,
        roles=Counter(turn.role for row in looked_at for turn in (*row.turns, *row.rejected)),
        rejected=list(itertools.islice((tokens.prepared.rows if tokens.prepared else rows).rejected, SHOWN_REJECTED)),
        left_out=[tokens.left_out] if tokens.left_out else [],
        stopped=tokens.stopped,
    )


def _judged(rows: Rows, objective: str) -> list[str]:
    """What must be done before `luthier train` takes the sources that hold more than answers to learn."""
    judged = [source for source in rows.sources if source["format"] in JUDGED and source["format"] != ROWS.get(objective)]
    return [
        f"{one['file']} holds {JUDGED[one['format']]}: objective: {LEARNERS[one['format']]} learns from them, "
        f"and {keep_good(one['path'])} keeps the good answers"
        for one in judged
    ]


def chosen_checks(settings: CheckSettings, only: Sequence[str], skip: Sequence[str]) -> CheckSettings:
    """The settings with what the command line asks for: `only` these checks, or all that are on but those to `skip`."""
    if only:
        settings = settings.model_copy(update={"off": [name for name in CHECKS if name not in only], "on": list(only)})
    return settings.model_copy(update={"off": [*settings.off, *skip]})


def _is_on(name: str, settings: CheckSettings) -> bool:
    return name in settings.on and name not in settings.off


def _judge_is_named(settings: CheckSettings) -> bool:
    if settings.judge_endpoint and not settings.judge_model:
        raise ConfigError("the judge has an address and no model", where="checks.judge_endpoint", next_step="add checks.judge_model")
    return bool(settings.judge_endpoint)


def _losses(config: Config, prepared: Prepared, places: Places, reporter: Reporter) -> list[float]:
    """The base model's loss on each row at `places`, in nats a trained token; NaN for a row that is not trained."""
    from luthier.engine import opening

    settings = config.settings
    if settings.tokenizer.path or settings.tokenizer.add_special_tokens:
        raise ConfigError(
            "the base model has no values for the rows that another tokenizer or added tokens need, so no loss can be measured",
            where=config.given.get("checks.on", "checks.on: hard_rows"),
            next_step="take hard_rows out, or the tokenizer settings",
        )
    folder = find.find(settings.model, reporter, Path(config.file.parent))
    engine = opening.open_model(str(folder.resolve()), reporter, device=settings.device)
    store = prepared.train.whole
    assert isinstance(store, TokenStore)
    sums, counts = np.zeros(len(prepared.rows.every)), np.zeros(len(prepared.rows.every))
    numbers = np.unique(prepared.train.places)
    with reporter.bar("measuring the base's loss on each row", max(1, len(numbers))) as bar:
        for done, number in enumerate(numbers.tolist(), 1):
            row, tokens = int(store.rows[number]), int(store.trained_tokens[number])
            sums[row] += engine.held_out_loss([store[number]]) * tokens
            counts[row] += tokens
            bar.advance(done)
    with np.errstate(invalid="ignore"):
        losses = sums[places] / counts[places]
    return [float(loss) for loss in losses]


def check_page(path: Path) -> None:
    """Raise CallError where a page at `path` would replace anything but a page of ours."""
    is_ours = path.is_file() and OURS in path.read_text(encoding="utf-8", errors="replace")
    for taken in (path, _plots_folder(path)):
        if taken.exists() and not is_ours:
            raise CallError("is there already, and is no page of ours", where=str(taken), next_step="choose another name for --html, or move it")


def write_page(report: DataReport, path: Path, reporter: Reporter) -> list[Path]:
    """The report as an HTML page, and its charts as PNG files beside it. Gives what was written.

    A page of ours is replaced; raises CallError where another file, or a folder of the charts' name without a page of ours, is there.
    """
    check_page(path)
    files.make_folder(path.parent)
    files.write_text(path, data_page(report))
    try:
        return [path, *write_plots(charts(report), _plots_folder(path))]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        reporter.say('no PNG plots: matplotlib is not installed; the page has the same charts (pip install "luthier[data]" brings it)')
        return [path]


def _plots_folder(page: Path) -> Path:
    return page.with_name(f"{page.stem}-plots")


def show(config: Config, first: int, rows: int, reporter: Reporter | None = None) -> Shown:
    """`rows` training examples from number `first` (1-based) on, as the model sees them."""
    from luthier.data.tokenize import spell

    reporter = reporter or Silent()
    settings = config.settings
    loaded = prepare.load_rows(settings.data, config.file.parent, settings.seed, reporter)
    said: list[str] = []
    tokenizer, max_length = _tokenizer(config, reporter, said.append)
    template = said[-1].removeprefix("template: ") if said else "the tokenizer's own"
    prepared = prepare.tokenize_rows(loaded, tokenizer, max_length, settings.data, reporter)
    examples = list(enumerate(prepared.train[first - 1 : first - 1 + rows], first - 1))
    return Shown(template, [_spelled(example, _row_of(prepared, number), spell(example, tokenizer)) for number, example in examples])


def _row_of(prepared: Prepared, number: int) -> Conversation:
    """The row that a training example was made of."""
    store = prepared.train.whole
    assert isinstance(store, TokenStore)
    return prepared.rows.every[int(store.rows[prepared.train.places[number]])]


def _spelled(example: TokenizedExample, row: Conversation, pieces: list[tuple[str, bool, bool]]) -> Spelled:
    text = "".join(piece for piece, _, _ in pieces)
    marks = [trained for piece, trained, _ in pieces for _ in piece]
    messages, at = [], 0
    for turn in row.turns:
        content = turn.content.strip()
        start = text.find(content, at)
        if start < 0:
            messages.append(Message(turn.role, "not in this example as it is"))
            continue
        at = start + len(content)
        learned = marks[start:at]
        messages.append(Message(turn.role, "learned" if learned and all(learned) else "learned in part" if any(learned) else "only read"))
    return Spelled(example.source, pieces, len(example.token_ids), example.trained_tokens, messages)


def _tokens(config: Config, rows: Rows, needs_model: bool, reporter: Reporter) -> _Tokens:
    try:
        tokenizer, max_length = _tokenizer(config, reporter, reporter.say)
    except ModuleNotFoundError as error:
        return _Tokens(left_out=f'{WITHOUT_TOKENS} ({error.name} is not installed: pip install "luthier[train]")')
    except ModelError as error:
        if needs_model:
            raise
        return _Tokens(left_out=f"{WITHOUT_TOKENS} ({error.where}: {error.problem})")
    data = config.settings.data
    limit = max_length - data.reserve_for_generation
    try:
        prepared = prepare.tokenize_rows(rows, tokenizer, max_length, data, reporter)
        _keep_counts(config, prepared)
        return _Tokens(prepared, tokenizer, limit)
    except DataError as error:
        stopped = str(error)
    try:
        # What is too long for training is still worth looking at.
        set_aside = data.model_copy(update={"too_long": "drop"})
        return _Tokens(prepare.tokenize_rows(rows, tokenizer, max_length, set_aside, reporter), tokenizer, limit, stopped=stopped)
    except DataError:
        return _Tokens(left_out=WITHOUT_TOKENS, stopped=stopped)


def _keep_counts(config: Config, prepared: Prepared) -> None:
    """For the plans that follow, where an example is a row."""
    if config.settings.objective == "sft":
        counted = shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens)
        counts.keep(counts.counts_file(files.home(), config.settings, prepared.rows.sources), counted)


def _tokenizer(config: Config, reporter: Reporter, say: Callable[[str], None]) -> tuple[Any, int]:
    from luthier.models import run_tokenizer

    settings = config.settings
    folder = find.find(settings.model, reporter, Path(config.file.parent))
    tokenizer = run_tokenizer.open_tokenizer(config, folder, say)
    return tokenizer, int(str(choose.max_length(settings, facts.from_folder(folder)).value))


def _token_counts(prepared: Prepared, rows: Rows, places: Places, *, split: bool) -> list[int]:
    """Tokens of each row at `places`, those that were set aside for their length too.

    A row is as long as its longest example (a pair has one of each answer), and as all of its parts where rows are `split`.
    """
    store = prepared.train.whole
    assert isinstance(store, TokenStore)
    size = len(rows.every)
    counts = np.bincount(store.rows, store.read, size).astype(np.int64)
    if not split:
        longest = np.zeros(size, dtype=np.int64)
        np.maximum.at(longest, store.rows, store.lengths)
        several = np.bincount(store.rows, minlength=size) > 1
        counts[several] = longest[several]
    lost = {row.source: int(row.detail.split()[0].replace(",", "")) for row in prepared.rows.rejected if row.reason == "too_long"}
    if lost:
        for place in places[counts[places] == 0].tolist():
            counts[place] = lost.get(rows.every.source(place), 0)
    return [int(count) for count in counts[places]]


def _rows_only(rows: Rows) -> dict[str, Any]:
    """The ledger of rows that were not tokenized."""
    sizes = rows.every.column("rows")
    used = {"train": int(sizes[np.unique(rows.train.places)].sum()), "eval": int(sizes[rows.held_out.places].sum())}
    counts = {"read": rows.read, "used": sum(used.values()), **used, "rejected": dict(sorted(rows.rejected.counts.items()))}
    return {"schema": SCHEMA, "rows": counts, "sources": rows.sources}


def _decided(finding: Finding, too_long: str) -> Finding:
    """Long rows stand in the way of training only where the settings do not say what becomes of them."""
    return replace(finding, verdict="look") if finding.check == "length" and finding.verdict == "stop" and too_long != "error" else finding


def _with_set_aside(finding: Finding, ledger: dict[str, Any]) -> Finding:
    """What a check would have found, had it not been set aside before, is said with it."""
    count = ledger["rows"]["rejected"].get(SET_ASIDE.get(finding.check, ""), 0)
    return replace(finding, said=f"{finding.said}; {count:,} more were set aside before") if count else finding
