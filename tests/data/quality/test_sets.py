"""The checks that compare rows find what is planted, say it plainly, and name the rows that may go."""

import importlib.util
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.config.checks import CheckSettings
from luthier.data.quality import vectors
from luthier.data.quality.check import Finding, Given
from luthier.data.quality.near import band_rows, near_duplicate_groups
from luthier.data.quality.set_table import SET_CHECKS
from luthier.errors import ConfigError, DataError
from luthier.records import Conversation, Source, Turn


def _planted_sets() -> Any:
    spec = importlib.util.spec_from_file_location("planted_sets", Path(__file__).with_name("planted_sets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted_sets = _planted_sets()
row = planted_sets.row

JUDGED = ("toxicity", "unsupported", "off_domain", "off_domain_by_description")  # their figures stand in docs/data-quality.md, whatever they are
NEEDS_VECTORS = ("semantic_duplicates", "off_domain", "off_domain_by_description")
DOCS = Path(__file__).parents[3] / "docs/data-quality.md"


def run(
    name: str, rows: list[Conversation], held_out: list[Conversation] | None = None, losses: list[float] | None = None, **settings: Any
) -> Finding:
    return planted_sets.found_by(name, planted_sets.Planted(rows, set(), Given(CheckSettings(**settings), held_out=held_out or [], losses=losses)))


def numbered(pairs: list[tuple[str, str]]) -> list[Conversation]:
    return [row(question, answer, line) for line, (question, answer) in enumerate(pairs, 1)]


# --- what is planted is found


@pytest.mark.parametrize("name", planted_sets.PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    if name in NEEDS_VECTORS and not vectors.are_there():
        pytest.skip("the word vectors are not installed")
    measured = planted_sets.measured(name)
    if name not in JUDGED:
        assert measured.recall >= 0.95, measured.missed
        assert measured.precision >= 0.95, measured.wrong
    documented = re.search(rf"^\| {name} \|.*\| ([\d.]+) \| ([\d.]+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert documented, f"docs/data-quality.md has no row for {name}"
    assert documented.groups() == (f"{measured.recall:.2f}", f"{measured.precision:.2f}")


def test_every_check_has_a_planted_set() -> None:
    # What the judge finds is its model's affair; tests/data/test_judging.py has the rest.
    assert set(SET_CHECKS) - {"judge"} == {name.removesuffix("_by_description") for name in planted_sets.PLANTED}


@pytest.mark.parametrize("name", SET_CHECKS)
def test_no_rows_and_strange_rows_are_no_accident(name: str) -> None:
    if name in NEEDS_VECTORS and not vectors.are_there():
        pytest.skip("the word vectors are not installed")
    strange = [
        Conversation((Turn("text", "+++"),), Source("a.txt", 1), templated=False),
        Conversation((Turn("text", ""),), Source("a.txt", 2), templated=False),
        Conversation((Turn("user", "?"), Turn("assistant", "\U0001f600")), Source("a.txt", 3)),
        Conversation((Turn("user", "字" * 40), Turn("assistant", "{" * 5000)), Source("a.txt", 4)),
        Conversation((Turn("user", "q"), Turn("assistant", "a")), Source("a.txt", 5), rejected=(Turn("assistant", "b"),), label=True),
    ]
    for rows in ([], strange):
        finding = run(name, rows, strange, [0.5 for _ in rows], domain_description="signs")
        assert finding.check == name
        assert all(0 <= place < len(rows) for place in finding.places)


@pytest.mark.parametrize("name", sorted(set(SET_CHECKS) - {"size", "judge"}))
def test_a_finding_shows_rows_and_says_what_to_do(name: str) -> None:
    if name in NEEDS_VECTORS and not vectors.are_there():
        pytest.skip("the word vectors are not installed")
    made = planted_sets.PLANTED[name]()
    finding = planted_sets.found_by(name, made[0][0] if isinstance(made, list) else made)
    assert finding.verdict == ("stop" if name == "overlap" else "look")
    assert finding.cure
    assert list(finding.places) == sorted(set(finding.places))
    assert 0 < len(finding.worst) <= 20
    assert all(concern.detail and concern.source.line > 0 for concern in finding.worst)


# --- each check's own promises


def test_the_first_copy_stays() -> None:
    finding = run("duplicates", numbered([("q", "a"), ("q", "b"), ("q", "a"), ("q ", "a\n")]))
    assert list(finding.places) == [2, 3]
    assert str(finding.worst[0].other) == "rows.jsonl:1"
    assert finding.said.startswith("2 of 4 rows (50 %)")


def _made_up(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abcdefghij", k=8)) for _ in range(count)]


def test_what_goes_is_like_a_row_that_stays() -> None:
    draw = random.Random(0)
    words, texts = _made_up(draw, 60), []
    for step in range(12):  # each is near the one before; the last has nothing of the first
        texts.append(" ".join(words))
        words[step * 5 : step * 5 + 5] = _made_up(draw, 5)
    gone = set(run("near_duplicates", numbered([("Say it.", text) for text in texts]), near_duplicate_threshold=0.7).places)
    assert 0 < len(gone) < 11
    assert [sorted(group) for group in near_duplicate_groups(texts, 0.7)] == [list(range(12))]  # a split keeps the whole chain together


def test_groups_of_texts() -> None:
    long = "the cat sat on the mat and looked at the dog in the yard today"
    assert near_duplicate_groups([long, "", "hi", long.upper() + "!", "hi", "x y", "", "x z"], 0.8) == [[0, 3], [2, 4]]
    assert near_duplicate_groups(iter([]), 0.8) == []
    assert near_duplicate_groups(["猫坐在垫子上看着院子里的狗和树", "猫坐在垫子上看着院子里的狗和树木"], 0.8) == [[0, 1]]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_pairs_above_the_threshold_are_not_lost_by_chance(threshold: float) -> None:
    draw = random.Random(0)
    texts, above = [], set()
    for number in range(300):
        words = [f"w{draw.randrange(10**6)}" for _ in range(60)]
        other = words[: draw.randint(20, 60)]
        texts += [" ".join(words), " ".join(other)]
        triples = [set(zip(found, found[1:], found[2:], strict=False)) for found in (words, other)]
        if len(triples[0] & triples[1]) / len(triples[0] | triples[1]) >= threshold:
            above.add((2 * number, 2 * number + 1))
    found = {tuple(group) for group in near_duplicate_groups(texts, threshold)}
    assert found <= above
    assert len(found) >= 0.99 * len(above) > 20


def test_the_bands_let_few_pairs_slip() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        width = band_rows(threshold)
        assert width == 1 or (1 - threshold**width) ** (128 // width) <= 1e-3


def test_an_instruction_that_all_rows_share_makes_no_twins() -> None:
    long = " ".join(planted_sets.SENTENCES)
    draw = random.Random(0)
    rows = numbered([(f"{long} {' '.join(_made_up(draw, 6))}", "Done.") for _ in range(300)])
    assert run("near_duplicates", rows).found == 0


def test_the_right_answer_is_for_a_person_to_choose() -> None:
    finding = run("conflicting_answers", numbered([("Is it open?", "Yes."), ("is it open", "No"), ("Is it open?", "yes")]))
    assert list(finding.places) == [0, 1, 2]
    assert not finding.removable
    assert finding.numbers["questions"] == 1


def test_a_leak_stops() -> None:
    train = numbered([("What is the capital of Austria?", "Vienna."), ("What is two plus two?", "4")])
    finding = run("overlap", train, numbered([("what is the capital of austria", "It is Vienna.")]))
    assert (finding.verdict, list(finding.places)) == ("stop", [0])
    assert run("overlap", train).said == "not run: there are no evaluation rows to compare with"


def test_classes_come_from_the_column_or_from_few_answers() -> None:
    by_answer = run("balance", [row(f"q {number}", "yes" if number % 20 else "no") for number in range(200)])
    assert (by_answer.verdict, by_answer.numbers["counts"]) == ("look", {"yes": 190, "no": 10})
    by_label = run("balance", [row(f"q {number}", f"a {number}", label=number % 2 == 0) for number in range(60)])
    assert (by_label.verdict, by_label.numbers["entropy"]) == ("good", 1.0)
    assert not by_answer.removable


def test_a_threshold_moves_what_counts() -> None:
    rows = [row(f"q {number}", "yes" if number % 20 else "no") for number in range(200)]
    assert run("balance", rows, balance_smallest=0.01).verdict == "good"
    opened = numbered([(f"{verb} {number}", "a") for number in range(40) for verb in ("Write", "Explain", "Name")])
    assert run("diversity", opened).verdict == "look"
    assert run("diversity", opened, diversity_openings=2).verdict == "good"
    keys = [row(f"Turn this into JSON: {number}", '{"a": 1, "b": 2}' if number % 10 else '{"a": 1}') for number in range(100)]
    assert run("mixed_structure", keys).found == 0  # an optional key
    assert run("mixed_structure", keys, structure_rare=0.15).found == 10
    losses = [1.0 + number % 5 / 10 for number in range(98)] + [2.0, 5.0]
    assert run("hard_rows", keys, losses=losses).found == 2
    assert run("hard_rows", keys, losses=losses, hard_row_deviations=9.0).found == 1


def test_hard_rows_are_kept() -> None:
    assert not run("hard_rows", numbered([("q", "a")] * 3), losses=[1.0, 1.1, 9.0]).removable
    assert run("hard_rows", numbered([("q", "a")])).said.startswith("not run")


@pytest.mark.parametrize(
    ("rows", "purpose", "verdict", "said"),
    [
        (50, None, "look", "too few for a style (from 100)"),
        (300, None, "good", "a start for a style (usual: 500-1,000); too few for one task (from 500)"),
        (5000, "task", "good", "5,000 rows: right for one task"),
        (5000, "general", "look", "5,000 rows: too few for general use (from 10,000)"),
    ],
)
def test_the_guidance_on_size(rows: int, purpose: str | None, verdict: str, said: str) -> None:
    finding = run("size", numbered([("q", "a")] * rows), purpose=purpose)
    assert finding.verdict == verdict
    assert said in finding.said


PASSAGE = (
    "The Harbour Museum in Bergen opened in 1962 and was rebuilt after a fire in 1989. Its director, Ingrid Solheim, has led a staff of"
    " 24 people since 2011, and the entry costs 12 euros."
)


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        (f"When did it open?\n\n{PASSAGE}", "It opened in 1957.", 1),
        (f"When did it open?\n\n{PASSAGE}", "I think that I'd say it was 1962.", 0),
        (f"What is measured there?\n\n{PASSAGE}", "It is the level of o2 and h2so4.", 0),
        (f"When did it open?\n\n{PASSAGE}", "The museum opened in 1957. " * 30, 0),  # longer than the text: it is meant to bring more
        (PASSAGE, "It opened in 1957.", 0),  # no instruction beside it: the paragraph is the task itself
        (f"Create a headline.\n\n{PASSAGE}", "The Best Museum of Norway", 0),
    ],
)
def test_only_short_answers_to_a_text_and_an_instruction_must_keep_to_the_text(question: str, answer: str, found: int) -> None:
    assert run("unsupported", numbered([(question, answer)])).found == found


def test_what_was_said_earlier_in_a_conversation_is_no_text_to_keep_to() -> None:
    before = (Turn("user", "How do I train?"), Turn("assistant", PASSAGE))
    turns = (*before, Turn("user", "And what do I eat?"), Turn("assistant", "Eat 3,000 calories."))
    assert run("unsupported", [Conversation(turns, Source("rows.jsonl", 1))]).found == 0


def test_a_classifier_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judge.py").write_text(
        "def score(texts): return [0.9 if 'rude' in text else 0.1 for text in texts]\n"
        "def short(texts): return [0.1]\n"
        "def broken(texts): raise KeyError('label')\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = numbered([("Say it.", "That is rude."), ("Say it.", "That is kind."), ("Say it.", "You are an idiot.")] * 100)
    found = run("toxicity", rows, toxicity_classifier="my_judge:score")
    assert found.found == 200
    assert "the classifier gives 0.90" in {concern.detail for concern in found.worst} or found.worst[0].detail.startswith("says")
    assert run("toxicity", rows, toxicity_classifier="my_judge:score", toxicity_threshold=0.95).found == 100
    for path, problem in (
        ("my_judge:short", "gave 1 scores for 200 texts"),
        ("my_judge:broken", "raised KeyError"),
        ("my_judge:no", "cannot be imported"),
        ("no_such:score", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=problem) as raised:
            run("toxicity", rows, toxicity_classifier=path)
        assert "checks.toxicity_classifier" in str(raised.value)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "find_spec", lambda name: None)
    vectors._opened.cache_clear()
    with pytest.raises(DataError, match=r'pip install "luthier\[data\]"'):
        run("semantic_duplicates", numbered([("q", "a")]))


def test_semantic_blocks_find_what_one_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    if not vectors.are_there():
        pytest.skip("the word vectors are not installed")
    from luthier.data.quality import semantic

    planted = planted_sets.semantic_duplicates()
    whole = run("semantic_duplicates", planted.rows)
    monkeypatch.setattr(semantic, "_ROWS", 7)
    monkeypatch.setattr(semantic, "_COLUMNS", 11)
    assert set(run("semantic_duplicates", planted.rows).places) == set(whole.places)
