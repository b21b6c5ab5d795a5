import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from luthier.diagnose.finding import Cure, Finding, keep
from luthier.diagnose.report import write_report
from luthier.diagnose.reproduce import reproduce
from luthier.diagnose.retrieval import retrieval_html
from luthier.diagnose.run_charts import figures
from luthier.diagnose.run_plots import write_plots
from luthier.diagnose.samples import marked
from luthier.records import Metric, Parity, Sample, Source
from luthier.run_folder import write_scorecard

HEADINGS = ["Before and after", "How it learned", "Sample answers", "What became of the rows", "Settings that were chosen"]
HEADINGS += ["Exported models", "Settings as asked", "Environment"]


REST = {"learning_rate": 0.1, "logical_tokens": 9, "executed_tokens": 9, "trained_tokens": 3, "seconds": 1.0, "peak_bytes": 1_000_000}


class Reader(HTMLParser):
    """The page as a browser sees it: its tags in order, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes what was not opened last"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def read(run):
    path = write_report(run)
    assert path == run.path / "report.html"
    reader = Reader(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_every_number_of_the_scorecard_stands_in_the_page(run):
    text = read(run).text
    for metrics in run.read_scorecard().models.values():
        for metric in metrics.values():
            assert f"{100 * metric.value:.1f} %" in text
            assert f"95 %: {100 * metric.low:.1f} to {100 * metric.high:.1f} %, n = {metric.n}" in text
    assert "base with 5 examples in its prompt" in text
    assert "not measured" in text, "the base has no field F1"
    assert "max new tokens 59" in text


def test_the_headline_says_what_was_achieved(run):
    text = read(run).text
    assert "Exact match rose from 0.0 % to 68.2 %" in text
    assert "Measured on 318 held-out rows (95 % interval 62.9 to 73.1 %)" in text
    assert "base with 5 examples in its prompt 15.0 %" in text


@pytest.mark.parametrize(
    ("base", "tuned", "headline"),
    [
        ((0.60, 0.50, 0.69), (0.66, 0.56, 0.75), "Exact match: 66.0 %, no clear gain over base (60.0 %)"),
        ((0.90, 0.85, 0.93), (0.50, 0.40, 0.60), "Exact match: 50.0 %, below base with 90.0 %"),
        ((0.30, 0.20, 0.40), (0.50, 0.41, 0.60), "Exact match rose from 30.0 % to 50.0 %"),
    ],
)
def test_the_headline_never_boasts(run, change, base, tuned, headline):
    change(base={"exact_match": Metric(*base, 100)}, tuned={"exact_match": Metric(*tuned, 100)})
    assert headline in read(run).text


def test_a_prompt_with_examples_that_does_as_well_is_not_kept_quiet(run, change):
    zero, fair, tuned = Metric(0.0, 0.0, 0.04, 100), Metric(0.66, 0.56, 0.75, 100), Metric(0.68, 0.58, 0.76, 100)
    change(base={"exact_match": zero}, base_5shot={"exact_match": fair}, tuned={"exact_match": tuned})
    assert "no clear gain over base with 5 examples in its prompt (66.0 %)" in read(run).text


def test_texts_of_rows_cannot_run_or_break_the_page(run):
    nasty = "<script>alert(1)</script></pre><img src=x onerror=alert(2)> \" ' & \x00 \ud800"
    sample = Sample(nasty, nasty, {nasty: nasty}, Source("<b>rows.jsonl", 3))
    run.samples.write_text(json.dumps(dataclasses.asdict(sample)))
    run.config.write_text(f"model: {nasty}".replace("\ud800", ""))
    run.environment.write_text(json.dumps({nasty: nasty}))
    run.parity.write_text(json.dumps([dataclasses.asdict(Parity(nasty, nasty, 0.1, 0.1, 0.5, {nasty: 0.1}, False))]))
    reader = read(run)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in reader.tags)
    assert all(attributes.keys() == {"style"} for tag, attributes in reader.tags if tag == "b"), "only the bars of the table are <b>"
    assert "<script>alert(1)</script>" in reader.text, "shown as text"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in run.report.read_text(encoding="utf-8")


def test_the_page_needs_nothing_beside_it(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"(src|href|action|data)\s*=|url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_charts_are_whole_and_have_words(run):
    charts = re.findall(r"<svg.*?</svg>", write_report(run).read_text(encoding="utf-8"), flags=re.S)
    assert len(charts) == 2
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.find("title").text
        assert " goes from " in root.find("desc").text
    assert len(ElementTree.fromstring(charts[0]).findall("polyline")) == 3, "each update, smoothed, held-out"


def test_every_table_names_its_columns_and_rows(run):
    tags = read(run).tags
    scopes = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert set(scopes) == {"row", "col"}


def test_the_ledger_is_reconciled_before_the_readers_eyes(run):
    text = read(run).text
    assert "660 rows read = 638 used + 22 set aside" in text
    assert "48,000 tokens read = 14,400 trained + 33,600 masked + 0 cut" in text
    assert "set aside: empty answer" in text


def test_a_ledger_that_does_not_add_up_is_not_hidden(run):
    ledger = json.loads(run.ledger.read_text())
    ledger["rows"]["used"] = 600
    run.ledger.write_text(json.dumps(ledger))
    assert "660 rows read are not 600 used + 22 set aside" in read(run).text


def test_samples_side_by_side_and_their_common_beginning_once(run):
    text = read(run).text
    assert text.count("Split the address into its parts") == 1
    assert [line for line in range(11, 18) if f"data/test.jsonl:{line}" in text] == [11, 12, 13, 14, 15, 16, 17]
    assert "The address is 3 Main Street in Reno, Nevada." in text
    assert text.count("tuned: as expected") == 4
    assert "2 more answers" in text


def test_what_is_not_as_expected_is_marked_and_nothing_is_lost_by_it(run):
    read(run)
    page = run.report.read_text(encoding="utf-8")
    assert re.search(r"<del>[^<]*unit[^<]*</del>", page), "the tuned model left the unit in the street"
    assert "<ins>The" not in page, "another text altogether is not marked up"


@pytest.mark.parametrize(
    ("expected", "answer", "html"),
    [
        ("the city is Reno", "the city is Elko", "the city is <del>Reno</del><ins>Elko</ins>"),
        ("one two three", "one two", "one two<del> three</del>"),
        ("a < b & c", "a < b & d", "a &lt; b &amp; <del>c</del><ins>d</ins>"),
        ("yes", "yes", "yes"),
        ("yes", "an answer that shares nothing with it", "an answer that shares nothing with it"),
    ],
)
def test_differences_word_by_word(expected, answer, html):
    assert marked(expected, answer) == html


def test_twenty_samples_at_most(run):
    rows = [json.loads(line) for line in run.samples.read_text().splitlines()] * 4
    lines = (json.dumps(row | {"source": {"file": "rows.jsonl", "line": number}}) + "\n" for number, row in enumerate(rows, 1))
    run.samples.write_text("".join(lines))
    assert [number for number in range(1, 29) if f"rows.jsonl:{number} " in read(run).text] == list(range(1, 21))


def test_metrics_that_are_no_share_are_not_in_percent_and_lower_may_be_better(run, change):
    before, after = Metric(31.5, 28.0, 35.0, 100), Metric(4.25, 4.0, 4.5, 100)
    change(base={"perplexity": before}, tuned={"perplexity": after})
    text = read(run).text
    assert "perplexity fell from 31.5 to 4.25" in text
    assert "95 %: 28 to 35, n = 100" in text


def test_paired_differences_and_further_evaluations_have_their_place(run):
    card = dataclasses.replace(
        run.read_scorecard(), differences={"tuned": {"exact_match": Metric(0.68, 0.62, 0.74, 60)}}, costs={"tuned": {"seconds": 0.31, "price": None}}
    )
    run.write_scorecard(card)
    (run.path / "evals" / "other-rows").mkdir(parents=True)
    write_scorecard(run.path / "evals" / "other-rows" / "scorecard.json", run.read_scorecard())
    text = read(run).text
    assert "+68 points (+62 to +74)" in text
    assert "0.31" in text
    assert "Further evaluations" in text
    assert "other-rows" in text


def test_drift_metrics_in_the_loop_and_findings_are_shown(run):
    run.add_base(20, {"exact_match": 0.1})
    for step, kl in ((80, 0.02), (160, 0.05), (240, 0.3)):
        run.add_evaluation(step, 0.3, {"exact_match": step / 300}, drift={"kl": kl, "general_loss": 3.1 + kl, "base_general_loss": 3.1})
    cure = Cure("train for fewer epochs", {"training.num_train_epochs": 1})
    keep(
        run,
        [Finding("overfitting", "warning", "overfitting", "held-out loss rises from step 120", "it learns rows by heart", [cure])],
        {"slow_data": "reading was not timed"},
    )
    text = read(run).text
    assert re.search(r"KL\(tuned \|\| base\), nats a token\s+0\.3000", text)
    assert "the base has 3.1000: +0.3000" in text
    assert "Exact match on held-out rows" in text
    assert "held-out loss rises from step 120" in text
    assert "training.num_train_epochs=1" in text
    assert "1 check lacked evidence" in text
    assert "reading was not timed" in text
    names = [figure.name for figure in figures(run)]
    assert names == ["loss", "learning_rate", "metric_exact_match", "drift_kl", "general_loss"]


def test_judgments_of_models_and_people_are_shown(run):
    rate = {"value": 0.61, "low": 0.5, "high": 0.72, "n": 40}
    pairs = {"win_rate": rate, "length_controlled_win_rate": None, "counts": {"won": 20, "tied": 9}, "by_category": {"math": 0.5, "writing": 0.7}}
    model = {"names": ["run", "base"], "judge": "a <judge>", "questions": 40, "pairs": pairs, "grades": None}
    people = {"names": ["run", "base"], "raters": {"ann": 3, "ben": 3}, "win_rates": {"overall": rate}, "kappa": {"overall": 0.41}}
    people |= {"kappa_of": "Cohen", "rated": 3, "pairs": 4, "equal": 1}
    for name, result in (("a", model), ("b", people)):
        (run.path / "judgments" / name).mkdir(parents=True)
        (run.path / "judgments" / name / "result.json").write_text(json.dumps(result))
    text = read(run).text
    for words in (
        "judged by a <judge>, 40 questions",
        "50 to 72",
        "20 won, 9 tied",
        "writing",
        "3 of 4 blind pairs rated by ann (3), ben (3)",
        "0.41",
    ):
        assert words in text


def test_plots_are_png_files_one_for_each_curve(run):
    paths = write_plots(figures(run), run.path / "plots")
    assert [path.name for path in paths] == ["loss.png", "learning_rate.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_how_to_do_it_again_names_versions_and_commands(run):
    lines = reproduce(run)
    assert "pip install torch==2.13.0" in lines
    assert "luthier train config.yaml" in lines


def test_what_was_planned_stands_beside_what_was_measured(run):
    text = read(run).text
    assert "usual for 135M parameters and 320 rows" in text
    assert re.search(r"Training time\s+4.4 min\s+4.8 min", text)
    assert re.search(r"Memory\s+1.67 GB\s+1.87 GB", text)


def test_parity_is_shown_passed_and_failed(run):
    scores = {"exact_match": {"trained": 0.9, "artifact": 0.5}}
    run.add_parity(
        Parity("gguf", "llama.cpp", None, 0.2, 0.1, {"top1_agreement": 0.995}, False, top1_agreement=0.5, metrics=scores, differs="token 4 of a:1")
    )
    text = read(run).text
    assert re.search(r"merged\s+transformers\s+0.0312\s+0.00021\s+93.8 %\s+mean kl 0.001\s+passed", text)
    assert re.search(
        r"gguf\s+llama.cpp\s+not given\s+0.2\s+50.0 %\s+10.0 %\s+exact_match 0.9 -> 0.5\s+top1 agreement 0.995\s+failed\s+token 4 of a:1", text
    )


def test_a_run_that_was_not_evaluated_says_so(run):
    run.scorecard.unlink()
    text = read(run).text
    assert re.search(r"The training loss went from 2\.\d+ to 0\.\d+ in 240 updates", text)
    assert "Not measured. luthier eval addresses-2026-11-22-1431 measures the answers." in text


def test_an_empty_run_still_makes_a_page(empty_run):
    text = read(empty_run).text
    assert "Nothing was trained yet" in text
    assert text.count("Not measured.") == len(HEADINGS)
    assert all(heading in text for heading in HEADINGS)


def test_a_resumed_run_counts_each_update_once(run):
    before = read(run).text
    last = [line for line in run.metrics.read_text().splitlines() if '"kind": "train"' in line][-20:]
    run.metrics.write_text(run.metrics.read_text() + "\n".join(last) + "\n")
    assert read(run).text == before


def test_a_run_without_any_finite_loss_says_so(empty_run):
    empty_run.metrics.write_text(json.dumps({"kind": "train", "step": 1, "loss": math.nan, **REST}) + "\n")
    assert "The training loss was never a number" in read(empty_run).text


def test_a_loss_that_left_the_numbers_is_no_obstacle(run):
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    rows[9]["loss"] = float("nan")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = re.findall(r"<svg.*?</svg>", write_report(run).read_text(encoding="utf-8"), flags=re.S)
    assert len(charts) == 2
    assert "nan" not in "".join(re.findall(r'points="(.*?)"', charts[0]))
    assert charts[0].count("<polyline") == 3


@pytest.mark.parametrize(
    ("file", "named"), [("scorecard", "scorecard.json"), ("plan", "plan.json"), ("samples", "samples.jsonl:1"), ("ledger", "ledger.json")]
)
def test_a_broken_file_costs_its_own_section_only(run, file, named):
    getattr(run, file).write_text('{"cut')
    text = read(run).text
    assert f"{named}: is not whole JSON" in text
    assert all(heading in text for heading in HEADINGS)
    assert "merged" in text


def test_the_report_needs_no_torch():
    code = "import sys, luthier.diagnose.report; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_retrieval_whose_passages_nobody_knows_has_no_recall(run) -> None:
    found = {"at": 5, "questions": 0, "recall": 0.0, "low": 0.0, "high": 1.0, "nothing_fits": 2, "seconds_per_question": 0.1}
    folder = run.evals / "rag-questions"
    folder.mkdir(parents=True)
    (folder / "rag.json").write_text(json.dumps({"schema": 1, "ship": "base", "verdict": "Ship it.", "retrieval": found}), encoding="utf-8")
    page = retrieval_html(run)
    assert "Of no question the passage is known; for 2 nothing of the documents fitted." in page
    assert "%" not in page
