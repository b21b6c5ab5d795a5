"""`accelerate launch scripts/train.py`: what its file and variables say becomes ours, where luthier.yaml does not say it itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.errors import ConfigError
from luthier.launch import accelerate, starting, worker
from luthier.launch.accelerate import Asked
from luthier.plan.machine import store_machine
from luthier.records import Machine
from luthier.run_folder import list_runs

FILE = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
mixed_precision: bf16
num_machines: 2
num_processes: 6
machine_rank: 1
main_process_ip: 10.0.0.1
main_process_port: 29555
"""


def test_its_file_is_read_where_it_keeps_it(tmp_path: Path) -> None:
    file = accelerate.config_file({"HF_HOME": str(tmp_path)})
    assert accelerate.read(file) == Asked()
    file.parent.mkdir()
    file.write_text(FILE)
    assert accelerate.read(file) == Asked(processes=3, hosts=2, number=1, head="10.0.0.1", port=29555)
    file.write_text("num_processes: many\n")
    with pytest.raises(ConfigError, match="accelerate config writes it anew"):
        accelerate.read(file)
    assert accelerate.config_file({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/accelerate/default_config.yaml")


def test_what_luthier_yaml_says_counts_first(tmp_path: Path) -> None:
    file = tmp_path / "luthier.yaml"
    file.write_text("model: m\ndata: {train: r.jsonl}\n")
    assert accelerate.settings_of(Asked(3, 2, 1, "10.0.0.1", 29555), load_config(file)) == ["devices=3", "nodes=2", "launch.head=10.0.0.1"]
    assert accelerate.settings_of(Asked(), load_config(file)) == []
    file.write_text("model: m\ndata: {train: r.jsonl}\ndevices: 1\n")
    assert accelerate.settings_of(Asked(3), load_config(file)) == []


def test_one_process_starts_as_many_as_the_file_asks_for_and_a_numbered_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "luthier.yaml"
    file.write_text("model: m\ndata: {train: r.jsonl}\ndevice: cpu\n")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("num_processes: 2\nmain_process_port: 29555\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    started: list[Any] = []
    monkeypatch.setattr(starting, "run", started.append)
    monkeypatch.setattr(worker, "main", lambda arguments: started.append(("worker", arguments)))
    accelerate.main([str(file), "seed=3"])
    (line,) = started
    assert "--nproc-per-node=2" in line.arguments
    assert line.arguments[-3:] == (str(file), "seed=3", "devices=2")
    monkeypatch.setitem(os.environ, "RANK", "1")
    accelerate.main([str(file), "seed=3"])
    assert started[1] == ("worker", [str(file), "seed=3"])


def test_ranks_that_torchrun_started_by_itself_are_the_devices_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "luthier.yaml"
    file.write_text("model: m\ndata: {train: r.jsonl}\ndevice: cpu\ntraining: {per_device_train_batch_size: 3, gradient_accumulation_steps: 1}\n")
    asked = worker._parser().parse_args([str(file)])
    assert worker._config(asked).settings.devices == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    found = worker._config(asked).settings
    assert (found.devices, found.nodes, found.training.precision) == (2, 2, "bf16")
    assert found.training.batch_size == 12, "a batch of each device, by as many devices as there are"
    file.write_text("model: m\ndata: {train: r.jsonl}\ndevice: cpu\ndevice_map: auto\n")
    with pytest.raises(ConfigError, match="device_map"):
        worker._config(asked)


@pytest.mark.slow
def test_accelerate_launch_starts_as_many_ranks_as_its_file_says(tmp_path: Path, tiny_model: Path) -> None:
    home = tmp_path / "home"
    store_machine(home, Machine("cpu", "a small machine", 2, 8_000_000_000, 10.0, 40.0))
    rows = [{"prompt": f"{number} Pierce Rd ->", "completion": f" Itasca {number}"} for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "luthier.yaml"
    file.write_text(
        f"model: {tiny_model}\ndata: {{train: rows.jsonl, eval: null}}\ndevice: cpu\n"
        "training: {max_steps: 2, batch_size: 4, learning_rate: 1e-3, precision: fp32}\n"
    )
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(FILE.replace("num_machines: 2", "num_machines: 1").replace("6", "2"))
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "LUTHIER_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(script), str(file)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 ranks train together (ddp)" in ended.stdout + ended.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert [row["step"] for row in run.read_metrics("train")][-1] == 2
    assert (run.adapter / "adapter_model.safetensors").is_file()
