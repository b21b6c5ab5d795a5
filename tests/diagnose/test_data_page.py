"""The page of a check: everything that was found stands in it, rows do nothing in it, and its charts show the numbers."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Concern, Finding, Given
from luthier.data.quality.lengths import length
from luthier.diagnose.bars import Bar, Chart, svg
from luthier.diagnose.books import ledger_html
from luthier.diagnose.data_page import OURS, data_page
from luthier.diagnose.data_report import DataReport, as_json, charts, cure, headline, next_step
from luthier.records import Conversation, Rejected, Source, Turn

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def concern(line, detail, other=None):
    return Concern(Source("rows.jsonl", line), detail, Source("rows.jsonl", other) if other else None)


def of_lengths(counts, max_length=None):
    """What the check of lengths finds in rows of these lengths."""
    rows = [Conversation((Turn("text", "x"),), Source("rows.jsonl", line)) for line in range(1, len(counts) + 1)]
    return length(rows, Given(settings=CheckSettings(), token_counts=counts, max_length=max_length))


GOOD = Finding("cut_answer", "good", "0 of 900 rows end in mid-sentence", 900)
LOOK = Finding(
    "near_duplicates", "look", "40 of 900 rows are nearly there twice", 900, range(40), [concern(7, "97 % like", 3)], "luthier data clean FILE"
)
STOP = Finding("overlap", "stop", "2 of 900 rows are held out too", 900, [4, 5], [concern(5, EVIL)], "luthier data clean FILE takes them out")
BALANCE = Finding("balance", "good", "two classes", 900, numbers={"counts": {"yes": 600, EVIL: 300}, "smallest": 300})


@pytest.fixture
def report():
    ledger = {
        "schema": 1,
        "rows": {"read": 1000, "used": 950, "train": 900, "eval": 50, "rejected": {"duplicate": 45, "not_json": 5}},
        "tokens": {"read": 90_000, "trained": 30_000, "masked": 59_000, "cut": 1_500, "repeated": 500},
        "sources": [{"file": "rows.jsonl", "format": "alpaca", "rows": 1000, "used": 950, "rejected": {"duplicate": 45}, "sha256": "ab"}],
    }
    return DataReport(
        target="my rows.jsonl",
        is_settings=False,
        notes=[f"rows.jsonl: alpaca (columns instruction, output; not read: {EVIL})"],
        ledger=ledger,
        findings=[GOOD, LOOK, STOP, BALANCE, of_lengths([100 + number for number in range(900)])],
        roles={"user": 900, "assistant": 900},
        rejected=[Rejected("not_json", EVIL, Source("rows.jsonl", 9), "{")],
        left_out=["tokens of nothing"],
    )


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(report):
    reader = Reader(data_page(report))
    assert reader.open == []
    return reader


def test_all_that_was_found_stands_in_the_page(report):
    text = " ".join(read(report).words)
    for finding in report.findings:
        assert finding.said in text
    for said in ("rows.jsonl:7", "97 % like (beside rows.jsonl:3)", "Left out: tokens of nothing", OURS, headline(report), next_step(report)):
        assert said in text
    assert "1,000 rows read = 950 used + 50 set aside" in text
    assert "90,000 tokens read + 500 repeated = 30,000 trained + 59,000 masked + 1,500 cut" in text
    assert "are not" not in text


def test_what_stands_in_rows_does_nothing_in_the_page(report):
    evil = dataclasses.replace(report, target=EVIL, stopped=EVIL)
    reader = read(evil)
    assert not {tag for tag, _ in reader.tags} & {"script", "img", "link", "iframe", "object"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert EVIL in " ".join(reader.words)


def test_books_that_do_not_add_up_are_shown_as_such(report):
    assert 'class="bad"' not in ledger_html(report.ledger)
    wrong = {**report.ledger, "tokens": {**report.ledger["tokens"], "cut": 0}}
    assert '<p class="bad">90,000 tokens read + 500 repeated are not' in ledger_html(wrong)


def test_each_source_has_its_own_books(report):
    tokens = {"read": 90_000, "trained": 30_000, "masked": 59_000, "cut": 1_500, "repeated": 500}
    (source,) = report.ledger["sources"]
    page = ledger_html({**report.ledger, "sources": [{**source, "tokens": tokens}, {**source, "file": "b.csv"}]})
    for said in ("rows.jsonl", "b.csv", "alpaca", "duplicate 45", "trained 30,000, masked 59,000, cut 1,500, repeated 500"):
        assert said in page


def test_the_verdict_is_that_of_the_gravest_finding(report):
    def of(*findings, **changes):
        return dataclasses.replace(report, findings=findings, **changes)

    assert of(GOOD).verdict == "good"
    assert of(GOOD, LOOK).verdict == "look"
    assert of(LOOK, STOP, GOOD).verdict == report.verdict == "stop"
    assert of(GOOD, stopped="rows.jsonl:1: too long\n  Try: data.max_length=9").verdict == "stop"
    assert next(one.check for one in report.concerns) == "overlap"


def test_the_next_step_can_be_typed(report):
    assert next_step(report) == "luthier data clean 'my rows.jsonl' --only overlap --to clean.jsonl"
    assert next_step(dataclasses.replace(report, findings=[GOOD], target="a.yaml", is_settings=True)) == "luthier train a.yaml"
    sent = dataclasses.replace(report, target="-", ledger={**report.ledger, "sources": [{"path": "/kept/standard-input-1"}]})
    assert next_step(sent) == "luthier data clean /kept/standard-input-1 --only overlap --to clean.jsonl"
    assert next_step(dataclasses.replace(report, stopped="rows.jsonl:1: too long\n  Try: data.max_length=9")) == "data.max_length=9"
    assert cure(report, LOOK) == "luthier data clean 'my rows.jsonl' --only near_duplicates --to clean.jsonl"
    kept = dataclasses.replace(STOP, removable=False)
    assert next_step(dataclasses.replace(report, findings=[kept])).endswith(" --only overlap --to clean.jsonl takes them out")


def test_rows_that_must_be_read_first_are_not_put_into_a_command_that_takes_them_out(report):
    to_read = dataclasses.replace(LOOK, check="unsupported", cure="read them")
    both = dataclasses.replace(report, findings=[to_read, LOOK])
    assert next_step(both) == "luthier data clean 'my rows.jsonl' --only near_duplicates --to clean.jsonl"
    assert next_step(dataclasses.replace(report, findings=[to_read])) == "read them"


def test_the_advice_of_an_error_names_these_rows(report):
    stopped = dataclasses.replace(report, stopped="rows.jsonl:1: broken\n  Try: luthier data clean FILE --to clean.jsonl takes them out")
    assert next_step(stopped) == "luthier data clean 'my rows.jsonl' --to clean.jsonl takes them out"
    unknown = dataclasses.replace(LOOK, check="unknown_tokens", cure="train a tokenizer: luthier data tokenizer train FILE", removable=False)
    assert cure(report, unknown) == "train a tokenizer: luthier data tokenizer train 'my rows.jsonl' --to my-tokenizer"


def test_good_rows_lead_to_a_training_that_names_them(report):
    rows = Path("my rows.jsonl").absolute()
    good = dataclasses.replace(report, findings=[GOOD])
    assert next_step(good) == f"luthier init my-project && luthier train my-project/luthier.yaml 'data.train={rows}' data.eval=5%"
    pairs = {**report.ledger, "sources": [{"file": "pairs.jsonl", "path": str(Path("pairs.jsonl").absolute()), "format": "preference"}]}
    keep = "luthier data convert pairs.jsonl --to messages --only-good -o answers.jsonl"
    assert next_step(dataclasses.replace(good, ledger=pairs)) == keep


def test_machines_get_the_names_that_they_rely_on(report):
    told = as_json(report)
    assert [*told] == ["schema", "target", "verdict", "next_step", "stopped", "ledger", "roles", "checks", "left_out", "notes", "rejected"]
    assert [*told["checks"][1]] == ["check", "verdict", "said", "of", "found", "share", "worst", "cure", "removable", "numbers"]
    assert told["checks"][1]["worst"] == [{"file": "rows.jsonl", "line": 7, "detail": "97 % like", "other": "rows.jsonl:3"}]
    assert (told["schema"], told["verdict"], told["checks"][1]["share"]) == (1, "stop", 40 / 900)


def test_every_chart_says_its_numbers(report):
    drawn = {chart.name: chart for chart in charts(report)}
    assert [*drawn] == ["lengths", "rows", "tokens", "set_aside", "roles", "checks", "balance"]
    assert sum(bar.value for bar in drawn["lengths"].bars) == 900
    for chart in drawn.values():
        picture = ElementTree.fromstring(svg(chart))
        (words,) = picture.findall("desc")
        for bar in chart.bars:
            assert f"{bar.name}: {bar.value:,.6g}" in words.text


def test_the_line_of_max_length_stands_between_the_columns_beside_it():
    chart = next(chart for chart in charts(of_report([100 + number for number in range(900)], 512)) if chart.name == "lengths")
    edges = [int(bar.name.replace(",", "")) for bar in chart.bars]
    assert edges[int(chart.limit)] <= 512 <= edges[int(chart.limit) + 1]
    assert {bar.style for bar in chart.bars[: int(chart.limit)]} == {"main"}
    assert {bar.style for bar in chart.bars[int(chart.limit) + 1 :]} == {"bad"}
    assert "limit" in svg(chart)
    far = next(chart for chart in charts(of_report([100, 200, 300], 2048)) if chart.name == "lengths")
    assert far.limit is None


def of_report(counts, max_length):
    ledger = {"rows": {"read": 3, "used": 3, "train": 3, "eval": 0, "rejected": {}}, "sources": []}
    return DataReport("rows.jsonl", False, [], ledger, [of_lengths(counts, max_length)], {})


@pytest.mark.parametrize("counts", [[5], [7] * 40, [0, 1], [145] * 900 + [100_000], list(np.random.default_rng(0).integers(1, 5000, 700))])
def test_the_columns_of_lengths_hold_every_row(counts):
    lengths = of_report([int(count) for count in counts], None).lengths
    assert sum(lengths.counts) == len(counts)
    assert lengths.edges[0] <= min(counts) <= max(counts) < lengths.edges[-1]
    assert len(lengths.counts) <= 21
    assert lengths.label(len(lengths.counts) - 1).replace(",", "").endswith(str(lengths.edges[-1] - 1))


@pytest.mark.parametrize("kind", ["columns", "rows", "parts"])
def test_bars_are_as_long_as_their_values(kind):
    picture = ElementTree.fromstring(svg(Chart("c", "title", kind, (Bar("a", 100), Bar("b", 50), Bar("c", 0)))))
    side = "height" if kind == "columns" else "width"
    first, second, third = [float(bar.get(side)) for bar in picture.iter("rect")][:3]
    assert second == pytest.approx(first / 2, abs=1.6)
    assert third == 0


def test_nothing_is_drawn_of_nothing():
    assert svg(Chart("c", "title", "rows", (Bar("a", 0),))) == ""


def test_the_page_needs_nothing_beside_it(report):
    page = data_page(report)
    assert not re.search(r"""(?:src|href)=|url\(|@import""", page.replace("&lt;img src=x", ""))
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
