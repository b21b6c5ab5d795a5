"""An artifact is made beside its place, looked at, and only then given its name: NAME where it is good, NAME.failed where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier import files
from luthier.errors import CallError, MachineError, RunError

CERTIFICATE = "parity.json"
FAILED = ".failed"
# Of the bytes that an artifact needs, for what stands beside its weights and for a disk that others write to as well.
SPARE = 1.05


@contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A folder beside `place` to make something in. What is still there at the end is taken away."""
    staging = files.unfinished_name(place, "staging")
    with files.readable_errors(place):
        files.make_folder(place.parent)
        files.discard(staging)
        files.sweep(place.parent, only=place.name)
        files.make_folder(staging)
    try:
        yield staging
    finally:
        files.discard(staging)


def accept(staging: Path, place: Path) -> Path:
    """Give what was made its name. An older artifact there is replaced after the new one is whole on the disk."""
    with files.readable_errors(place):
        for file in staging.rglob("*"):
            files.sync(file)
        files.sync(staging)
        files.replace_folder(staging, place)
        files.sync(place.parent)
    return place


def put_aside(staging: Path, place: Path) -> Path:
    """Keep what does not answer as it should beside its place, to be looked at. Only an earlier one of this kind is replaced."""
    aside, number = place.with_name(place.name + FAILED), 2
    while aside.exists() and not (aside / CERTIFICATE).is_file():
        aside, number = place.with_name(f"{place.name}{FAILED}-{number}"), number + 1
    return accept(staging, aside)


def check_free(place: Path, own: bool) -> None:
    """Raises RunError where something stands at `place` that is the user's. `own`: in the run folder, where an earlier export is replaced."""
    if not own and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunError("is there already, and nothing is overwritten", where=str(place), next_step="choose a folder that does not exist")


def check_room(place: Path, needed_bytes: int) -> None:
    """Raises MachineError where the disk of `place` has not so many bytes free."""
    free, needed = files.free_bytes(place), int(SPARE * needed_bytes)
    if free < needed:
        raise MachineError(
            f"the export needs about {needed / 1e6:,.0f} MB on this disk, and {free / 1e6:,.0f} MB are free",
            where=str(place),
            next_step="free some space, or give --folder on another disk",
        )


def shard_bytes(size: str) -> int:
    """A size such as 2GB or 500MB in bytes. Raises CallError for another text."""
    units = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
    number, unit = size[:-2].strip(), size[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit() or not float(number):
        raise CallError(f"is no size: {size}", where="--shard-size", next_step="--shard-size 2GB, or 500MB")
    return int(float(number) * units[unit])
