"""Packed files: whole, in members, cut, damaged, followed by other bytes, and bombs."""

import gzip
import random

import pyarrow as pa
import pytest

from luthier.data.read import stream
from luthier.errors import DataError

RANDOM = random.Random(3)
# Long and random, so that it packs badly and goes over several pieces.
LINES = b"".join(b'{"x": "%s"}\n' % RANDOM.randbytes(2000).hex().encode() for _ in range(1000))


def packed(kind: str, content: bytes) -> bytes:
    return gzip.compress(content) if kind == "gz" else pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "txt"])
def test_packed_files_are_read(kind: str, ending: str, write, read) -> None:  # type: ignore[no-untyped-def]
    content = b"[" + LINES.strip().replace(b"\n", b",") + b"]" if ending == "json" else LINES
    rows, notes = read(write(f"rows.{ending}.{kind}", packed(kind, content)))
    said = [f"rows.txt.{kind}: begins like rows of JSON, and is read as plain text because of its ending: name it .jsonl if it holds rows"]
    assert (len(rows), notes) == ((1, said) if ending == "txt" else (1000, []))


def test_members_one_after_the_other_and_zeros_at_the_end_are_fine(write, read) -> None:  # type: ignore[no-untyped-def]
    members = gzip.compress(b'{"x": 1}\n{"x"') + bytes(70_001) + gzip.compress(b": 2}\n") + gzip.compress(b"") + bytes(512)
    rows, _ = read(write("rows.jsonl.gz", members))
    assert [row.value["x"] for row in rows] == [1, 2]
    rows, _ = read(write("rows.jsonl.zst", packed("zst", b'{"x": 1}\n') + packed("zst", b'{"x": 2}\n')))
    assert [row.value["x"] for row in rows] == [1, 2]


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


WHOLE = gzip.compress(LINES)
DAMAGED = {
    # name                  file                                 what is said
    "cut":                 ("rows.jsonl.gz",  WHOLE[:-1000],                      "the gzip data ends too early: the file was cut; "),
    "cut_before_checksum": ("rows.jsonl.gz",  WHOLE[:-8],                         "the gzip data ends too early: the file was cut; "),
    "checksum":            ("rows.jsonl.gz",  damaged(WHOLE, len(WHOLE) - 6),     "the gzip data is damaged (its checksum is wrong); "),
    "damaged":             ("rows.jsonl.gz",  damaged(WHOLE, len(WHOLE) // 2),    "the gzip data is damaged ("),
    "followed":            ("rows.jsonl.gz",  WHOLE + b"junk",                    "the gzip data is followed by bytes that are not gzip; "),
    "zstd_cut":            ("rows.jsonl.zst", packed("zst", LINES)[:-1000],       "the zstd data ends too early: the file was cut; "),
    "zstd_followed":       ("rows.jsonl.zst", packed("zst", LINES) + b"junkjunk", "the zstd data is damaged ("),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_after_the_rows_before_it(case: str, write, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from luthier.config.data import SourceSettings
    from luthier.data.read.rows import rows_of
    from luthier.data.read.source import find_sources

    name, content, message = DAMAGED[case]
    [file] = find_sources([SourceSettings(path=write(name, content))], tmp_path, tmp_path)
    rows = []
    with pytest.raises(DataError) as error:
        rows.extend(rows_of(file, "utf-8", print))
    assert len(rows) > 300  # those before the damage were given
    assert str(error.value).startswith(f"{name}: {message}")
    assert f"{'zstd' if name.endswith('zst') else 'gzip'} -dc '{name}' > part.jsonl" in str(error.value)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_bomb_is_refused_early(kind: str, write, read) -> None:  # type: ignore[no-untyped-def]
    bomb = packed(kind, b'{"x": "' + b"a" * 100_000_000 + b'"}')
    with pytest.raises(DataError, match=r"rows.jsonl.\w+: unpacks to more than 200 times its size \([\d,]{9,10} bytes from [\d,]+ so far\): a bomb"):
        read(write(f"rows.jsonl.{kind}", bomb))


def test_the_limit_of_unpacking_leaves_ordinary_files_alone(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, _ = read(write("rows.jsonl.gz", gzip.compress(b'{"text": "the same row again"}\n' * 3000)))
    assert len(rows) == 3000
    assert stream.MOST_UNPACKED_RATIO == 200
