"""Sampling means what it means in Transformers: checked against its logits processors on the same logits."""

import itertools
import math

import pytest
import torch
from transformers.generation import logits_process as of_transformers

from luthier.engine.sampling import FIRST_CANDIDATES, Chooser, Sampling, draws_of, penalized, warped
from luthier.errors import CallError


def logits_of(spread: float, words: int = 2000, rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("spread", [0.1, 4.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"), list(itertools.product([0.7, 1.5], [0, 1, 30], [1.0, 0.9, 0.05], [0.0, 0.1, 1.0]))
)
def test_the_same_tokens_are_left_as_in_transformers(spread: float, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = logits_of(spread)
    steps = [of_transformers.TemperatureLogitsWarper(temperature)]
    steps += [of_transformers.TopKLogitsWarper(top_k)] if top_k else []
    steps += [of_transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [of_transformers.MinPLogitsWarper(min_p)] if min_p else []
    expected = of_transformers.LogitsProcessorList(steps)(torch.zeros(5, 1, dtype=torch.long), logits)
    found = warped(logits, Sampling(temperature, top_p, top_k, min_p))
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected)


def test_a_flat_nucleus_is_wider_than_the_first_candidates() -> None:
    left = (~warped(logits_of(0.1), Sampling(temperature=1.0, top_p=0.9)).isinf()).sum(dim=-1)
    assert left.min() > FIRST_CANDIDATES  # or the test above says nothing about the second look


def test_the_penalty_is_that_of_transformers() -> None:
    logits, seen = logits_of(2.0, words=50), torch.tensor([[3, 7, 3]] * 5)
    expected = of_transformers.RepetitionPenaltyLogitsProcessor(1.3)(seen, logits)
    mask = torch.zeros(5, 50, dtype=torch.bool).scatter_(1, seen, True)
    assert torch.equal(penalized(logits, mask, 1.3), expected)
    assert not torch.equal(expected, logits)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampling = Sampling(temperature=2.0, top_k=3)
    rows = 20_000
    prompts = [[place] for place in range(rows)]
    chooser = Chooser(sampling, prompts, draws_of(0, prompts), 4, torch.device("cpu"))
    shares = chooser.choose(logits.expand(rows, -1)).bincount(minlength=4) / rows
    expected = torch.softmax(torch.tensor([0.0, 0.5, 1.0, -math.inf]), dim=-1)
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)
    assert shares[3] == 0


def test_draws_come_from_the_prompt_and_from_how_often_it_was_asked() -> None:
    one, other, again = (draw.random() for draw in draws_of(5, [[1, 2], [3], [1, 2]]))
    assert len({one, other, again}) == 3
    assert [draw.random() for draw in draws_of(5, [[3], [1, 2], [1, 2]])] == [other, one, again]
    assert draws_of(6, [[1, 2]])[0].random() != one


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -0.1), ("temperature", math.nan), ("top_p", 1.5), ("top_k", -1), ("min_p", 2.0), ("repetition_penalty", 0.0)]
)
def test_a_value_that_means_nothing_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(CallError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]
