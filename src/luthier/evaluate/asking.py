"""Rows put to a model: its answers, kept as they come, and how likely it finds the expected ones."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from luthier.data.tokenize import How, prompt_ids, tokenize
from luthier.engine import Engine
from luthier.engine.sampling import Sampling
from luthier.errors import DataError
from luthier.evaluate import questions
from luthier.evaluate.kept import Kept, key_of
from luthier.evaluate.words import label
from luthier.records import Answer, Conversation, Likelihood, Rejected, TokenizedExample
from luthier.reporting import Bar, Reporter

# More labels than these are no choice: every one of them is read for every row.
MOST_LABELS = 50
# What is counted of likelihoods alone, so that plain texts, which ask nothing, can be compared.
OF_TEXTS = ("perplexity", "token_accuracy")

Keep = Callable[[int, Answer], None]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are made. Of each question there are `samples`, each with a seed of its own; at temperature 0 all would be the same."""

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1

    def of(self, sample: int) -> Sampling:
        return replace(self.sampling, seed=self.sampling.seed + sample)


@dataclass(frozen=True, slots=True)
class Column:
    """What one model made of the first `len(answers)` rows: its answers (one or several each), and where that was asked for, how likely
    the expected answers are to it, and whether it finds the right one of all labels the likeliest."""

    name: str
    answers: list[list[Answer]]
    likelihoods: list[Likelihood] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of all answers
    prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        return [samples[0].text for samples in self.answers]


def ask(
    engine: Engine,
    name: str,
    identity: str,
    rows: Sequence[Conversation],
    examples: Sequence[Conversation],
    how: Decoding,
    kept: Kept,
    reporter: Reporter,
) -> Column:
    """The answers of a model to rows, in batches; those in `kept` are not asked for again. `identity` says which model this is, to the weight."""
    prompts = [prompt(row, examples, engine) for row in rows]
    keys = [[key_of(identity, ids, _spelled(how, sample)) for sample in range(how.samples)] for ids in prompts]
    missing = [(place, sample) for sample in range(how.samples) for place in range(len(rows)) if kept.answer(keys[place][sample]) is None]
    whole = len(rows) * how.samples
    if len(missing) < whole:
        reporter.say(f"{name}: {whole - len(missing)} of {whole} answers are kept from before")
    done = whole - len(missing)
    if missing:
        with reporter.bar(f"asking {name}", whole) as bar:
            bar.advance(done)
            for sample in range(how.samples):
                asked = [place for place, one in missing if one == sample]

                keep = partial(_keep, kept, name, sample, [(str(rows[place].source), keys[place][sample], len(prompts[place])) for place in asked])
                kept.begin()
                _answer(engine, [prompts[place] for place in asked], how, sample, keep, partial(_advance, bar, done))
                done += len(asked)
    answers = [[_found(kept, key) for key in of_row] for of_row in keys]
    seconds = sum(kept.seconds(key) for of_row in keys for key in of_row)
    return Column(name, answers, seconds=seconds, prompt_tokens=sum(map(len, prompts)) * how.samples)


def _keep(kept: Kept, name: str, sample: int, asked: list[tuple[str, str, int]], index: int, answer: Answer) -> None:
    row, key, prompt_tokens = asked[index]
    kept.add(key, answer, model=name, row=row, sample=sample, prompt_tokens=prompt_tokens)


def _advance(bar: Bar, before: int, answers: int) -> None:
    bar.advance(before + answers)


def _answer(engine: Engine, prompts: list[list[int]], how: Decoding, sample: int, keep: Keep, advance: Callable[[int], None]) -> None:
    """Ask what leaves room for an answer; to the rest the answer is empty, which is what a model of this context can say."""
    fitting = [place for place, ids in enumerate(prompts) if engine.has_room(ids)]
    for place in sorted(set(range(len(prompts))) - set(fitting)):
        keep(place, Answer("", 0, False))
    if fitting:
        engine.answers(
            [prompts[place] for place in fitting],
            max_new_tokens=how.max_new_tokens,
            sampling=how.of(sample),
            on_answers=advance,
            on_answer=lambda index, answer: keep(fitting[index], answer),
        )


def _found(kept: Kept, key: str) -> Answer:
    answer = kept.answer(key)
    assert answer is not None
    return answer


def _spelled(how: Decoding, sample: int) -> dict[str, object]:
    drawn = how.of(sample)
    greedy = drawn.temperature == 0
    values = {name: getattr(drawn, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    return {"max_new_tokens": how.max_new_tokens, **values, "seed": 0 if greedy else drawn.seed}


def prompt(row: Conversation, examples: Sequence[Conversation], engine: Engine) -> list[int]:
    """A row's question as tokens, with examples before it. Raises DataError where the chat template refuses it."""
    # Where training rows are asked, none is shown its own answer.
    others = [example for example in examples if example.turns != row.turns]
    turns = questions.with_examples(row.prompt, others) if others else row.prompt
    try:
        ids: list[int] = prompt_ids(turns, engine.tokenizer, row.tools)
    except DataError as error:
        raise DataError(error.problem, where=str(row.source), next_step="ask in the form that the model was trained with") from error
    return ids


def likelihoods(engine: Engine, name: str, rows: Sequence[Conversation], reporter: Reporter, longest_text: int | None = None) -> list[Likelihood]:
    """How likely the expected answers are to a model; of plain texts, the texts themselves, in windows of `longest_text` tokens."""
    windows = min(one for one in (longest_text, engine.context, sys.maxsize) if one)
    of_rows = [_examples(row, engine, windows) for row in rows]
    examples = [example for of_row in of_rows for example in of_row]
    with reporter.bar(f"reading the expected answers with {name}", len(examples)) as bar:
        found = iter(engine.likelihoods(examples, bar.advance))
    return [_summed([next(found) for _ in of_row]) for of_row in of_rows]


def _summed(windows: Sequence[Likelihood]) -> Likelihood:
    return Likelihood(sum(one.log_probability for one in windows), sum(one.tokens for one in windows), sum(one.right for one in windows))


def choices(engine: Engine, name: str, rows: Sequence[Conversation], labels: Sequence[str], reporter: Reporter) -> list[float]:
    """1 for each row whose expected answer is the likeliest of all labels (MMLU's way: Hendrycks 2020, arXiv:2009.03300)."""
    examples = [_example(replace(row, turns=(*row.prompt, replace(row.turns[-1], content=one))), engine) for row in rows for one in labels]
    with reporter.bar(f"choosing with {name}", len(examples)) as bar:
        found = [one.log_probability for one in engine.likelihoods(examples, bar.advance)]
    likeliest = [max(range(len(labels)), key=lambda place: found[row * len(labels) + place]) for row in range(len(rows))]
    return [float(label(labels[place]) == label(row.answer)) for place, row in zip(likeliest, rows, strict=True)]


def labels_of(rows: Sequence[Conversation]) -> list[str]:
    """The different expected answers. Raises DataError where they are too many to be labels."""
    found = sorted({row.answer for row in rows})
    if len(found) > MOST_LABELS:
        problem = f"choice takes the likeliest of all expected answers, and there are {len(found):,} of them"
        raise DataError(problem, where="evaluation.metrics", next_step=f"take choice out, or give rows with at most {MOST_LABELS} labels")
    return found


def _example(row: Conversation, engine: Engine) -> TokenizedExample:
    return _examples(row, engine, sys.maxsize)[-1]


def _examples(row: Conversation, engine: Engine, windows: int) -> Sequence[TokenizedExample]:
    """The last answer with what stands before it; or a text, whole or in windows."""
    if row.templated or row.prompt:
        how = How(max_length=sys.maxsize, loss_on="last_assistant")
    else:
        how = How(max_length=windows, too_long="split", loss_on="last_assistant")
    found = tokenize(row, engine.tokenizer, how)
    if isinstance(found, Rejected):
        raise DataError(found.detail, where=str(row.source), next_step="mend the row, or take perplexity, token_accuracy and choice out")
    return found.examples if how.too_long == "split" else found.examples[-1:]
