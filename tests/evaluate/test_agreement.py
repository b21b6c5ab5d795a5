import pytest

from luthier.evaluate.agreement import cohen, fleiss

ANN = list("aabb=abbab=aab=babba")
BEN = list("aabbaabbbb=aaa=ba=ba")
EVE = list("abbb=aab=b=bab=babba")


def test_cohens_kappa_is_that_of_scikit_learn():
    assert cohen(ANN, BEN) == pytest.approx(0.6761133603238867, abs=1e-12)  # sklearn 1.9.1: cohen_kappa_score


def test_fleiss_kappa_is_that_of_statsmodels():
    items = list(zip(ANN, BEN, EVE, strict=True))
    assert fleiss(items) == pytest.approx(0.5985727029438002, abs=1e-12)  # statsmodels 0.15.0: inter_rater.fleiss_kappa


def test_perfect_chance_and_no_value():
    assert cohen("abab", "abab") == 1
    assert cohen("aabb", "abab") == 0
    assert cohen("aaaa", "aaaa") is None
    assert fleiss([("a", "a"), ("b", "b")]) == 1
    assert fleiss([("a", "a"), ("a", "a")]) is None


def test_items_with_fewer_marks_are_refused():
    with pytest.raises(ValueError, match="2 marks"):
        fleiss([("a", "b", "a"), ("a", "b")])
