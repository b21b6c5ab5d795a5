"""The certificate: numbers in, a verdict out."""

import dataclasses

import pytest
import torch

from luthier.export import parity
from luthier.export.parity import Answers
from luthier.records import Parity

LOGITS = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
SAME = {"trained": 0.9, "artifact": 0.9}


def compare(logits: torch.Tensor, texts: list[str] | None = None, stored: str = "fp32") -> Parity:
    trained = Answers(["a", "b"], [LOGITS, LOGITS])
    exported = Answers(texts or ["a", "b"], [LOGITS, logits])
    return parity.compare(trained, exported, artifact="merged", engine="luthier fp32", stored=stored, limits=parity.threshold(stored))


def test_the_same_model_passes_with_zeros() -> None:
    found = compare(LOGITS)
    assert (found.max_logit_difference, found.mean_kl, found.greedy_agreement, found.passed) == (0.0, 0.0, 1.0, True)
    assert found.threshold == parity.THRESHOLDS["fp32"]
    assert parity.broken(found) == []


def test_kl_is_that_of_torch() -> None:
    other = LOGITS + torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.kl_div(other.log_softmax(-1), LOGITS.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert torch.allclose(parity.kl_divergence(LOGITS, other).float(), expected, atol=1e-5)
    assert compare(other).max_kl == pytest.approx(float(expected.max()), rel=1e-4)


def test_differences_of_logits_are_judged_by_how_far_logits_are_apart() -> None:
    other = LOGITS.clone()
    other[4, 29] += 2e-4 * float(torch.cat([LOGITS, LOGITS]).std())
    found = compare(other)
    assert found.max_logit_difference_in_std == pytest.approx(2e-4, rel=1e-2)
    assert not found.passed
    assert parity.broken(found) == ["max_logit_difference_in_std is 0.0002 and may be no more than 0.0001"]
    other[4, 29] = LOGITS[4, 29] + 0.5e-4 * float(LOGITS.std())
    assert compare(other).passed


def test_a_shift_of_all_logits_is_the_same_distribution_but_not_the_same_model() -> None:
    found = compare(LOGITS + 0.5)
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.max_logit_difference == pytest.approx(0.5)
    assert not found.passed
    assert compare(LOGITS + 0.5, stored="bf16").passed


def test_one_far_logit_in_one_row_is_seen() -> None:
    other = LOGITS.clone()
    other[4, 29] += 3
    assert compare(other).max_logit_difference == pytest.approx(3)
    assert not compare(other, stored="bf16").passed


def test_other_answers_do_not_pass_though_the_numbers_are_near() -> None:
    found = compare(LOGITS, texts=["a", "c"], stored="fp32")
    assert found.greedy_agreement == 0.5
    assert not found.passed


def test_numbers_that_are_none_do_not_pass() -> None:
    for stored in ("fp32", "bf16", "fp16"):
        assert not compare(torch.full_like(LOGITS, float("nan")), stored=stored).passed


@pytest.mark.parametrize(("agreement", "passed"), [(0.99, True), (0.98, False)])
def test_agreement_has_a_least_value_and_distances_a_most(agreement: float, passed: bool) -> None:
    exact = {"mean_kl": 1e-6, "max_logit_difference_in_std": 1e-4}
    assert parity.holds({**exact, "greedy_agreement": agreement}, parity.THRESHOLDS["fp32"]) is passed
    assert not parity.holds({**exact, "mean_kl": 1.1e-6, "greedy_agreement": 1.0}, parity.THRESHOLDS["fp32"])
    assert not parity.holds({"mean_kl": None}, {"mean_kl": 1.0})


def test_the_limits_are_those_that_are_promised() -> None:
    assert parity.THRESHOLDS["fp32"]["max_logit_difference_in_std"] == 1e-4
    assert parity.THRESHOLDS["bf16"] == {"mean_kl": 1e-3}
    assert parity.THRESHOLDS["f16"] == {"top1_agreement": 0.995}
    assert parity.threshold("q4_k_m") == {"loss_of_metric": parity.ALLOWED_LOSS}
    assert parity.threshold("int4", allow_loss=0.02) == {"loss_of_metric": 0.02}
    assert parity.threshold("bf16", allow_loss=0.02) == {"mean_kl": 1e-3, "loss_of_metric": 0.02}


@pytest.mark.parametrize(
    ("metric", "artifact", "passed"),
    [("exact_match", 0.85, True), ("exact_match", 0.7, False), ("exact_match", 1.0, True), ("refusals", 1.0, True), ("refusals", 1.05, False)],
)
def test_what_has_fewer_bits_may_lose_so_much_of_a_metric(metric: str, artifact: float, passed: bool) -> None:
    trained = Answers(["a"], likeliest=[[1, 2]])
    found = parity.compare(
        trained,
        dataclasses.replace(trained, likeliest=[[1, 3]]),
        artifact="gguf",
        engine="llama.cpp",
        stored="q4_k_m",
        limits=parity.threshold("q4_k_m"),
        metrics={"valid_json": SAME, metric: {"trained": 0.9, "artifact": artifact}},
    )
    assert found.passed is passed
    assert (found.mean_kl, found.top1_agreement) == (None, 0.5)
    assert [row for row in parity.in_words(found) if row[0] == metric] == [[metric, f"0.9 -> {artifact:.3g}", "at most 0.1 worse"]]


@pytest.mark.parametrize(("loss", "passed"), [(1.05, True), (1.2, False)])
def test_without_a_metric_the_perplexity_is_judged_and_without_that_the_words(loss: float, passed: bool) -> None:
    limits = parity.threshold("int4")
    one, other = Answers([], losses=[1.0]), Answers([], losses=[loss])
    found = parity.compare(one, other, artifact="awq", engine="luthier fp32", stored="int4", limits=limits)
    assert found.passed is passed
    assert bool(parity.broken(found)) is not passed
    words = [Answers([], likeliest=[list(range(20))]), Answers([], likeliest=[[*range(19 if passed else 15), *[-1] * (1 if passed else 5)]])]
    assert parity.compare(*words, artifact="gguf", engine="llama.cpp", stored="q8_0", limits=limits).passed is passed


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False)])
def test_f16_may_differ_in_one_likeliest_word_of_two_hundred(wrong: int, passed: bool) -> None:
    trained, exported = (Answers([], likeliest=[list(range(200))]) for _ in range(2))
    for place in range(wrong):
        exported.likeliest[0][place] = 999
    found = parity.compare(trained, exported, artifact="gguf", engine="llama.cpp", stored="f16", limits=parity.threshold("f16"))
    assert found.passed is passed
    if wrong:
        assert parity.furthest(trained, exported) == (0, 200)


def test_the_likeliest_words_alone_give_nearly_the_whole_kl_and_never_more() -> None:
    other = LOGITS + 0.3 * torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    whole = parity.kl_divergence(LOGITS, other)
    shares = other.log_softmax(-1)
    for words in (30, 25, 3):
        heads = [{int(word): float(row[word]) for word in row.topk(words).indices} for row in shares]
        found = torch.tensor([parity.kl_of_head(row, head) for row, head in zip(LOGITS, heads, strict=True)])
        assert bool((found <= whole + 1e-6).all())
        if words >= 25:
            assert torch.allclose(found.double(), whole, atol=5e-2 * float(whole.max()) if words < 30 else 1e-6)
    certificate = parity.compare(
        Answers([], [LOGITS], [[0] * 5]), Answers([], likeliest=[[0] * 5], heads=[heads]), artifact="g", engine="llama.cpp", stored="q8_0", limits={}
    )
    assert certificate.mean_kl == pytest.approx(float(found.mean()))
    assert certificate.max_logit_difference is None


def test_the_place_where_two_models_are_furthest_apart_is_found() -> None:
    other = LOGITS.clone()
    other[1, 3] += 5
    assert parity.furthest(Answers([], [LOGITS, LOGITS]), Answers([], [LOGITS, other])) == (1, 4)
    assert parity.furthest(Answers([], likeliest=[[1]]), Answers([], likeliest=[[1]])) == (-1, 0)


def test_perplexity_stands_before_and_after() -> None:
    one, other = Answers([], losses=[1.0, 3.0]), Answers([], losses=[2.0, 4.0])
    found = parity.compare(one, other, artifact="awq", engine="luthier fp32", stored="int4", limits={})
    assert found.perplexity == {"trained": pytest.approx(7.389, rel=1e-3), "artifact": pytest.approx(20.086, rel=1e-3)}


def test_onto_the_original_base_it_is_judged_by_a_threshold_of_its_own() -> None:
    assert parity.threshold("bf16", "trained") == {"mean_kl": 1e-3}
    assert parity.threshold("bf16", "original") == {"mean_kl": 0.1}
