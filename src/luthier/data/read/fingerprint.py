"""What identifies the content of a file."""

from luthier import files
from luthier.data.read.places import readable
from luthier.data.read.source import SourceFile


def fingerprint(file: SourceFile) -> str:
    """The sha256 of the file as it lies on the disk, read in pieces. Raises DataError where it cannot be read."""
    with readable(file.name, file.place):
        return files.sha256(file.place)
