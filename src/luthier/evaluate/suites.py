"""Benchmarks by name: every task of lm-eval's catalog (harness.py), and IFEval and IFBench, whose answers are checked by rules."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from luthier.engine import Engine
from luthier.errors import ConfigError
from luthier.evaluate import instructions
from luthier.evaluate.kept import Kept
from luthier.evaluate.sums import Counted
from luthier.reporting import Reporter


def check(names: Sequence[str], suite_dir: str | None) -> None:
    """Raises ConfigError where a suite is not known, or what it needs is not installed."""
    folder = _folder(suite_dir)
    of_harness = [name for name in names if name not in instructions.SUITES]
    for name in names:
        if name in instructions.SUITES:
            instructions.read(name, folder)
    if of_harness:
        _harness().check(of_harness, folder)


def run(
    engine: Engine,
    name: str,
    identity: str,
    names: Sequence[str],
    suite_dir: str | None,
    limit: int | None,
    kept: Kept,
    run_code: bool,
    reporter: Reporter,
) -> dict[str, Counted]:
    """What a model scores in each suite, by "suite metric". `limit` are the rows of each task. Answers in `kept` are not asked for again.

    Tasks that run what the model wrote are run with `run_code` only.
    """
    folder = _folder(suite_dir)
    found: dict[str, Counted] = {}
    for suite in names:
        if suite in instructions.SUITES:
            found |= instructions.run(engine, name, identity, suite, folder, limit, kept, reporter)
    if of_harness := [suite for suite in names if suite not in instructions.SUITES]:
        reporter.say(f"{name}: {', '.join(of_harness)} through lm-eval")
        found |= _harness().run(engine, name, identity, of_harness, folder, limit, kept, run_code, reporter)
    return found


def _harness() -> ModuleType:
    try:
        from luthier.evaluate import harness
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed", where="--suite", next_step='pip install "luthier[eval]"') from error
    return harness


def _folder(suite_dir: str | None) -> Path | None:
    if suite_dir is None:
        return None
    if not (folder := Path(suite_dir)).is_dir():
        raise ConfigError("no such folder", where=f"--suite-dir {suite_dir}", next_step="scripts/fetch_suites.py FOLDER makes one")
    return folder
