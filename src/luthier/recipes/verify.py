"""Show on a user's own model, rows and settings that a run does what it says: each promise is tried out on a slice, and compared."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config import reads
from luthier.config.load import Config
from luthier.diagnose.report import write_report
from luthier.errors import CallError, LuthierError
from luthier.recipes.proofs import artifacts, given, learning, masks, resuming, updates
from luthier.recipes.proofs.bench import FAILED, NOT_HERE, PASSED, Bench, NotHere, open_bench
from luthier.records import Proof
from luthier.reporting import Reporter, Silent
from luthier.run_folder import SCHEMA, RunFolder
from luthier.train.session import Interrupted

CHECKS: dict[str, Callable[[Bench], Proof]] = {
    # what is shown                       how
    "masks": masks.masks,
    "gradients": updates.gradients_arrive,
    "accumulated": updates.accumulated,
    "other budget": updates.other_budget,
    "prefix sharing": updates.prefix_sharing,
    "packed": updates.packed_is_plain,  # gives the model's fast path up: what comes after it opens the model anew
    "overfit": learning.overfits,
    "reloaded": artifacts.reloaded_is_trained,
    "chat tokens": artifacts.serves_what_it_trained,
    "merged": artifacts.merged_is_adapter,
    "resume": resuming.resumes_exactly,
    "settings": given.every_setting_is_read,
}
# What takes seconds: no run, and nothing is written but the scratch run's settings.
SHORT = ("masks", "gradients", "prefix sharing", "packed")
# What these read of the settings is no effect of theirs.
ONLOOKERS = ("luthier.recipes.proofs", "luthier.recipes.verify")
LEFT_BEHIND_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks found, and on what: `tokens` are those of the slice."""

    proofs: list[Proof]
    what: dict[str, Any]  # model, method, objective, precision, rows, tokens
    seconds: float

    @property
    def passed(self) -> bool:
        return all(proof.status != FAILED for proof in self.proofs)

    def as_json(self) -> dict[str, Any]:
        """As verify.json holds it."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            **self.what,
            "seconds": round(self.seconds, 1),
            "checks": [asdict(proof) for proof in self.proofs],
        }


def verify(
    config: Config,
    reporter: Reporter | None = None,
    *,
    rows: int | None = None,
    only: Sequence[str] = (),
    run: RunFolder | None = None,
) -> Verdict:
    """Try every check of CHECKS (or `only` some) on `rows` of the config's rows, or as many as have some 20,000 tokens.

    Nothing is written but scratch folders, which go; for a `run` verify.json and its report too. A check that fails stops no other one.
    Raises LuthierError where not even the rows or the model can be had, or where `only` names no check.
    """
    reporter = reporter or Silent()
    if unknown := [name for name in only if name not in CHECKS]:
        raise CallError(f"there is no check {unknown[0]!r}", where="--only", next_step=f"one of: {', '.join(CHECKS)}")
    start = time.perf_counter()
    names = [name for name in CHECKS if not only or name in only]
    with scratch_folder() as scratch, reads.watched(ONLOOKERS) as seen:
        bench = open_bench(config, scratch, seen, reporter, rows)
        with reporter.bar("verifying", len(names)) as bar:
            proofs = [_proved(name, bench, lambda: bar.advance(place, name)) for place, name in enumerate(names)]  # noqa: B023
        what = _what(bench)
    verdict = Verdict(proofs, what, time.perf_counter() - start)
    if run is not None:
        files.write_json(run.verified, verdict.as_json())
        write_report(run)
    return verdict


def _proved(name: str, bench: Bench, begin: Callable[[], None]) -> Proof:
    """One check, with its name and time; what it raises is its failure."""
    begin()
    start = time.perf_counter()
    try:
        proof = CHECKS[name](bench)
    except NotHere as reason:
        proof = Proof(name, NOT_HERE, str(reason))
    except Interrupted as signal:
        raise KeyboardInterrupt from signal
    except LuthierError as error:
        proof = Proof(name, FAILED, f"{error.where}: {error.problem}", error.next_step)
    except Exception as error:  # a check that breaks shows something as well, and stops no other one
        proof = Proof(name, FAILED, f"{type(error).__name__}: {error}", updates.REPORT)
    if proof.status == FAILED:
        bench.drop_engine()  # who knows in what state
    return replace(proof, check=name, seconds=round(time.perf_counter() - start, 1))


def _what(bench: Bench) -> dict[str, Any]:
    settings, prepared = bench.plan.settings, bench.ready.prepared
    return {
        "model": bench.asked.settings.model,
        "method": settings.method,
        "objective": settings.objective,
        "precision": settings.training.precision,
        "rows": len(prepared.rows.train),
        "tokens": int(prepared.lengths.sum()),
    }


@contextlib.contextmanager
def scratch_folder() -> Any:
    """A folder in the cache, on the disk that has room for models, which goes at the end; and so do those that a killed process left."""
    place = files.make_folder(files.home() / "scratch")
    for left in place.iterdir():
        with contextlib.suppress(OSError):  # another process may be as quick
            if time.time() - left.stat().st_mtime > LEFT_BEHIND_SECONDS:
                files.remove_folder(left)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=place) as folder:
        yield Path(folder)


def words(status: str) -> str:
    """A status as people read it."""
    return {PASSED: "pass", FAILED: "FAIL", NOT_HERE: "not for this config"}[status]
