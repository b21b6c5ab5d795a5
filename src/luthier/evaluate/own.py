"""Metrics of the user's own, by import path."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from luthier.data.quality.imported import imported
from luthier.errors import ConfigError

TAKES = "(expected: str, answer: str) that gives a number"


def own(path: str, beside: Path) -> Callable[[str, str], float]:
    """The function that `module:function` or `FILE.py:function` names (a file's path starts at `beside`).

    It is given the expected answer and the model's, and gives a number; 0 to 1 is shown as a share. Raises ConfigError where it is not
    there; what it gives is checked when it is called.
    """
    name, _, function = path.rpartition(":")
    found = _of_file(beside / name, function, path) if name.endswith(".py") else imported("evaluation.metrics", path, TAKES)

    def score(expected: str, answer: str) -> float:
        try:
            return float(found(expected, answer))
        except Exception as error:  # the user's code may raise anything
            problem = f"{type(error).__name__}: {error}, for the answer {answer[:60]!r}"
            raise ConfigError(problem, where=f"evaluation.metrics: {path}", next_step=f"a metric is a function of {TAKES}") from error

    return score


def _of_file(file: Path, function: str, path: str) -> Callable[..., float]:
    where = f"evaluation.metrics: {path}"
    spec = importlib.util.spec_from_file_location(f"luthier_metric_{file.stem}", file)
    try:
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found: Callable[..., float] = getattr(module, function)
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise ConfigError(f"it cannot be imported: {error}", where=where, next_step=f"FILE.py:function, a function of {TAKES}") from error
    return found
