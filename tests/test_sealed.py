"""A sealed folder is as it was meant or it is not there, whatever ends its writing; and whatever happens to one later is found."""

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_disk import Failing, Intercepted, Remembering, using
from killed_saves import FAST, SIZES, content, save, save_and_rotate, whole

from luthier import files, sealed
from luthier.disk import Buffer
from luthier.errors import RunError

HOUSE = Path(__file__).parent / "house"


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory, where there is one: a sync takes no time there."""
    with tempfile.TemporaryDirectory(dir=FAST if os.path.isdir(FAST) else None) as folder:
        yield Path(folder)


def test_a_process_that_is_ended_at_any_call_of_a_save_loses_at_most_that_save() -> None:
    source = Path(sealed.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{HOUSE}"}
    ran = subprocess.run([sys.executable, str(HOUSE / "killed_saves.py")], env=environment, capture_output=True, text=True, timeout=120)
    cases, *problems = ran.stdout.splitlines()
    assert (problems, ran.stderr, ran.returncode) == ([], "", 0)
    assert int(cases.split()[0]) >= 90


CUTS = 6


def lose_power(folder: Path, seed: int) -> None:
    """Three to five saves with rotation; in each of CUTS worlds the power goes after any call of them."""
    draw = random.Random(seed)
    disk = Remembering(folder / "disk")
    disk.root.mkdir()
    acknowledged = {}
    with using(disk):
        for step in range(1, draw.randint(4, 6)):
            save_and_rotate(disk.root / "checkpoints", step)
            acknowledged[step] = len(disk.calls)
    for cut in range(CUTS):
        at = draw.randint(acknowledged[1], len(disk.calls))
        disk.after_power_cut(at, folder / f"left-{cut}", draw)
        checkpoints = folder / f"left-{cut}" / "checkpoints"
        left = whole(checkpoints)
        last = max(step for step, number in acknowledged.items() if number <= at)
        assert left, f"seed {seed}: nothing is left of {last} saves"
        assert left[-1] >= last, f"seed {seed}: step {last} was written, and {left} are left"
        save_and_rotate(checkpoints, 9)
        assert whole(checkpoints)[-1] == 9
        assert not [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]


def test_a_power_cut_leaves_what_was_written_before(fast: Path) -> None:
    for seed in range(300 // CUTS):
        (fast / str(seed)).mkdir()
        lose_power(fast / str(seed), seed)


@pytest.mark.nightly
def test_two_thousand_power_cuts(fast: Path) -> None:
    for seed in range(1000, 1000 + 2000 // CUTS + 1):
        (fast / str(seed)).mkdir()
        lose_power(fast / str(seed), seed)


def calls_of_a_save(folder: Path) -> int:
    counted = Intercepted()
    with using(counted):
        save(folder, 1)
    return len(counted.calls)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_keeps_what_it_had_and_takes_the_next_save(number: int, fast: Path) -> None:
    for at in range(calls_of_a_save(fast / "counted")):
        folder = fast / str(at)
        save(folder, 1)
        # A call that fails after the rename is told too, and the folder is whole.
        with using(Failing(at, number)), contextlib.suppress(RunError):
            save(folder, 2)
        assert whole(folder) in ([1], [1, 2])
        save(folder, 3)
        assert whole(folder)[-1] == 3
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(tmp_path: Path) -> None:
    class Slow(Intercepted):
        def write(self, descriptor: int, data: Buffer) -> int:
            return os.write(descriptor, memoryview(data)[:700])

    with using(Slow()):
        save(tmp_path, 1)
    assert whole(tmp_path) == [1]


class NoNewNames(Intercepted):
    """A disk without inodes, or with a quota of files that is used up: after `left` more nothing can be made, and all else works."""

    def __init__(self, left: int, number: int) -> None:
        super().__init__()
        self.left, self.number = left, number

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name in ("open_new", "make_folder"):
            self.left -= 1
            if self.left < 0:
                raise OSError(self.number, os.strerror(self.number), str(arguments[0]))
        return method(*arguments)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_takes_no_more_files_keeps_what_it_had_and_takes_the_next_save(number: int, fast: Path) -> None:
    needed = 1 + len(FILES)
    for left in range(needed):
        folder = fast / str(left)
        save(folder, 1)
        with using(NoNewNames(left, number)), pytest.raises(RunError):
            save(folder, 2)
        assert [path.name for path in folder.iterdir()] == ["step-000001"]
        with using(NoNewNames(needed, number)):
            save(folder, 3)
        assert whole(folder) == [1, 3]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    with using(Failing(3, errno.ENOSPC)), pytest.raises(RunError, match=r"the disk is full \(\d+ MB free\)"):
        save(tmp_path, 1)


def test_a_quota_and_used_up_inodes_are_not_told_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with using(Failing(3, errno.EDQUOT)), pytest.raises(RunError, match="your quota on this disk is used up\n  Try: free some space"):
        save(tmp_path, 1)
    folder = tmp_path / "of many files"

    monkeypatch.setattr(files, "has_room_for_a_file", lambda path: not any(folder.rglob("*.safetensors")))  # again, when they are taken away
    with using(NoNewNames(4, errno.ENOSPC)), pytest.raises(RunError, match="the disk takes no more files: its inodes are used up") as told:
        save(folder, 1)
    assert "delete files there that nobody needs" in str(told.value)


def damage_of(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    return {
        "bit flip":    content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "first bit":   bytes([content[0] ^ 1]) + content[1:],
        "truncation":  content[:middle],
        "one short":   content[:-1],
        "empty":       b"",
        "zero page":   content[:100] + bytes(150) + content[250:],
        "extra bytes": content + b"\n",
    }[kind]  # fmt: skip


FILES = [*SIZES, sealed.MANIFEST]


@pytest.mark.parametrize("kind", ["bit flip", "first bit", "truncation", "one short", "empty", "zero page", "extra bytes"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found_and_named(name: str, kind: str, tmp_path: Path) -> None:
    save(tmp_path, 7)
    path = tmp_path / "step-000007" / name
    path.write_bytes(damage_of(path.read_bytes(), kind))
    assert sealed.damage(path.parent).startswith(name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_and_named(name: str, tmp_path: Path) -> None:
    save(tmp_path, 7)
    (tmp_path / "step-000007" / name).unlink()
    assert sealed.damage(tmp_path / "step-000007") == f"{name} is missing"


@pytest.mark.parametrize("name", SIZES)
def test_a_file_of_another_step_is_found(name: str, tmp_path: Path) -> None:
    save(tmp_path, 7)
    save(tmp_path, 8)
    (tmp_path / "step-000008" / name).write_bytes(content(name, 7))
    assert sealed.damage(tmp_path / "step-000008").startswith(f"{name} is not as it was written (sha256 ")


def test_swapped_files_are_found(tmp_path: Path) -> None:
    one, other = b"a" * 500, b"b" * 500
    sealed.write(tmp_path / "step-1", {"one": lambda: [one], "other": lambda: [other]}, {})
    (tmp_path / "step-1" / "one").write_bytes(other)
    (tmp_path / "step-1" / "other").write_bytes(one)
    assert sealed.damage(tmp_path / "step-1").startswith("one is not as it was written")


def changed(path: Path, change: Callable[[dict[str, object]], object]) -> str:
    manifest = json.loads((path / sealed.MANIFEST).read_text())
    change(manifest)
    (path / sealed.MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return sealed.damage(path)


def test_a_manifest_that_means_something_else_is_found(tmp_path: Path) -> None:
    save(tmp_path, 7)
    path = tmp_path / "step-000007"
    assert changed(path, lambda manifest: manifest.update(step=8)) == "manifest.json is not as it was written"
    assert changed(path, lambda manifest: manifest.update(schema=2)) == "manifest.json has the schema 2, and this version of luthier reads 1"
    (path / sealed.MANIFEST).write_text("[1]")
    assert sealed.damage(path) == "manifest.json has the schema None, and this version of luthier reads 1"


def test_what_is_expected_and_what_is_there_are_said(tmp_path: Path) -> None:
    save(tmp_path, 7)
    path = tmp_path / "step-000007" / "state.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert sealed.damage(path.parent) == "state.json has 280 bytes, and 300 were written"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save(tmp_path, 7)

    class Unreadable(Intercepted):
        def open_to_read(self, path: Path) -> None:  # type: ignore[override]
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with using(Unreadable()):
        assert sealed.damage(tmp_path / "step-000007") == "trained.safetensors cannot be read (Input/output error)"


def test_sizes_alone_are_looked_at_where_that_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, 7)
    path = tmp_path / "step-000007" / "trained.safetensors"
    path.write_bytes(bytes(5000))
    assert sealed.damage(path.parent, sizes_only=True) == ""
    path.write_bytes(bytes(4999))
    assert sealed.damage(path.parent, sizes_only=True) == "trained.safetensors has 4,999 bytes, and 5,000 were written"


def test_what_stands_there_is_set_aside_and_never_deleted(tmp_path: Path) -> None:
    for mark in ("first", "second"):
        save(tmp_path, 7)
        (tmp_path / "step-000007" / "state.json").write_text(mark)
    save(tmp_path, 7)
    assert [path.name for path in sealed.numbered(tmp_path, "step")] == ["step-000007"]
    assert whole(tmp_path) == [7]
    assert [(tmp_path / f"step-000007.aside-{number}" / "state.json").read_text() for number in (1, 2)] == ["first", "second"]


def test_what_dead_processes_left_is_swept_and_what_living_ones_make_is_not(tmp_path: Path) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    living = os.getppid()
    for process in (dead, living):
        (tmp_path / f".step-000003.{process}.staging").mkdir()
        (tmp_path / f".step-000002.{process}.trash").mkdir()
        (tmp_path / f".step-000002.{process}.trash" / "state.json").write_text("{}")
    (tmp_path / ".a-file-of-the-user.tmp").write_text("mine")
    save(tmp_path, 4)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".a-file-of-the-user.tmp", f".step-000002.{living}.trash", f".step-000003.{living}.staging", "step-000004"]


def test_what_a_process_of_another_host_makes_is_left_alone_for_a_day(tmp_path: Path) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    place, here = tmp_path / "rows-1", files.unfinished_name(tmp_path / "rows-1", "staging").name
    own = str(os.getpid())
    assert here == f".rows-1.{own}@{files._host()}.staging"
    theirs = tmp_path / f".rows-1.{dead}@node-2.staging", tmp_path / f".rows-1.{own}@node-2.staging"
    ours = tmp_path / here.replace(own, dead)
    for folder in (*theirs, ours):
        folder.mkdir()
        (folder / "half").write_text("half")
        os.utime(folder, (1, 1))  # what is in it was written just now
    for own_too in (False, True):
        files.sweep(tmp_path, own=own_too)
        files.build_folder(place, lambda staging: None)
        assert sorted(path for path in tmp_path.iterdir() if path.name.startswith(".")) == sorted(theirs)
    for folder in theirs:
        os.utime(folder / "half", (1, 1))
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [place]
