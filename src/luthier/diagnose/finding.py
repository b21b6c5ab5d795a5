"""What is wrong with a run: what was seen, why it matters, and what mends it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier import files
from luthier.reporting import Reporter
from luthier.run_folder import SCHEMA, RunFolder

# severe: the result is not what was wanted. warning: it is probably worse than it could be. note: worth knowing.
Severity = Literal["severe", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("severe", "warning", "note")
TOLD = 2


@dataclass(frozen=True, slots=True)
class Cure:
    """One way to mend it, in words (with the command, where there is one) and as settings by their dotted names, where it is that."""

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a run. Its `id` is a heading of docs/troubleshooting.md; the first cure is the one to try first."""

    id: str
    severity: Severity
    title: str
    seen: str  # a sentence with the numbers
    why: str
    cures: Sequence[Cure]
    evidence: Mapping[str, Any] = field(default_factory=dict)  # numbers, steps and rows; JSON values only

    @property
    def first(self) -> Cure:
        return self.cures[0]

    def line(self) -> str:
        return f"{self.severity}: {self.title}: {self.seen}. Try: {self.first.what}"


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """The gravest first; those of one severity stay in their order."""
    return sorted(findings, key=lambda found: SEVERITIES.index(found.severity))


def keep(run: RunFolder, findings: Sequence[Finding], not_looked: Mapping[str, str]) -> None:
    """Write findings.json: the findings, gravest first, and by the id of each check that lacked evidence what it lacked."""
    told = [dataclasses.asdict(found) for found in by_severity(findings)]
    files.write_json(run.findings, {"schema": SCHEMA, "findings": told, "not_looked": dict(not_looked)})


def read_findings(run: RunFolder) -> list[Finding] | None:
    """What `luthier diagnose` (or the end of the training) found in a run, gravest first; None where nobody has looked yet."""
    if not run.findings.is_file():
        return None
    stored = files.read_json(run.findings)["findings"]
    return [Finding(**{**row, "cures": [Cure(**cure) for cure in row["cures"]]}) for row in stored]


def tell(run: RunFolder, findings: Sequence[Finding], reporter: Reporter) -> None:
    """The gravest findings of a run that has just ended, a line each; notes are left to `luthier diagnose`."""
    grave = [found for found in by_severity(findings) if found.severity != "note"]
    for found in grave[:TOLD]:
        run.say(found.line())
        reporter.say(found.line())
    if grave:
        reporter.say(f"{len(findings)} finding{'s' if len(findings) > 1 else ''} in all; luthier diagnose {run.path} looks closer, with the model")
