"""Any models side by side: what is kept, what is asked again, and what each column is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from canned_server import Canned, canned, said
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier.errors import CallError, ConfigError, LuthierError, RunError
from luthier.evaluate import endpoints
from luthier.evaluate.asking import Decoding
from luthier.evaluate.endpoints import Against
from luthier.evaluate.kept import Kept
from luthier.evaluate.targets import Target, told_apart
from luthier.recipes import evaluation, sft
from luthier.recipes.evaluation import Call, Prices
from luthier.records import Conversation, Source, Turn
from luthier.reporting import Silent
from luthier.run_folder import RunFolder, read_scorecard


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("rows") / "asked.jsonl", [chat_row(place) for place in range(4)]))


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_after_a_kill_only_what_is_missing_is_asked(copied: RunFolder, rows: str) -> None:
    first = evaluation.compare([str(copied.path)], Call(data=rows))
    path = first.folder / "answers.jsonl"
    whole = path.read_text(encoding="utf-8").splitlines()
    assert len(whole) == 8
    # What a kill leaves: some lines, and the half of one.
    path.write_text("\n".join(whole[:5]) + "\n" + whole[5][:40], encoding="utf-8")
    listener = Listener()
    again = evaluation.compare([str(copied.path)], Call(data=rows), listener)
    assert again.folder == first.folder
    assert again.scorecard.models == first.scorecard.models
    assert [line for line in listener.lines if "kept from before" in line] == [
        "base: 4 of 4 answers are kept from before",
        "tuned: 1 of 4 answers are kept from before",
    ]
    assert {json.loads(line)["key"] for line in path.read_text().splitlines() if line.endswith("}")} == {json.loads(line)["key"] for line in whole}


def test_another_call_never_writes_over_a_result(copied: RunFolder, rows: str) -> None:
    one = evaluation.compare([str(copied.path)], Call(data=rows))
    before = (one.folder / "scorecard.json").read_bytes()
    other = evaluation.compare([str(copied.path)], Call(data=rows, max_rows=2))
    assert (one.folder.name, other.folder.name) == ("asked", "asked-2")
    assert (one.folder / "scorecard.json").read_bytes() == before
    named = evaluation.compare([str(copied.path)], Call(data=rows, max_rows=2, name="two"))
    assert named.folder == copied.evals / "two"
    with pytest.raises(CallError, match="holds another evaluation, which is kept"):
        evaluation.compare([str(copied.path)], Call(data=rows, max_rows=3, name="two"))


def test_what_changed_is_asked_again(copied: RunFolder, rows: str, tmp_path: Path) -> None:
    changed = write_rows(tmp_path / "asked.jsonl", [chat_row(place) for place in range(4)])
    one = evaluation.compare([str(copied.path)], Call(data=str(changed)))
    write_rows(changed, [chat_row(place + 1) for place in range(4)])
    other = evaluation.compare([str(copied.path)], Call(data=str(changed)))
    assert one.folder != other.folder


def test_metrics_of_words_of_the_model_and_of_ones_own(copied: RunFolder, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def longer(expected, answer):\n    return len(answer) - len(expected)\n")
    names = ("squad_f1", "rougeL", "chrf", "perplexity", "token_accuracy", "choice", "length", "stop_rate", "refusals", "mine.py:longer")
    card = evaluation.compare([str(copied.path)], Call(data=rows, metrics=names)).scorecard
    assert list(card.models["tuned"]) == list(names)
    tuned, base = ({name: metric.value for name, metric in card.models[model].items()} for model in ("tuned", "base"))
    assert tuned["chrf"] == 100
    assert tuned["stop_rate"] == tuned["squad_f1"] == tuned["choice"] == tuned["token_accuracy"] == 1
    assert 1 <= tuned["perplexity"] < 1.2 < base["perplexity"]
    assert tuned["mine.py:longer"] == 0
    assert card.differences["tuned"]["perplexity"].high < 0


def test_checkpoints_other_runs_and_models_stand_beside_it(write: Write, copied: RunFolder, rows: str, tiny_model: Path) -> None:
    other = sft.fit(write([chat_row(place) for place in range(8)], "training.save_steps=1", "training.save_total_limit=4", name="other"))
    names = [str(other.path), f"{other.path}@step-000001", str(copied.path), str(tiny_model)]
    found = evaluation.compare(names, Call(data=rows, metrics=("perplexity", "exact_match")))
    assert list(found.scorecard.models) == ["base", "tuned", f"{other.name}@step-000001", copied.name, tiny_model.name]
    value = {name: metrics["perplexity"].value for name, metrics in found.scorecard.models.items()}
    assert value[tiny_model.name] == pytest.approx(value["base"], rel=1e-5), "the run's base is that model"
    assert value["tuned"] not in (value[f"{other.name}@step-000001"], value["base"])
    assert found.scorecard.models[copied.name]["exact_match"].value == 1
    assert set(found.scorecard.differences) == {"tuned", f"{other.name}@step-000001", copied.name, tiny_model.name}


def test_the_last_checkpoint_is_the_run(write: Write, rows: str) -> None:
    run = sft.fit(write([chat_row(place) for place in range(8)], "training.save_steps=1", name="whole"))
    card = evaluation.compare([str(run.path), f"{run.path}@2"], Call(data=rows, metrics=("perplexity", "exact_match"))).scorecard
    assert card.models["tuned"] == card.models[f"{run.name}@step-000002"]
    with pytest.raises(RunError, match=r"has no checkpoint step-000009 \(there are: .*step-000002\)"):
        evaluation.compare([f"{run.path}@9"], Call(data=rows))


def test_a_model_by_itself(tiny_model: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluation.compare([str(tiny_model)], Call(data=rows, max_new_tokens=8))
    assert found.folder == Path("evals") / f"asked-{tiny_model.name}"
    assert list(found.scorecard.models) == [tiny_model.name]
    assert read_scorecard(found.folder / "scorecard.json") == found.scorecard
    with pytest.raises(CallError, match="a model by itself holds no rows"):
        evaluation.compare([str(tiny_model)], Call())


def test_an_endpoint_is_a_column_with_its_price(copied: RunFolder, rows: str) -> None:
    right = json.loads(Path(rows).read_text(encoding="utf-8").splitlines()[0])["messages"][-1]["content"]
    with canned(lambda number, body: said(right)) as server:
        call = Call(data=rows, against=Against(server.address, "large"))
        prices = Prices(per_hour=3.6, per_million_input=1.0, per_million_output=10.0)
        found = evaluation.compare([str(copied.path)], call, prices=prices)
        asked = len(server.asked)
        evaluation.compare([str(copied.path)], call, prices=prices)
        assert len(server.asked) == asked == 4, "what was answered is not paid for again"
    large = found.scorecard.models["large"]
    assert (large["exact_match"].value, large["exact_match"].n) == (0.25, 4)
    cost = found.scorecard.costs["large"]
    assert cost["price_per_answer"] == pytest.approx((cost["prompt_tokens_per_question"] + 10 * cost["tokens_per_answer"]) / 1e6)
    tuned = found.scorecard.costs["tuned"]
    assert tuned["price_per_answer"] == pytest.approx(tuned["seconds_per_answer"] / 1000)


def test_a_server_that_refuses_everything_is_no_model_with_no_right_answer(copied: RunFolder, rows: str) -> None:
    with canned(lambda number, body: Canned({"error": {"message": "no such parameter: top_k"}}, 400)) as server:
        call = Call(data=rows, against=Against(server.address, "large", concurrency=1))
        with pytest.raises(LuthierError, match="no such parameter: top_k"):
            evaluation.compare([str(copied.path)], call)
        # It is mended: what was refused is asked again, and one refusal among answers is said.
        server.answer = lambda number, body: Canned({"error": {"message": "too long"}}, 400) if "100 Pierce" in json.dumps(body) else said("{}")
        listener, before = Listener(), len(server.asked)
        found = evaluation.compare([str(copied.path)], call, listener)
        assert len(server.asked) - before == 4
        assert any("1 questions were refused" in line for line in listener.lines)
        assert found.scorecard.models["large"]["exact_match"].n == 4
        evaluation.compare([str(copied.path)], call)
        assert len(server.asked) - before == 5, "the refused one is asked again, and nothing else"


def test_an_endpoint_is_told_of_the_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object", "properties": {}}}}]
    turns = (Turn("user", "Where?"), Turn("assistant", "Here."))
    asked = [Conversation(turns, Source("a", number), True, json.dumps(given) if given else "") for number, given in ((1, tools), (2, None))]
    with canned(lambda number, body: said("There.")) as server:
        against = Against(server.address, "large", concurrency=1)
        endpoints.ask(against, asked, Decoding(8), Kept(tmp_path / "answers.jsonl"), Silent())
    assert [one["body"].get("tools") for one in server.asked] == [tools, None]


def test_an_endpoint_is_told_of_calls_and_their_results(tmp_path: Path) -> None:
    call = {"function": {"name": "look_up", "arguments": {"place": "Rome"}}}
    turns = (Turn("user", "Where?"), Turn("assistant", "", extra=json.dumps({"tool_calls": [call]})), Turn("tool", "{}"), Turn("assistant", "Here."))
    with canned(lambda number, body: said("There.")) as server:
        against = Against(server.address, "large", concurrency=1)
        endpoints.ask(against, [Conversation(turns, Source("a", 1), True)], Decoding(8), Kept(tmp_path / "answers.jsonl"), Silent())
    (asked,) = server.asked
    written = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"place": "Rome"}'}}
    assert asked["body"]["messages"] == [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [written]},
        {"role": "tool", "content": "{}", "tool_call_id": "call_1"},
    ]


def test_no_two_columns_are_called_alike(copied: RunFolder, rows: str, tmp_path: Path) -> None:
    run, models = Target("run", copied), [Target("model", folder=tmp_path / one / "model") for one in ("a", "b")]
    assert [one.name for one in told_apart([run, *models])] == ["run", *(str(one.folder) for one in models)]
    assert [one.name for one in told_apart([run, models[0], Target("tuned", folder=tmp_path / "tuned")])] == ["run", "model", str(tmp_path / "tuned")]
    with pytest.raises(CallError, match="is named twice"):
        told_apart([models[0], models[0]])
    with canned(lambda number, body: said("{}")) as server:
        card = evaluation.compare([str(copied.path)], Call(data=rows, max_rows=1, against=Against(server.address, "tuned"))).scorecard
    assert list(card.models) == list(card.costs) == ["base", "tuned", "tuned (endpoint)"]


def test_another_model_of_the_same_name_is_another_evaluation(tiny_model: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / one / "model" for one in ("a", "b")]
    for folder in folders:
        shutil.copytree(tiny_model, folder)
    call = Call(data=rows, max_new_tokens=4, max_rows=1)
    first, other = (evaluation.compare([str(folder)], call) for folder in folders)
    assert (first.folder.name, other.folder.name) == ("asked-model", "asked-model-2")
    both = evaluation.compare([str(folder) for folder in folders], call)
    assert list(both.scorecard.models) == [str(folder.resolve()) for folder in folders]


def test_the_word_that_allows_code_does_not_make_it_another_evaluation(copied: RunFolder) -> None:
    evaluation.compare([str(copied.path)], Call())
    assert evaluation.compare([str(copied.path)], Call(run_code=True)).folder.name == "held-out"


def test_code_is_run_only_where_that_was_said(copied: RunFolder, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "code.jsonl", [{"prompt": "Write f.", "completion": "assert f() == 1"}]))
    with pytest.raises(CallError, match="--run-code"):
        evaluation.compare([str(copied.path)], Call(data=rows, metrics=("pass@1",)))
    listener = Listener()
    card = evaluation.compare([str(copied.path)], Call(data=rows, metrics=("pass@1",), run_code=True), listener).scorecard
    assert card.models["tuned"]["pass@1"].value == 0
    assert any(line.startswith("code is run apart") for line in listener.lines)
    with pytest.raises(CallError, match="needs 5 answers"):
        evaluation.compare([str(copied.path)], Call(data=rows, metrics=("pass@5",), run_code=True))


def test_several_answers_to_a_question_are_drawn_by_their_own_seeds(copied: RunFolder, rows: str) -> None:
    sampling = evaluation.Sampling(temperature=1.5, seed=3)
    found = evaluation.compare([str(copied.path)], Call(data=rows, sampling=sampling, samples=3))
    answers = [entry for entry in kept(found.folder) if entry["model"] == "base"]
    assert len(answers) == 12
    assert len({entry["answer"] for entry in answers}) > 4
    assert found.scorecard.decoding["samples"] == 3
    with pytest.raises(CallError, match="at temperature 0 all answers"):
        evaluation.compare([str(copied.path)], Call(data=rows, samples=3))


def test_an_unknown_suite_is_named_before_a_model_is_loaded(copied: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"ifbench.jsonl in a --suite-dir"):
        evaluation.compare([str(copied.path)], Call(suites=("ifbench",)))
