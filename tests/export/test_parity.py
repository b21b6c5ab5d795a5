"""The certificate: numbers in, a verdict out."""

import pytest
import torch

from luthier.export import parity
from luthier.export.parity import Answers
from luthier.records import Parity

LOGITS = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))


def compare(logits: torch.Tensor, texts: list[str] | None = None, precision: str = "fp32") -> Parity:
    trained = Answers(["a", "b"], [LOGITS, LOGITS])
    return parity.compare(trained, Answers(texts or ["a", "b"], [LOGITS, logits]), artifact="merged", engine="luthier fp32", precision=precision)


def test_the_same_model_passes_with_zeros() -> None:
    found = compare(LOGITS)
    assert (found.max_logit_difference, found.mean_kl, found.greedy_agreement, found.passed) == (0.0, 0.0, 1.0, True)
    assert found.threshold == parity.THRESHOLDS["fp32"]


def test_kl_is_that_of_torch() -> None:
    other = LOGITS + torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.kl_div(other.log_softmax(-1), LOGITS.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert torch.allclose(parity.kl_divergence(LOGITS, other).float(), expected, atol=1e-5)


def test_a_shift_of_all_logits_is_the_same_distribution_but_not_the_same_model() -> None:
    found = compare(LOGITS + 0.5)
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.max_logit_difference == pytest.approx(0.5)
    assert not found.passed
    assert compare(LOGITS + 0.5, precision="bf16").passed


def test_one_far_logit_in_one_row_is_seen() -> None:
    other = LOGITS.clone()
    other[4, 29] += 3
    assert compare(other).max_logit_difference == pytest.approx(3)
    assert not compare(other, precision="bf16").passed


def test_other_answers_do_not_pass_though_the_numbers_are_near() -> None:
    found = compare(LOGITS, texts=["a", "c"], precision="fp32")
    assert found.greedy_agreement == 0.5
    assert not found.passed


def test_numbers_that_are_none_do_not_pass() -> None:
    for precision in parity.THRESHOLDS:
        assert not compare(torch.full_like(LOGITS, float("nan")), precision=precision).passed


@pytest.mark.parametrize(("agreement", "passed"), [(0.99, True), (0.98, False)])
def test_agreement_has_a_least_value_and_distances_a_most(agreement: float, passed: bool) -> None:
    exact = {"mean_kl": 1e-6, "max_logit_difference": 1e-2}
    assert parity.holds({**exact, "greedy_agreement": agreement}, parity.THRESHOLDS["fp32"]) is passed
    assert not parity.holds({**exact, "mean_kl": 1.1e-6, "greedy_agreement": 1.0}, parity.THRESHOLDS["fp32"])
    assert parity.holds({"mean_kl": 1e-2, "greedy_agreement": 0.5}, parity.THRESHOLDS["bf16"])
    assert not parity.holds({"mean_kl": 1.1e-2, "greedy_agreement": 1.0}, parity.THRESHOLDS["bf16"])


def test_onto_the_original_base_it_is_judged_by_a_threshold_of_its_own() -> None:
    other = LOGITS + 0.3 * torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    trained = Answers([], [LOGITS])
    found = {
        onto: parity.compare(trained, Answers([], [other]), artifact="merged", engine="luthier fp32", precision="bf16", onto=onto)
        for onto in ("trained", "original")
    }
    assert 1e-2 < found["trained"].mean_kl < 0.1
    assert (found["trained"].passed, found["original"].passed) == (False, True)
    assert (found["trained"].threshold, found["original"].threshold) == ({"mean_kl": 1e-2}, {"mean_kl": 0.1})
    assert found["original"].onto == "original"
