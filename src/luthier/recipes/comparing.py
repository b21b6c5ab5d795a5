"""`luthier compare RUN RUN...`: what differs between runs, in their settings, their curves and their scores."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data import ledger
from luthier.diagnose import comparison
from luthier.diagnose.comparison import Comparison
from luthier.errors import CallError, LuthierError
from luthier.evaluate import metrics
from luthier.evaluate.intervals import paired_difference
from luthier.records import Metric
from luthier.run_folder import RunFolder

Answers = dict[str, tuple[str, str]]  # a question as one text -> (expected, the tuned model's answer)
LEAST_PAIRS = 2


def compare(runs: Sequence[RunFolder]) -> Comparison:
    """Two or more runs beside each other. Scores are compared row by row where both runs keep their answers to the same questions.

    Raises CallError for fewer than two runs, or one of them twice.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise CallError("two or more different runs are compared", where="luthier compare", next_step="luthier runs list shows the runs")
    answered = [_answers(run) for run in runs]
    names = _metrics(runs)
    return comparison.compare(runs, [{}, *(_differences(answered[0], other, names) for other in answered[1:])])


def _metrics(runs: Sequence[RunFolder]) -> list[str]:
    """The metrics of the scorecards that are counted row by row, of texts alone."""
    found: dict[str, None] = {}
    for run in runs:
        try:
            models: Mapping[str, Mapping[str, Metric]] = run.read_scorecard().models if run.scorecard.exists() else {}
        except LuthierError:
            continue  # named by the comparison
        found |= dict.fromkeys(models.get("tuned", {}))
    return [name for name in found if name in metrics.METRICS]


def _differences(first: Answers, other: Answers, names: Sequence[str]) -> dict[str, Metric]:
    """By each metric: the other run's score less the first one's, over the questions that both answered with the same right answer."""
    shared = [one for one, (expected, _) in first.items() if one in other and other[one][0] == expected]
    if len(shared) < LEAST_PAIRS:
        return {}
    expecteds = [first[one][0] for one in shared]
    found = {}
    for name in names:
        before, after = (metrics.row_scores(name, expecteds, [side[one][1] for one in shared]) for side in (first, other))
        found[name] = paired_difference(before, after)
    return found


def _answers(run: RunFolder) -> Answers:
    """The tuned model's answers to the held-out rows; of a run that kept no answers, those of its samples."""
    kept = {entry["row"]: entry["answer"] for entry in _lines(run, "evals/held-out/answers.jsonl") if _is_first_answer(entry)}
    try:
        rows = ledger.read_held_out(run)
    except LuthierError:
        rows = []
    found = {
        json.dumps([[turn.role, turn.content] for turn in row.prompt]): (row.answer, kept[str(row.source)]) for row in rows if str(row.source) in kept
    }
    if found:
        return found
    samples = [row for row in _lines(run, "samples.jsonl") if isinstance(row.get("answers"), dict) and "tuned" in row["answers"]]
    return {row["prompt"]: (row["expected"], row["answers"]["tuned"]) for row in samples}


def _is_first_answer(entry: Mapping[str, Any]) -> bool:
    return entry.get("model") == "tuned" and entry.get("sample") == 0 and isinstance(entry.get("answer"), str)


def _lines(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each; a line that a kill cut is left out."""
    path = run.path / name
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
