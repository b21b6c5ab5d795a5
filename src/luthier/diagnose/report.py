"""One page that says what a run achieved, from its folder alone: no network, no script, no file beside it. And the model card beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier import files
from luthier.diagnose.books import ledger_html
from luthier.diagnose.curves import smooth
from luthier.diagnose.finding import SEVERITIES, Finding, read_findings
from luthier.diagnose.judged import judged_html
from luthier.diagnose.model_card import write_model_card
from luthier.diagnose.page import folded, page, pre, raw_table, section, table, text, tiles
from luthier.diagnose.reproduce import reproduce
from luthier.diagnose.retrieval import retrieval_html
from luthier.diagnose.run_charts import charts_html, drift_figures, figures, points, steps_of
from luthier.diagnose.samples import samples_html
from luthier.diagnose.scores import compare, flat, scorecard_html, words
from luthier.errors import RunError
from luthier.run_folder import RunFolder, read_scorecard
from luthier.version import VERSION

RESULTS = {"passed": "pass", "failed": '<span class="bad">fail</span>', "not_for_this_config": "not for this config"}
# The folder in evals/ of the evaluation that the run's own scorecard is of.
OWN = "held-out"
SEVERITY_STYLES = dict(zip(SEVERITIES, ("stop", "look", "good"), strict=True))


def write_report(run: RunFolder) -> Path:
    """Write report.html and model_card.md from what the run folder holds; gives the page's path. What is missing is named as not measured.

    What a process that was killed left half written beside them goes.
    """
    files.sweep(run.path)
    parts = [
        _header(run),
        *(section(title, content) for title, build in SECTIONS.items() if (content := _content(title, build, run))),
        f"<footer>Luthier {text(VERSION)}. Made from the files of {text(run.name)} alone.</footer>",
    ]
    files.write_text(run.report, page(f"{run.name}: report", "\n".join(parts)))
    write_model_card(run)
    return run.report


def _content(title: str, build: Callable[[RunFolder], str], run: RunFolder) -> str:
    """A section's content; a file that cannot be read costs its own section only, and is named there."""
    try:
        return build(run) or ("" if title in ONLY_WHERE_THERE_IS else '<p class="absent">Not measured.</p>')
    except RunError as error:
        return f'<p class="bad">{text(error)}</p>'


def _header(run: RunFolder) -> str:
    headline, lead = _headline(run)
    words = f'<p class="over">Luthier run {text(run.name)}</p><h1>{text(headline)}</h1><p class="lead">{text(lead)}</p>'
    return f"<header>{words}{tiles(_in_short(run))}</header>"


def _headline(run: RunFolder) -> tuple[str, str]:
    """What was achieved, in one sentence, and how sure that is."""
    try:
        scorecard = run.read_scorecard() if run.scorecard.exists() else None
    except RunError:
        scorecard = None  # its own section says what is wrong with it
    if scorecard and scorecard.models.get("tuned"):
        return compare(scorecard)
    steps = steps_of(run)
    if not steps:
        return "Nothing was trained yet", f"luthier train {run.path / 'config.yaml'} starts it."
    losses = [loss for _, loss in smooth(points(steps, "loss"))]
    if not losses:
        return "The training loss was never a number", "A much lower training.learning_rate is the first thing to try."
    ask = f"The answers are not measured yet: luthier eval {run.name}"
    return f"The training loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {len(steps):,} updates", ask


def _in_short(run: RunFolder) -> list[tuple[str, str]]:
    steps = steps_of(run)
    if not steps:
        return []
    seconds = sum(row["seconds"] for row in steps)
    tokens = {kind: sum(row[f"{kind}_tokens"] for row in steps) for kind in ("logical", "executed", "trained")}
    return [
        ("Updates", f"{len(steps):,}"),
        ("Training time", f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"),
        ("Row tokens", f"{tokens['logical']:,}"),
        ("Computed tokens", f"{tokens['executed']:,}"),
        ("Trained tokens", f"{tokens['trained']:,}"),
        ("Row tokens / s", f"{tokens['logical'] / seconds:,.0f}" if seconds else "-"),
        ("Peak memory", _size(max(row["peak_bytes"] for row in steps))),
    ]


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _before_and_after(run: RunFolder) -> str:
    if not run.scorecard.exists():
        return f'<p class="absent">Not measured. luthier eval {text(run.name)} measures the answers.</p>'
    return scorecard_html(run.read_scorecard())


def _further(run: RunFolder) -> str:
    """Evaluations on other rows, a part each."""
    found = [path for path in sorted(run.path.glob("evals/*/scorecard.json")) if path.parent.name != OWN]
    return "".join(f"<h3>{text(path.parent.name)}</h3>{scorecard_html(read_scorecard(path))}" for path in found)


def _findings(run: RunFolder) -> str:
    """What luthier diagnose found, the gravest first."""
    found = read_findings(run)
    if found is None:
        return f'<p class="absent">Not looked for. luthier diagnose {text(run.name)} does.</p>'
    not_looked = files.read_json(run.findings).get("not_looked", {})
    told = "".join(map(_finding, found)) or "<p>Nothing was found that needs mending.</p>"
    return told + _not_looked(run, not_looked)


def _not_looked(run: RunFolder, reasons: dict[str, str]) -> str:
    """The checks that lacked evidence: what was not looked at is no good news."""
    if not reasons:
        return ""
    listed = "".join(f"<li><strong>{text(name.replace('_', ' '))}</strong>{text(why)}</li>" for name, why in reasons.items())
    many = f"{len(reasons)} checks" if len(reasons) > 1 else "1 check"
    return folded(f"{many} lacked evidence (luthier diagnose {run.name} asks the model)", f"<ul>{listed}</ul>")


def _finding(found: Finding) -> str:
    mark = f'<span class="mark {SEVERITY_STYLES[found.severity]}">{text(found.severity)}</span>'
    cures = "".join(f"<li>{text(cure.what)}{_changes(dict(cure.changes))}</li>" for cure in found.cures)
    seen = f'<p>{text(found.seen)}</p><p class="quiet">{text(found.why)}</p>'
    return f'<article class="card"><h3>{mark} {text(found.title)}</h3>{seen}<ul>{cures}</ul></article>'


def _changes(changes: dict[str, Any]) -> str:
    return "".join(f" <code>{text(name)}={text(value)}</code>" for name, value in changes.items())


def _learning(run: RunFolder) -> str:
    return charts_html([figure for figure in figures(run) if figure.name not in {one.name for one in drift_figures([])}])


def _forgetting(run: RunFolder) -> str:
    """How far the model is from its base on general texts, over the run and at its end."""
    measured = [row for row in steps_of(run, "eval") if row.get("drift")]
    if not measured:
        return ""
    drift = measured[-1]["drift"]
    rows = []
    if drift.get("kl") is not None:
        rows.append(["KL(tuned || base), nats a token", f"{drift['kl']:.4f}", "0: the model says on general texts what its base says"])
    if drift.get("general_loss") is not None and drift.get("base_general_loss") is not None:
        rise = drift["general_loss"] - drift["base_general_loss"]
        before = f"the base has {drift['base_general_loss']:.4f}: {rise:+.4f}"
        rows.append(["Loss on general texts, nats a token", f"{drift['general_loss']:.4f}", before])
    shown = table(["", f"At update {measured[-1]['step']:,}", "Beside"], rows) if rows else ""
    return shown + charts_html([figure for figure in drift_figures(measured) if figure.drawn])


def _ledger(run: RunFolder) -> str:
    return ledger_html(files.read_json(run.ledger)) if run.ledger.exists() else ""


def _plan(run: RunFolder) -> str:
    if not run.plan.exists():
        return ""
    plan = files.read_json(run.plan)
    chosen = [[row["name"], row["value"], row["why"]] for row in plan["resolved"]]
    choices = table(["Setting", "Value", "Why"], chosen) if chosen else "<p>Every setting was given; nothing was left to choose.</p>"
    notes = "".join(f"<p>{text(note)}</p>" for note in plan["notes"])
    if not plan["fits"]:
        notes += f'<p class="bad">Does not fit. Try: {text(plan["next_step"])}</p>'
    return choices + notes + _foreseen(run, plan)


def _foreseen(run: RunFolder, plan: dict[str, Any]) -> str:
    """What the plan foresaw beside what was measured."""
    steps = steps_of(run)
    seconds = sum(row["seconds"] for row in steps)
    peak = max((row["peak_bytes"] for row in steps), default=0)
    rows = [
        ["Updates", f"{plan['updates']:,}", f"{len(steps):,}" if steps else "not measured"],
        ["Training time", f"{plan['seconds_estimated'] / 60:.1f} min", f"{seconds / 60:.1f} min" if steps else "not measured"],
        ["Memory", _size(sum(plan["memory_bytes"].values())), _size(peak) if peak else "not measured"],
    ]
    return table(["", "Planned (an estimate)", "Measured"], rows)


def _parity(run: RunFolder) -> str:
    head = ["Artifact", "Run by", "Largest logit difference", "Mean KL (nats a token)", "Same likeliest word", "Equal answers", "Metrics"]
    rows = []
    for row in run.read_parity():
        result = "passed" if row["passed"] else f'<span class="bad">failed</span> {text(row.get("differs", ""))}'
        measured = [f"{row[name]:.3g}" if row[name] is not None else "not given" for name in ("max_logit_difference", "mean_kl")]
        shares = [f"{100 * row[name]:.1f} %" if row.get(name) is not None else "" for name in ("top1_agreement", "greedy_agreement")]
        scores = ", ".join(f"{name} {of['trained']:.3g} -> {of['artifact']:.3g}" for name, of in row.get("metrics", {}).items())
        rows.append([text(row["artifact"]), text(row["engine"]), *measured, *shares, text(scores), text(words(row["threshold"])), result])
    return raw_table([*head, "Allowed", "Result"], rows) if rows else ""


def _verified(run: RunFolder) -> str:
    """What luthier verify found, a line a check."""
    if not run.verified.exists():
        return f'<p class="absent">Not tried out. luthier verify {text(run.name)} does.</p>'
    found = files.read_json(run.verified)
    rows = []
    for proof in found["checks"]:
        result = RESULTS.get(proof["status"], text(proof["status"]))
        more = f"<br><small>Try: {text(proof['next_step'])}</small>" if proof["next_step"] else ""
        rows.append([text(proof["check"]), result, text(proof["evidence"]) + more])
    on = f"{found['rows']:,} rows with {found['tokens']:,} tokens, {found['precision']}, {found['seconds']:.0f} s"
    return raw_table(["Check", "Result", "Evidence"], rows) + f'<p class="quiet"><small>On {text(on)}.</small></p>'


def _config(run: RunFolder) -> str:
    return folded("config.yaml", pre(run.config.read_text(encoding="utf-8", errors="replace"))) if run.config.exists() else ""


def _environment(run: RunFolder) -> str:
    if not run.environment.exists():
        return ""
    return folded("Where it ran", table(["Name", "Value"], list(flat(files.read_json(run.environment)))))


def _licenses(run: RunFolder) -> str:
    """The licenses of the model and of the rows, as the run kept them when it began."""
    kept = files.read_json(run.environment).get("licenses") if run.environment.exists() else None
    if not kept:
        return ""
    model = kept.get("model", {})
    rows = [["model", model.get("name", ""), model.get("license", "")]]
    rows += [["rows", row.get("source", ""), _license_of_rows(row)] for row in kept.get("rows", [])]
    asked = [*model.get("asks_for", []), *(f"include: {words_of}" for words_of in model.get("include", [])), *model.get("notes", [])]
    listed = "".join(f"<li>{text(line)}</li>" for line in asked)
    note = kept.get("tuned", "")
    return table(["Of what", "Name", "License"], rows) + (f"<ul>{listed}</ul>" if listed else "") + (f"<p>{text(note)}</p>" if note else "")


def _license_of_rows(row: dict[str, Any]) -> str:
    return ", ".join(str(row[name]) for name in ("license", "attribution") if row.get(name))


def _reproduce(run: RunFolder) -> str:
    return pre("\n".join(reproduce(run))) if run.config.exists() else ""


SECTIONS: dict[str, Callable[[RunFolder], str]] = {
    # heading                    what makes it
    "Before and after": _before_and_after,
    "Further evaluations": _further,
    "With documents": retrieval_html,
    "Judged": judged_html,
    "Findings": _findings,
    "How it learned": _learning,
    "What it forgot": _forgetting,
    "Sample answers": samples_html,
    "What became of the rows": _ledger,
    "Settings that were chosen": _plan,
    "Exported models": _parity,
    "Tried out (luthier verify)": _verified,
    "Licenses": _licenses,
    "How to do it again": _reproduce,
    "Settings as asked": _config,
    "Environment": _environment,
}
# Where there is nothing of these, nobody asked for it.
ONLY_WHERE_THERE_IS = {"Further evaluations", "With documents", "Judged", "What it forgot", "Licenses", "How to do it again"}
