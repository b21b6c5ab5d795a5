import pytest

from luthier.config.metric_names import check as check_name
from luthier.config.metric_names import lower_is_better, with_file
from luthier.config.settings import Settings
from luthier.errors import ConfigError, DataError
from luthier.evaluate.json_answers import exact_match, field_f1, valid_json
from luthier.evaluate.metrics import MADE, METRICS, OF_ANSWERS, OF_MODEL, SUMMED, check, difference_in_words, in_words, score
from luthier.records import Metric

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
    offered = Settings.model_json_schema()["$defs"]["EvaluationSettings"]["properties"]["metrics"]["items"]["examples"]
    assert set(offered) == {*METRICS, *MADE, *SUMMED, *OF_ANSWERS, *OF_MODEL}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exact_mach", "nearest: exact_match"),
        ("json_schema", "json_schema=FILE"),
        ("rouge1=x", "takes nothing after it"),
        ("regex=", "ends at its ="),
        ("pass@0", "unknown metric"),
    ],
)
def test_a_name_that_is_no_metric_is_refused_with_the_nearest(name, said):
    with pytest.raises(ValueError, match=said):
        check_name(name)


def test_names_that_hold_something():
    for name in ("regex=^a:b=c$", "json_schema=a/b.json", "pass@10", "my.metrics:mine", "metrics/mine.py:mine"):
        assert check_name(name) == name


def test_a_file_in_a_name_is_put_elsewhere():
    moved = {
        "json_schema=a.json": "json_schema=/x/a.json",
        "sql_match=b.sqlite": "sql_match=/x/b.sqlite",
        "mine.py:half": "/x/mine.py:half",
        "my.metrics:mine": "my.metrics:mine",
        "regex=a.py:b": "regex=a.py:b",
        "drift/kl": "drift/kl",
    }
    assert {name: with_file(name, lambda file: f"/x/{file}") for name in moved} == moved
    assert with_file("mine.py:half", lambda file: f"/a=b/{file}") == "mine.py:half", "else the name could not be read again"


def test_it_is_known_where_less_is_better_and_a_suite_may_say_so():
    assert all(map(lower_is_better, ("refusals", "repetition", "wiki word_perplexity", "wiki bits_per_byte (first)")))
    assert not any(map(lower_is_better, ("exact_match", "json_schema=perplexity", "wiki acc (perplexity)")))
    assert lower_is_better("heard wer", ["heard wer"])


def test_a_metric_of_ones_own_by_its_file(tmp_path):
    (tmp_path / "mine.py").write_text("def half(expected, answer):\n    return 0.5 if answer else 1 / 0\n")
    assert score("mine.py:half", ["a", "b"], ["a", "c"], tmp_path).value == 0.5
    with pytest.raises(ConfigError, match=r"mine.py:half: ZeroDivisionError: .* for the answer ''"):
        score("mine.py:half", ["a"], [""], tmp_path)
    with pytest.raises(ConfigError, match="it cannot be imported"):
        score("mine.py:third", ["a"], ["a"], tmp_path)


def test_json_that_follows_a_schema(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object", "required": ["city"], "properties": {"zip": {"type": "string"}}}')
    answers = [ADDRESS, '{"city": "Reno", "zip": 89501}', '{"zip": "1"}', "Reno"]
    assert score("json_schema=schema.json", [""] * 4, answers, tmp_path).value == 0.25
    (tmp_path / "none.json").write_text('{"type": "nothing"}')
    for file, said in (("none.json", "is no JSON Schema"), ("missing.json", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            score(f"json_schema={file}", [""], [""], tmp_path)


def test_values_are_shown_in_their_unit():
    assert in_words("exact_match", Metric(0.973, 0.95, 0.99, 9)) == "97.3% (95-99)"
    assert in_words("perplexity", Metric(12.41, 11.9, 13.0, 9)) == "12.4 (11.9 to 13)"
    assert in_words("wiki word_perplexity", Metric(40.0, 40.0, 40.0, 9)) == "40 (40 to 40)"
    assert in_words("heard wer", Metric(1.2, 0.9, 1.5, 9)) == "1.2 (0.9 to 1.5)"
    assert in_words("mine.py:half", Metric(0.5, 0.4, 0.6, 9)) == "50.0% (40-60)"
    assert difference_in_words("wiki bits_per_byte", Metric(-0.5, -0.6, -0.4, 9)) == "-0.5 (-0.6 to -0.4)"
    assert difference_in_words("exact_match", Metric(0.12, -0.01, 0.25, 9)) == "+12.0 (-1 to 25)"
