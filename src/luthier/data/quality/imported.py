"""A function of the user's own, named as module:function in the settings."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from luthier.errors import ConfigError


def imported(setting: str, path: str, takes: str) -> Callable[..., Any]:
    """The function that `setting` names; `takes` says what it is a function of. The folder in which the command runs is searched first."""
    where, (name, _, function) = f"{setting}: {path}", path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(name), function)
    except Exception as error:  # an import runs the user's code, which may raise anything
        next_step = "write module:function, and run from the folder of module.py"
        raise ConfigError(f"it cannot be imported: {error}", where=where, next_step=next_step) from None
    if not callable(found):
        raise ConfigError("it is no function", where=where, next_step=f"write module:function, a function of {takes}")
    return found  # type: ignore[no-any-return]
