import pytest

from luthier.errors import DataError
from luthier.evaluate import judging
from luthier.evaluate.judge_prompts import messages, rating, read_prompts, verdict
from luthier.evaluate.judge_questions import JudgeQuestion
from luthier.evaluate.judged_files import annotation, leaderboard_row, pair_judgment
from luthier.evaluate.judging import Answered, Asked

PROMPTS = read_prompts()


def row(number, model=("yes",), rival=("no",), category="", turns=("Is it?",)):
    return Answered(JudgeQuestion(str(number), turns, category), model, rival)


def asked(**said):
    return Asked(said={name.replace("_", "|").removeprefix("q"): text for name, text in said.items()})


def test_each_pair_is_asked_about_in_both_orders_and_equal_answers_not_at_all():
    rows = [row(1), row(2, ("same ",), ("same",))]
    first, second = judging.tasks("pairwise", rows, PROMPTS)
    assert (first.key, second.key) == ("1|1|ab", "1|1|ba")
    shown = [task.messages[1]["content"] for task in (first, second)]
    assert shown[0].index("yes") < shown[0].index("no\n")
    assert shown[1].index("no\n") < shown[1].index("yes")
    (found,) = [one for one in judging.pairings(rows, Asked()) if one.question == "2"]
    assert found.outcome == "equal"


def test_the_second_turn_shows_the_first_and_right_answers_where_they_are_known():
    question = JudgeQuestion("9", ("1 + 1?", "Times 3?"), "math", ("two", "six"))
    name, asked_of = messages(PROMPTS, "pairwise", question, 2, {"a": ("2", "5"), "b": ("3", "9")})
    assert name == "pair-right-turns"
    content = asked_of[1]["content"]
    assert all(text in content for text in ("1 + 1?", "Times 3?", "two", "six", "Assistant: 5", "Assistant: 9"))
    name, asked_of = messages(PROMPTS, "single", JudgeQuestion("9", ("a", "b")), 1, {"": ("answer one", "answer two")})
    assert name == "single"
    assert "answer two" not in asked_of[1]["content"]


def test_mt_benchs_own_prompts_can_be_given(tmp_path):
    path = tmp_path / "judge_prompts.jsonl"
    path.write_text('{"name": "pair-v2", "system_prompt": "Judge.", "prompt_template": "Q {question} A {answer_a} B {answer_b}"}\n')
    own = read_prompts(path)
    name, asked_of = messages(own, "pairwise", JudgeQuestion("1", ("Why {x}?",)), 1, {"a": ("{y}",), "b": ("z",)})
    assert (name, asked_of[1]["content"]) == ("pair-v2", "Q Why {x}? A {y} B z")
    with pytest.raises(DataError, match="pair-v2-multi-turn or pair-turns"):
        messages(own, "pairwise", JudgeQuestion("1", ("a", "b")), 2, {"a": ("c", "d"), "b": ("e", "f")})


@pytest.mark.parametrize(
    ("first", "second", "outcome", "worth"),
    [
        ("A is better. [[A]]", "[[B]]", "won", 1.0),
        ("[[B]]", "[[A]]", "lost", 0.0),
        ("[[C]]", "both the same: [[C]]", "tied", 0.5),
        ("[[A]]", "[[A]]", "disagreed", 0.5),
        ("[[A]]", "[[C]]", "disagreed", 0.75),
        ("A, I think", "[[A]]", "unreadable", None),
    ],
)
def test_a_win_counts_only_where_both_orders_agree(first, second, outcome, worth):
    rows = [row(1)]
    (found,) = judging.pairings(rows, asked(q1_1_ab=first, q1_1_ba=second))
    assert found.outcome == outcome
    if worth is not None:
        assert judging.preference(found) == worth


def test_the_last_verdict_counts_and_grades_are_read_as_mt_bench_reads_them():
    assert verdict("One could say [[A]], but no: [[B]]") == "B"
    assert verdict("A") == ""
    assert rating("Good. Rating: [[7]]") == 7
    assert rating("[[8.5]]") == 8.5
    assert rating("Rating: [6]") == 6
    assert rating("Rating: 4") == 4
    assert rating("[[11]]") is None
    assert rating("good") is None


def test_rates_ties_disagreements_and_categories_are_counted():
    rows = [row(n, ("yes" * n,), ("no",), "even" if n % 2 == 0 else "odd") for n in range(1, 7)]
    said = {1: ("[[A]]", "[[B]]"), 2: ("[[A]]", "[[B]]"), 3: ("[[B]]", "[[A]]"), 4: ("[[C]]", "[[C]]"), 5: ("[[A]]", "[[A]]"), 6: ("?", "[[A]]")}
    found = judging.pairings(
        rows, Asked(said={f"{n}|1|{order}": text for n, pair in said.items() for order, text in zip(("ab", "ba"), pair, strict=True)})
    )
    result = judging.pair_result(rows, found)
    assert result.counts == {"won": 2, "tied": 1, "equal": 0, "disagreed": 1, "lost": 1, "unreadable": 1}
    assert (result.win_rate.value, result.win_rate.n) == (pytest.approx(0.6), 5)
    assert result.win_rate.low < 0.6 < result.win_rate.high
    assert result.by_category == {"even": 0.75, "odd": 0.5}
    assert result.first_shown == 1.0
    board = leaderboard_row("run", rows, found, result)
    assert (board["n_wins"], board["n_wins_base"], board["n_draws"], board["n_total"], board["win_rate"]) == (2, 1, 2, 5, pytest.approx(60))
    assert board["length_controlled_winrate"] == pytest.approx(100 * result.length_controlled_win_rate.value)


def test_two_turns_are_one_question_in_the_rate():
    rows = [row(1, ("a", "b"), ("c", "d"), turns=("one", "two")), row(2)]
    replies = asked(q1_1_ab="[[A]]", q1_1_ba="[[B]]", q1_2_ab="[[B]]", q1_2_ba="[[A]]", q2_1_ab="[[A]]", q2_1_ba="[[B]]")
    result = judging.pair_result(rows, judging.pairings(rows, replies))
    assert (result.win_rate.value, result.win_rate.n) == (0.75, 2)


def test_grades_have_means_by_turn_and_a_paired_difference():
    rows = [row(n, ("a", "b"), ("c", "d"), "math", ("one", "two")) for n in (1, 2)]
    grades = {"1|1|model": 8, "1|2|model": 6, "2|1|model": 9, "2|2|model": 9, "1|1|rival": 5, "1|2|rival": 5, "2|1|rival": 4}
    result = judging.grade_result(rows, Asked(said={key: f"Rating: [[{grade}]]" for key, grade in grades.items()} | {"2|2|rival": "none"}))
    assert (result.model.value, result.rival.value, result.unreadable) == (8.0, 4.5, 1)
    assert 1 <= result.rival.low <= 4.5 <= result.rival.high <= 10
    assert (result.difference.value, result.difference.n) == (3.5, 2)
    assert result.by_turn["model"] == {"turn 1": 8.5, "turn 2": 7.5}
    assert result.by_category["rival"] == {"math": 4.5}


def test_the_files_of_mt_bench_and_alpacaeval_name_the_sides_as_theirs_do():
    one = row(81)
    (found,) = judging.pairings([one], asked(q81_1_ab="[[A]]", q81_1_ba="[[B]]"))
    entries = {f"81|1|{order}": {"prompt": "pair", "messages": [{"content": f"asked {order}"}], "text": "why"} for order in ("ab", "ba")}
    line = pair_judgment(one, found, ("mine", "base"), "judge", entries)
    assert (line["question_id"], line["model_1"], line["g1_winner"], line["g2_winner"]) == (81, "mine", "model_1", "model_1")
    assert (line["judge"], line["g2_user_prompt"], line["g2_judgment"]) == (["judge", "pair"], "asked ba", "why")
    (lost,) = judging.pairings([one], asked(q81_1_ab="[[B]]", q81_1_ba="[[A]]"))
    line = pair_judgment(one, lost, ("mine", "base"), "judge", {})
    assert (line["g1_winner"], line["g2_winner"]) == ("model_2", "model_2")
    kept = annotation(one, found, ("mine", "base"), "judge", entries)
    assert (kept["output_1"], kept["generator_1"], kept["output_2"], kept["generator_2"], kept["preference"]) == ("no", "base", "yes", "mine", 2.0)
