"""The metrics as a run asks for them at each of its evaluations: those that are counted of texts alone, without intervals."""

from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.evaluate import metrics
from luthier.records import Conversation


def means(names: Sequence[str], beside: Path = Path()) -> Callable[[Sequence[Conversation], Sequence[str]], dict[str, float]]:
    """Counts answers to rows: each of the metrics by its name. Those that need the model, how an answer ended, or answers to be run as
    programs are left to `luthier eval`. Files that metrics name stand `beside`."""
    counted = [name for name in names if not (metrics.needs_model(name) or metrics.runs_code(name) or name in metrics.OF_ANSWERS)]

    def count(rows: Sequence[Conversation], answers: Sequence[str]) -> dict[str, float]:
        return {name: metrics.score(name, [row.answer for row in rows], answers, beside).value for name in counted}

    return count
