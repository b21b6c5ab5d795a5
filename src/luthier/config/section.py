"""What every part of the settings has in common."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Auto = Literal["auto"]
Text = Annotated[str, Field(min_length=1)]
# A name that something outside has: blanks at its ends belong to it.
Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=False)]

_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: str) -> int:
    """Bytes of a size in words (3GB, 3.5 GiB, 900MB). Raises ValueError for another text."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([MG]i?B)", size, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"{size!r} is not a size such as 3GB, 3.5GiB or 900MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _checked(size: str) -> str:
    bytes_of(size)
    return size


Size = Annotated[str, AfterValidator(_checked)]


class Section(BaseModel):
    """A part of the settings: frozen; a key that is not listed here is an error, and so is `true` or a text where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_strip_whitespace=True)
