"""One process at a time works in a run folder; a lock whose process is gone is taken, and that is said."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import run_lock
from luthier.errors import RunInUse

HOLD = """
import sys, time
from pathlib import Path
from luthier import run_lock
with run_lock.held(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "train"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write(folder: Path, **changes: object) -> run_lock.Holder:
    """A lock that is left over from this process, with changes."""
    left = dataclasses.replace(run_lock._this_process("train"), **changes)  # type: ignore[arg-type]
    (folder / run_lock.NAME).write_text(json.dumps(dataclasses.asdict(left)), encoding="utf-8")
    return left


def taken(folder: Path) -> list[str]:
    said: list[str] = []
    with run_lock.held(folder, "train", said.append):
        pass
    return said


def test_a_lock_is_gone_with_its_block_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock.held(tmp_path, "train"):
            found = run_lock.holder(tmp_path)
            assert found is not None
            assert (found.pid, found.doing) == (os.getpid(), "train")
        assert run_lock.holder(tmp_path) is None
        assert list(tmp_path.iterdir()) == []


def test_the_second_process_ends_with_75_and_is_told_who_has_the_run(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    with pytest.raises(
        RunInUse, match=rf"run in use by pid {other.pid} on \S+ \(train\) since 20\d\d-\S+Z\n  Try: wait until it has ended"
    ) as refused:
        taken(tmp_path)
    assert refused.value.exit_code == 75
    assert refused.value.where == str(tmp_path)
    with pytest.raises(RunInUse, match=f"pid {other.pid}"):
        run_lock.require_free(tmp_path)
    assert (tmp_path / run_lock.NAME).is_file()


def test_the_lock_of_a_process_that_was_killed_is_taken_with_a_note(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    other.send_signal(signal.SIGKILL)
    while run_lock.holder(tmp_path):  # it is a zombie by then: nobody has waited for it
        time.sleep(0.01)
    assert (tmp_path / run_lock.NAME).is_file()
    (said,) = taken(tmp_path)
    assert said.startswith(f"the lock of pid {other.pid} on ")
    assert said.endswith("is taken: that process has ended")


STALE = {
    "that process has ended, and another one has its number": {"started": "1"},
    "the machine was started again since": {"boot": "another"},
    "that process has ended": {"pid": 2**30},
}


@pytest.mark.parametrize("reason", STALE)
def test_a_stale_lock_is_seen(reason: str, tmp_path: Path) -> None:
    write(tmp_path, **STALE[reason])
    assert run_lock.holder(tmp_path) is None
    (said,) = taken(tmp_path)
    assert said.endswith(f"is taken: {reason}")


def test_a_lock_of_another_host_is_believed_until_it_is_silent_for_long(tmp_path: Path) -> None:
    left = write(tmp_path, host="elsewhere", pid=2**30)
    with pytest.raises(RunInUse, match=rf"on elsewhere .*\n  Try: wait until .*delete {tmp_path}/lock.json"):
        taken(tmp_path)
    assert run_lock.holder(tmp_path) == left
    silent = time.time() - run_lock.SILENT_SECONDS - 5
    os.utime(tmp_path / run_lock.NAME, (silent, silent))
    assert run_lock.holder(tmp_path) is None
    assert "it is of another host, and was not touched for 30" in taken(tmp_path)[0]


def test_a_clock_that_was_put_back_takes_no_lock_away(tmp_path: Path) -> None:
    write(tmp_path, host="elsewhere")
    later = time.time() + 86_400
    os.utime(tmp_path / run_lock.NAME, (later, later))
    with pytest.raises(RunInUse):
        taken(tmp_path)


def test_a_lock_is_touched_so_that_other_hosts_see_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.02)
    with run_lock.held(tmp_path, "train"):
        os.utime(tmp_path / run_lock.NAME, (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / run_lock.NAME).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / run_lock.NAME).stat().st_mtime > 0


@pytest.mark.parametrize("content", ["", "{", '{"host": 3}', "[]"])
def test_a_lock_file_with_nothing_whole_in_it_is_taken(content: str, tmp_path: Path) -> None:
    (tmp_path / run_lock.NAME).write_text(content)
    assert run_lock.holder(tmp_path) is None
    assert taken(tmp_path) == []


def test_a_process_that_lost_its_lock_is_told_and_leaves_the_other_ones_alone(tmp_path: Path) -> None:
    with run_lock.held(tmp_path, "train"):
        run_lock.require_not_taken(tmp_path)
        (tmp_path / run_lock.NAME).unlink()
        thief = write(tmp_path, host="elsewhere", pid=7)
        with pytest.raises(RunInUse, match="this process no longer has the run, which is held by pid 7 on elsewhere"):
            run_lock.require_not_taken(tmp_path)
    assert run_lock.holder(tmp_path) == thief


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_process_itself_is_looked_at(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    with pytest.raises(RunInUse, match=f"pid {other.pid}"):
        taken(tmp_path)
    other.kill()
    other.wait()
    assert taken(tmp_path)[0].endswith("that process has ended")


@pytest.mark.parametrize("flock", ["with flock", "without"])
def test_of_many_processes_that_begin_together_one_gets_the_run(flock: str, tmp_path: Path) -> None:
    """The lock of a dead process lies there too: whoever takes it away must not take away the winner's."""
    folder, ready, go = (tmp_path / name for name in ("run", "ready", "go"))
    folder.mkdir()
    ready.mkdir()
    write(folder, pid=2**30)
    breaks = "" if flock == "with flock" else "import fcntl\ndef no(*_): raise OSError(38, 'no')\nfcntl.flock = no\n"
    begin = f"{breaks}import os, sys, time\nfrom pathlib import Path\nfrom luthier import run_lock\n"
    wait = f"Path({str(ready)!r}, str(os.getpid())).touch()\nwhile not Path({str(go)!r}).exists(): pass\n"
    attempt = (
        "try:\n with run_lock.held(Path(sys.argv[1]), 'train'): print('mine', flush=True); time.sleep(1)\n"
        "except run_lock.RunInUse as error: sys.exit(error.exit_code)\n"
    )
    many = [subprocess.Popen([sys.executable, "-c", begin + wait + attempt, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    while len(list(ready.iterdir())) < len(many):
        time.sleep(0.01)
    go.touch()
    said = [process.communicate(timeout=60)[0] for process in many]
    assert sorted(process.returncode for process in many) == [0] + [75] * (len(many) - 1)
    assert "".join(said) == "mine\n"
    assert not (folder / run_lock.NAME).exists()
