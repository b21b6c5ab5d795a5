"""A model as a judge, behind a real server on loopback, and people who rate elsewhere."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from canned_server import Canned, canned, said
from conftest_runs import Listener
from safetensors.torch import load_file, save_file

from luthier.errors import CallError, DataError
from luthier.evaluate import judge_questions, rivals
from luthier.evaluate.people import QUESTIONS
from luthier.recipes.judging import Call, judge
from luthier.recipes.rating import open_table
from luthier.reporting import Silent
from luthier.run_folder import RunFolder

ALPACA = [
    {"dataset": "towns", "instruction": f"{number} Pierce Rd, {town}", "output": f"It is {town}.", "generator": "a_baseline"}
    for number, town in ((100, "Itasca"), (101, "Elgin"), (102, "Boston"), (103, "Joliet"))
]
TWO_TURNS = [{"question_id": 81, "category": "math", "turns": ["100 Pierce Rd, Itasca", "And 101 Pierce Rd, Elgin"]}]
RIGHT = [{"question_id": 81, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["one", "two"]}]}]


def prefers_ours(number: int, body: dict[str, Any]) -> Canned:
    """A judge that knows what it wants: not the baseline's answer. Where neither is the baseline's, it takes the first one shown."""
    first = body["messages"][1]["content"].partition("### Answer of B")[0]
    return said("[[B]]" if "It is" in first else "[[A]]")


@pytest.fixture(scope="module")
def answered(learned: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy of the learned run that has answered the questions of this module, so that its tests load no model."""
    folder = tmp_path_factory.mktemp("answered") / "learned"
    shutil.copytree(learned.path, folder)
    return RunFolder(folder)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(ALPACA))
    return path


def test_pairs_in_both_orders_with_the_raw_replies_kept_and_both_benches_files(answered: RunFolder, questions: Path) -> None:
    said_lines = Listener()
    with canned(prefers_ours) as server:
        call = Call(server.address, "judge-1", "reference", questions=questions, price_per_million_input=2.0, price_per_million_output=10.0)
        judged = judge(answered, call, said_lines)
        assert len(server.asked) == 8
    assert judged.pairs is not None
    assert judged.pairs.counts == {"won": 4, "tied": 0, "equal": 0, "disagreed": 0, "lost": 0, "unreadable": 0}
    assert judged.pairs.win_rate is not None
    assert judged.pairs.win_rate.value == 1.0
    assert (judged.prompt_tokens, judged.completion_tokens, judged.cost) == (80, 40, pytest.approx((80 * 2 + 40 * 10) / 1e6))
    assert any("8 requests to 127.0.0.1" in line and "by the prices given" in line for line in said_lines.lines)

    folder = Path(judged.folder)
    annotations = json.loads((folder / "annotations.json").read_text())
    assert [(one["preference"], one["generator_1"]) for one in annotations] == [(2.0, "a_baseline")] * 4
    assert annotations[0]["output_1"] == "It is Itasca."
    assert annotations[0]["raw_completion"] == ["[[A]]", "[[B]]"]
    outputs = json.loads((folder / "model_outputs.json").read_text())
    assert [one["instruction"] for one in outputs] == [one["instruction"] for one in ALPACA]
    (board,) = csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())
    assert (float(board["win_rate"]), board["n_total"], board["mode"]) == (100.0, "4", "community")
    lines = [json.loads(line) for line in (folder / "model_judgment.jsonl").read_text().splitlines()]
    assert {(line["g1_winner"], line["g2_winner"]) for line in lines} == {("model_1", "model_1")}
    report = answered.report.read_text(encoding="utf-8")
    assert "a_baseline" in report
    assert "judge-1" in report


def test_the_same_call_asks_nothing_twice_and_goes_on_after_a_failure(answered: RunFolder, questions: Path) -> None:
    def tired(number: int, body: dict[str, Any]) -> Canned:
        return prefers_ours(number, body) if number <= 3 else Canned({"error": {"message": "no credit", "code": "x"}}, 402)

    with canned(lambda number, body: tired(number, body)) as server:
        call = Call(server.address, "judge-2", "reference", questions=questions, concurrency=1)
        with pytest.raises(Exception, match="no credit"):
            judge(answered, call)
        server.answer = prefers_ours
        before = len(server.asked)
        judged = judge(answered, call)
        assert len(server.asked) - before == 8 - 3
        assert judged.pairs is not None
        assert judged.pairs.counts["won"] == 4
        judge(answered, call)
        assert len(server.asked) - before == 8 - 3, "the third call had all replies"


def test_alpacaevals_difficulties_go_into_the_length_controlled_rate(answered: RunFolder, questions: Path, tmp_path: Path) -> None:
    gamed = tmp_path / "df_gamed.csv"
    head = "index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"
    rows = [f"{place},{preferred},{difference},{place - 1.5},False,gpt" for preferred, difference in ((0.2, 1), (0.7, -1)) for place in range(4)]
    gamed.write_text("\n".join([head, *rows]) + "\n")
    with canned(prefers_ours) as server:
        call = Call(server.address, "judge-7", "reference", questions=questions)
        plain = judge(answered, call)
        known = judge(answered, dataclasses.replace(call, difficulties=gamed))
        assert len(server.asked) == 8, "the same replies are counted in another way"
        assert plain.pairs is not None
        assert known.pairs is not None
        assert plain.pairs.win_rate == known.pairs.win_rate
        assert plain.pairs.length_controlled_win_rate != known.pairs.length_controlled_win_rate
        assert json.loads((Path(known.folder) / "result.json").read_text())["difficulties"] == str(gamed)

        gamed.write_text("\n".join([head, *rows[:3]]) + "\n")
        with pytest.raises(DataError, match=r"knows no difficulty of question 4 .* at place 3"):
            judge(answered, dataclasses.replace(call, difficulties=gamed))
        with pytest.raises(CallError, match="AlpacaEval's questions"):
            judge(answered, dataclasses.replace(call, difficulties=gamed, how="single"))


def test_two_turns_are_graded_with_right_answers_and_the_first_answer_in_view(answered: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(one) + "\n" for one in TWO_TURNS))
    (tmp_path / "gpt-4.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RIGHT))
    with canned(lambda number, body: said(f"Rating: [[{number}]]")) as server:
        call = Call(
            server.address, "judge-3", "base", "single", tmp_path / "question.jsonl", tmp_path / "gpt-4.jsonl", concurrency=1, max_new_tokens=16
        )
        judged = judge(answered, call)
        first, second = (one["body"]["messages"][1]["content"] for one in (server.asked[0], server.asked[2]))
    assert judged.names == ("learned", "base")
    assert judged.grades is not None
    assert judged.grades.model is not None
    assert judged.grades.rival is not None
    assert (judged.grades.model.value, judged.grades.rival.value) == (2.0, 3.0)  # the turns of each: (1, 3) and (2, 4)
    assert "one" in first
    assert "101 Pierce" not in first
    ours = json.loads(next((answered.path / "judgments/answers").glob("*/learned.jsonl")).read_text().splitlines()[0])
    assert ours["question_id"] in (81, "81", 1)
    assert all(text in second for text in ("100 Pierce Rd, Itasca", "And 101 Pierce Rd, Elgin", "two"))
    lines = [json.loads(line) for line in (Path(judged.folder) / "model_judgment.jsonl").read_text().splitlines()]
    assert [(line["model"], line["turn"], line["score"]) for line in lines] == [("learned", 1, 1), ("learned", 2, 3), ("base", 1, 2), ("base", 2, 4)]


def test_a_dear_judging_is_asked_about_and_one_on_this_machine_is_not(answered: RunFolder, questions: Path) -> None:
    seen: list[str] = []
    with canned(prefers_ours) as server:
        call = Call(server.address, "judge-4", "reference", questions=questions, price_per_million_input=1e5)
        with pytest.raises(CallError, match="was not begun"):
            judge(answered, call, agree=lambda question: bool(seen.append(question)))
        assert server.asked == []
        assert "8 requests" in seen[0]
        judge(answered, Call(server.address, "judge-4", "reference", questions=questions), agree=lambda question: False)
        assert len(server.asked) == 8


def test_a_judge_that_says_no_verdict_is_counted_and_one_that_refuses_ends(answered: RunFolder, questions: Path) -> None:
    with canned(lambda number, body: said("Both are nice.")) as server:
        judged = judge(answered, Call(server.address, "judge-5", "reference", questions=questions, rows=2))
    assert judged.pairs is not None
    assert (judged.pairs.counts["unreadable"], judged.pairs.win_rate) == (2, None)
    with (
        canned(lambda number, body: Canned({"error": "too long"}, 400)) as server,
        pytest.raises(Exception, match="400"),
    ):
        judge(answered, Call(server.address, "judge-6", "reference", questions=questions))


def test_a_file_of_answers_is_a_rival_and_one_that_misses_some_is_refused(answered: RunFolder, questions: Path, tmp_path: Path) -> None:
    outputs = [{"instruction": one["instruction"], "output": f"Somewhere {len(one['instruction'])}", "generator": "other"} for one in ALPACA]
    (tmp_path / "outputs.json").write_text(json.dumps(outputs))
    with canned(prefers_ours) as server:
        judged = judge(answered, Call(server.address, "judge-7", str(tmp_path / "outputs.json"), questions=questions))
        assert judged.names[1] == "other"
        assert judged.pairs is not None
        assert (judged.pairs.counts["disagreed"], judged.pairs.first_shown) == (4, 1.0)
        (tmp_path / "outputs.json").write_text(json.dumps(outputs[:3]))
        with pytest.raises(DataError, match="no answer to question 4"):
            judge(answered, Call(server.address, "judge-7", str(tmp_path / "outputs.json"), questions=questions))
        with pytest.raises(CallError, match="is no run and no file"):
            judge(answered, Call(server.address, "judge-7", "nothing", questions=questions))


def test_raters_elsewhere_fill_a_table_and_several_are_merged(answered: RunFolder, questions: Path, tmp_path: Path) -> None:
    table = open_table(answered, "reference", questions=questions)
    table.export(tmp_path / "pairs.csv")
    with pytest.raises(CallError, match="exists already"):
        table.export(tmp_path / "pairs.csv")
    text = (tmp_path / "pairs.csv").read_text()
    assert not any(word in text for word in ("a_baseline", "learned", "first", "rival"))
    for rater in ("ann", "ben"):
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
        for row in rows:
            ours = "B" if row["answer_A"].startswith("It is") else "A"
            row.update(dict.fromkeys(QUESTIONS, ours if rater == "ann" or row["pair"] != "1" else "="))
        with (tmp_path / f"{rater}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        assert open_table(answered, "reference", questions=questions).take(tmp_path / f"{rater}.csv", rater) == (4, [])
    found = open_table(answered, "reference", questions=questions).result()
    assert found.raters == {"ann": 4, "ben": 4}
    assert found.win_rates["overall"].value == pytest.approx((4 + 3.5) / 8)
    assert (found.kappa_of, found.kappa_pairs) == ("Cohen", 4)
    assert "rated by" in answered.report.read_text(encoding="utf-8")


def test_kept_answers_are_those_of_the_weights_that_gave_them(copied: RunFolder, questions: Path) -> None:
    (asked,) = judge_questions.read_questions(questions, None)[:1]

    def answer() -> str:
        return rivals._answers(copied, [asked], 8, Silent(), base=False)[0][asked.id][0]

    first = answer()
    (kept,) = (copied.path / "judgments" / "answers").glob("*/*.jsonl")
    kept.write_text(kept.read_text().replace(json.dumps(first), '"kept before"'))
    assert answer() == "kept before"
    (weights,) = copied.trained.glob("*.safetensors")
    save_file({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert answer() != "kept before"


@pytest.mark.slow
@pytest.mark.real_model
def test_a_real_model_on_loopback_is_a_judge_whose_replies_are_kept(answered: RunFolder, questions: Path, default_model: Path) -> None:
    from loopback_model import serving

    with serving(str(default_model)) as (address, server):
        judged = judge(answered, Call(address, "small", "reference", "single", questions, rows=2, max_tokens=48))
    assert (judged.requests, judged.refused) == (4, 0)
    assert {"requests": 4, "prompt_tokens": judged.prompt_tokens, "completion_tokens": judged.completion_tokens} == server.bill
    replies = [json.loads(line) for line in (Path(judged.folder) / "journal.jsonl").read_text().splitlines()]
    assert all(reply["text"] for reply in replies if reply["kind"] == "answered")
