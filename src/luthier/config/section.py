"""What every part of the settings has in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the settings: frozen; a key that is not listed here is an error, and so is `true` or a text where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_strip_whitespace=True)
