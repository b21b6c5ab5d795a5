"""Which to ship: the least that is not measurably worse than the best, said in one sentence with its numbers."""

import pytest

from luthier.evaluate import sums
from luthier.evaluate.shipping import which

COSTS = {"tuned": {"seconds_per_answer": 0.5, "tokens_per_answer": 9.0, "prompt_tokens_per_question": 40.0, "price_per_answer": None}}


def counts(**right: int) -> dict[str, sums.Counted]:
    """Of 200 questions so many right, the first ones."""
    return {name: sums.of_scores([float(place < count) for place in range(200)], "share") for name, count in right.items()}


@pytest.mark.parametrize(
    ("right", "ship"),
    [
        ({"base": 20, "tuned": 60, "base_rag": 90, "tuned_rag": 150}, "tuned_rag"),
        ({"base": 20, "tuned": 149, "base_rag": 90, "tuned_rag": 150}, "tuned"),
        ({"base": 20, "tuned": 30, "base_rag": 150, "tuned_rag": 150}, "base_rag"),
        ({"base": 150, "tuned": 150, "base_rag": 150, "tuned_rag": 150}, "base"),
        ({"base": 20, "tuned": 150, "base_rag": 90, "tuned_rag": 60}, "tuned"),
    ],
)
def test_the_least_that_is_as_good_as_the_best(right: dict[str, int], ship: str) -> None:
    assert which(counts(**right), "exact_match", COSTS)[0] == ship


def test_the_sentence_has_the_score_the_distance_and_the_cost() -> None:
    _, sentence = which(counts(base=20, tuned=149, base_rag=90, tuned_rag=150), "exact_match", COSTS)
    assert sentence.startswith(
        "Ship the tuned model alone: exact_match 74.5% (68-80) on 200 questions, not measurably worse than the tuned model with"
    )
    assert "and 29.5 points (23.0 to 36.0) better than the base model with retrieval" in sentence
    assert sentence.endswith("an answer takes 0.50 s, 40 tokens to read and 9 to write.")


def test_of_a_metric_where_less_is_better_the_lowest_is_best() -> None:
    assert which(counts(base=150, tuned=20, base_rag=90, tuned_rag=20), "repetition", COSTS)[0] == "tuned"
