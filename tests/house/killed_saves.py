"""Run by test_sealed.py in a process of its own: saves are ended at every call of the disk, before it, after it and half-way through it.

Prints how many cases there were, then a line for each that lost something or left something behind.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from faulty_disk import Intercepted, Killed, using

from luthier import files, sealed

# A real disk takes 10 ms for each of the 30 syncs of a save.
FAST = "/dev/shm"
MODES = ("before", "after", "half")
SIZES = {"trained.safetensors": 5000, "optimizer.safetensors": 9000, "state.json": 300}


def content(name: str, step: int) -> bytes:
    """The bytes of a file of a step, which no other step has."""
    return (f"{name} {step} ".encode() * SIZES[name])[: SIZES[name]]


def save(folder: Path, step: int) -> None:
    parts: dict[str, sealed.Content] = {name: lambda name=name: [content(name, step)[:1000], content(name, step)[1000:]] for name in SIZES}  # type: ignore[misc]
    sealed.write(folder / f"step-{step:06d}", parts, {"step": step})


def save_and_rotate(folder: Path, step: int, keep: int = 2) -> None:
    save(folder, step)
    for path in sealed.numbered(folder, "step")[:-keep]:
        files.remove_folder(path)


def whole(folder: Path) -> list[int]:
    """The steps that are there. Raises AssertionError for one that does not verify, and for one that does and is not as it was meant."""
    found = sealed.numbered(folder, "step")
    for path in found:
        assert sealed.damage(path) == "", f"{path.name} is there and not whole: {sealed.damage(path)}"
        for name in SIZES:
            assert (path / name).read_bytes() == content(name, sealed.number(path)), f"{path.name}/{name} verifies and differs"
    return [sealed.number(path) for path in found]


def problem_after(folder: Path, action: Callable[[Path, int], None], at: int, mode: str) -> str:
    """What is wrong after the third of three saves was ended there; "" where all is well."""
    for step in (1, 2):
        save(folder, step)
    child = os.fork()
    if child == 0:
        with using(Killed(at, mode)):
            action(folder, 3)
        os._exit(0)
    os.waitpid(child, 0)
    left = whole(folder)
    if not {2, 3} & set(left):
        return f"only {left} are whole"
    save_and_rotate(folder, 4)
    names = sorted(path.name for path in folder.iterdir())
    if whole(folder)[-1] != 4 or any(name.startswith(".") for name in names):
        return f"after the next save there is {names}"
    return ""


def main() -> None:
    cases = 0
    problems = []
    with tempfile.TemporaryDirectory(dir=FAST if os.path.isdir(FAST) else None) as parent:
        counted = Intercepted()
        with using(counted):
            for step in (1, 2, 3):
                counted.calls.clear()
                save_and_rotate(Path(parent) / "counted", step)
        for at in range(len(counted.calls)):
            for mode in MODES:
                folder = Path(parent) / f"{at}-{mode}"
                folder.mkdir()
                cases += 1
                try:
                    problem = problem_after(folder, save_and_rotate, at, mode)
                except AssertionError as error:
                    problem = str(error)
                if problem:
                    problems.append(f"{mode} call {at} ({counted.calls[at][0]}): {problem}")
                shutil.rmtree(folder)
    print(f"{cases} cases", *problems, sep="\n")
    sys.exit("torch was imported" if "torch" in sys.modules else 0)


if __name__ == "__main__":
    main()
