"""A finished run as its folder holds it, with the numbers of a plausible demo."""

import dataclasses
import json
import math

import pytest

from luthier.records import Metric, Parity, Sample, Scorecard, Source, StepReport
from luthier.run_folder import RunFolder

UPDATES = 240
SYSTEM = "Split the address into its parts: name, street, unit, city, state, zip.\nAnswer with one JSON object and leave out what is not there.\n"


def scorecard():
    return Scorecard(
        models={
            "base": {"exact_match": Metric(0.0, 0.0, 0.0602, 60), "valid_json": Metric(0.0167, 0.003, 0.0886, 60)},
            "base_5shot": {
                "exact_match": Metric(0.15, 0.081, 0.2611, 60),
                "valid_json": Metric(0.8, 0.6822, 0.8817, 60),
                "field_f1": Metric(0.612, 0.541, 0.684, 60),
            },
            "tuned": {
                "exact_match": Metric(0.6824, 0.6293, 0.7312, 318),
                "valid_json": Metric(1.0, 0.9881, 1.0, 318),
                "field_f1": Metric(0.8713, 0.8492, 0.8921, 318),
            },
        },
        decoding={"greedy": True, "max_new_tokens": 59},
        data={"file": "data/eval.jsonl", "rows": 318},
    )


def samples():
    return [
        Sample(
            prompt=f"{SYSTEM}{number} Main St. Apt {number}, Reno NV 8950{number}",
            expected=f'{{"street": "{number} Main St.", "unit": "Apt {number}", "city": "Reno", "state": "NV"}}',
            answers={
                "base": f"The address is {number} Main Street in Reno, Nevada.",
                "tuned": f'{{"street": "{number} Main St.", "unit": "Apt {number}", "city": "Reno", "state": "NV"}}'
                if number % 2
                else f'{{"street": "{number} Main St. Apt {number}", "city": "Reno", "state": "NV"}}',
            },
            source=Source("data/test.jsonl", 10 + number),
        )
        for number in range(1, 8)
    ]


def write_steps(run):
    for step in range(1, UPDATES + 1):
        loss = 0.22 + 1.9 * math.exp(-step / 35) + 0.16 * math.sin(step * 12.9898) ** 3
        rate = 1e-3 * min(step / 8, 0.5 + 0.5 * math.cos(math.pi * step / UPDATES))
        run.add_step(StepReport(step, step / 80, loss, 0.8, rate, 600, 330, 180, 1.21, 1_870_000_000 + step))
    for step in (60, 120, 180, 240):
        run.add_evaluation(step, 0.24 + 1.9 * math.exp(-step / 35), {})


@pytest.fixture
def empty_run(tmp_path):
    folder = tmp_path / "addresses-2026-11-22-1431"
    (folder / "data").mkdir(parents=True)
    return RunFolder(folder)


@pytest.fixture
def run(empty_run):
    run = empty_run
    run.config.write_text("model: smollm2-135m-instruct  # the default\ndata:\n  train: data/train.jsonl\ntraining:\n  num_train_epochs: 3\n")
    run.environment.write_text(json.dumps({"python": "3.11.7", "libraries": {"torch": "2.13.0"}, "threads": 2}))
    run.plan.write_text(
        json.dumps(
            {
                "resolved": [
                    {"name": "training.learning_rate", "value": 0.001, "why": "LoRA on 135M parameters"},
                    {"name": "training.batch_size", "value": 4, "why": "usual for 135M parameters and 320 rows"},
                ],
                "updates": 240,
                "memory_bytes": {"weights": 269_000_000, "activations": 1_400_000_000},
                "seconds_estimated": 262.0,
                "fits": True,
                "next_step": "",
                "notes": [],
            }
        )
    )
    ledger = {
        "rows": {"read": 660, "used": 638, "train": 320, "eval": 318, "rejected": {"duplicate": 19, "empty_answer": 3}},
        "tokens": {"read": 48_000, "trained": 14_400, "masked": 33_600, "cut": 0, "repeated": 0},
        "sources": [],
    }
    run.ledger.write_text(json.dumps(ledger))
    write_steps(run)
    run.write_scorecard(scorecard())
    run.write_samples(samples())
    run.add_parity(Parity("merged", "transformers", 0.0312, 0.00021, 0.9375, {"mean_kl": 0.001}, True))
    return run


@pytest.fixture
def change(run):
    """Replace one record of the run's scorecard."""

    def apply(**models):
        run.write_scorecard(dataclasses.replace(scorecard(), models=models))

    return apply
