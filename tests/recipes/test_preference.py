"""Preference tuning, from a file of pairs or labeled answers to a run that can be evaluated, resumed and talked to."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import TOWNS, Listener, Write, chat_row, write_rows
from safetensors.numpy import load_file

from luthier.config.load import Config, load_config
from luthier.engine import opening
from luthier.errors import ConfigError, DataError, RunError
from luthier.recipes import evaluation, preference, sft, training
from luthier.recipes.conversation import open_talk
from luthier.recipes.planning import make_plan
from luthier.records import TokenizedExample
from luthier.reporting import Bar, Silent
from luthier.run_folder import RunFolder
from luthier.train import session
from luthier.train.preference import judged_rows


def pair(place: int) -> dict[str, Any]:
    """The same question, answered in JSON (better) and in words (worse)."""
    town, number = TOWNS[place % len(TOWNS)], 100 + place
    asked = [{"role": "user", "content": f"{number} Pierce Rd, {town}"}]
    better, worse = json.dumps({"city": town, "street": f"{number} Pierce Rd"}), f"The city is {town}, the street is {number} Pierce Rd."
    return {"prompt": asked, "chosen": [{"role": "assistant", "content": better}], "rejected": [{"role": "assistant", "content": worse}]}


def labeled(place: int) -> dict[str, Any]:
    row, good = pair(place // 2), place % 2 == 0
    return {"messages": [*row["prompt"], *row["chosen" if good else "rejected"]], "label": good}


PAIRS = [pair(place) for place in range(12)]
LABELED = [labeled(place) for place in range(16)]
NEW = [pair(place) for place in range(40, 44)]
OBJECTIVES = {"dpo": (PAIRS, NEW), "orpo": (PAIRS, NEW), "simpo": (PAIRS, NEW), "kto": (LABELED, [labeled(place) for place in range(80, 88)])}
TRL_NAMES = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}


def config_of(write: Write, objective: str, *overrides: str, name: str = "project") -> Config:
    rows, held_out = OBJECTIVES[objective]
    config = write(rows, f"objective={objective}", "data.eval=eval.jsonl", "evaluation.sample_answers=0", *overrides, name=name)
    write_rows(config.file.parent / "eval.jsonl", held_out)
    return config


def metrics_of(run: RunFolder) -> list[dict[str, Any]]:
    return [row["metrics"] for row in run.read_metrics("train")]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_better_answers_of_rows_that_were_not_seen_gain_on_the_worse(write: Write, objective: str) -> None:
    run = preference.fit(config_of(write, objective, "training.num_train_epochs=4", "evaluation.every_steps=2"))
    first, last = (run.read_metrics("eval")[place] for place in (0, -1))
    assert last["metrics"]["rewards/margins"] > 0
    assert last["metrics"]["rewards/margins"] > first["metrics"]["rewards/margins"]
    assert last["loss"] < first["loss"]
    names = TRL_NAMES | ({"kl"} if objective == "kto" else {"rewards/accuracies"})
    assert set(last["metrics"]) == names
    if objective != "kto":
        assert last["metrics"]["rewards/accuracies"] == 1.0
        assert all(set(row) == names for row in metrics_of(run))
    assert "Margin of the rewards" in run.report.read_text(encoding="utf-8")


def test_a_step_of_answers_alone_has_the_keys_it_always_had(write: Write) -> None:
    run = sft.fit(write([chat_row(place) for place in range(4)]))
    assert "metrics" not in run.read_metrics("train")[0]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_nothing_has_changed_before_the_first_update(write: Write, objective: str) -> None:
    run = preference.fit(config_of(write, objective, "training.max_steps=1"))
    first = run.read_metrics("train")[0]
    assert first["loss"] == pytest.approx({"dpo": 0.693147, "kto": 0.5}[objective], abs=1e-4)
    rewards = [value for name, value in first["metrics"].items() if name.startswith("rewards/") and name != "rewards/accuracies"]
    assert rewards == pytest.approx([0.0] * len(rewards), abs=1e-4)


def test_pairs_share_their_question(write: Write) -> None:
    asked = [{"role": "user", "content": " ".join(f"{place} Pierce Rd" for place in range(80))}]
    run = preference.fit(write([{**row, "prompt": asked} for row in PAIRS], "objective=dpo", "training.max_steps=1"))
    step = run.read_metrics("train")[0]
    assert step["executed_tokens"] < 0.5 * step["logical_tokens"]


def test_the_result_does_not_depend_on_the_micro_batch(write: Write) -> None:
    losses = []
    for number, tokens in enumerate((16, 200, 4096)):
        run = preference.fit(config_of(write, "dpo", f"training.micro_batch_tokens={tokens}", name=f"project-{number}"))
        losses.append([row["loss"] for row in run.read_metrics("train")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "simpo", "kto"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(write: Write, objective: str) -> None:
    config = config_of(write, objective, "training.num_train_epochs=2", "lora.lora_dropout=0.1")
    straight = preference.fit(config)
    listener = Listener(step_2=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(session.Interrupted) as stopped:
        preference.fit(load_config(config.file, [*overrides_of(config), "training.logging_steps=1"]), listener)
    run = RunFolder(Path(str(stopped.value.where)))
    kept = (run.path / "reference.safetensors").read_bytes() if objective in ("dpo", "kto") else b""
    resumed = preference.fit(load_config(run.config), resume=run)
    assert [row["loss"] for row in resumed.read_metrics("train")] == [row["loss"] for row in straight.read_metrics("train")]
    assert metrics_of(resumed) == metrics_of(straight)
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == (straight.adapter / "adapter_model.safetensors").read_bytes()
    if kept:
        assert (run.path / "reference.safetensors").read_bytes() == kept
    else:
        assert not run.reference.exists()


def overrides_of(config: Config) -> list[str]:
    return [where.removeprefix("command line: ") for where in config.given.values() if where.startswith("command line: ")]


def test_the_reference_is_what_the_base_makes_of_the_answers(write: Write) -> None:
    run = preference.fit(config_of(write, "dpo", "training.max_steps=2"))
    kept = load_file(run.reference)
    assert (kept["train"].shape, kept["held_out"].shape) == ((12, 2), (4, 2))
    engine = opening.open_trained(run, Silent())
    rows = [{"messages": [*PAIRS[3]["prompt"], *PAIRS[3][side]]} for side in ("chosen", "rejected")]
    with engine.model.disable_adapter():
        assert engine.log_probabilities(engine.tokenize(rows)) == pytest.approx(kept["train"][3].tolist(), rel=1e-5)


def test_a_reference_that_is_damaged_is_computed_again(write: Write) -> None:
    config = config_of(write, "dpo", "training.num_train_epochs=2", "training.logging_steps=1")
    listener = Listener(step_2=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(session.Interrupted) as stopped:
        preference.fit(config, listener)
    run = RunFolder(Path(str(stopped.value.where)))
    whole = run.reference.read_bytes()
    run.reference.write_bytes(whole[:40])
    preference.fit(load_config(run.config), resume=run)
    assert run.reference.read_bytes() == whole


class Stopped(Listener):
    """Ctrl-C as soon as a bar with this in its title begins."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if self.title in title:
            raise KeyboardInterrupt
        with super().bar(title, total) as bar:
            yield bar


def test_a_run_that_is_stopped_before_its_first_update_keeps_what_it_has_and_begins_again(write: Write) -> None:
    config = config_of(write, "dpo")
    straight = preference.fit(config)
    with pytest.raises(KeyboardInterrupt):
        preference.fit(config, Stopped("held-out rows before"))
    run = RunFolder(next(folder for folder in straight.path.parent.iterdir() if folder != straight.path))
    listener = Listener()
    resumed = preference.fit(load_config(run.config), listener, resume=run)
    assert resumed.path == run.path
    assert "no checkpoint was written before the run was stopped: it begins at its first update again" in listener.lines
    assert not any("training rows before" in line for line in listener.lines), "these were kept"
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == (straight.adapter / "adapter_model.safetensors").read_bytes()
    assert run.reference.read_bytes() == straight.reference.read_bytes()
    assert [row["loss"] for row in resumed.read_metrics("train")] == [row["loss"] for row in straight.read_metrics("train")]


def test_a_run_that_begins_again_does_so_on_the_same_rows_only(write: Write) -> None:
    config = config_of(write, "dpo")
    with pytest.raises(KeyboardInterrupt):
        preference.fit(config, Stopped("training"))
    run = RunFolder(next((config.file.parent / "runs").iterdir()))
    write_rows(config.file.parent / "train.jsonl", PAIRS[:8])
    with pytest.raises(RunError, match="has changed since this run was trained on it"):
        preference.fit(load_config(run.config), resume=run)


@pytest.mark.parametrize("weight", [1, 3])
def test_the_drift_is_measured_on_answers_to_other_prompts(write: Write, weight: int) -> None:
    """Rows that were pairs stand side by side, and so do those that count several times."""
    config = write(LABELED, "objective=kto", f"data.train=[{{path: train.jsonl, weight: {weight}}}]")
    read, rows = session.read(config, Silent())
    judged, _ = judged_rows(session.tokenize(read, rows, Silent()).prepared, "kto")
    asked = {tuple(row.examples[0].token_ids[row.examples[0].trained.index(True) :]): prompt_of(row.examples[0]) for row in judged}
    assert len(judged) == weight * len(LABELED)
    for row in judged:
        assert row.mismatched
        answer = row.mismatched.token_ids[row.mismatched.trained.index(True) :]
        of_answer = next(prompt for known, prompt in asked.items() if list(known[: len(answer)]) == answer)
        assert prompt_of(row.mismatched) == prompt_of(row.examples[0]) != of_answer


def prompt_of(example: TokenizedExample) -> list[int]:
    return example.token_ids[: example.trained.index(True)]


def test_one_prompt_for_all_rows_is_said_and_has_no_drift(write: Write) -> None:
    rows = [{"prompt": "Greet me.", "completion": f"Hello {place}.", "label": place % 2 == 0} for place in range(8)]
    listener = Listener()
    run = preference.fit(write(rows, "objective=kto", "training.num_train_epochs=3"), listener)
    assert [row["kl"] for row in metrics_of(run)] == [0.0] * 6
    note = "note: all training rows have one prompt, so that kto's drift cannot be measured on another's answers; it is 0 there"
    assert listener.lines.count(note) == 1
    assert not any("held-out" in line for line in listener.lines), "nothing is held out"


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_answers_of_one_kind_are_mentioned(write: Write, kind: str) -> None:
    listener = Listener()
    preference.fit(write([row for row in LABELED if row["label"] == (kind == "good")], "objective=kto", "training.max_steps=1"), listener)
    other = "bad" if kind == "good" else "good"
    assert f"note: every training row is labeled {kind}; kto learns from {other} answers too" in listener.lines


@pytest.mark.parametrize("objective", ["sft", *OBJECTIVES])
def test_a_recipe_refuses_the_objectives_of_the_other(write: Write, objective: str) -> None:
    rows = [chat_row(place) for place in range(4)] if objective == "sft" else OBJECTIVES[objective][0]
    config = write(rows, f"objective={objective}", "training.max_steps=1")
    with pytest.raises(ConfigError, match=f"objective: {objective} was given to the recipe of ") as refused:
        (preference.fit if objective == "sft" else sft.fit)(config)
    assert refused.value.where == f"command line: objective={objective}"
    assert ("rewards/chosen" in training.fit(config).read_metrics("train")[0].get("metrics", {})) == (objective != "sft")


def test_a_whole_model_learns_from_pairs_too(write: Write) -> None:
    run = preference.fit(of_method(config_of(write, "dpo"), "full", "training.num_train_epochs=4", "training.learning_rate=1e-3"))
    assert run.read_metrics("eval")[-1]["metrics"]["rewards/margins"] > 0
    assert run.model.is_dir()


def of_method(config: Config, method: str, *overrides: str) -> Config:
    """The same settings for a method that reads no `lora` section."""
    lines = config.file.read_text(encoding="utf-8").splitlines(keepends=True)
    config.file.write_text("".join(line for line in lines if not line.startswith("lora")), encoding="utf-8")
    return load_config(config.file, [*overrides_of(config), f"method={method}", *overrides])


def test_a_run_goes_on_from_one_that_learned_the_answers(write: Write) -> None:
    """The reference is then the earlier run's model, and not the base."""
    earlier = sft.fit(write([chat_row(place) for place in range(8)], "training.num_train_epochs=4", name="answers"))
    run = preference.fit(config_of(write, "dpo", f"init_from={earlier.path}", "training.max_steps=1"))
    assert run.read_metrics("train")[0]["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_an_adapter_that_does_not_begin_as_the_base_is_switched_off_for_the_reference(write: Write) -> None:
    config = of_method(config_of(write, "dpo"), "prefix", "training.max_steps=1")
    run = preference.fit(config)
    engine = opening.open_model(str(config.settings.model), Silent(), "fp32")
    rows = [{"messages": [*PAIRS[0]["prompt"], *PAIRS[0][side]]} for side in ("chosen", "rejected")]
    assert engine.log_probabilities(engine.tokenize(rows)) == pytest.approx(load_file(run.reference)["train"][0].tolist(), rel=1e-5)


def test_a_run_is_evaluated_and_asked_by_its_better_answers(write: Write) -> None:
    run = preference.fit(config_of(write, "dpo", "training.max_steps=2", "evaluation.max_new_tokens=4"))
    scorecard = evaluation.evaluate(run, Silent())
    assert scorecard.models["tuned"]["exact_match"].n == len(NEW)
    contract = json.loads(run.contract.read_text())
    assert contract["golden"][0]["messages"] == PAIRS[0]["prompt"]
    assert isinstance("".join(open_talk(run, Silent()).ask("100 Pierce Rd, Itasca")), str)


def test_bad_answers_are_not_compared_with(write: Write) -> None:
    run = preference.fit(config_of(write, "kto", "training.max_steps=1", "evaluation.max_new_tokens=4", "evaluation.shots=2"))
    assert evaluation.evaluate(run, Silent()).models["tuned"]["exact_match"].n == 4
    assert evaluation.evaluate(run, Silent(), data=str(Path(str(load_config(run.config).settings.data.train)))).models["tuned"]["exact_match"].n == 8


def test_a_printed_line_has_margin_and_accuracy(write: Write) -> None:
    listener = Listener()
    preference.fit(config_of(write, "dpo", "training.max_steps=2", "training.logging_steps=1"), listener)
    assert any("step 1/2  loss " in line and "  margin " in line and "  accuracy " in line for line in listener.lines)
    assert any("held-out loss" in line and "  margin " in line for line in listener.lines)


def test_the_loss_of_every_pair_is_written_where_that_is_asked_for(write: Write) -> None:
    run = preference.fit(config_of(write, "dpo", "training.max_steps=2", "training.rows_file=true"))
    rows = [json.loads(line) for line in run.rows.read_text().splitlines()]
    steps = run.read_metrics("train")
    assert len(rows) == 8
    assert sum(row["loss"] for row in rows[:4]) / 4 == pytest.approx(steps[0]["loss"])


WRONG = {
    # objective: (rows,                    what is said,                                        what to do)
    "sft": (PAIRS, "holds pairs of a better and a worse answer", "objective: dpo learns from these rows; luthier data convert"),
    "dpo": ([chat_row(place) for place in range(8)], "holds answers without a judgment; objective: dpo", 'a pair is {"prompt"'),
    "orpo": (LABELED, "holds answers that are labeled good or bad; objective: orpo", "objective: kto learns from these rows"),
    "kto": (PAIRS, "holds pairs of a better and a worse answer; objective: kto", "objective: dpo learns from these rows"),
}


@pytest.mark.parametrize("objective", WRONG)
def test_rows_of_another_kind_are_refused_with_what_is_needed(write: Write, objective: str) -> None:
    rows, said, cure = WRONG[objective]
    config = write(rows, f"objective={objective}")
    for call in (sft.fit if objective == "sft" else preference.fit, make_plan):
        with pytest.raises(DataError) as refused:
            call(config)
        assert said in refused.value.problem
        assert cure in str(refused.value.next_step)


def test_pairs_that_cannot_be_used_are_listed_and_the_others_trained(write: Write) -> None:
    same = {**pair(20), "rejected": pair(20)["chosen"]}
    long = {**pair(21), "chosen": [{"role": "assistant", "content": "word " * 400}]}
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    turns = {**pair(22), "prompt": asked}
    run = preference.fit(write([*PAIRS, same, long, turns], "objective=dpo", "data.max_length=200", "data.too_long=drop", "training.max_steps=1"))
    ledger = json.loads(run.ledger.read_text())
    assert ledger["rows"]["train"] == 13
    reasons = [json.loads(line)["reason"] for line in run.rejected.read_text().splitlines()]
    assert sorted(reasons) == ["same_answers", "too_long"]


def test_the_plan_counts_both_answers_and_the_pass_before_the_training(write: Write) -> None:
    config = config_of(write, "dpo")
    pairs = make_plan(config)
    answers = make_plan(write([{"messages": [*row["prompt"], *row["chosen"]]} for row in PAIRS], name="answers"))
    assert pairs.updates == answers.updates
    assert pairs.seconds > 2.2 * answers.seconds
    assert pairs.memory_bytes["activations"] > 1.5 * answers.memory_bytes["activations"]
    assert any(choice.name == "preference.beta" and choice.value == 0.1 for choice in pairs.resolved)
    assert make_plan(config_of(write, "simpo", name="simpo")).seconds < pairs.seconds


def test_the_example_of_the_guide_runs(write: Write, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "preference.md").read_text(encoding="utf-8")
    blocks = guide.split("```")[1::2]
    rows = next(block for block in blocks if block.startswith("json"))
    settings = next(block for block in blocks if block.startswith("yaml"))
    project = write([json.loads(line) for line in rows.splitlines()[1:]], name="guide").file.parent
    model = load_config(project / "luthier.yaml").settings.model
    (project / "pairs.jsonl").write_text("\n".join(rows.splitlines()[1:]) + "\n", encoding="utf-8")
    (project / "luthier.yaml").write_text(settings.removeprefix("yaml\n").replace("smollm2-135m-instruct", model), encoding="utf-8")
    config = load_config(project / "luthier.yaml", ["training.max_steps=1", "training.precision=fp32", "device=cpu"])
    assert config.settings.objective == "dpo"
    run = preference.fit(config)
    assert run.adapter.is_dir()
    assert torch.isfinite(torch.tensor(run.read_metrics("train")[0]["loss"]))
