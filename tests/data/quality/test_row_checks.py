"""The checks of single rows: what they find of planted faults, what they say, and what they leave alone."""

import json
from pathlib import Path
from typing import Any

import planted
import pytest

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Finding, Given, RowCheck
from luthier.data.quality.lengths import length, padding_waste, unknown_tokens
from luthier.data.quality.limits import verdict_of
from luthier.data.quality.personal import personal_in
from luthier.data.quality.run import run_checks
from luthier.data.quality.sums import wrong_sums
from luthier.data.quality.table import CHECKS
from luthier.errors import ConfigError
from luthier.records import Conversation, Source, Turn


def one(check: str, rows: list[Conversation], **settings: Any) -> Finding:
    off = [name for name in CHECKS if name != check]
    (finding,) = run_checks(rows, Given(CheckSettings(off=off, **settings)), lambda done, what: None)
    return finding


@pytest.mark.parametrize("check", planted.SETS)
def test_planted_faults_are_found_and_look_alikes_are_not(check: str) -> None:
    measured = planted.measure(check)
    assert measured.planted >= 30
    assert measured.look_alikes >= 20
    assert measured.recall >= 0.95, measured.missed
    assert measured.precision >= 0.95, measured.wrongly


@pytest.mark.parametrize("check", planted.SETS)
def test_ordinary_and_real_rows_are_good(check: str) -> None:
    rows = planted.address_rows(400) if check == "json_answers" else [planted.row(*pair) for pair in planted.ordinary_pairs(400, 99)]
    finding = one(check, rows)
    assert (finding.verdict, list(finding.places), finding.cure) == ("good", [], "")


@pytest.mark.parametrize("check", [name for name in planted.SETS if name != "pii"])
def test_real_addresses_hold_none_of_the_faults(check: str) -> None:
    assert list(one(check, planted.address_rows(896)).places) == []


@pytest.mark.parametrize("check", planted.SETS)
def test_a_finding_names_lines_and_what_to_do(check: str) -> None:
    rows = planted.SETS[check]().rows
    finding = one(check, rows)
    assert finding.verdict in ("look", "stop")
    assert f"{finding.found:,} of " in finding.said
    assert "%" in finding.said
    assert len(finding.cure) > 20
    assert len(finding.worst) == min(20, finding.found)
    shown = {str(concern.source) for concern in finding.worst}
    assert shown <= {str(rows[place].source) for place in finding.places}
    assert all(concern.detail and "\n" not in concern.detail for concern in finding.worst)
    json.dumps(dict(finding.numbers))


def test_answers_without_full_stops_are_a_style() -> None:
    rows = [planted.row(prompt, answer.removesuffix(".")) for prompt, answer in planted.ordinary_pairs(300, 5) if answer.endswith(".")]
    finding = one("cut_answer", rows)
    assert finding.verdict == "good"
    assert finding.numbers["an_end_needs_punctuation"] is False


def test_commands_that_end_in_a_word_are_not_cut() -> None:
    """In the tldr pages few answers end in a full stop, since few are sentences; most end in a sign."""
    commands = [f"docker run --name web{number} --publish 80{number}:80 --detach {{{{image}}}}" for number in range(90)]
    commands += [f"git log --oneline --decorate --graph --all --max-count {number} --format short" for number in range(10)]
    assert list(one("cut_answer", [planted.row("Which command?", command) for command in commands]).places) == []


def test_hundreds_of_names_in_braces_are_a_notation_and_a_few_are_an_unfilled_template() -> None:
    names = ["target_" + "abcdefghij"[number % 10] * (1 + number // 10) for number in range(200)]
    pages = [planted.row(f"How is the archive {name} made?", f"tar cf {{{{{name}}}}}") for name in names]
    control = planted.row("How does it end?", "It ends here.<|im_end|>")
    found = one("special_tokens", [*pages, control])
    assert (list(found.places), "200 different {{names}}" in found.said) == ([200], True)
    letters = [planted.row(f"Who are you, {number}?", "I am {{name}} of {{company}}.") for number in range(200)]
    assert (one("special_tokens", letters).found, one("special_tokens", letters).verdict) == (200, "stop")


def test_labels_are_no_tiny_answers() -> None:
    rows = [planted.row("Sort this letter.", ("tea", "none", "oil", "a")[n % 4]) for n in range(200)]
    assert one("empty_or_tiny_answer", rows).places == []


def test_most_rows_in_two_languages_are_a_mix_and_no_fault() -> None:
    german = [planted.row("Was tun?", planted.OTHER_LANGUAGES[n % 2]) for n in range(60)]
    english = [planted.row(*pair) for pair in planted.ordinary_pairs(100, 3)]
    finding = one("language", german + english)
    assert finding.verdict == "good"
    assert set(finding.numbers["languages"]) == {"de", "en"}
    assert one("language", german + english, languages=["en"]).places == list(range(60))


def test_personal_data_is_never_shown_in_full() -> None:
    finding = one("pii", [planted.row("Who?", "Write to ana.gonzalez@gmail.com or pay with 4539 5787 6362 1486.")])
    assert finding.worst[0].detail == "e-mail a***@***.com; card 45***86"
    assert finding.verdict == "look"


def test_a_schema_finds_answers_that_break_it(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["city"], "properties": {"zip": {"type": "string"}}}))
    answers = ['{"city": "Lima", "zip": "15001"}', '{"zip": "15001"}', '{"city": "Lima", "zip": 15001}', "Lima"]
    finding = one("json_answers", [planted.row("To JSON", answer, n) for n, answer in enumerate(answers, 1)], json_schema=str(schema))
    assert finding.places == [1, 2, 3]
    assert any("'city' is a required property" in concern.detail for concern in finding.worst)
    assert any("$.zip" in concern.detail for concern in finding.worst)


@pytest.mark.parametrize("text", ['{"type": "no such type"}', "{", None])
def test_a_schema_that_is_none_is_an_error(tmp_path: Path, text: str | None) -> None:
    schema = tmp_path / "schema.json"
    if text is not None:
        schema.write_text(text)
    with pytest.raises(ConfigError, match=r"checks\.json_schema: .*schema\.json"):
        one("json_answers", [planted.row("a", "{}")], json_schema=str(schema))


VALIDATOR = """
def is_short(prompt, answer):
    if answer == "raise":
        raise KeyError("city")
    return f"{len(answer)} characters" if len(answer) > 5 else None

number = 3
"""


def test_the_users_own_check_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(VALIDATOR)
    monkeypatch.chdir(tmp_path)
    rows = [planted.row("q", answer, n) for n, answer in enumerate(["short", "much longer", "raise"], 1)]
    finding = one("validator", rows, validator="my_rules:is_short")
    assert [(concern.source.line, concern.detail) for concern in finding.worst] == [
        (3, "the validator raised KeyError: 'city'"),
        (2, "11 characters"),
    ]
    assert "it raised on 1 of them" in finding.said
    for wrong in ("my_rules:missing", "my_rules:number", "no_such_module:f", "my_rules"):
        with pytest.raises(ConfigError, match=r"checks\.validator"):
            one("validator", rows, validator=wrong)


def test_a_check_with_nothing_to_do_says_so() -> None:
    assert one("validator", [planted.row("q", "a")]).said == "not run: no checks.validator is set"
    assert one("unknown_tokens", [planted.row("q", "a")]).said.startswith("not run: there is no tokenizer")
    assert one("json_answers", [planted.row("q", "plain text")]).said == "not run: most answers are not JSON"


def test_the_tokenizers_own_tokens_are_looked_for(tokenizer: Any) -> None:
    rows = [planted.row("q", f"fine {tokenizer.all_special_tokens[0]} text"), planted.row("q", "fine")]
    off = [name for name in CHECKS if name != "special_tokens"]
    (finding,) = run_checks(rows, Given(CheckSettings(off=off), tokenizer=tokenizer), lambda done, what: None)
    assert finding.places == [0]


def test_text_as_it_stands_may_hold_its_own_template() -> None:
    text = Conversation((Turn("prompt", "### Instruction:\nAdd."), Turn("completion", "### Response:\n3</s>")), Source("a", 1), templated=False)
    assert one("special_tokens", [text]).places == []


def test_a_tool_call_is_an_answer() -> None:
    call = Turn("assistant", "", extra='{"tool_calls": [{"id": "1"}]}')
    row = Conversation((Turn("user", "weather?"), call, Turn("tool", "sun"), Turn("assistant", "It is sunny today.")), Source("a", 1))
    for check in ("empty_or_tiny_answer", "roles", "cut_answer", "json_answers"):
        assert list(one(check, [row]).places) == []


# --- lengths


def test_lengths_are_said_in_tokens_and_what_is_over_is_counted() -> None:
    rows = [planted.row("q", "a", n) for n in range(1, 101)]
    given = Given(CheckSettings(), token_counts=[*range(1, 100), 5000], max_length=98)
    finding = length(rows, given)
    assert finding.places == [98, 99]
    assert finding.verdict == "stop"
    assert finding.worst[0].detail == "5,000 tokens"
    assert "2 of 100 (2 %) are over max_length (98)" in finding.said
    assert not finding.removable
    numbers = finding.numbers
    assert (numbers["percentiles"]["50"], numbers["max"], numbers["total"]) == (51, 5000, sum(range(1, 100)) + 5000)
    assert sum(numbers["histogram"]["rows"]) == 100
    assert len(numbers["histogram"]["edges"]) == len(numbers["histogram"]["rows"]) + 1
    json.dumps(dict(numbers))


def test_without_a_tokenizer_lengths_are_characters() -> None:
    assert "3 characters long (median)" in length([planted.row("q", "ab")], Given(CheckSettings(), max_length=1)).said
    assert length([], Given(CheckSettings())).said == "not run: there are no rows"


def test_padding_is_what_a_padded_batch_adds() -> None:
    import numpy as np

    assert padding_waste(np.array([5, 5, 5, 5]), 2) == 0
    assert padding_waste(np.array([10, 30]), 2) == pytest.approx(20 / 60)
    assert padding_waste(np.array([10, 30, 7]), 1) == 0


def test_characters_without_a_token_are_counted(default_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    rows = [planted.row("Hello there", "café, naïve"), planted.row("What is this?", "ꙮꙮ and ꙮ")]
    finding = unknown_tokens(rows, Given(CheckSettings(), tokenizer=tokenizer))
    assert finding.places == [1]
    assert finding.worst[0].detail == "3 characters: ꙮ"
    assert finding.numbers["most_common"] == {"ꙮ": 3}


def test_every_check_of_rows_has_a_planted_set_or_a_test_of_its_own() -> None:
    row_checks = {name for name, check in CHECKS.items() if isinstance(check, RowCheck)}
    assert row_checks - planted.SETS.keys() <= {"validator", "unsupported"}


# --- details that a share of 0.95 would not show


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("870 / 15 = 59", ["870 / 15 = 59, but it is 58"]),
        ("1000 / 7 = 143 and 1 / 3 = 0.33", []),
        ("50% * 8 = 5", ["50% * 8 = 5, but it is 4"]),
        ("2 + 3 * 4 = 20", ["2 + 3 * 4 = 20, but it is 14"]),
        ("-3 + 5 = 2, 2^3^2 = 512, 8 - 3 - 2 = 3", []),
        ("1,200 * 3 = $3,601", ["1,200 * 3 = $3,601, but it is 3,600"]),
        ("17267 = 7 x 1899", ["17267 = 7 x 1899, but 7 x 1899 is 13,293"]),
        ("It is wrong that 2 + 2 = 5. Then 2 + 2 = 6.", ["2 + 2 = 6, but it is 4"]),
    ],
)
def test_sums_are_compared_to_the_last_place(text: str, wrong: list[str]) -> None:
    assert list(wrong_sums(text)) == wrong


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("4539 5787 6362 1486", ["card"]),
        ("4539 5787 6362 1487", []),
        ("GB82 WEST 1234 5698 7654 32", ["account"]),
        ("GB83 WEST 1234 5698 7654 32", []),
        ("ana@example.com and (212) 555-0123", []),
        ("ana@acme.org and (212) 555-2368", ["e-mail", "phone"]),
    ],
)
def test_check_sums_and_reserved_examples_decide(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in personal_in(text)] == kinds


@pytest.mark.parametrize(("found", "verdict"), [(0, "good"), (5, "look"), (6, "stop")])
def test_the_share_decides_the_verdict(found: int, verdict: str) -> None:
    assert verdict_of("cut_answer", found, 100) == verdict
