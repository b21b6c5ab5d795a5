"""A plan costs milliseconds: no weights, no torch, and it says when a run will not fit."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_runs import Listener, Write, chat_row

from luthier.config.load import load_config
from luthier.errors import ConfigError, DataError, ModelError
from luthier.models import layer_names
from luthier.plan.machine import store_machine
from luthier.recipes import sft
from luthier.recipes.planning import make_plan, overview
from luthier.records import Machine
from luthier.run_folder import list_runs

ROWS = [chat_row(place) for place in range(16)]
AUTO = [f"training.{name}=auto" for name in ("precision", "learning_rate", "batch_size", "num_train_epochs", "warmup_ratio")]
AUTO += [f"lora.{name}=auto" for name in ("r", "lora_alpha", "lora_dropout")]


def test_every_auto_has_a_value_and_a_reason(write: Write) -> None:
    plan = make_plan(write(ROWS, *AUTO), listener := Listener())
    resolved = {choice.name: choice for choice in plan.resolved}
    assert resolved.keys() == {
        *("data.max_length", "evaluation.max_new_tokens"),
        *(f"training.{name}" for name in ("batch_size", "learning_rate", "num_train_epochs", "warmup_ratio")),
        *(f"training.{name}" for name in ("precision", "micro_batch_tokens", "gradient_checkpointing", "compile")),
        *("lora.r", "lora.lora_alpha", "lora.lora_dropout"),
    }
    assert all(choice.why for choice in plan.resolved)
    assert resolved["data.max_length"].value == 512
    assert resolved["training.precision"].value == "fp32"
    assert plan.fits
    assert any("tokens are estimated" in line for line in listener.lines)
    left = {name for name, value in plan.settings.training.model_dump().items() if value == "auto"}
    assert left == {"attn_implementation"}  # Luthier's own, whatever the machine


def test_the_plan_has_its_frozen_keys_and_is_that_of_the_run(write: Write) -> None:
    config = write(ROWS, *AUTO)
    keys = {"schema", "settings", "resolved", "machine", "updates", "memory_bytes", "seconds_estimated", "fits", "next_step", "notes"}
    planned = json.loads(json.dumps(make_plan(config).as_json()))
    stored = json.loads(sft.fit(config).plan.read_text(encoding="utf-8"))
    assert planned.keys() == keys
    assert stored.keys() - {"measured"} == keys
    assert planned["updates"] == stored["updates"]
    numbers = [[(choice["name"], choice["value"]) for choice in plan["resolved"] if "new_tokens" not in choice["name"]] for plan in (planned, stored)]
    assert numbers[0] == numbers[1]


def test_what_is_given_is_not_resolved(write: Write) -> None:
    plan = make_plan(write(ROWS))
    assert {choice.name for choice in plan.resolved} == {
        *("data.max_length", "evaluation.max_new_tokens", "training.micro_batch_tokens", "training.gradient_checkpointing", "training.compile"),
        "training.warmup_ratio",
    }
    assert plan.updates == 4


def test_a_model_that_does_not_fit_says_so_and_what_to_do(write: Write, luthier_home: Path, known_machine: Machine) -> None:
    store_machine(luthier_home, dataclasses.replace(known_machine, memory_bytes=200_000_000))
    plan = make_plan(write(ROWS, "model=smollm2-135m-instruct"))
    assert not plan.fits
    assert plan.next_step
    assert any(line.startswith("does not fit in 90% of ") for line in plan.lines())


def test_a_machine_that_was_never_measured_is_guessed_and_named_so(write: Write, luthier_home: Path) -> None:
    (luthier_home / "machine.json").unlink()
    assert "rates not measured" in make_plan(write(ROWS)).machine.name
    assert not (luthier_home / "machine.json").exists()


def test_a_plan_writes_nothing_and_names_what_is_missing(write: Write) -> None:
    config = write(ROWS)
    make_plan(config)
    assert list_runs(config.file.parent / "runs") == []
    with pytest.raises(ModelError, match="no such folder"):
        make_plan(write(ROWS, "model=./nothing"))
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        make_plan(write(ROWS, "data.train=nothing.jsonl"))


def test_a_plan_needs_no_torch(write: Write) -> None:
    config = write(ROWS)
    names = "('torch', 'transformers', 'peft')"
    program = (
        "import sys; from luthier.config.load import load_config; from luthier.recipes.planning import make_plan; "
        f"plan = make_plan(load_config({str(config.file)!r})); print(plan.updates, [name for name in {names} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[1].strip() == "[]"


@pytest.mark.parametrize(
    ("overrides", "problem", "next_step"),
    [
        (["lora.target_modules=[q_proj, query]"], "this model has no linear layer query", "some of: down_proj, gate_proj, k_proj"),
        (["lora.target_modules=.*attn.*query"], "no linear layer has", r"a whole name is model\.layers\.0\."),
        (["method=peft", "peft.type=VERRA"], "PEFT has no type VERRA", r"did you mean VERA\?"),
        (["method=peft", "peft.type=LORA"], "LORA is a method of its own", "method: lora"),
        (["method=peft", "peft={type: LOHA, target_modules: [query]}"], "no linear layer query", "all-linear"),
        (["method=ia3", "ia3.target_modules=[key]"], "no linear layer key", "k_proj"),
        (["init_from=runs/nothing"], "init_from: runs/nothing is not a run", "luthier runs list"),
        (["device=cuda"], "cuda ", "luthier doctor"),
    ],
)
def test_a_name_that_nothing_has_is_refused_without_torch(write: Write, overrides: list[str], problem: str, next_step: str) -> None:
    if any("method" in override for override in overrides):
        config = write(ROWS)
        text = config.file.read_text(encoding="utf-8")
        config.file.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("lora:")), encoding="utf-8")
        config = load_config(config.file, overrides)
    else:
        config = write(ROWS, *overrides)
    with pytest.raises(ConfigError, match=problem) as refused:
        make_plan(config)
    assert re.search(next_step, refused.value.next_step)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, down_proj]", "self_attn.v_proj", r".*\.0\.mlp\..*"])
def test_a_name_that_the_model_has_is_planned(write: Write, targets: str) -> None:
    assert make_plan(write(ROWS, f"lora.target_modules={targets}")).fits


def test_layers_of_a_model_of_the_catalog_are_known_without_its_weights(write: Write) -> None:
    with pytest.raises(ConfigError, match="no linear layer query_key_value"):
        make_plan(write(ROWS, "model=llama-3.1-8b-instruct", "lora.target_modules=[query_key_value]"))


def test_layers_that_cannot_be_known_are_said_not_to_be_checked(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(layer_names.OF_BLOCKS, "llama")
    make_plan(write(ROWS, "model=llama-3.1-8b-instruct", "lora.target_modules=[query]"), listener := Listener())
    assert "lora.target_modules is not checked: the layers of this model are known when it is loaded" in listener.lines


def test_an_adapter_that_goes_on_decides_its_rank_in_the_plan_too(write: Write) -> None:
    run = sft.fit(write(ROWS, "training.max_steps=1"))
    plan = make_plan(write(ROWS, *AUTO, f"init_from={run.path}", name="later"))
    assert plan.settings.lora.numbers == (4, 8.0, 0.0)
    assert not {"lora.r", "lora.lora_alpha", "lora.lora_dropout"} & {choice.name for choice in plan.resolved}
    with pytest.raises(ConfigError, match=r"lora\.r is 9 and the adapter in .* was made with 4"):
        make_plan(write(ROWS, *AUTO, "lora.r=9", f"init_from={run.path}", name="wider"))


def test_the_settings_say_which_run_it_is_and_the_run_takes_them(write: Write) -> None:
    config = write(ROWS, *AUTO, "plan.domain=near", "training.max_steps=1")
    assert make_plan(config).settings.lora.r == 16
    stored = load_config(sft.fit(config).config).settings
    assert stored.lora.numbers[:2] == (16, 32.0)
    assert stored.plan.domain == "near"


def test_the_overview_has_all_that_helps_to_judge_a_plan(write: Write, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n[hours]\nthis = 3600.0\nt4 = 7200.0\n', encoding="utf-8")
    found = overview(write(ROWS, *AUTO), prices=tmp_path / "prices.toml")
    assert found.decision.first == "prompt"
    assert {one.name for one in found.ranges} >= {"training.learning_rate", "lora.r", "training.weight_decay"}
    assert {(one.method, one.card_bytes // 10**9) for one in found.neighbors} == {
        (method, size) for method in ("qlora", "lora", "full") for size in (8, 16, 24, 48, 80)
    }
    assert found.devices[0].device == "t4"
    assert found.devices[0].price == pytest.approx(2 * found.devices[0].seconds)
    written = json.loads(json.dumps(found.as_json()))
    assert written.keys() >= {"settings", "resolved", "decision", "ranges", "neighbors", "devices", "prices", "levers"}
    assert written["prices"]["currency"] == "EUR"


def test_the_overview_needs_no_torch(write: Write) -> None:
    config = write(ROWS, "lora.target_modules=[q_proj]")
    program = (
        "import sys; from luthier.config.load import load_config; from luthier.recipes.planning import overview; "
        f"found = overview(load_config({str(config.file)!r}, ['lora.target_modules=[q_proj]'])); print(found.decision.method, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ), timeout=60)
    assert done.stdout == "lora False\n", done.stderr
