"""What was found out about rows, in one record: for the terminal, for machines and for the page."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.conversations import JUDGED, keep_good
from luthier.data.quality.check import Concern, Finding, Verdict
from luthier.data.read.source import is_local
from luthier.diagnose.bars import Bar, Chart
from luthier.records import Rejected
from luthier.run_folder import SCHEMA

VERDICTS: dict[Verdict, str] = {
    "good": "good",
    "look": "look here",
    "stop": "do not train",
}
# Of a check's counts, the largest are drawn.
DRAWN_COUNTS = 12
COUNTS = {
    # check            its counts     what they are
    "balance":         ("counts",      "Rows of each class"),
    "language":        ("languages",   "Languages of the answers"),
    "diversity":       ("commonest",   "Words that questions open with"),
    "mixed_structure": ("structures",  "Structures of the answers"),
    "pii":             ("kinds",       "Personal data by kind"),
    "unknown_tokens":  ("most_common", "Characters without a token of their own"),
}  # fmt: skip
PARTS = {"train": "main", "trained": "main", "eval": "second", "masked": "faint", "cut": "bad", "set aside": "bad"}


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the rows are: `counts[i]` rows from `edges[i]` up to below `edges[i + 1]`. What the check `length` measured."""

    unit: str  # tokens or characters
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    median: int
    p99: int
    longest: int
    max_length: int | None  # in tokens

    def label(self, place: int) -> str:
        """The column's range, such as 100-199."""
        first, last = self.edges[place], self.edges[place + 1] - 1
        return f"{first:,}" if first == last else f"{first:,}-{last:,}"


@dataclass(frozen=True, slots=True)
class DataReport:
    """All that a check of rows has to say."""

    target: str  # as the user named it
    is_settings: bool  # whether the target is a settings file
    notes: Sequence[str]  # what was read, by file: the format and how it was known
    ledger: Mapping[str, Any]  # rows, sources, and tokens where a tokenizer was at hand
    findings: Sequence[Finding]
    roles: Mapping[str, int]  # messages of each role
    rejected: Sequence[Rejected] = ()  # the first rows that were set aside
    left_out: Sequence[str] = ()  # what could not be looked at, and why
    stopped: str = ""  # the error that training would stop with
    judged_is_learned: bool = False  # whether the settings' objective learns from rows that judge

    @property
    def verdict(self) -> Verdict:
        found = {finding.verdict for finding in self.findings}
        if self.stopped or "stop" in found:
            return "stop"
        return "look" if "look" in found else "good"

    @property
    def lengths(self) -> Lengths | None:
        """What the check of lengths measured; None where it did not run."""
        numbers = next((one.numbers for one in self.findings if one.check == "length" and one.numbers), None)
        if numbers is None:
            return None
        histogram, ranks = numbers["histogram"], numbers["percentiles"]
        edges, counts = tuple(histogram["edges"]), tuple(histogram["rows"])
        return Lengths(numbers["unit"], edges, counts, ranks["50"], ranks["99"], numbers["max"], numbers["max_length"])

    @property
    def concerns(self) -> list[Finding]:
        """The findings that are not good, the gravest first."""
        return sorted((one for one in self.findings if one.verdict != "good"), key=lambda one: (one.verdict != "stop", -one.share))


def headline(report: DataReport) -> str:
    """The verdict in one sentence."""
    concerns = report.concerns
    if report.verdict == "good":
        return "Good: nothing was found that stands in the way of training"
    if report.verdict == "look":
        return f"Look here: {len(concerns)} of {len(report.findings)} checks found something that you should decide on"
    grave = ", ".join(one.check.replace("_", " ") for one in concerns if one.verdict == "stop")
    return "Do not train on these rows yet: " + (grave or "training would stop")


def next_step(report: DataReport) -> str:
    """The one thing to do next."""
    if report.stopped:
        return _at(report, report.stopped.rpartition("Try: ")[2])
    if not report.concerns:
        return _train(report)
    grave = [one for one in report.concerns if one.verdict == report.verdict]
    # Only where taking out is the cure: what must be read first is not put into a command.
    removable = [one.check for one in grave if one.removable and one.found and "luthier data clean" in one.cure]
    return _clean(report, removable) if removable else cure(report, grave[0])


def _train(report: DataReport) -> str:
    """How good rows are trained on: through the settings that name them, or those of a new project."""
    judged = next((source["path"] for source in report.ledger["sources"] if source.get("format") in JUDGED), None)
    if judged is not None and not report.judged_is_learned:
        return keep_good(judged)
    if report.is_settings:
        return f"luthier train {shlex.quote(report.target)}"
    rows = Path(_target(report)).absolute() if is_local(_target(report), Path()) else report.target
    return f"luthier init my-project && luthier train my-project/luthier.yaml {shlex.quote(f'data.train={rows}')} data.eval=5%"


def cure(report: DataReport, finding: Finding) -> str:
    """What to do about a finding, with the command as it can be typed here."""
    return _at(report, finding.cure.replace("luthier data clean FILE", _clean(report, [finding.check])))


def _at(report: DataReport, advice: str) -> str:
    """Advice with this report's target in its commands."""
    target = shlex.quote(_target(report))
    return advice.replace("data clean FILE", f"data clean {target}").replace("tokenizer train FILE", f"tokenizer train {target} --to my-tokenizer")


def _target(report: DataReport) -> str:
    """What was checked, as it can be named again: rows of standard input by the file that they were kept in."""
    return str(report.ledger["sources"][0]["path"]) if report.target == "-" else report.target


def _clean(report: DataReport, checks: Sequence[str]) -> str:
    return f"luthier data clean {shlex.quote(_target(report))} --only {','.join(checks)} --to clean.jsonl"


def as_json(report: DataReport) -> dict[str, Any]:
    """The report for machines. Names are frozen by a test."""
    return {
        "schema": SCHEMA,
        "target": report.target,
        "verdict": report.verdict,
        "next_step": next_step(report),
        "stopped": report.stopped,
        "ledger": dict(report.ledger),
        "roles": dict(report.roles),
        "checks": [_finding_json(finding) for finding in report.findings],
        "left_out": list(report.left_out),
        "notes": list(report.notes),
        "rejected": [{"file": row.source.file, "line": row.source.line, "reason": row.reason, "detail": row.detail} for row in report.rejected],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "verdict": finding.verdict,
        "said": finding.said,
        "of": finding.of,
        "found": finding.found,
        "share": finding.share,
        "worst": [_concern_json(concern) for concern in finding.worst],
        "cure": finding.cure,
        "removable": finding.removable,
        "numbers": dict(finding.numbers),
    }


def _concern_json(concern: Concern) -> dict[str, Any]:
    return {
        "file": concern.source.file,
        "line": concern.source.line,
        "detail": concern.detail,
        "other": str(concern.other) if concern.other else None,
    }


def charts(report: DataReport) -> list[Chart]:
    """Everything that can be drawn."""
    rows, tokens = report.ledger["rows"], report.ledger.get("tokens")
    aside = sum(rows["rejected"].values())
    used = {kind: rows[kind] for kind in ("train", "eval") if kind in rows}
    drawn = [_of_lengths(report.lengths)] if report.lengths else []
    drawn.append(_parts("rows", "Rows: what became of them", {**used, "set aside": aside}))
    if tokens:
        drawn.append(
            _parts("tokens", "Tokens to train on: what is learned, only read, cut", {name: tokens[name] for name in ("trained", "masked", "cut")})
        )
    drawn.append(
        _counted("set_aside", "Rows set aside, by reason", {name.replace("_", " "): count for name, count in rows["rejected"].items()}, "bad")
    )
    drawn.append(_counted("roles", "Messages of each role", report.roles))
    drawn.append(
        _counted("checks", "Rows that each check points at", {one.check.replace("_", " "): one.found for one in report.findings if one.found})
    )
    for finding in report.findings:
        key, title = COUNTS.get(finding.check, ("", ""))
        drawn.append(_counted(finding.check, title, finding.numbers.get(key, {})))
    return [chart for chart in drawn if sum(bar.value > 0 for bar in chart.bars) > (chart.kind == "parts")]


def _of_lengths(lengths: Lengths) -> Chart:
    limit = None
    if lengths.max_length and lengths.max_length < lengths.edges[-1]:
        limit = float(np.interp(lengths.max_length, lengths.edges, range(len(lengths.edges))))
    bars = tuple(
        Bar(f"{edge:,}", count, "bad" if limit is not None and place >= limit else "main")
        for place, (edge, count) in enumerate(zip(lengths.edges[:-1], lengths.counts, strict=True))
    )
    title = f"Length of the rows in {lengths.unit}: half have up to {lengths.median:,}, the longest {lengths.longest:,}"
    x_label = f"{lengths.unit} of a row (last column: {lengths.label(len(bars) - 1)})"
    return Chart("lengths", title, "columns", bars, x_label, limit, f"max_length {lengths.max_length:,}" if limit is not None else "")


def _parts(name: str, title: str, parts: Mapping[str, int]) -> Chart:
    return Chart(name, title, "parts", tuple(Bar(part, value, PARTS[part]) for part, value in parts.items()))


def _counted(name: str, title: str, counts: Mapping[str, float], style: str = "main") -> Chart:
    largest = sorted(counts.items(), key=lambda pair: -pair[1])[:DRAWN_COUNTS]
    most = f" (the {DRAWN_COUNTS} largest)" if len(counts) > DRAWN_COUNTS else ""
    return Chart(name, title + most, "rows", tuple(Bar(key, value, style) for key, value in largest))
