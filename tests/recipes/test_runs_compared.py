"""luthier compare and luthier report: two runs beside each other, from their folders alone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier.cli.app import _build
from luthier.data import ledger
from luthier.diagnose.comparison import sparklines
from luthier.diagnose.curves import BLOCKS, Series
from luthier.diagnose.run_charts import Figure
from luthier.errors import CallError
from luthier.recipes.comparing import compare
from luthier.records import Metric, Sample, Scorecard, Source, StepReport
from luthier.run_folder import RunFolder, list_runs


def make_run(folder: Path, rate: float, right: int) -> RunFolder:
    """A run whose tuned model answered `right` of 12 questions as expected."""
    (folder / "data").mkdir(parents=True)
    run = RunFolder(folder)
    run.config.write_text(f"model: m\ndata: {{train: rows.jsonl}}\ntraining: {{learning_rate: {rate}, batch_size: auto}}\noutput_dir: {folder}\n")
    resolved = [{"name": "training.batch_size", "value": 4, "why": "usual"}]
    plan = {"resolved": resolved, "updates": 30, "memory_bytes": {"weights": 10**9}, "seconds_estimated": 30.0, "fits": True}
    run.plan.write_text(json.dumps(plan | {"next_step": "", "notes": []}))
    for step in range(1, 31):
        run.add_step(StepReport(step, step / 30, 2.0 / (1 + rate * step), 1.0, rate, 100, 50, 30, 0.5, 10**9))
    run.add_evaluation(30, rate, {})
    run.write_scorecard(Scorecard({"tuned": {"exact_match": Metric(right / 12, 0.1, 0.9, 12)}}, {}, {}))
    answers = ["yes"] * right + ["no"] * (12 - right)
    run.write_samples([Sample(f"question {n}", "yes", {"tuned": answer}, Source("eval.jsonl", n)) for n, answer in enumerate(answers)])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "one", 0.1, 4), make_run(folder / "two", 0.3, 10)


def test_only_settings_that_differ_are_listed_and_auto_is_what_it_became(runs: tuple[RunFolder, RunFolder]) -> None:
    found = compare(runs)
    assert found.settings == {"training.learning_rate": ["0.1", "0.3"]}
    assert found.runs == ["one", "two"]
    assert [one.held_out_loss for one in found.facts] == [0.1, 0.3]
    assert [one.seconds for one in found.facts] == [15.0, 15.0]


def test_scores_have_paired_intervals_over_the_rows_that_both_answered(runs: tuple[RunFolder, RunFolder]) -> None:
    first, second = compare(runs).differences
    assert first == {}
    found = second["exact_match"]
    assert (found.value, found.n) == (pytest.approx(0.5), 12)
    assert 0.1 < found.low < 0.5 < found.high < 0.9


def test_rows_with_another_right_answer_are_not_paired(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    other = RunFolder(Path(shutil.copytree(runs[1].path, tmp_path / "three")))
    rows = [json.loads(line) for line in other.samples.read_text().splitlines()]
    other.samples.write_text("".join(json.dumps(row | {"expected": "maybe"}) + "\n" for row in rows[:-1]) + json.dumps(rows[-1]) + '\n{"cut')
    assert compare([runs[0], other]).differences[1] == {}


def test_answers_to_all_held_out_rows_are_used_where_they_are_kept(learned: RunFolder, tmp_path: Path) -> None:
    pair = []
    for name, said in (("a", "{}"), ("b", '{"city": "Itasca", "street": "100 Pierce Rd"}')):
        run = RunFolder(Path(shutil.copytree(learned.path, tmp_path / name)))
        run.write_scorecard(Scorecard({"tuned": {"exact_match": Metric(0.5, 0.1, 0.9, 2)}}, {}, {}))
        run.samples.unlink(missing_ok=True)
        entries = [{"row": str(row.source), "model": "tuned", "sample": 0, "answer": said} for row in ledger.read_held_out(run)]
        (run.path / "evals" / "held-out").mkdir(parents=True, exist_ok=True)
        (run.path / "evals/held-out/answers.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        pair.append(run)
    found = compare(pair).differences[1]["exact_match"]
    assert (found.value, found.n) == (0.5, 2)


def test_curves_lie_over_each_other_a_line_a_run(runs: tuple[RunFolder, RunFolder]) -> None:
    figures = {one.name: one for one in compare(runs).figures}
    assert set(figures) == {"loss", "loss_held_out", "learning_rate"}
    assert [(one.name, one.style) for one in figures["loss"].series] == [("one", "line0"), ("two", "line1")]
    assert len(figures["loss"].series[0].points) == 30


def test_a_sparkline_falls_where_the_curve_falls() -> None:
    falling = Series("one", [(float(x), 10.0 - x) for x in range(11)], "line0")
    flat = Series("two", [(0.0, 10.0)], "line1")
    (name, line), (_, other) = sparklines(Figure("loss", "Loss", "", (falling, flat)))
    marks, _, said = line.partition("  1")
    assert (name, said) == ("one", "0 to 0")
    assert (marks[0], marks[-1]) == (BLOCKS[-1], BLOCKS[0])
    heights = [BLOCKS.index(mark) for mark in marks if mark != " "]
    assert heights == sorted(heights, reverse=True)
    assert other == f"{BLOCKS[-1]}  10 to 10", "all lines are on one scale"


def test_one_run_alone_or_twice_is_refused(runs: tuple[RunFolder, RunFolder]) -> None:
    for given in ([runs[0]], [runs[0], runs[0]]):
        with pytest.raises(CallError, match="two or more different runs"):
            compare(given)


def test_a_broken_run_is_named_and_the_rest_is_compared(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    broken = RunFolder(Path(shutil.copytree(runs[1].path, tmp_path / "broken")))
    broken.scorecard.write_text("{cut")
    broken.config.write_text("nothing: here\n")
    found = compare([runs[0], broken])
    assert len(found.notes) == 2
    assert found.scorecards[1] is None


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(_build(), [str(argument) for argument in arguments])


def test_the_verb_prints_tables_a_page_plots_and_json(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    paths = [run.path for run in runs]
    shown = call("compare", *paths, "--html", tmp_path / "both.html", "--plots", tmp_path / "plots").output
    assert re.search(r"training\.learning_rate +0\.1 +0\.3", shown)
    assert "+50 points" in shown
    assert re.search(r"two +█", shown)
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "one beside two" in page
    assert page.count("<polyline") == 6
    assert not re.search(r"(src|href)\s*=|https?:", page)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["learning_rate.png", "loss.png", "loss_held_out.png"]
    assert "exists already" in str(call("compare", *paths, "--html", tmp_path / "both.html").exception)
    told = json.loads(call("compare", *paths, "--json").stdout)
    assert told["settings"] == {"training.learning_rate": ["0.1", "0.3"]}
    assert told["differences"][1]["exact_match"]["n"] == 12


def test_the_report_verb_writes_page_card_and_plots(runs: tuple[RunFolder, RunFolder]) -> None:
    shown = json.loads(call("report", runs[0].path, "--json").stdout)
    assert all(Path(path).is_file() for path in (shown["report"], shown["model_card"], *shown["plots"]))
    assert {Path(path).name for path in shown["plots"]} == {"loss.png", "learning_rate.png"}
    assert [run.name for run in list_runs(runs[0].path.parent)] == ["one", "two"]
