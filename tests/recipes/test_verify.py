"""luthier verify passes what is right, and each of its checks finds the bug that it is there for."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import TOWNS, Write, chat_row

from luthier.config.load import load_config
from luthier.data import tokenize
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine, lanes, lora, opening, optimizers, update
from luthier.engine.masters import Masters
from luthier.errors import CallError, ConfigError
from luthier.export import merged
from luthier.models import adapters, load
from luthier.recipes import verify as recipe
from luthier.recipes.proofs import artifacts, learning
from luthier.recipes.verify import CHECKS, Verdict, verify
from luthier.records import Proof
from luthier.run_folder import RunFolder

Plant = Callable[[pytest.MonkeyPatch], None]
ROWS = [chat_row(place) for place in range(24)]


def results(verdict: Verdict) -> dict[str, str]:
    return {proof.check: proof.status for proof in verdict.proofs}


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_UPDATES", 12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Verdict, Path]:
    """Every check on a right config, and the project's folder."""
    from conftest_runs import MACHINE, make_config

    from luthier.plan.machine import store_machine

    folder = tmp_path_factory.mktemp("verified")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(folder / "home"))
        environment.setattr(learning, "MOST_UPDATES", 12)
        store_machine(folder / "home", MACHINE)
        return verify(make_config(folder / "project", tiny_model, ROWS, "evaluation.sample_answers=1")), folder


def test_a_right_config_passes_every_check(whole: tuple[Verdict, Path]) -> None:
    verdict, _ = whole
    assert results(verdict) == dict.fromkeys(CHECKS, "passed")
    assert verdict.passed
    assert verdict.what["rows"] == 24


def test_the_evidence_has_numbers_and_rows(whole: tuple[Verdict, Path]) -> None:
    said = {proof.check: proof.evidence for proof in whole[0].proofs}
    assert "train.jsonl:1 ... train.jsonl:24" in said["masks"]
    assert "sha256 of optimizer.safetensors, trained.safetensors equal" in said["resume"]
    assert "24 prompts" in said["chat tokens"]
    assert json.loads(json.dumps(whole[0].as_json()))["checks"][0]["numbers"]["rows"] == 24


def test_nothing_is_left_behind(whole: tuple[Verdict, Path]) -> None:
    folder = whole[1]
    assert sorted(path.name for path in (folder / "project").iterdir()) == ["luthier.yaml", "train.jsonl"]
    assert list((folder / "home" / "scratch").iterdir()) == []


def labels_shifted(patch: pytest.MonkeyPatch) -> None:
    book = tokenize._booked
    patch.setattr(tokenize, "_booked", lambda found, *rest: book([replace(one, trained=[*one.trained[1:], False]) for one in found], *rest))


def end_token_masked(patch: pytest.MonkeyPatch) -> None:
    book = tokenize._booked

    def masked(found: Any, *rest: Any) -> Any:
        last = [len(one.trained) - 1 - one.trained[::-1].index(True) for one in found]
        return book(
            [replace(one, trained=[*one.trained[:end], *[False] * (len(one.trained) - end)]) for one, end in zip(found, last, strict=True)], *rest
        )

    patch.setattr(tokenize, "_booked", masked)


def prompt_trained(patch: pytest.MonkeyPatch) -> None:
    book = tokenize._booked
    patch.setattr(tokenize, "_booked", lambda found, *rest: book([replace(one, trained=[True] * len(one.trained)) for one in found], *rest))


def gradient_lost(patch: pytest.MonkeyPatch) -> None:
    backward = lora._Projections.backward

    def without_a(ctx: Any, *grads: Any) -> Any:
        found = list(backward(ctx, *grads))
        found[6] = None  # the A of the first projection
        return tuple(found)

    patch.setattr(lora._Projections, "backward", staticmethod(without_a))


def base_changed(patch: pytest.MonkeyPatch) -> None:
    step = Engine.optimizer_step

    @torch.no_grad()
    def changing(engine: Engine, learning_rate: float) -> float:
        next(parameter for parameter in engine.model.parameters() if not parameter.requires_grad).view(-1)[7] += 1e-3
        return step(engine, learning_rate)

    patch.setattr(Engine, "optimizer_step", changing)


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    run_step = update.run_step

    def each_by_itself(model: Any, step: Any, learn: Any, drawn: Any, side: Any = None) -> Any:
        share = 1 / len(step.micro_batches)
        parts = run_step(model, step, learn, drawn, side)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= share
        return parts

    patch.setattr(update, "run_step", each_by_itself)


def two_lanes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes, "usual_count", lambda device: 2)
    patch.setattr(lanes, "TRAINED_SHARE", 1.0)  # an adapter is much beside so small a model


def second_lane_dropped(patch: pytest.MonkeyPatch) -> None:
    two_lanes(patch)
    add_lanes = Masters.add_lanes

    def of_the_first(masters: Masters) -> None:
        masters._of_lanes.pop(2, None)
        add_lanes(masters)

    patch.setattr(Masters, "add_lanes", of_the_first)


def prefix_gradient_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(update, "_finish", lambda one, pool: None)


def gradient_doubled(patch: pytest.MonkeyPatch) -> None:
    backward = lora._Projections.backward

    def doubled(ctx: Any, *grads: Any) -> Any:
        found = list(backward(ctx, *grads))
        return (*found[:7], found[7] * 2, *found[8:])  # the B of the first projection

    patch.setattr(lora._Projections, "backward", staticmethod(doubled))


def moments_not_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(optimizers, "restore", lambda optimizer, weight, moments: None)


def scale_forgotten(patch: pytest.MonkeyPatch) -> None:
    write = merged.write_merged

    def unscaled(engine: Engine, folder: Path, *how: Any) -> Path:
        for module in engine.model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = dict.fromkeys(module.scaling, 1.0)
        return write(engine, folder, *how)

    patch.setattr(merged, "write_merged", unscaled)


def adapter_rounded(patch: pytest.MonkeyPatch) -> None:
    tensors = adapters._read_tensors
    patch.setattr(adapters, "_read_tensors", lambda folder: {name: tensor.bfloat16().float() for name, tensor in tensors(folder).items()})


def other_template(patch: pytest.MonkeyPatch) -> None:
    plain = load.load_tokenizer

    def served(folder: Path, *rest: Any, **named: Any) -> Any:
        tokenizer = plain(folder, *rest, **named)
        if (folder / "adapter_config.json").is_file():
            tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant:\n")
        return tokenizer

    patch.setattr(load, "load_tokenizer", served)


def updates_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "optimizer_step", lambda engine, learning_rate: engine.forget_gradients() and 1.0)


def other_prompt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(artifacts, "prompt_ids", lambda turns, tokenizer, tools="": [*prompt_ids(turns, tokenizer, tools)[:-1], 7])


def rates_unread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opening, "_rates", lambda settings: {})


PLANTED: list[tuple[str, Plant, str]] = [
    # check              bug                       what is said of it
    ("masks", labels_shifted, r"train.jsonl:1: the end of the answer .* is not trained"),
    ("masks", end_token_masked, r"train.jsonl:1: the end of the answer .* is not trained"),
    ("masks", prompt_trained, r"hold a part of the prompt \(and 23 more rows\)"),
    ("gradients", gradient_lost, r"8 of 28 trained tensors have no gradient, .*lora_A"),
    ("gradients", base_changed, r"1 frozen tensors were changed, .*embed_tokens"),
    ("accumulated", mean_of_means, r"(6 micro-batches and 3 against 1|2 micro-batches of 6 rows side by side) .*, gradients [1-9]"),
    ("accumulated", second_lane_dropped, r"micro-batches of \d+ rows side by side against one after the other.*, gradients [1-9]"),
    ("other budget", mean_of_means, r"against 4096.*, gradients [1-9]"),
    ("prefix sharing", prefix_gradient_dropped, r"against every row by itself.*, gradients [1-9]"),
    ("packed", gradient_doubled, r"gradients [1-9].* in .*q_proj.lora_B"),
    ("overfit", updates_lost, r"which is not below 50% of its first value"),
    ("reloaded", adapter_rounded, r"4 rows: logits .* apart"),
    ("chat tokens", other_template, r"chat template has changed since the training"),
    ("chat tokens", other_prompt, r"train.jsonl:1: chat sends .* from token \d+ on"),
    ("merged", scale_forgotten, r"0% equal answers"),
    ("resume", moments_not_restored, r"optimizer.safetensors, trained.safetensors differ"),
    pytest.param("settings", rates_unread, r"read by nothing: training.learning_rates \(command line", marks=pytest.mark.slow),
]


def test_every_check_has_a_planted_bug() -> None:
    assert {getattr(row, "values", row)[0] for row in PLANTED} == set(CHECKS)


@pytest.mark.parametrize(("check", "plant", "said"), PLANTED)
def test_a_planted_bug_turns_its_check_red(check: str, plant: Plant, said: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    verdict = verify(write(ROWS, *["training.learning_rates={embed_tokens: 0.5}"] * (check == "settings")), only=[check])
    (proof,) = verdict.proofs
    assert (proof.check, proof.status) == (check, "failed")
    assert re.search(said, proof.evidence), proof.evidence
    assert proof.next_step
    assert not verdict.passed


def test_what_runs_side_by_side_is_compared_too(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    two_lanes(monkeypatch)
    accumulated, other_budget = verify(write(ROWS), only=["accumulated", "other budget"]).proofs
    assert (accumulated.status, other_budget.status) == ("passed", "passed")
    assert "6 micro-batches and 3 against 1 micro-batch" in accumulated.evidence
    assert re.search(r"; \d+ micro-batches of \d+ rows side by side against one after the other", accumulated.evidence)
    assert accumulated.numbers["side_by_side"]["gradient_difference"] < 1e-4


def test_a_check_that_breaks_stops_no_other_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Any) -> Proof:
        raise ZeroDivisionError("of ours")

    monkeypatch.setitem(recipe.CHECKS, "gradients", broken)
    verdict = verify(write(ROWS), only=["masks", "gradients", "packed"])
    assert results(verdict) == {"masks": "passed", "gradients": "failed", "packed": "passed"}
    assert "ZeroDivisionError: of ours" in verdict.proofs[1].evidence


def test_ctrl_c_ends_it_and_leaves_nothing(write: Write, monkeypatch: pytest.MonkeyPatch, luthier_home: Path) -> None:
    def interrupted(bench: Any) -> Proof:
        bench.save()
        raise KeyboardInterrupt

    monkeypatch.setitem(recipe.CHECKS, "gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(write(ROWS), only=["gradients"])
    assert list((luthier_home / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "check", "reason"),
    [
        (["training.attn_implementation=sdpa"], "packed", "rows run one at a time already"),
        (["training.share_prefixes=false"], "prefix sharing", "share_prefixes is off"),
    ],
)
def test_what_does_not_apply_says_why(overrides: list[str], check: str, reason: str, write: Write) -> None:
    (proof,) = verify(write(ROWS, *overrides), only=[check]).proofs
    assert proof.status == "not_for_this_config"
    assert reason in proof.evidence


def settings_of(folder: Path, model: Path, rows: list[Any], text: str) -> Any:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = f"model: {model}\ndata: {{train: train.jsonl, eval: null}}\ndevice: cpu\n"
    (folder / "luthier.yaml").write_text(f"{common}training: {{precision: fp32, batch_size: 4, num_train_epochs: 1}}\n{text}\n", encoding="utf-8")
    return load_config(folder / "luthier.yaml")


def pair(place: int) -> dict[str, Any]:
    row = chat_row(place)["messages"]
    return {"prompt": row[:-1], "chosen": row[-1:], "rejected": [{"role": "assistant", "content": f"No idea of {TOWNS[place % 8]}"}]}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["method: bottleneck", "method: prompt", "method: full"])
def test_other_methods_pass_too(text: str, tmp_path: Path, tiny_model: Path) -> None:
    found = results(verify(settings_of(tmp_path, tiny_model, ROWS, text), only=["masks", "gradients", "packed", "merged"]))
    expected = dict.fromkeys(("masks", "gradients", "packed", "merged"), "passed")
    assert found == (expected if text == "method: full" else {**expected, "merged": "not_for_this_config"})


@pytest.mark.slow
def test_pairs_pass_too(tmp_path: Path, tiny_model: Path) -> None:
    config = settings_of(tmp_path, tiny_model, [pair(place) for place in range(12)], "objective: dpo")
    names = ["masks", "gradients", "accumulated", "packed", "chat tokens", "resume"]
    assert results(verify(config, only=names)) == dict.fromkeys(names, "passed")


def test_plain_texts_and_completions_pass_too(tmp_path: Path, tiny_model: Path) -> None:
    texts = [{"text": f"The town {town} has a luthier."} for town in TOWNS]
    assert results(verify(settings_of(tmp_path, tiny_model, texts, ""), only=["masks", "chat tokens"])) == {
        "masks": "passed",
        "chat tokens": "not_for_this_config",
    }
    rows = [{"prompt": f"Where is {town}?", "completion": f" In {town} {place}"} for place, town in enumerate(TOWNS)]
    assert verify(settings_of(tmp_path, tiny_model, rows, ""), only=["masks", "chat tokens"]).passed


def test_everything_trained_passes_too(write: Write) -> None:
    assert verify(write(ROWS, "data.loss_on=all"), only=["masks", "chat tokens"]).passed


def test_a_check_that_is_not_there_is_refused(write: Write) -> None:
    with pytest.raises(CallError, match=r"there is no check 'mask'\n  Try: one of: masks, gradients"):
        verify(write(ROWS), only=["mask"])


def test_settings_that_cannot_work_are_refused_as_train_refuses_them(write: Write) -> None:
    with pytest.raises(ConfigError):
        verify(write(ROWS, "data.max_length=9000"), only=["masks"])


def test_a_run_keeps_the_result_and_its_report_shows_it(copied: RunFolder) -> None:
    verdict = verify(load_config(copied.config), only=["masks", "packed"], run=copied)
    assert json.loads(copied.verified.read_text(encoding="utf-8")) == verdict.as_json()
    report = copied.report.read_text(encoding="utf-8")
    assert "Tried out (luthier verify)" in report
    assert "rows together against one by one" in report


def test_the_slice_has_as_many_rows_as_were_asked_for(write: Write) -> None:
    assert verify(write(ROWS), only=["masks"], rows=5).what["rows"] == 5
