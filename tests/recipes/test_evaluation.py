"""Base beside tuned: the same questions, the same decoding, and columns that are what they are called."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier import files
from luthier.config.load import load_config, settings_to_yaml
from luthier.data.tokenize import prompt_ids
from luthier.engine import opening
from luthier.errors import CallError, DataError, RunError
from luthier.evaluate.questions import spread, with_examples
from luthier.recipes import evaluation, sft
from luthier.records import Turn
from luthier.reporting import Silent
from luthier.run_folder import RunFolder, read_scorecard


def training_rows(run: RunFolder) -> str:
    return str(load_config(run.config).settings.data.train)


def longest_answer(run: RunFolder) -> int:
    return int(load_config(run.config).settings.evaluation.max_new_tokens)


def set_evaluation(run: RunFolder, **values: object) -> None:
    settings = load_config(run.config).settings
    files.write_text(run.config, settings_to_yaml(settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update=values)})))


def samples_of(run: RunFolder, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.evals / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def bare_answers(model: Path, questions: list[list[Turn]], max_new_tokens: int) -> list[str]:
    """What the base answers when it is loaded without any adapter."""
    engine = opening.open_model(str(model), Silent(), "fp32", "cpu")
    return engine.answer([prompt_ids(turns, engine.tokenizer) for turns in questions], max_new_tokens=max_new_tokens)


def asked(run: RunFolder) -> list[list[Turn]]:
    rows = [json.loads(line)["messages"] for line in Path(training_rows(run)).read_text(encoding="utf-8").splitlines()]
    return [[Turn(turn["role"], turn["content"]) for turn in row[:-1]] for row in rows]


def test_the_tuned_model_knows_what_it_learned_and_the_base_does_not(copied: RunFolder) -> None:
    scorecard = evaluation.evaluate(copied, data=training_rows(copied))
    assert list(scorecard.models) == ["base", "tuned"]
    assert {name: metric.value for name, metric in scorecard.models["tuned"].items()} == {"exact_match": 1.0, "valid_json": 1.0, "field_f1": 1.0}
    assert scorecard.models["base"]["exact_match"].value == 0.0
    assert scorecard.models["tuned"]["exact_match"].n == 6
    assert read_scorecard(copied.evals / "train" / "scorecard.json") == scorecard
    gain = scorecard.differences["tuned"]["exact_match"]
    assert (gain.value, gain.n) == (1.0, 6)
    assert not copied.scorecard.exists(), "the run's own is of its held-out rows"


def test_the_scorecard_has_its_frozen_shape(copied: RunFolder) -> None:
    evaluation.evaluate(copied)
    stored = json.loads(copied.scorecard.read_text(encoding="utf-8"))
    assert stored.keys() == {"schema", "models", "decoding", "data", "differences", "costs"}
    assert stored["differences"].keys() == {"tuned"}
    assert stored["costs"]["tuned"].keys() == {"seconds_per_answer", "tokens_per_answer", "prompt_tokens_per_question", "price_per_answer"}
    assert stored["models"]["tuned"]["exact_match"].keys() == {"value", "low", "high", "n"}
    assert stored["data"] == {"source": "held-out rows of the run", "rows": 2, "base_rows": 2}
    assert stored["decoding"] == {"strategy": "greedy", "max_new_tokens": longest_answer(copied), "precision": "fp32"}
    assert "exact_match" in copied.report.read_text(encoding="utf-8")


def test_the_bases_column_is_what_the_bare_base_answers(copied: RunFolder, tiny_model: Path) -> None:
    """The adapter is switched off, not only scaled down."""
    evaluation.evaluate(copied, data=training_rows(copied))
    samples = samples_of(copied)
    expected = bare_answers(tiny_model, asked(copied), longest_answer(copied))
    assert [sample["answers"]["base"] for sample in samples] == expected[: len(samples)]
    assert [sample["answers"]["tuned"] for sample in samples] == [sample["expected"] for sample in samples]
    assert len(samples) == 6


def test_the_base_is_also_asked_with_examples(copied: RunFolder, tiny_model: Path) -> None:
    set_evaluation(copied, shots=2)
    scorecard = evaluation.evaluate(copied, data=training_rows(copied))
    assert list(scorecard.models) == ["base", "base_2shot", "tuned"]
    samples = samples_of(copied)
    config = load_config(copied.config)
    rows = evaluation.prepare.load_rows(config.settings.data, config.file.parent, 0).train
    examples = spread(rows, 2)
    # No row is shown its own answer.
    shown = [[example for example in examples if example.turns[:-1] != tuple(turns)] for turns in asked(copied)]
    assert sorted({len(one) for one in shown}) == [1, 2]
    prompts = [with_examples(turns, one) for turns, one in zip(asked(copied), shown, strict=True)]
    expected = bare_answers(tiny_model, prompts, longest_answer(copied))
    assert [sample["answers"]["base_2shot"] for sample in samples] == expected[: len(samples)]
    assert [sample["answers"]["base"] for sample in samples] != expected[: len(samples)]


def test_a_column_names_the_examples_that_there_were(copied: RunFolder) -> None:
    set_evaluation(copied, shots=20)
    assert list(evaluation.evaluate(copied, listener := Listener()).models) == ["base", "base_6shot", "tuned"]
    assert "evaluation.shots is 20 and there are 6 training rows: the base is shown 6" in listener.lines


def test_fewer_rows_can_be_asked_and_fewer_of_the_base(copied: RunFolder) -> None:
    set_evaluation(copied, max_rows=5, base_rows=3)
    scorecard = evaluation.evaluate(copied, data=training_rows(copied))
    assert {name: row["exact_match"].n for name, row in scorecard.models.items()} == {"base": 3, "tuned": 5}
    assert scorecard.data["rows"] == 5
    assert scorecard.data["base_rows"] == 3
    assert len(samples_of(copied)) == 3


def test_a_second_evaluation_gives_the_same_numbers(copied: RunFolder) -> None:
    assert evaluation.evaluate(copied) == evaluation.evaluate(copied)


def test_rows_that_cannot_be_asked_are_said(copied: RunFolder, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [chat_row(0), '{"messages": [', chat_row(1)])
    listener = Listener()
    scorecard = evaluation.evaluate(copied, listener, data=str(rows))
    assert scorecard.models["tuned"]["exact_match"].n == 2
    assert any("set aside: 1 " in line and f"{rows}:2" in line for line in listener.lines)


@pytest.mark.parametrize(
    ("row", "said"),
    [({"prompt": "a", "completion": "b"}, "field_f1 compares the fields of JSON")],
)
def test_rows_that_do_not_fit_are_named(row: dict[str, str], said: str, copied: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        evaluation.evaluate(copied, data=str(write_rows(tmp_path / "rows.jsonl", [row])))
    assert not copied.scorecard.exists()


TEXTS = [{"text": f"A luthier made {place} violins of spruce, and then he rested for a while."} for place in range(6)]


def test_a_run_on_plain_texts_is_measured_by_how_likely_they_are(write: Write, tmp_path: Path) -> None:
    """The base beside the tuned model, in the run's own windows; what it says of itself is the same number."""
    held_out = write_rows(tmp_path / "eval.jsonl", TEXTS[4:])
    settings = [f"data.eval={held_out}", "data.max_length=24", "data.too_long=split", "evaluation.every_steps=4", "training.max_steps=4"]
    run = sft.fit(write(TEXTS[:4], *settings, "training.learning_rate=1e-2"))
    card = evaluation.evaluate(run, listener := Listener())
    names = ["perplexity", "token_accuracy"]
    assert {model: list(found) for model, found in card.models.items()} == {"base": names, "tuned": names}
    assert (card.data["rows"], card.models["tuned"]["perplexity"].n, card.costs, samples_of(run, "held-out")) == (2, 2, {}, [])
    assert "strategy" not in card.decoding
    assert card.models["tuned"]["perplexity"].value < 0.9 * card.models["base"]["perplexity"].value
    assert math.log(card.models["tuned"]["perplexity"].value) == pytest.approx(run.read_metrics("eval")[-1]["loss"], rel=1e-4)
    assert "plain texts ask nothing: perplexity and token_accuracy of their tokens" in listener.lines
    assert "perplexity" in run.report.read_text(encoding="utf-8")


def test_texts_of_any_length_are_read_in_windows_and_questions_go_before_them(copied: RunFolder, tmp_path: Path) -> None:
    long = {"text": "A luthier made violins. " * 400}  # of thousands of tokens; the model's context is 512
    card = evaluation.evaluate(copied, data=str(write_rows(tmp_path / "texts.jsonl", [long, TEXTS[0]])))
    assert card.models["tuned"]["perplexity"].n == 2


@pytest.mark.parametrize(
    ("call", "named"),
    [({"metrics": ("perplexity", "rougeL")}, "--metric rougeL"), ({"max_new_tokens": 5}, "--max-new-tokens"), ({"samples": 2}, "--samples")],
)
def test_what_only_answers_have_is_refused_for_texts(call: dict[str, Any], named: str, copied: RunFolder, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", TEXTS))
    with pytest.raises(CallError, match="plain texts ask nothing") as error:
        evaluation.compare([str(copied.path)], evaluation.Call(data=rows, **call))
    assert error.value.where == named


def test_a_file_is_read_as_the_training_rows_were(write: Write, tmp_path: Path) -> None:
    write_rows(tmp_path / "own.jsonl", [{"Frage": f"q {place}", "Antwort": f"a {place}"} for place in range(4)])
    run = sft.fit(write([chat_row(0)], f"data.train={tmp_path / 'own.jsonl'}", "data.columns={question: Frage, answer: Antwort}"))
    rows = write_rows(tmp_path / "test.jsonl", [{"Frage": "q 9", "Antwort": "a 9"}])
    assert evaluation.evaluate(run, data=str(rows)).data["rows"] == 1


def test_what_is_mixed_into_the_training_is_no_row_of_a_file(write: Write, tmp_path: Path) -> None:
    run = sft.fit(write([chat_row(place) for place in range(8)], "data.replay=30%", "data.max_rows=3", "training.max_steps=1"))
    rows = write_rows(tmp_path / "test.jsonl", [chat_row(place) for place in range(5)])
    card = evaluation.evaluate(run, data=str(rows))
    assert (card.data["rows"], card.models["tuned"]["exact_match"].n) == (5, 5)


def test_files_of_metrics_lie_beside_the_settings(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "schema.json").write_text('{"type": "object"}')
    (folder / "mine.py").write_text("def same(expected, answer):\n    return expected == answer\n")
    monkeypatch.chdir(tmp_path)
    names = ["json_schema=schema.json", "mine.py:same"]
    write_rows(folder / "eval.jsonl", [chat_row(9)])
    settings = [f"evaluation.metrics=[{', '.join(names)}]", "data.eval=eval.jsonl", "evaluation.in_loop_rows=1", "evaluation.every_steps=1"]
    run = sft.fit(write([chat_row(place) for place in range(4)], *settings, "training.max_steps=1"))
    whole = [f"json_schema={folder / 'schema.json'}", f"{folder / 'mine.py'}:same"]
    assert set(whole) <= set(run.read_metrics("eval")[-1]["metrics"])
    assert list(evaluation.evaluate(run).models["tuned"]) == whole


def test_questions_without_any_room_are_named(copied: RunFolder, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [chat_row(0, "word " * 600)])
    with pytest.raises(DataError, match=r"none of 1 questions leaves room for an answer in the model's context of 512 tokens"):
        evaluation.evaluate(copied, data=str(rows))


def test_as_many_examples_are_shown_as_fit(copied: RunFolder) -> None:
    set_evaluation(copied, shots=5, max_new_tokens=300)
    listener = Listener()
    models = evaluation.evaluate(copied, listener).models
    (said,) = (line for line in listener.lines if "fit beside every question" in line)
    fitting = int(said.split(": ")[1].split()[0])
    assert fitting < 5
    assert (f"base_{fitting}shot" in models) == (fitting > 0)


def test_a_run_that_held_nothing_out_says_what_to_do(copied: RunFolder) -> None:
    copied.held_out.write_text("")
    with pytest.raises(RunError, match="holds no questions out\n  Try: luthier eval RUN --data FILE"):
        evaluation.evaluate(copied)


def test_a_run_that_has_not_ended_is_named(copied: RunFolder) -> None:
    files.remove_folder(copied.adapter)
    with pytest.raises(RunError, match="the run has not ended\n  Try: luthier train --resume"):
        evaluation.evaluate(copied)
