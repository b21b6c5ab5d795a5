"""The check of rows as one page: no network, no script, no file beside it. Rows are untrusted: every text is escaped."""

from luthier.data.quality.check import Concern, Finding
from luthier.diagnose.bars import Chart, svg
from luthier.diagnose.books import ledger_html
from luthier.diagnose.data_report import DataReport, charts, cure, headline, next_step
from luthier.diagnose.page import folded, page, raw_table, section, table, text, tiles
from luthier.version import VERSION

# Stands in each page that this room makes, and in no other file: such a page may be replaced.
OURS = "A check of rows by Luthier"
MARKS = {"good": "good", "look": "look here", "stop": "do not train"}
SHOWN_CONCERNS = 5
SHOWN_DETAIL_CHARACTERS = 300


def data_page(report: DataReport) -> str:
    """The page as HTML."""
    drawn = "".join(_figure(chart) for chart in charts(report))
    parts = [
        _header(report),
        section("What the checks found", _findings(report)),
        section("In pictures", f'<div class="charts">{drawn}</div>'),
        section("What became of the rows", ledger_html(report.ledger)),
        section("What was read", _read(report)),
        f"<footer>{OURS} {text(VERSION)}, of {text(report.target)}.</footer>",
    ]
    return page(f"{report.target}: check of rows", "\n".join(parts))


def _header(report: DataReport) -> str:
    stopped = f'<p class="bad">{text(report.stopped)}</p>' if report.stopped else ""
    step = f'<p class="lead">Next: <code>{text(next_step(report))}</code></p>'
    words = f'<p class="over">Check of {text(report.target)}</p><h1 class="{report.verdict}">{text(headline(report))}</h1>{stopped}{step}'
    return f"<header>{words}{tiles(_in_short(report))}</header>"


def _in_short(report: DataReport) -> list[tuple[str, str]]:
    rows, tokens = report.ledger["rows"], report.ledger.get("tokens")
    facts = [("Rows read", rows["read"]), ("To train on", rows["train"]), ("Held out", rows["eval"]), ("Set aside", sum(rows["rejected"].values()))]
    if tokens:
        facts += [("Tokens trained", tokens["trained"]), ("Tokens masked", tokens["masked"])]
    shown = [(name, f"{value:,}") for name, value in facts]
    return [*shown, (f"Median, {report.lengths.unit}", f"{report.lengths.median:,}")] if report.lengths else shown


def _figure(chart: Chart) -> str:
    return f"<figure><figcaption>{text(chart.title)}</figcaption>{svg(chart)}</figure>"


def _findings(report: DataReport) -> str:
    good = [finding for finding in report.findings if finding.verdict == "good"]
    details = "".join(_detail(report, finding) for finding in report.concerns)
    fine = folded(f"{len(good)} checks found nothing to do", _checks(good)) if good else ""
    missing = "".join(f"<p>Left out: {text(one)}</p>" for one in report.left_out)
    return details + fine + missing


def _checks(findings: list[Finding]) -> str:
    return table(["Check", "Found"], [[finding.check.replace("_", " "), finding.said] for finding in findings])


def _detail(report: DataReport, finding: Finding) -> str:
    mark = f'<span class="mark {finding.verdict}">{MARKS[finding.verdict]}</span>'
    todo = f"<p>What to do: {text(cure(report, finding))}</p>" if finding.cure else ""
    worst = finding.worst[:SHOWN_CONCERNS]
    rows = "".join(f"<li><strong>{text(concern.source)}</strong> {text(_why(concern))}</li>" for concern in worst)
    more = f'<p class="quiet">and {finding.found - len(worst):,} more</p>' if worst and finding.found > len(worst) else ""
    head = f"<h3>{mark} {text(finding.check.replace('_', ' '))}</h3><p>{text(finding.said)}</p>"
    return f'<article class="card">{head}{todo}<ul>{rows}</ul>{more}</article>'


def _why(concern: Concern) -> str:
    detail = concern.detail if len(concern.detail) <= SHOWN_DETAIL_CHARACTERS else f"{concern.detail[:SHOWN_DETAIL_CHARACTERS]}..."
    return f"{detail} (beside {concern.other})" if concern.other and str(concern.other) not in detail else detail


def _read(report: DataReport) -> str:
    return raw_table(["What the reader says"], [[text(note)] for note in report.notes]) if report.notes else ""
