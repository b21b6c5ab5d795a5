"""A plan costs milliseconds: no weights, no torch, and it says when a run will not fit."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_runs import Listener, Write, chat_row

from luthier.errors import DataError, ModelError
from luthier.plan.machine import store_machine
from luthier.recipes import sft
from luthier.recipes.planning import make_plan
from luthier.records import Machine
from luthier.run_folder import list_runs

ROWS = [chat_row(place) for place in range(16)]
AUTO = ["training.precision=auto", "training.learning_rate=auto", "training.batch_size=auto"]


def test_every_auto_has_a_value_and_a_reason(write: Write) -> None:
    plan = make_plan(write(ROWS, *AUTO), listener := Listener())
    resolved = {choice.name: choice for choice in plan.resolved}
    assert resolved.keys() == {
        *("data.max_length", "evaluation.max_new_tokens"),
        *(f"training.{name}" for name in ("batch_size", "learning_rate", "precision", "micro_batch_tokens", "gradient_checkpointing", "compile")),
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
    assert planned.keys() == stored.keys() == keys
    assert planned["updates"] == stored["updates"]
    numbers = [[(choice["name"], choice["value"]) for choice in plan["resolved"] if "new_tokens" not in choice["name"]] for plan in (planned, stored)]
    assert numbers[0] == numbers[1]


def test_what_is_given_is_not_resolved(write: Write) -> None:
    plan = make_plan(write(ROWS))
    assert {choice.name for choice in plan.resolved} == {
        *("data.max_length", "evaluation.max_new_tokens", "training.micro_batch_tokens", "training.gradient_checkpointing", "training.compile")
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
