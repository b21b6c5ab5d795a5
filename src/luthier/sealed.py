"""A folder that is whole or not there, and shows it: a manifest, written last, has the size and the sha256 of every file.

stage -> write and sync each file -> the manifest -> sync the folder -> rename -> sync what is above it. Whatever ends that early, the
process, the power or the disk, what stands there is the folder as it was meant, or none of that name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from luthier import files
from luthier.disk import Buffer

SCHEMA = 1
MANIFEST = "manifest.json"
# What is written of a file, asked for when its turn has come.
Content = Callable[[], Iterable[Buffer]]
Others = Callable[[Path], Mapping[str, tuple[int, str]]]


def write(
    path: Path,
    parts: Mapping[str, Content],
    about: Mapping[str, Any],
    others: Others = lambda staging: {},
    may_stand: Callable[[], None] = lambda: None,
) -> int:
    """Make the folder `path` of `parts` (by file name), with `about` in its manifest. Gives its bytes, the manifest's left out.

    `others` lets other processes write into the folder before its manifest, and gives bytes and sha256 of each of their files. `may_stand` is
    asked last, before the folder gets its name, and raises an error where it must not.

    A folder of that name is set aside, not replaced. Raises RunError or OSError where the disk does not take it: then nothing is there.
    One call at a time in a parent folder: what earlier ones left unfinished is swept.
    """
    staging = files.unfinished_name(path, "staging")
    with files.readable_errors(path):
        files.make_folder(path.parent)
        files.sweep(path.parent, own=True)
    try:
        with files.readable_errors(path):  # looks at the disk before what stands there is taken away
            files.disk.make_folder(staging)
            written = {name: files.write_new(staging / name, content()) for name, content in parts.items()}
            written |= others(staging)
            listed = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in written.items()}
            files.write_new(staging / MANIFEST, [_spelled({"schema": SCHEMA, "files": listed, **about})])
            files.sync(staging)
            may_stand()
            _set_aside(path)
            files.disk.rename(staging, path)
            files.sync(path.parent)
    except BaseException:
        files.discard(staging)
        raise
    return sum(size for size, _ in written.values())


def _set_aside(path: Path) -> None:
    """What stands at `path` gets another name, which no one reads: it is damaged, or it would have been gone on from."""
    count = 1
    while path.exists():
        aside = path.with_name(f"{path.name}.aside-{count}")
        if not aside.exists():
            files.disk.rename(path, aside)
        count += 1


def _spelled(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's text, with a sha256 of the rest of it."""
    own = hashlib.sha256(json.dumps(manifest, ensure_ascii=False).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": own}, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the folder `path`. Raises ValueError, which says what is wrong with it."""
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error.strerror})") from None
    try:
        manifest = json.loads(text)
    except ValueError:
        raise ValueError(f"{MANIFEST} is not whole") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{MANIFEST} has the schema {schema}, and this version of luthier reads {SCHEMA}")
    # By its text: a changed bit may leave it JSON that means the same.
    if _spelled({name: value for name, value in manifest.items() if name != "sha256"}) != text:
        raise ValueError(f"{MANIFEST} is not as it was written")
    found: dict[str, Any] = manifest
    return found


def damage(path: Path, *, sizes_only: bool = False) -> str:
    """What is wrong with the folder `path`, with the file's name, what is expected and what is there; "" where it is as it was written.

    With `sizes_only` the files' bytes are not read.
    """
    try:
        listed: dict[str, Any] = read_manifest(path)["files"]
        problems = (_damage_of_file(path / name, expected, sizes_only) for name, expected in listed.items())
        return next((problem for problem in problems if problem), "")
    except ValueError as error:
        return str(error)


def _damage_of_file(path: Path, expected: Mapping[str, Any], sizes_only: bool) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path.name} has {size:,} bytes, and {expected['bytes']:,} were written"
    if sizes_only:
        return ""
    try:
        found = files.sha256(path)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return "" if found == expected["sha256"] else f"{path.name} is not as it was written (sha256 {found[:12]}, and {expected['sha256'][:12]} was)"


def numbered(parent: Path, stem: str) -> list[Path]:
    """The folders stem-NNNNNN in `parent`, whole or not, in the order of their numbers."""
    found = [path for path in parent.iterdir() if re.fullmatch(rf"{re.escape(stem)}-\d+", path.name)] if parent.is_dir() else []
    return sorted(found, key=number)


def number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
