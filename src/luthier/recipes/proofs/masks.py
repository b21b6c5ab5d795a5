"""What is trained of each row of the slice, read off its token ids alone: not by the code that set the marks."""

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.recipes.proofs.bench import Bench, failed, passed
from luthier.records import Conversation, Proof, Source, TokenizedExample, Turn

SHOWN = 5
SAID_BY_THE_MODEL = ("assistant", "completion", "text")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with the examples that were made of it."""

    conversation: Conversation
    examples: tuple[TokenizedExample, ...]

    @property
    def source(self) -> Source:
        return self.conversation.source


def rows_of(bench: Bench) -> list[Row]:
    """The rows of the slice, each once, in their order."""
    by_source: dict[Source, Row] = {}
    prepared = bench.ready.prepared
    made: dict[Source, dict[tuple[int, ...], TokenizedExample]] = {}
    for example in prepared.train:
        made.setdefault(example.source, {}).setdefault((*example.token_ids, -1, *map(int, example.trained)), example)
    for conversation in prepared.rows.train:
        by_source.setdefault(conversation.source, Row(conversation, tuple(made.get(conversation.source, {}).values())))
    return list(by_source.values())


def masks(bench: Bench) -> Proof:
    """Decoded, the trained tokens are what the assistant says, with its end token; nothing of the prompt is trained."""
    how, tokenizer = bench.plan.settings.data, bench.ready.tokenizer
    ends = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | {tokenizer.eos_token_id}
    rows = rows_of(bench)
    wrong = [(row.source, problem) for row in rows if (problem := _problem(row, how.loss_on, how.too_long, tokenizer, ends))]
    trained = sum(example.trained_tokens for row in rows for example in row.examples)
    numbers = {"rows": len(rows), "trained_tokens": trained, "wrong": [[str(place), problem] for place, problem in wrong[:SHOWN]]}
    if wrong:
        place, problem = wrong[0]
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        return failed(f"{place}: {problem}{more}", f"luthier data show {place.file} --row {place.line} shows what is learned of it", **numbers)
    first, last = rows[0].source, rows[-1].source
    what = {"all": "every token", "last_assistant": "the last answer", "assistant": "the answers"}[how.loss_on]
    return passed(f"{len(rows)} rows ({first} ... {last}): of {what}, {trained:,} tokens, and of nothing else", **numbers)


def _problem(row: Row, loss_on: str, too_long: str, tokenizer: Any, ends: set[int]) -> str:
    """What is wrong with the marks of a row, or ""."""
    if not row.examples:
        return "the row has no example"
    for number, example in enumerate(row.examples):
        turns = _turns(row.conversation, number)
        said = [list(run) for run in _trained_runs(example)]
        if turns[0].role == "text" and all(example.trained[1:]):
            said = [example.token_ids]  # nothing stands before the first token, so it alone cannot be learned
        if not said:
            return "nothing is trained"
        shortened = too_long in ("split", "truncate")
        problem = _all_is_said(example, turns, tokenizer, shortened) if loss_on == "all" else _answers_alone(said, turns, tokenizer, ends, shortened)
        if problem:
            return problem
    if loss_on != "all" and too_long != "truncate":
        return _missing(row, tokenizer, loss_on)
    return ""


def _turns(conversation: Conversation, number: int) -> Sequence[Turn]:
    """The turns that example `number` of a row is made of: of a pair, the second has the worse answer."""
    if conversation.rejected and number == 1:
        return (*conversation.turns[: len(conversation.turns) - 1], *conversation.rejected)
    return conversation.turns


def _trained_runs(example: TokenizedExample) -> Iterator[Iterator[int]]:
    """The token ids of each stretch of trained tokens."""
    pairs = zip(example.token_ids, example.trained, strict=True)
    return ((token for token, _ in run) for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1]) if trained)


def _answers_alone(said: list[list[int]], turns: Sequence[Turn], tokenizer: Any, ends: set[int], shortened: bool) -> str:
    """Every stretch is one answer, to its end; and holds nothing that somebody else says."""
    spoken = [turn for turn in turns if turn.role in SAID_BY_THE_MODEL or turn.trained]
    asked = [_letters(turn.content) for turn in turns if turn.role not in SAID_BY_THE_MODEL and not turn.trained]
    for run in said:
        text = _letters(tokenizer.decode(run, skip_special_tokens=True))
        answer = next((turn for turn in spoken if _is_said(turn, text, shortened)), None)
        shown = repr(tokenizer.decode(run)[:60])
        if answer is None:
            return f"the trained tokens spell {shown}, which is no answer of the row"
        rest = text.replace(_letters(answer.content), "", 1)
        if any(len(question) > len("yes") and question in rest for question in asked):
            return f"the trained tokens {shown} hold a part of the prompt"
        if not answer.extra and answer.role == "assistant" and rest and not _is_of_the_template(rest):
            return f"the trained tokens {shown} hold more than the answer: {rest[:40]!r}"
        if answer.role in SAID_BY_THE_MODEL and run[-1] not in ends and not (shortened and answer.role == "text"):
            return f"the end of the answer {shown} is not trained: the model would not learn to stop"
    return ""


def _is_said(turn: Turn, text: str, shortened: bool) -> bool:
    content = _letters(turn.content)
    if "</think>" in turn.content:
        content = _letters(turn.content.rpartition("</think>")[2])
    return content in text or (shortened and text in content)


def _is_of_the_template(rest: str) -> bool:
    """What templates write into an answer by themselves: marks of a thought or a channel that is empty."""
    return rest.startswith("<") or rest in ("final",)


def _all_is_said(example: TokenizedExample, turns: Sequence[Turn], tokenizer: Any, shortened: bool) -> str:
    untrained = [place for place, on in enumerate(example.trained) if not on]
    marked_out = any(turn.trained is False for turn in turns)
    if untrained[1:] and not marked_out:
        return f"loss_on is all, and {len(untrained) - 1} tokens are not trained"
    text = _letters(tokenizer.decode(example.token_ids, skip_special_tokens=True))
    lost = next((turn for turn in turns if _letters(turn.content) not in text), None)
    return "" if lost is None or shortened else f"the tokens do not spell {lost.content[:40]!r}"


def _missing(row: Row, tokenizer: Any, loss_on: str) -> str:
    """An answer that should be learned, and is in no example; or one that should not."""
    if row.conversation.turns[0].role == "text":
        return ""  # compared above; a text that was split is learned in pieces
    text = "\n".join(_letters(tokenizer.decode(list(run), skip_special_tokens=True)) for example in row.examples for run in _trained_runs(example))
    turns = row.conversation.turns
    answers = [turn for turn in turns if turn.role in SAID_BY_THE_MODEL]
    judged = bool(row.conversation.rejected) or row.conversation.label is not None
    wanted = answers[-1:] if judged or loss_on == "last_assistant" else [turn for turn in answers if turn.trained is not False]
    if row.conversation.rejected:
        wanted = [*wanted, row.conversation.rejected[-1]]
    lost = next((turn for turn in wanted if not turn.extra and not _is_said(turn, text, shortened=False)), None)
    return "" if lost is None else f"the answer {lost.content[:40]!r} is not trained"


def _letters(text: str) -> str:
    """Without what templates and tokenizers change on purpose: blanks, and the form of characters."""
    return "".join(unicodedata.normalize("NFKC", text).replace("\u2581", " ").split())
