"""What every part of the settings has in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Auto = Literal["auto"]
Text = Annotated[str, Field(min_length=1)]
# A name that something outside has: blanks at its ends belong to it.
Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=False)]


class Section(BaseModel):
    """A part of the settings: frozen; a key that is not listed here is an error, and so is `true` or a text where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_strip_whitespace=True)
