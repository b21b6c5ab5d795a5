"""Every call that changes a disk, one method each: `luthier.files` makes them through one `Disk`, which a test replaces to fail or to end there."""

import os
from io import BufferedReader
from pathlib import Path

Buffer = bytes | bytearray | memoryview


class Disk:
    """The operating system's calls, as they are. Each raises OSError."""

    def open_new(self, path: Path) -> int:
        """A descriptor of `path`, which is made or emptied."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def open_end(self, path: Path) -> int:
        """A descriptor that writes at the end of `path`, which is made where it is missing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def open_written(self, path: Path) -> int:
        """A descriptor of a file or a folder, to sync it."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def write(self, descriptor: int, data: Buffer) -> int:
        """Write what is taken of `data`; gives how many bytes that were."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or a folder another name; a file that has it is replaced."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        os.mkdir(path)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder that is empty."""
        os.rmdir(path)

    def open_to_read(self, path: Path) -> BufferedReader:
        return open(path, "rb")
