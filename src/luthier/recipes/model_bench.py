"""Untuned models on the user's rows, before one of them is chosen: how well each predicts them, and what it answers already."""

import dataclasses
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config.data import DataSettings
from luthier.data import prepare
from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.engine import Engine, opening, probe
from luthier.errors import ConfigError, DataError, LuthierError, MachineError, is_shortage
from luthier.evaluate import metrics
from luthier.models import facts, find, load
from luthier.models.facts import ModelFacts
from luthier.plan.cost import USABLE_SHARE
from luthier.plan.machine import rules
from luthier.plan.memory import PRECISION_BYTES
from luthier.records import Conversation, Machine, Metric, TokenizedExample
from luthier.reporting import Reporter, Silent

ROWS = 100


@dataclass(frozen=True, slots=True)
class Benched:
    """One model on the rows. Bits are of all that is predicted, bytes those of the text in UTF-8, so that vocabularies do not matter.

    `bits_per_byte` is of the last answers, asked as the model is asked, their end of turn included; `text_bits_per_byte` of the whole rows as
    plain text. `perplexity` is of the answers' tokens: it compares models of one tokenizer only. None: not measured, `problem` says why.
    """

    model: str
    parameters: int | None = None
    bits_per_byte: float | None = None
    text_bits_per_byte: float | None = None
    perplexity: float | None = None
    metrics: dict[str, Metric] = dataclasses.field(default_factory=dict)
    rows: int = 0
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is here: its facts, its tokenizer, and the rows as it reads them (None where it cannot)."""

    name: str
    facts: ModelFacts
    tokenizer: Any
    asked: list["_Asked | None"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A row as one model reads it: its question ([] for plain text), its answer after it, and all of it as plain text."""

    prompt: list[int]
    answer: list[TokenizedExample]
    text: TokenizedExample


def bench(
    names: Sequence[str], data: str, reporter: Reporter | None = None, *, wanted: Sequence[str] = ("exact_match",), most_rows: int = ROWS
) -> list[Benched]:
    """Each model of `names` (catalog name, hub id or folder) on at most `most_rows` rows of the file `data`, spread over it; the best
    first. All are measured on the same rows: those that each can read whole. A model that cannot be measured is listed last, with the reason.
    """
    reporter = reporter or Silent()
    _require_of_texts(wanted)
    rows = _rows(data, most_rows, reporter)
    metrics.check(wanted, [row.answer for row in rows if row.prompt])
    machine = probe.known_machine(probe.best_device())
    candidates, found = list[_Candidate](), list[Benched]()
    for name in dict.fromkeys(names):
        try:
            candidates.append(_candidate(name, rows, machine, reporter))
        except (LuthierError, RuntimeError, MemoryError) as error:
            found.append(_unmeasured(name, error))
    shared = [place for place in range(len(rows)) if all(candidate.asked[place] for candidate in candidates)]
    if candidates and not shared:
        raise DataError("no row can be read whole by each of these models", where=data, next_step="shorter rows, or fewer models at once")
    if candidates and len(shared) < len(rows):
        reporter.say(f"{len(rows) - len(shared)} of {len(rows)} rows are left out: not each model can read them whole")
    for candidate in candidates:
        try:
            found.append(_measured(candidate, rows, shared, wanted, machine.faster_precision, reporter))
        except (LuthierError, RuntimeError, MemoryError) as error:
            found.append(_unmeasured(candidate.name, error))
        gc.collect()
    return sorted(found, key=lambda one: math.inf if one.bits_per_byte is None else one.bits_per_byte)


def _require_of_texts(wanted: Sequence[str]) -> None:
    """Raises ConfigError for a metric that more than the answers' texts is needed for, before a model is blamed for it."""
    for name in wanted:
        if metrics.needs_model(name) or name in metrics.OF_ANSWERS:
            way_out = f"luthier eval MODEL counts {name}; perplexity has a column of its own here"
            raise ConfigError(f"{name} is not counted by luthier models bench", where="--metric", next_step=way_out)


def _rows(data: str, most: int, reporter: Reporter) -> Sequence[Conversation]:
    loaded = prepare.load_rows(DataSettings(train=data, eval=None), Path(), seed=0, reporter=reporter)
    for note in loaded.notes:
        reporter.say(note)
    # Of rows that judge the better answer is the one that counts.
    rows = [dataclasses.replace(row, rejected=(), label=None) for row in loaded.train if row.label is not False]
    if not rows:
        raise DataError("holds no row with a good answer", where=data, next_step="give rows with good answers")
    return rows if len(rows) <= most else [rows[place * len(rows) // most] for place in range(most)]


def _unmeasured(name: str, error: Exception) -> Benched:
    if isinstance(error, LuthierError):
        return Benched(name, problem=error.problem)
    if not is_shortage(error):
        raise error
    return Benched(name, problem="the memory is not enough")


def _candidate(name: str, rows: Sequence[Conversation], machine: Machine, reporter: Reporter) -> _Candidate:
    """The model's files and the rows as it reads them. Raises LuthierError where it is not there, too large, or cannot be read."""
    card = find.of_catalog(name)
    known = card.facts if card else facts.from_folder(find.find(name, reporter))
    _require_room(known, machine)  # before a model of the catalog is fetched
    tokenizer = load.load_tokenizer(find.find(name, reporter), say=lambda line: reporter.say(f"{name}: {line}"))
    longest = min(tokenizer.model_max_length, rules()["max_length"]["most"])
    return _Candidate(name, known, tokenizer, [_asked(row, tokenizer, longest) for row in rows])


def _require_room(known: ModelFacts, machine: Machine) -> None:
    need, there = known.parameters * PRECISION_BYTES[machine.faster_precision], USABLE_SHARE * machine.memory_bytes
    if need > there:
        raise MachineError(
            f"its weights need {need / 1e9:.3g} GB, and {machine.name} has {machine.memory_bytes / 1e9:.3g} GB",
            where=machine.name,
            next_step="a smaller model",
        )


def _asked(row: Conversation, tokenizer: Any, longest: int) -> _Asked | None:
    """The row as a model reads it; None where it is too long for it, or its template cannot write it."""
    answer = tokenize(row, tokenizer, How(longest, "drop", "last_assistant"))
    text = _plain_text(row, tokenizer)
    if not isinstance(answer, Tokenized) or len(text.token_ids) > longest:
        return None
    try:
        prompt = prompt_ids(row.prompt, tokenizer, row.tools) if row.prompt else []
    except DataError:
        return None
    return _Asked(prompt, list(answer.examples), text) if len(prompt) < longest else None


def _text_of(row: Conversation) -> str:
    return "\n".join(turn.content for turn in row.turns)


def _plain_text(row: Conversation, tokenizer: Any) -> TokenizedExample:
    """The row's messages without a template, every token predicted: a token that begins or ends texts stands before the first."""
    ids = tokenizer(_text_of(row), add_special_tokens=False).input_ids
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return TokenizedExample([first, *ids], [False] + [True] * len(ids), row.source)


def _measured(
    candidate: _Candidate, rows: Sequence[Conversation], shared: Sequence[int], wanted: Sequence[str], precision: str, reporter: Reporter
) -> Benched:
    began = time.monotonic()
    engine = opening.open_model(candidate.name, reporter, precision)
    asked = [one for place in shared if (one := candidate.asked[place])]
    chosen = [rows[place] for place in shared]
    examples = [example for one in asked for example in one.answer]
    nats = -sum(engine.log_probabilities(examples))
    text_nats = -sum(engine.log_probabilities([one.text for one in asked]))
    scores = _scores(engine, chosen, asked, wanted, reporter)
    return Benched(
        candidate.name,
        candidate.facts.parameters,
        nats / math.log(2) / _bytes(row.answer for row in chosen),
        text_nats / math.log(2) / _bytes(_text_of(row) for row in chosen),
        math.exp(nats / sum(example.trained_tokens for example in examples)),
        scores,
        len(chosen),
        round(time.monotonic() - began, 1),
    )


def _bytes(texts: Any) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _scores(engine: Engine, rows: Sequence[Conversation], asked: Sequence[_Asked], wanted: Sequence[str], reporter: Reporter) -> dict[str, Metric]:
    """What the answers are worth, for the rows that ask something; {} where none does."""
    pairs = [(row.answer, one) for row, one in zip(rows, asked, strict=True) if one.prompt]
    if not pairs or not wanted:
        return {}
    # An answer is waited for as luthier eval does.
    rule = rules()["max_new_tokens"]
    lengths = [sum(example.trained_tokens for example in one.answer) for _, one in pairs]
    longest = max(rule["least"], math.ceil(rule["factor"] * float(np.percentile(lengths, 99))))
    with reporter.bar("asking", len(pairs)) as bar:
        answers = engine.answer([one.prompt for _, one in pairs], max_new_tokens=longest, on_answers=bar.advance)
    return {name: metrics.score(name, [expected for expected, _ in pairs], answers) for name in wanted}
