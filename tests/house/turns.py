"""Tests of which a part runs each day with the slow ones, and all of them with the nightly ones."""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest


def in_turns(values: Iterable[str], parts: int, day: int | None = None) -> list[Any]:
    """Parameters of which every `parts`-th is slow today, and the others are nightly: each has its turn within so many days."""
    day = datetime.date.today().toordinal() if day is None else day
    return [pytest.param(value, marks=pytest.mark.nightly if (place + day) % parts else pytest.mark.slow) for place, value in enumerate(values)]
