import dataclasses
import json

import pytest

from luthier.errors import ConfigError, RunError
from luthier.plan import machine


def test_what_the_doctor_stored_is_read_back(tmp_path, laptop):
    machine.store_machine(tmp_path / "new", laptop)
    assert machine.stored_machine(tmp_path / "new") == laptop


def test_the_file_holds_a_machines_fields(tmp_path, laptop):
    (tmp_path / "machine.json").write_text(json.dumps(dataclasses.asdict(laptop)))
    assert machine.stored_machine(tmp_path) == laptop


def test_further_keys_of_a_later_version_are_no_obstacle(tmp_path, laptop):
    (tmp_path / "machine.json").write_text(json.dumps({**dataclasses.asdict(laptop), "measured": "2026-11-22"}))
    assert machine.stored_machine(tmp_path) == laptop


def test_never_measured_is_no_error(tmp_path):
    assert machine.stored_machine(tmp_path) is None


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"cores": 0}, "cores is 0"),
        ({"bf16_gflops": float("nan")}, "bf16_gflops is nan"),
        ({"fp32_gflops": "fast"}, "fp32_gflops is 'fast'"),
        ({"memory_bytes": True}, "memory_bytes is True"),
    ],
)
def test_an_impossible_number_is_named(tmp_path, laptop, changed, problem):
    (tmp_path / "machine.json").write_text(json.dumps({**dataclasses.asdict(laptop), **changed}))
    with pytest.raises(RunError, match=problem):
        machine.stored_machine(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not whole JSON"),
        ("[]", "holds a list"),
        ('{"device": "cpu"}', "lacks bf16_gflops, cores, fp32_gflops, memory_bytes, name"),
    ],
)
def test_a_broken_machine_file_is_named_with_what_is_wrong(tmp_path, text, problem):
    (tmp_path / "machine.json").write_text(text)
    with pytest.raises(RunError, match=r"machine\.json") as caught:
        machine.stored_machine(tmp_path)
    assert problem in str(caught.value)


def test_a_rate_written_without_a_point_is_a_rate(tmp_path, laptop):
    (tmp_path / "machine.json").write_text(json.dumps({**dataclasses.asdict(laptop), "bf16_gflops": 340}))
    assert machine.stored_machine(tmp_path) == laptop


def test_an_unmeasured_machine_says_so_and_can_be_planned_with():
    here = machine.this_machine_without_torch()
    assert "not measured" in here.name
    assert here.cores >= 1
    assert here.memory_bytes > 100_000_000
    assert here.fp32_gflops > 0


def test_without_bf16_units_the_cautious_format_is_fp32(monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: ("old", {"avx2"}))
    assert machine.this_machine_without_torch().faster_precision == "fp32"
    monkeypatch.setattr(machine, "processor", lambda: ("new", {"avx2", "avx512_bf16"}))
    assert machine.this_machine_without_torch().faster_precision == "bf16"


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/box", "sys/fs/cgroup/box/memory.max"),
        ("0::/box/inner", "sys/fs/cgroup/box/memory.max"),
        ("4:memory:/box", "sys/fs/cgroup/memory/box/memory.limit_in_bytes"),
    ],
)
def test_the_memory_limit_of_a_container_counts(tmp_path, line, file):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"8:pids:/\n{line}\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("50000000\n")
    assert machine.memory_bytes(tmp_path) == 50_000_000


def test_no_limit_means_all_memory(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/box\n")
    (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/box/memory.max").write_text("max\n")
    assert machine.memory_bytes(tmp_path) == machine.memory_bytes(tmp_path / "elsewhere") > 100_000_000


def test_a_device_that_is_not_here_or_was_never_measured_is_named(tmp_path, monkeypatch, laptop):
    monkeypatch.setattr(machine, "_has_device", lambda device: False)
    with pytest.raises(ConfigError, match="cuda is not on this machine") as missing:
        machine.planned_machine(tmp_path, "cuda")
    assert "luthier doctor" in str(missing.value)
    monkeypatch.setattr(machine, "_has_device", lambda device: True)
    with pytest.raises(ConfigError, match="cuda was never measured"):
        machine.planned_machine(tmp_path, "cuda")
    machine.store_machine(tmp_path, dataclasses.replace(laptop, device="cuda"))
    assert machine.planned_machine(tmp_path, "cuda").device == "cuda"
