"""What judges said of a run's answers, models and people, from its judgments folder."""

from collections.abc import Mapping
from typing import Any

from luthier import files
from luthier.diagnose.page import table, text
from luthier.run_folder import RunFolder


def judged_html(run: RunFolder) -> str:
    """A part for each judging in the run; "" where there is none."""
    return "".join(_one(files.read_json(path)) for path in sorted(run.path.glob("judgments/*/result.json")))


def _one(result: Mapping[str, Any]) -> str:
    ours, theirs = result["names"]
    if "raters" in result:
        return _people(ours, theirs, result)
    judge = f"judged by {result['judge']}, {result['questions']:,} questions"
    if pairs := result.get("pairs"):
        equal = "At equal lengths and difficulties" if result.get("difficulties") else "At equal lengths"
        rates = [["Win rate", *_metric(pairs["win_rate"], 100)], [equal, *_metric(pairs["length_controlled_win_rate"], 100)]]
        counts = ", ".join(f"{count:,} {name}" for name, count in pairs["counts"].items() if count)
        note = f"{counts}. A tie is half a win; disagreed: the judge chose otherwise once the order was swapped."
        return _part(f"{ours} against {theirs}", judge, table(["", "%", "95 %", "n"], rates) + _categories(pairs["by_category"], 100), note)
    grades = result["grades"]
    rows = [[name, *_metric(grades[who], 1)] for name, who in ((ours, "model"), (theirs, "rival"), ("difference", "difference"))]
    note = f"Grades from 1 to 10. {grades['unreadable']:,} replies held none."
    return _part(f"{ours} beside {theirs}", judge, table(["", "Grade", "95 %", "n"], rows), note)


def _people(ours: str, theirs: str, result: Mapping[str, Any]) -> str:
    raters = ", ".join(f"{name} ({count})" for name, count in result["raters"].items()) or "nobody yet"
    kappa = result["kappa"]
    head = ["", "Win rate, %", "95 %", "n", *([f"{result['kappa_of']}'s kappa"] if kappa else [])]
    rows = [
        [name, *_metric(rate, 100), *(["no value" if kappa.get(name) is None else f"{kappa[name]:.2f}"] if kappa else [])]
        for name, rate in result["win_rates"].items()
    ]
    note = f"{result['rated']:,} of {result['pairs']:,} blind pairs rated by {raters}. A tie is half a win."
    if result["equal"]:
        note += f" {result['equal']:,} pairs with the same answer twice count as ties."
    return _part(f"{ours} against {theirs}", "compared by people who did not know which was which", table(head, rows) if rows else "", note)


def _part(title: str, how: str, content: str, note: str) -> str:
    return f'<h3>{text(title)}</h3><p class="quiet">{text(how)}</p>{content}<p class="quiet"><small>{text(note)}</small></p>'


def _metric(metric: Mapping[str, Any] | None, scale: float) -> list[str]:
    if metric is None:
        return ["not readable", "", ""]
    low, high = (f"{scale * metric[end]:.3g}" for end in ("low", "high"))
    return [f"{scale * metric['value']:.3g}", f"{low} to {high}", f"{metric['n']:,}"]


def _categories(found: Mapping[str, float], scale: float) -> str:
    return table(["Category", "Win rate, %"], [[name, f"{scale * value:.1f}"] for name, value in found.items()]) if len(found) > 1 else ""
