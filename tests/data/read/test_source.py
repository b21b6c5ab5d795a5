"""From what the user named to files: files, folders, patterns, standard input; and what is no file of rows."""

import hashlib
import io
import os
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.config.data import SourceSettings
from luthier.data.read.fingerprint import fingerprint
from luthier.data.read.source import SourceFile, find_sources, same_files
from luthier.errors import DataError

ROW = '{"x": 1}\n'
Find = Callable[..., list[SourceFile]]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    return lambda *paths, said=print: find_sources([SourceSettings(path=path) for path in paths], tmp_path, tmp_path / "spool", said)


def problem(find: Find, *paths: str) -> str:
    with pytest.raises(DataError) as error:
        find(*paths)
    return str(error.value)


def test_a_file_is_known_by_what_it_holds(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    [file] = find(write("rows.jsonl", ROW))
    assert (file.name, file.place, file.kind, file.compression, file.size_bytes) == ("rows.jsonl", tmp_path / "rows.jsonl", "jsonl", "", 9)
    assert fingerprint(file) == hashlib.sha256(ROW.encode()).hexdigest()


def test_a_folder_gives_its_files_of_rows_by_path_and_names_the_others(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("rows/b.jsonl", "rows/a.json", "rows/c.csv", "rows/.hidden.jsonl", "rows/notes.txt", "rows/README.md", "rows/plot.png"):
        write(name, "a,b\n1,2\n" if name.endswith("csv") else ROW)
    (tmp_path / "rows" / "more").mkdir()
    (tmp_path / "rows" / ".git").mkdir()
    write("rows/more/d.jsonl", ROW)
    write("rows/.git/e.jsonl", ROW)
    os.symlink(tmp_path / "rows", tmp_path / "rows" / "more" / "back")
    notes: list[str] = []
    found = find("rows", said=notes.append)
    assert [file.name for file in found] == ["rows/a.json", "rows/b.jsonl", "rows/c.csv", "rows/more/d.jsonl"]
    assert notes == ["rows: not read: README.md, notes.txt, plot.png"]


def test_a_folder_of_texts_gives_the_texts(write, find: Find) -> None:  # type: ignore[no-untyped-def]
    write("texts/b.txt", "hello")
    write("texts/a.md", "# hello")
    assert [(file.name, file.kind) for file in find("texts")] == [("texts/a.md", "text"), ("texts/b.txt", "text")]


def test_a_pattern_gives_what_it_matches_and_a_name_that_looks_like_one_is_a_name(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("part-2.jsonl", "part-1.jsonl", "other.jsonl", "odd[1].jsonl"):
        write(name, ROW)
    (tmp_path / "part-folder").mkdir()
    assert [file.name for file in find("part-*")] == ["part-1.jsonl", "part-2.jsonl"]
    assert [file.name for file in find(str(tmp_path / "part-?.jsonl"))] == [str(tmp_path / f"part-{number}.jsonl") for number in (1, 2)]
    assert [file.name for file in find("odd[1].jsonl")] == ["odd[1].jsonl"]
    assert problem(find, "train-*.jsonl").startswith("train-*.jsonl: the pattern matches no file\n  Try: check it; it was looked for in /")


def test_standard_input_is_kept_and_read_like_a_file(find: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content, kind in ((b"a,b\n1,2\n", "csv"), (b'{"x": 1}\n', "jsonl"), (b"Once upon a time", "text")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), closed=False, isatty=lambda: False))
        [file] = find("-")
        assert (file.name, file.kind, file.place.parent, file.place.read_bytes()) == ("-", kind, tmp_path / "spool", content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(closed=False, isatty=lambda: True))
    assert problem(find, "-").startswith("-: nothing is sent to standard input\n  Try: send rows")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b""), closed=False, isatty=lambda: False))
    assert problem(find, "-").startswith("-: is empty")


def test_one_file_twice_is_named_under_every_name(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write("rows.jsonl", ROW)
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    assert problem(find, "rows.jsonl", "./rows.jsonl").startswith("./rows.jsonl: is named twice, the other time as rows.jsonl\n  Try: name it once")
    assert problem(find, "rows.jsonl", "link.jsonl").startswith("link.jsonl: is named twice, the other time as rows.jsonl")
    with pytest.raises(DataError) as error:
        same_files(find("rows.jsonl"), find("link.jsonl"))
    assert str(error.value).startswith("link.jsonl: is in data.train (as rows.jsonl) and in data.eval: ")
    same_files(find("rows.jsonl"), find(write("other.jsonl", ROW)))


def test_odd_names_work_and_can_be_printed(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("-rf", "two words.jsonl", "quote'\".jsonl", "schräg.jsonl", "~.jsonl", "tab\t.jsonl"):
        [file] = find(write(name, ROW))
        assert (file.name, file.size_bytes) == (name.replace("\t", "\\t"), 9)
    not_text = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / not_text).write_text(ROW)
    assert [file.name for file in find("caf*")] == ["caf\\udce9.jsonl"]


def test_a_link_to_a_file_is_a_file(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write("rows.jsonl", ROW)
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    assert find("link.jsonl")[0].size_bytes == 9


def test_what_is_no_plain_file_is_named(write, find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    write("train.jsonl", ROW)
    write("train2.jsonl ", ROW)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jsonl")
        (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
        (tmp_path / "dangling.jsonl").symlink_to("nowhere.jsonl")
        cases = {
            "trian.jsonl": "trian.jsonl: there is no such file or folder\n  Try: train.jsonl is there: is that the one?",
            "train2.jsonl": "train2.jsonl: there is no such file or folder\n  Try: 'train2.jsonl ' is there: is that the one?",
            "empty": "empty: the folder has no file of rows (.jsonl, ",
            "pipe.jsonl": "pipe.jsonl: is a pipe, not a plain file\n  Try: write the rows to a file and name that, or send them",
            "socket.jsonl": "socket.jsonl: is a socket, not a plain file",
            "loop.jsonl": "loop.jsonl: cannot be read (Too many levels of symbolic links)\n  Try: its links lead in a circle",
            "dangling.jsonl": "dangling.jsonl: is a link to nowhere.jsonl, which is not there",
            "/dev/zero": "/dev/zero: is a device, not a plain file",
            "/proc/self/status": "/proc/self/status: lies in /proc, where the system shows its own state",
            "train.jsonl/rows.jsonl": "train.jsonl/rows.jsonl: there is no such file or folder",
            "x" * 300 + ".jsonl": "x" * 300 + ".jsonl: cannot be read (File name too long)",
            "nowhere/rows.jsonl": "nowhere/rows.jsonl: there is no such file or folder\n  Try: check the path; it was looked for at /",
        }
        for name, message in cases.items():
            assert problem(find, name).startswith(message), name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / write("rows.jsonl", ROW)).chmod(0)
    assert problem(find, "rows.jsonl") == "rows.jsonl: may not be read\n  Try: give yourself the right to read it (chmod u+r 'rows.jsonl')"


def archive(tmp_path: Path, kind: str) -> bytes:
    place = tmp_path / "archive"
    if kind == "zip":
        with zipfile.ZipFile(place, "w") as packed:
            packed.writestr("rows.jsonl", ROW)
    else:
        (tmp_path / "inside.jsonl").write_text(ROW)
        with tarfile.open(place, f"w:{kind}") as packed_tar:
            packed_tar.add(tmp_path / "inside.jsonl", "rows.jsonl")
    return place.read_bytes()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("zip", "is a zip archive"),
        ("", "is a tar archive"),
        ("gz", "is a tar archive"),
        ("xz", "is packed with xz"),
        ("bz2", "is packed with bzip2"),
    ],
)
def test_archives_are_named(kind: str, words: str, write, find: Find, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = problem(find, write("rows.jsonl.gz", archive(tmp_path, kind)))
    assert said.startswith(f"rows.jsonl.gz: {words}")
    assert "\n  Try: unpack it, and name the file inside" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer, not the data\n  Try: git lfs pull"),
        (b"PK\x03\x04\x14\x00\x01\x00secret", "is an encrypted zip archive"),
        (b"\x80\x04\x95\x10\x00\x00", "is a Python pickle, which can run any code\n  Try: write the rows as .jsonl"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "is a web page (HTML), not rows\n  Try: fetch it again"),
        (b"SQLite format 3\x00", "is an SQLite database"),
    ],
)
def test_what_stands_in_the_place_of_rows_is_named(content: bytes, words: str, write, find: Find) -> None:  # type: ignore[no-untyped-def]
    assert problem(find, write("rows.jsonl", content)).startswith(f"rows.jsonl: {words}")


def test_an_unknown_ending_is_named_where_the_content_says_nothing(write, find: Find) -> None:  # type: ignore[no-untyped-def]
    said = problem(find, write("config.yaml", "model: x\ndata: y\n"))
    assert said.startswith("config.yaml: has the ending .yaml, and its content is of no kind that is read\n  Try: give it the ending")


def test_a_setting_that_would_have_no_effect_is_named(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write("rows.jsonl", ROW)
    for setting, message in {
        "split": "rows.jsonl: has no splits, and split: v would have no effect",
        "revision": "rows.jsonl: revision: v is for hub data sets, and has no effect here",
        "name": "rows.jsonl: name: v is for hub data sets, and has no effect here",
    }.items():
        with pytest.raises(DataError) as error:
            find_sources([SourceSettings.model_validate({"path": "rows.jsonl", setting: "v"})], tmp_path, tmp_path)
        assert str(error.value).startswith(message)
