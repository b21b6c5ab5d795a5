"""A job file read by the tool that will take it, where that is installed: what it would refuse is refused here.

Each check gives what was looked at, in words, and raises LuthierError for a broken file. It needs nothing of Luthier but its errors: the
tools live in environments of their own.
"""

import ast
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from luthier.errors import LuthierError


def check(on: str, file: Path) -> str:
    """What was looked at. Raises LuthierError where the tool's own reader refuses the file."""
    return CHECKS[on](file)


def _refused(file: Path, by: str, why: object) -> LuthierError:
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return LuthierError(f"{by} refuses it: {' '.join(lines)[:300]}", where=str(file), next_step="mend that line, or delete the file to have it anew")


def _run(command: list[str], file: Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise _refused(file, command[0], ended.stderr or ended.stdout)


def _shell(file: Path) -> str:
    _run(["bash", "-n", str(file)], file)
    return "its shell is sound (bash -n)"


def _slurm(file: Path) -> str:
    seen = _shell(file)
    if shutil.which("sbatch") is None:
        return f"{seen}; sbatch is not here to be asked"
    if shutil.which("scontrol") is None or subprocess.run(["scontrol", "ping"], capture_output=True).returncode:
        return f"{seen}; sbatch is here and reaches no cluster to ask"
    _run(["sbatch", "--test-only", str(file)], file)
    return f"{seen}, and sbatch takes it (--test-only)"


def _sky(file: Path) -> str:
    if importlib.util.find_spec("sky") is None:
        return "SkyPilot is not here to be asked (pip install skypilot, in an environment of its own)"
    import sky

    try:
        sky.Task.from_yaml(str(file))
    except Exception as error:  # of a class of its own for each kind of mistake
        raise _refused(file, "SkyPilot", error) from error
    return "SkyPilot reads it (Task.from_yaml)"


def _dstack(file: Path) -> str:
    if importlib.util.find_spec("dstack") is None:
        return "dstack is not here to be asked (pip install dstack, in an environment of its own)"
    from dstack._internal.core.models import configurations

    try:
        configurations.parse_apply_configuration(_yaml(file))
    except Exception as error:  # of a class of its own for each kind of mistake
        raise _refused(file, "dstack", error) from error
    return "dstack reads it (parse_apply_configuration)"


def _kubeflow(file: Path) -> str:
    if importlib.util.find_spec("kubeflow_trainer_api") is None:
        return "Kubeflow's models are not here to be asked (pip install kubeflow-trainer-api, in an environment of its own)"
    from kubeflow_trainer_api import models

    try:
        tree = _yaml(file)
        read = models.TrainerV1alpha1TrainJob.from_dict(tree)
    except Exception as error:  # of pydantic's several
        raise _refused(file, "Kubeflow Trainer", error) from error
    # What its models do not know they leave out without a word.
    if lost := sorted(_lost(tree, read.to_dict())):
        raise _refused(file, "Kubeflow Trainer", f"it knows no {', '.join(lost)}")
    return "Kubeflow's models read it (TrainerV1alpha1TrainJob)"


def _lost(given: Any, read: Any, name: str = "") -> set[str]:
    """The dotted names that were given and are not in what was read."""
    if isinstance(given, dict):
        there = read if isinstance(read, dict) else {}
        below = [_lost(value, there[key], f"{name}.{key}" if name else key) for key, value in given.items() if key in there]
        return {f"{name}.{key}" if name else key for key in given if key not in there}.union(*below)
    if isinstance(given, list) and isinstance(read, list):
        return set().union(*(_lost(*pair, name) for pair in zip(given, read, strict=False)))
    return set()


def _yaml(file: Path) -> Any:
    return YAML(typ="safe").load(file.read_text(encoding="utf-8"))


def _ray(file: Path) -> str:
    try:
        ast.parse(file.read_text(encoding="utf-8"), str(file))
    except SyntaxError as error:
        raise _refused(file, "Python", error) from error
    return "it is sound Python"


CHECKS: dict[str, Callable[[Path], str]] = {
    "slurm": _slurm,
    "sky": _sky,
    "kubeflow": _kubeflow,
    "dstack": _dstack,
    "ray": _ray,
    "ssh": _shell,
}
