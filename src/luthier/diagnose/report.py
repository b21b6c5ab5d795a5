"""One page that says what a run achieved, from its folder alone: no network, no script, no file beside it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier import files
from luthier.diagnose.books import ledger_html
from luthier.diagnose.curves import Series, finite, line_chart, smooth
from luthier.diagnose.page import folded, page, pre, raw_table, section, table, text, tiles
from luthier.errors import RunError
from luthier.records import Metric, Scorecard
from luthier.run_folder import RunFolder
from luthier.version import VERSION

SHOWN_SAMPLES = 5
# A beginning that all prompts share is shown once if it is longer than a line.
LEAST_SHARED_CHARACTERS = 80
# Curves of preference tuning, by TRL's names.
JUDGMENTS = {"rewards/margins": "Margin of the rewards", "rewards/accuracies": "Pairs whose better answer has the higher reward"}
RESULTS = {"passed": "pass", "failed": '<span class="bad">fail</span>', "not_for_this_config": "not for this config"}
METRIC_NAMES = {"exact_match": "Exact match", "valid_json": "Valid JSON", "field_f1": "Field F1"}


def write_report(run: RunFolder) -> Path:
    """Write report.html from what the run folder holds and return its path. What is missing is named as not measured."""
    parts = [
        _header(run),
        *(section(title, _content(build, run)) for title, build in SECTIONS.items()),
        f"<footer>Luthier {text(VERSION)}. Made from the files of {text(run.name)} alone.</footer>",
    ]
    files.write_text(run.report, page(f"{run.name}: report", "\n".join(parts)))
    return run.report


def _content(build: Callable[[RunFolder], str], run: RunFolder) -> str:
    """A section's content; a file that cannot be read costs its own section only, and is named there."""
    try:
        return build(run) or '<p class="absent">Not measured.</p>'
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
    steps = _steps(run)
    if not steps:
        return "Nothing was trained yet", f"luthier train {run.path / 'config.yaml'} starts it."
    losses = [loss for _, loss in smooth(_points(steps, "loss"))]
    if not losses:
        return "The training loss was never a number", "A much lower training.learning_rate is the first thing to try."
    ask = f"The answers are not measured yet: luthier eval {run.name}"
    return f"The training loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {len(steps):,} updates", ask


def compare(scorecard: Scorecard) -> tuple[str, str]:
    """The first metric of the tuned model against the best of the others. A gain is called one only where the intervals do not touch."""
    name, tuned = next(iter(scorecard.models["tuned"].items()))
    others = {model: metrics[name] for model, metrics in scorecard.models.items() if model != "tuned" and name in metrics}
    label = METRIC_NAMES.get(name, name)
    rows = f"{tuned.n:,} held-out rows (95 % interval {_interval(tuned)})."
    if not others:
        return f"{label}: {_percent(tuned.value)}", f"Measured on {rows} No other model was measured beside it."
    first = next(iter(others.values()))
    rival, best = max(others.items(), key=lambda item: item[1].value)
    beside = "; ".join(f"{model_name(model)} {_percent(metric.value)}" for model, metric in others.items())
    lead = f"Measured on {rows} Beside it: {beside}."
    if tuned.low > best.high:
        return (
            f"{label} rose from {_percent(first.value)} to {_percent(tuned.value)}",
            f"{lead} The intervals do not touch: this is no accident of the rows.",
        )
    if tuned.high < best.low:
        return f"{label}: {_percent(tuned.value)}, below {model_name(rival)} with {_percent(best.value)}", lead
    return f"{label}: {_percent(tuned.value)}, no clear gain over {model_name(rival)} ({_percent(best.value)})", f"{lead} The intervals overlap."


def model_name(name: str) -> str:
    """A model of the scorecard in words: base_5shot is the base with five examples in its prompt."""
    shots = re.fullmatch(r"base_(\d+)shot", name)
    return f"base with {shots[1]} examples in its prompt" if shots else name


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(metric: Metric) -> str:
    return f"{100 * metric.low:.1f} to {100 * metric.high:.1f} %"


def _in_short(run: RunFolder) -> list[tuple[str, str]]:
    steps = _steps(run)
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


def _steps(run: RunFolder) -> list[dict[str, Any]]:
    """One row an update, in order; where a run was resumed, the later row of an update counts."""
    rows = {row["step"]: row for row in run.read_metrics("train")}
    return [rows[step] for step in sorted(rows)]


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of each row that has a finite value (null: it had none): one that is not would spoil every average after it."""
    return finite([(float(row["step"]), float(row[key])) for row in rows if row[key] is not None])


def _before_and_after(run: RunFolder) -> str:
    if not run.scorecard.exists():
        return f'<p class="absent">Not measured. luthier eval {text(run.name)} measures the answers.</p>'
    scorecard = run.read_scorecard()
    metrics = list(dict.fromkeys(name for row in scorecard.models.values() for name in row))
    rows = [[text(model_name(model)), *(_score(row.get(name)) for name in metrics)] for model, row in scorecard.models.items()]
    classes = ["tuned" if model == "tuned" else "" for model in scorecard.models]
    how = _words({**scorecard.data, **scorecard.decoding})
    return raw_table(["Model", *(METRIC_NAMES.get(name, name) for name in metrics)], rows, classes) + (
        f'<p class="quiet"><small>How it was measured: {text(how)}</small></p>' if how else ""
    )


def _score(metric: Metric | None) -> str:
    if metric is None:
        return '<span class="quiet">not measured</span>'
    low, high = 100 * metric.low, 100 * metric.high
    range_of = f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>'
    bar = f'<div class="bar" aria-hidden="true"><i style="width:{100 * metric.value:.1f}%"></i>{range_of}</div>'
    interval = f"95 %: {_interval(metric)}, n = {metric.n:,}"
    return f'<div class="score"><strong>{_percent(metric.value)}</strong>{bar}<small>{interval}</small></div>'


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _flat(facts))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted name, text) pairs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{index}")
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _learning(run: RunFolder) -> str:
    steps = _steps(run)
    losses, held_out = _points(steps, "loss"), _points(run.read_metrics("eval"), "loss")
    loss = line_chart(
        "Loss over the updates",
        _course("The training loss", losses) + (" " + _course("The held-out loss", held_out) if held_out else ""),
        [
            Series("each update", losses, "faint"),
            Series("smoothed", smooth(losses), "main"),
            Series("held-out rows", held_out, "second"),
        ],
        "update",
    )
    rates = _points(steps, "learning_rate")
    rate = line_chart("Learning rate over the updates", _course("The rate", rates), [Series("learning rate", rates, "main")], "update")
    keys = [("faint", "each update"), ("main", "smoothed")] + ([("second", "held-out rows")] if held_out else [])
    unit = "Loss of the objective" if any("metrics" in row for row in steps) else "Loss in nats per trained token"
    figures = [_figure(unit, loss, keys), _figure("Learning rate", rate, []), *_judgments(run, steps)]
    return f'<div class="charts">{"".join(figures)}</div>' if loss or rate else ""


def _judgments(run: RunFolder, steps: list[dict[str, Any]]) -> list[str]:
    """The curves of preference tuning; none for a run that learns answers."""
    figures = []
    for name, caption in JUDGMENTS.items():
        seen, held_out = (
            _points([{"step": row["step"], name: row["metrics"][name]} for row in rows if name in row.get("metrics", {})], name)
            for rows in (steps, run.read_metrics("eval"))
        )
        series = [Series("each update", seen, "faint"), Series("smoothed", smooth(seen), "main"), Series("held-out rows", held_out, "second")]
        chart = line_chart(f"{caption} over the updates", _course(caption, seen), series, "update")
        keys = [("faint", "each update"), ("main", "smoothed")] + ([("second", "held-out rows")] if held_out else [])
        figures.append(_figure(caption, chart, keys))
    return figures


def _course(what: str, points: list[tuple[float, float]]) -> str:
    return f"{what} goes from {points[0][1]:.4g} to {points[-1][1]:.4g} over {len(points)} values." if points else ""


def _figure(caption: str, chart: str, keys: list[tuple[str, str]]) -> str:
    legend = "".join(f' <span class="legend"><span class="key {style}"></span>{text(name)}</span>' for style, name in keys)
    return f"<figure><figcaption>{text(caption)}{legend}</figcaption>{chart}</figure>" if chart else ""


def _samples(run: RunFolder) -> str:
    if not run.samples.exists():
        return ""
    rows = list(_read_lines(run.samples))[:SHOWN_SAMPLES]
    shared = _shared_beginning([row["prompt"] for row in rows]) if rows else ""
    once = folded("Every prompt begins with", pre(shared)) if shared else ""
    return once + "".join(_sample(row, len(shared)) for row in rows)


def _read_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunError("is not whole JSON", where=f"{path}:{number}", next_step="delete the file and run luthier eval again") from error


def _shared_beginning(prompts: list[str]) -> str:
    """What all prompts begin with, up to the end of a line; "" where that is too little to be worth taking out."""
    first, last = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    length = next((index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    shared = first[: first.rfind("\n", 0, length) + 1]
    return shared if len(shared) >= LEAST_SHARED_CHARACTERS else ""


def _sample(row: dict[str, Any], start: int) -> str:
    expected = row["expected"].strip()
    answers = [_answer("expected", row["expected"], "")]
    for model, answer in row["answers"].items():
        same = answer.strip() == expected
        answers.append(_answer(model_name(model) + (": as expected" if same else ""), answer, " same" if same else ""))
    source = f"{row['source']['file']}:{row['source']['line']}"
    return (
        f'<article class="card"><p class="quiet"><small>{text(source)}</small></p>{pre(row["prompt"][start:])}'
        f'<div class="answers">{"".join(answers)}</div></article>'
    )


def _answer(title: str, answer: str, kind: str) -> str:
    return f'<div class="answer{kind}"><h3>{text(title)}</h3>{pre(answer)}</div>'


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
    steps = _steps(run)
    seconds = sum(row["seconds"] for row in steps)
    peak = max((row["peak_bytes"] for row in steps), default=0)
    rows = [
        ["Updates", f"{plan['updates']:,}", f"{len(steps):,}" if steps else "not measured"],
        ["Training time", f"{plan['seconds_estimated'] / 60:.1f} min", f"{seconds / 60:.1f} min" if steps else "not measured"],
        ["Memory", _size(sum(plan["memory_bytes"].values())), _size(peak) if peak else "not measured"],
    ]
    return table(["", "Planned (an estimate)", "Measured"], rows)


def _parity(run: RunFolder) -> str:
    head = ["Artifact", "Run by", "Largest logit difference", "Mean KL (nats a token)", "Equal answers", "Allowed", "Result"]
    rows = []
    for row in run.read_parity():
        result = "passed" if row["passed"] else '<span class="bad">failed</span>'
        numbers = [f"{row['max_logit_difference']:.3g}", f"{row['mean_kl']:.3g}", _percent(row["greedy_agreement"])]
        rows.append([text(row["artifact"]), text(row["engine"]), *numbers, text(_words(row["threshold"])), result])
    return raw_table(head, rows) if rows else ""


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
    return folded("Where it ran", table(["Name", "Value"], list(_flat(files.read_json(run.environment)))))


SECTIONS: dict[str, Callable[[RunFolder], str]] = {
    # heading                    what makes it
    "Before and after": _before_and_after,
    "How it learned": _learning,
    "Sample answers": _samples,
    "What became of the rows": _ledger,
    "Settings that were chosen": _plan,
    "Exported models": _parity,
    "Tried out (luthier verify)": _verified,
    "Settings as asked": _config,
    "Environment": _environment,
}
