"""Paths that can be read, and the operating system's answers where they cannot, in words."""

import difflib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import DataError

# Kernels show their own state in these folders, in files that have no size and may never end.
NO_DISK = (Path("/proc"), Path("/sys"), Path("/dev"))
SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def shown(name: str) -> str:
    """A file's name as it can be printed and stored: bytes that are no text, and control characters, as escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def regular(name: str, place: Path) -> tuple[int, int]:
    """The size of a plain file in bytes, and when it was last changed; a link to one is fine. Raises DataError where it is something else."""
    with readable(name, place):
        status = place.stat()
        real = place.resolve()
    if not stat.S_ISREG(status.st_mode):
        raise _not_plain(name, f"is {SPECIAL.get(stat.S_IFMT(status.st_mode), 'no file')}, not a plain file")
    if any(folder in real.parents for folder in NO_DISK) and not real.is_relative_to("/dev/shm"):
        raise _not_plain(name, f"lies in {real.parents[-2]}, where the system shows its own state")
    return status.st_size, status.st_mtime_ns


@contextmanager
def readable(name: str, place: Path) -> Iterator[None]:
    """Turn the operating system's errors of reading into words."""
    name = shown(name)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if place.is_symlink():
            target = shown(os.readlink(place))
            raise DataError(f"is a link to {target}, which is not there", where=name, next_step="mend the link, or name the file itself") from error
        raise DataError("there is no such file or folder", where=name, next_step=_near(name, place)) from error
    except PermissionError as error:
        raise DataError("may not be read", where=name, next_step=f"give yourself the right to read it (chmod u+r '{name}')") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=name, next_step=_advice(error)) from error


def _not_plain(name: str, problem: str) -> DataError:
    return DataError(problem, where=name, next_step="write the rows to a file and name that, or send them: program | luthier ... with - as the path")


def _advice(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "its links lead in a circle: name the file itself"
    if error.errno == errno.ESTALE:
        return "the network drive lost the file: mount it again, or copy the file to this machine first"
    return "check the path and the disk it is on"


def _near(name: str, place: Path) -> str:
    here = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() and os.access(place.parent, os.R_OK) else []
    if found := difflib.get_close_matches(place.name, here, n=1):
        near = shown(str(Path(name).with_name(found[0])))
        return f"'{near}' is there: is that the one?" if near != near.strip() else f"{near} is there: is that the one?"
    return f"check the path; it was looked for at {shown(str(place.absolute()))}, and a hub data set is written org/name"
