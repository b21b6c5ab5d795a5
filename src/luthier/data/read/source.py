"""From what the user named to files: a file, a folder, a pattern, standard input or a hub data set. Nothing is read but each file's beginning."""

import glob
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import files
from luthier.config.data import SourceSettings
from luthier.data.read import sniff
from luthier.data.read.places import readable, regular, shown
from luthier.errors import DataError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of rows: how the user named it, where it lies, what it is."""

    name: str  # as the user wrote it
    place: Path
    kind: str  # jsonl | json | csv | tsv | parquet | arrow | text
    compression: str  # "" | gzip | zstd
    settings: SourceSettings
    size_bytes: int  # as it lies on the disk
    modified_ns: int


def find_sources(sources: Sequence[SourceSettings], base: Path, spool: Path, said: Callable[[str], None] = lambda note: None) -> list[SourceFile]:
    """The files that `sources` name, in order; relative paths start at `base`.

    A folder gives every file of a known kind below it, sorted by path, sub-folders too; hidden ones are left out, and so are text files
    beside files of rows (a README is no row). Standard input and hub data sets are first written to `spool`. `said` gets notes for the user.
    Raises DataError where something is missing, no plain file, of an unknown kind, or named twice.
    """
    found = [file for source in sources for file in _files_of(source, base, spool, said)]
    _once(found)
    return found


def same_files(train: Sequence[SourceFile], held_out: Sequence[SourceFile]) -> None:
    """Raises DataError where one file is both trained on and held out, under whatever name."""
    trained = {_identity(file): file for file in train}
    for file in held_out:
        if other := trained.get(_identity(file)):
            alias = "" if other.name == file.name else f" (as {other.name})"
            raise DataError(
                f"is in data.train{alias} and in data.eval: a model is not measured on rows that it learned",
                where=file.name,
                next_step="hold a share of the rows out (data.eval=5%), or name a file of other rows",
            )


def _files_of(source: SourceSettings, base: Path, spool: Path, said: Callable[[str], None]) -> list[SourceFile]:
    if source.path == "-":
        return [_file("-", _spooled(spool), source)]
    place = base / os.path.expanduser(source.path)
    if not os.path.lexists(place):
        if glob.has_magic(source.path):
            return _matches(source, base)
        if _is_hub_id(source.path, place):
            return [_of_hub(source, spool, said)]
    _check_local(source)
    with readable(source.path, place):
        if stat.S_ISDIR(place.stat().st_mode):
            return [_file(name, inside, source) for name, inside in _of_folder(source.path, place, said)]
    return [_file(source.path, place, source)]


def _file(name: str, place: Path, source: SourceSettings) -> SourceFile:
    name = shown(name)
    size_bytes, modified_ns = regular(name, place)
    kind, compression = sniff.look(name, place, source.split)
    if source.split and kind != "json" and not HUB_ID.fullmatch(source.path):
        raise DataError(
            f"has no splits, and split: {source.split} would have no effect",
            where=name,
            next_step="leave split out (it is for hub data sets, and for .json files that hold several lists)",
        )
    return SourceFile(name, place, kind, compression, source, size_bytes, modified_ns)


def _once(found: Sequence[SourceFile]) -> None:
    seen: dict[object, SourceFile] = {}
    for file in found:
        other = seen.setdefault(_identity(file), file)
        if other is not file:
            alias = "" if other.name == file.name else f", the other time as {other.name}"
            raise DataError(f"is named twice{alias}", where=file.name, next_step="name it once; weight: 2 uses its rows twice as often")


def _identity(file: SourceFile) -> object:
    with readable(file.name, file.place):
        status = file.place.stat()
    return status.st_dev, status.st_ino, file.settings.split


def _of_folder(name: str, folder: Path, said: Callable[[str], None]) -> list[tuple[str, Path]]:
    known, others = [], []
    for place in _walk(name, folder):
        relative = str(place.relative_to(folder))
        kind = sniff.kind_of_name(place.name)
        known.append((relative, place, kind)) if kind else others.append(relative)
    if not known:
        kinds = ", ".join(sniff.KINDS)
        raise DataError(
            f"the folder has no file of rows ({kinds})", where=shown(name), next_step="name a file, or put the rows' files in this folder"
        )
    if any(kind != "text" for _, _, kind in known):
        others += [relative for relative, _, kind in known if kind == "text"]
        known = [entry for entry in known if entry[2] != "text"]
    if others:
        said(f"{shown(name)}: not read: {', '.join(shown(other) for other in sorted(others)[:5])}{', ...' if len(others) > 5 else ''}")
    return [(os.path.join(name, relative), place) for relative, place, _ in sorted(known)]


def _walk(name: str, folder: Path) -> Iterator[Path]:
    """Every file below the folder that is not hidden. Links to folders are not followed: they may lead back."""

    def unreadable(error: OSError) -> None:
        with readable(name, Path(error.filename or folder)):
            raise error

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [inside for inside in folders if not inside.startswith(".")]
        yield from (Path(parent) / file for file in names if not file.startswith("."))


def _matches(source: SourceSettings, base: Path) -> list[SourceFile]:
    _check_local(source)
    names = sorted(glob.glob(os.path.expanduser(source.path), root_dir=base, recursive=True))
    names = [name for name in names if not (base / name).is_dir()]
    if not names:
        raise DataError("the pattern matches no file", where=shown(source.path), next_step=f"check it; it was looked for in {base.absolute()}")
    return [_file(name, base / name, source) for name in names]


def _spooled(spool: Path) -> Path:
    """Standard input as a file: rows are read more than once (hash, rows)."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise DataError("nothing is sent to standard input", where="-", next_step="send rows: luthier ... < rows.jsonl, or: program | luthier ...")
    arrived = files.make_folder(spool) / f"arriving-{os.getpid()}"
    stream = sys.stdin.buffer
    files.write_pieces(arrived, iter(lambda: stream.read(PIECE_BYTES), b""))
    # Named by what it holds: a run keeps this path, and the same rows sent again are the same file.
    return arrived.replace(spool / f"standard-input-{files.sha256(arrived)[:32]}")


def _is_hub_id(path: str, place: Path) -> bool:
    """org/name; but a path whose folder is there, or that ends like a file, is a mistyped path."""
    return bool(HUB_ID.fullmatch(path)) and not place.parent.is_dir() and not sniff.kind_of_name(path)


def _of_hub(source: SourceSettings, spool: Path, said: Callable[[str], None]) -> SourceFile:
    from luthier.data.read import hub

    split, place = hub.download(source, spool, said)
    return _file(f"{source.path}/{split}", place, source)


def _check_local(source: SourceSettings) -> None:
    for setting in ("name", "revision"):
        if value := getattr(source, setting):
            raise DataError(
                f"{setting}: {value} is for hub data sets, and has no effect here",
                where=shown(source.path),
                next_step=f"leave {setting} out",
            )


def is_local(path: str, base: Path) -> bool:
    """Whether a path of the settings means files here, and not a hub data set."""
    place = base / Path(path).expanduser()
    return os.path.lexists(place) or glob.has_magic(path) or not _is_hub_id(path, place)
