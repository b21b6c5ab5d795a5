"""One worker of the engine's benchmark in a process of its own, on a tiny model: what it says of itself, and what is said when it fails."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import engine_workers
from peers.protocol import Job

from luthier.engine import Engine


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    adapter = Engine.open(str(tiny_model), lora={"r": 4}).save_state(folder / "adapter")
    rows = [{"ids": [1, *range(20, 30 + place)], "trained": [0] * 5 + [1] * (6 + place)} for place in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(one) for one in rows), encoding="utf-8")
    return Job(str(tiny_model), str(adapter), str(folder / "rows.jsonl"), "", 2, 2, 1e-3, "lora", {"precision": "fp32"}, 0.0)


@pytest.mark.slow
def test_luthier_does_the_updates_of_the_plain_twin(job: Job) -> None:
    ours = engine_workers.work("with_luthier", job, Path(sys.executable), threads=1)
    twin = engine_workers.work("with_twin", job, Path(sys.executable), threads=1)
    assert [one["loss"] for one in ours["updates"]] == pytest.approx([one["loss"] for one in twin["updates"]], rel=1e-4)
    assert [one["grad_norm"] for one in ours["updates"]] == pytest.approx([one["grad_norm"] for one in twin["updates"]], rel=1e-3)
    assert [(one["logical"], one["trained"]) for one in ours["updates"]] == [(23, 13), (27, 17)]
    assert 0 < ours["first_micro_batch_s"] < ours["first_update_s"] < ours["wall_s"]
    assert ours["peak_bytes"] > 100e6


def test_a_worker_that_fails_is_told_in_one_line() -> None:
    job = Job("", "", "", "", 1, 1, 1e-3, "lora", {}, 0.0)
    with pytest.raises(engine_workers.Failed, match=r"it ended with 2: .*no_such_worker"):
        engine_workers.work("no_such_worker", job, Path(sys.executable), threads=1)
