"""A log or a metric that cannot be written ends no training, and is not lost while there is hope."""

import errno
import json
import os
from pathlib import Path

import pytest

from luthier import files
from luthier.errors import RunError
from luthier.run_folder import RunFolder, is_run, open_run


class FullDisk:
    """Lets nothing be appended to the files of these names while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.full, self.names, self._real = True, names, files.disk.open_end
        monkeypatch.setattr(files.disk, "open_end", self._open_end)

    def _open_end(self, path: Path) -> int:
        if self.full and path.name in self.names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return self._real(path)


def test_what_cannot_be_written_waits_for_room_in_its_order_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = RunFolder(tmp_path), list[str]()
    disk = FullDisk(monkeypatch, "metrics.jsonl")
    with run.patient(said.append):
        for step in range(3):
            run.add_evaluation(step, 1.0, {})
            run.say(f"line {step}")
        assert len(said) == 1
        assert said[0].startswith("metrics.jsonl: the disk is full (")
        assert said[0].endswith("training goes on, and what belongs there is kept until it can be written")
        disk.full = False
        run.add_evaluation(3, 1.0, {})
    assert said[1:] == ["metrics.jsonl can be written again; nothing of it is missing"]
    assert [json.loads(line)["step"] for line in run.metrics.read_text(encoding="utf-8").splitlines()] == [0, 1, 2, 3]
    assert [line.split(" ", 1)[1] for line in run.log.read_text(encoding="utf-8").splitlines()] == ["line 0", "line 1", "line 2"]


def test_what_could_not_be_written_by_the_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = RunFolder(tmp_path), list[str]()
    FullDisk(monkeypatch, "metrics.jsonl")
    with run.patient(said.append):
        for step in (7, 8, 9):
            run.add_evaluation(step, 1.0, {})
    assert f"{run.metrics}: 3 lines are lost, from " in said[-1]
    assert '"step": 7' in said[-1]
    assert '"step": 9' in said[-1]


def test_before_and_after_the_training_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    FullDisk(monkeypatch, "log.txt")
    with pytest.raises(RunError, match="the disk is full"):
        run.say("began")
    with run.patient(lambda line: None):
        run.say("goes on")
    with pytest.raises(RunError, match="the disk is full"):
        run.say("finished")


def test_a_line_that_was_cut_at_any_byte_costs_that_line_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path in (run.rows, run.metrics):
        rows = ({"kind": "train", "step": step, "source": f"réponses – 東京.jsonl:{step}"} for step in (1, 2))
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        for cut in range(1, len(lines[1]) + 1):
            path.write_bytes(lines[0] + b"\n" + lines[1][:cut])
            whole = [1, 2] if cut == len(lines[1]) else [1]
            if path == run.metrics:
                assert [row["step"] for row in run.read_metrics("train")] == whole
            run.forget_after(2)
            assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == whole


@pytest.mark.parametrize("left", ["7", "null", '"step"', "[]", "{}", '{"kind": "train"}'])
def test_what_is_json_and_no_row_is_left_out(left: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_evaluation(1, 1.0, {})
    files.append_line(run.metrics, left)
    assert len(run.read_metrics("eval")) == 1
    assert run.read_metrics("train") == []
    run.forget_after(1)
    assert len(run.metrics.read_text(encoding="utf-8").splitlines()) == 1


def test_a_log_that_has_become_a_folder_ends_no_training(tmp_path: Path) -> None:
    run, said = RunFolder(tmp_path), list[str]()
    run.log.mkdir()
    with run.patient(said.append):
        run.say("goes on")
    assert "training goes on" in said[0]


def test_a_run_below_the_home_folder_is_found_where_no_shell_expands_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "support").mkdir()
    (tmp_path / "support" / "config.yaml").touch()
    assert open_run("~/support").path == tmp_path / "support"
    assert is_run("~/support")
