"""One folder that holds a tuned model with all that speaks for it, and the checksums by which anyone sees that it is still that."""

from pathlib import Path

from luthier import files
from luthier.errors import RunError, VerificationFailed
from luthier.models.find import SUMS
from luthier.run_folder import RunFolder

CARD = "README.md"


def fill(folder: Path, run: RunFolder, card: str) -> None:
    """Put beside what lies in `folder` the run's contract, report and scores, and its model card as README.md; the checksums come last."""
    for source in (run.contract, run.report, run.scorecard):
        if source.is_file():
            files.write_bytes(folder / source.name, source.read_bytes())
    files.write_text(folder / CARD, card)
    seal(folder)


def seal(folder: Path) -> None:
    """Write SHA256SUMS of every other file in the folder."""
    files.write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items()))


def check(folder: Path) -> int:
    """Compare every file with SHA256SUMS; gives how many there are.

    Raises RunError where there are no checksums, VerificationFailed with the names of files that are changed, missing or unknown.
    """
    path = folder / SUMS
    if not path.is_file():
        raise RunError(f"holds no {SUMS}", where=str(folder), next_step="name a folder that luthier export --to bundle wrote")
    # A damaged list names what differs, as a damaged file does.
    lines = [line.partition("  ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    wanted = {name: digest for digest, _, name in lines}
    found = _digests(folder)
    problems = [f"{name} is {'changed' if name in found else 'missing'}" for name in sorted(wanted) if found.get(name) != wanted[name]]
    problems += [f"{name} is none of it" for name in sorted(found.keys() - wanted.keys())]
    if problems:
        raise VerificationFailed("; ".join(problems[:8]), where=str(folder), next_step="copy the bundle again from where it was made")
    return len(found)


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}
