"""How likely the trained tokens of a row are: the fast path, the plain twin, and the log-probabilities that training knows."""

from pathlib import Path

import pytest
import torch

from luthier.engine import Engine, likelihood
from luthier.records import Source, TokenizedExample


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.open(str(tiny_model), device="cpu")


def row(ids: list[int], trained_from: int) -> TokenizedExample:
    return TokenizedExample(ids, [place >= trained_from for place in range(len(ids))], Source("rows", 1))


def rows() -> list[TokenizedExample]:
    draw = torch.Generator().manual_seed(0)
    shared = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16] * 4
    made = [torch.randint(3, 500, (length,), generator=draw).tolist() for length in (9, 3, 17, 5)]
    return [row(shared + ids, 40 + place) for place, ids in enumerate(made)] + [row(made[2], 1)]


def test_each_row_is_read_as_the_model_itself_reads_it(engine: Engine) -> None:
    examples = rows()
    found = engine.likelihoods(examples)
    with torch.no_grad():
        plainly = [likelihood.plain(engine.model, example) for example in examples]
    assert [(one.tokens, one.right) for one in found] == [(one.tokens, one.right) for one in plainly]
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in plainly], rel=1e-5)
    assert [one.log_probability for one in found] == pytest.approx(engine.log_probabilities(examples), rel=1e-5)


def test_what_the_model_would_say_itself_is_right(engine: Engine) -> None:
    prompt = [7, 8, 9, 10]
    said = engine.answers([prompt], max_new_tokens=6)[0]
    assert said.tokens == 6 or said.stopped
    ids = engine.tokenizer.encode(said.text, add_special_tokens=False)
    if said.tokens == len(ids):  # spelled back as it was said
        assert engine.likelihoods([row(prompt + ids, 4)])[0].right == len(ids)


def test_many_rows_are_cut_by_their_tokens() -> None:
    lengths = [9_000, 9_000, 100, 20_000, 5]
    batches = list(likelihood.batches([row([1] * length, 1) for length in lengths]))
    assert [[example.tokens for example in batch] for batch in batches] == [[9_000], [9_000, 100], [20_000], [5]]


def test_answers_are_told_of_as_they_end(engine: Engine) -> None:
    told: dict[int, str] = {}
    prompts = [[7, 8, 9], [10, 11, 12, 13], [7, 8, 9, 10, 11]]
    answers = engine.answers(prompts, max_new_tokens=5, on_answer=lambda place, answer: told.update({place: answer.text}))
    assert told == {place: answer.text for place, answer in enumerate(answers)}
    assert engine.answer(prompts, max_new_tokens=5) == [answer.text for answer in answers]
    assert {answer.stopped for answer in answers if answer.tokens == 5} <= {False}
