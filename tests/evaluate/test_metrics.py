import pytest

from luthier.config.settings import Settings
from luthier.errors import DataError
from luthier.evaluate.metrics import METRICS, check, exact_match, field_f1, score, valid_json

ADDRESS = '{"city": "Reno", "state": "NV", "zip": "89501"}'


@pytest.mark.parametrize(
    ("expected", "answer", "worth"),
    [
        ("Paris", " Paris\n", 1),
        ("Paris", "paris", 0),
        ("a  b", "a b", 0),
        (ADDRESS, '{"zip":"89501","state":"NV","city":"Reno"}', 1),  # order and spacing of JSON do not count
        (ADDRESS, '{"city": "Reno", "state": "NV", "zip": 89501}', 0),  # a number is not a text
        (ADDRESS, '{"city": "Reno", "state": "NV"}', 0),
        (ADDRESS, ADDRESS + " Hope this helps!", 0),
        (ADDRESS, "", 0),
        ("[1, 2]", "[1,2]", 1),
        ("[1, 2]", "[2,1]", 0),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": 1}', '{"a": 1.0}', 0),
        ('{"a": {"x": 1, "y": 2}}', '{"a": {"y": 2, "x": 1}}', 1),
        ("12", "12.0", 0),
        ("{", "{", 1),
        ("{", "{}", 0),
    ],
)
def test_exact_match(expected, answer, worth):
    assert exact_match(expected, answer) == worth


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (ADDRESS, 1),
        ("{}", 1),
        (f"  {ADDRESS}\n", 1),
        (f"```json\n{ADDRESS}\n```", 0),
        (f"Here it is: {ADDRESS}", 0),
        (ADDRESS[:-1], 0),
        ("[1]", 0),
        ("null", 0),
        ('{"a": NaN}', 0),
        ('{"a": Infinity}', 0),
        ("", 0),
        ("[" * 100_000, 0),
        ('{"a":' * 100_000, 0),
    ],
)
def test_valid_json_is_an_object_alone(answer, worth):
    assert valid_json(ADDRESS, answer) == worth


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (ADDRESS, 1),
        ('{"city": "Reno", "state": "NV"}', 2 * 2 / 5),
        ('{"city": "Reno", "state": "CA", "zip": "89501"}', 2 * 2 / 6),
        ('{"city": "Reno", "state": "NV", "zip": "89501", "unit": "4"}', 2 * 3 / 7),
        ('{"town": "Reno"}', 0),
        ("{}", 0),
        ("Reno, NV", 0),
        (f"```json\n{ADDRESS}\n```", 0),
    ],
)
def test_field_f1_counts_equal_pairs(answer, worth):
    assert field_f1(ADDRESS, answer) == pytest.approx(worth)


def test_two_empty_objects_agree():
    assert field_f1("{}", "{}") == 1


def test_fields_cannot_be_counted_where_the_right_answer_has_none():
    with pytest.raises(DataError, match="an expected answer is 'Paris'") as caught:
        check(["exact_match", "field_f1"], [ADDRESS, "Paris"])
    assert "take field_f1 out" in str(caught.value)
    check(["exact_match", "valid_json"], ["Paris"])


def test_a_score_has_its_interval_and_its_rows():
    metric = score("exact_match", ["a"] * 10, ["a"] * 7 + ["b"] * 3)
    assert metric.value == pytest.approx(0.7)
    assert (metric.low, metric.high) == (pytest.approx(0.397, abs=1e-3), pytest.approx(0.892, abs=1e-3))
    assert metric.n == 10


def test_a_graded_score_lies_in_its_interval():
    metric = score("field_f1", [ADDRESS] * 40, [ADDRESS, '{"city": "Reno"}'] * 20)
    assert metric.value == pytest.approx(0.75)
    assert 0.6 < metric.low < 0.75 < metric.high < 0.9


def test_no_rows_are_no_score():
    with pytest.raises(DataError, match="no held-out row"):
        score("exact_match", [], [])


def test_an_answer_too_few_is_never_overlooked():
    with pytest.raises(ValueError):
        score("exact_match", ["a", "b"], ["a"])


def test_the_settings_offer_exactly_the_metrics_that_exist():
    offered = Settings.model_json_schema()["$defs"]["EvaluationSettings"]["properties"]["metrics"]["items"]["enum"]
    assert set(offered) == set(METRICS)
