"""Looking at the rows: the same books as training keeps, what the checks find, and each row as the model sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from canned_server import canned, said
from conftest_runs import SYSTEM, Listener, Write, chat_row, write_rows

from luthier.config.load import config_of_rows
from luthier.errors import CallError, ConfigError, DataError, ModelError
from luthier.recipes import data_check, sft

ROWS = [chat_row(place) for place in range(16)]
MOJIBAKE = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the cafÃ© where they donâ€™t hurry."}]}


def found(report, name):
    return next(finding for finding in report.findings if finding.check == name)


def test_a_check_counts_what_training_will_use(write: Write) -> None:
    config = write([*ROWS, ROWS[0], '{"messages": ['])
    report = data_check.check(config, "luthier.yaml")
    assert report.ledger == json.loads(sft.fit(config).ledger.read_text(encoding="utf-8"))
    assert report.ledger["rows"]["rejected"] == {"duplicate": 1, "not_json": 1}
    assert report.ledger["rows"]["read"] == 18
    assert [(row.reason, row.source.line) for row in report.rejected] == [("not_json", 18), ("duplicate", 17)]
    assert found(report, "duplicates").said.endswith("; 1 more were set aside before")


def test_the_checks_see_each_row_with_its_tokens(write: Write) -> None:
    report = data_check.check(write([*ROWS, MOJIBAKE]), "luthier.yaml")
    assert [concern.source.line for concern in found(report, "mojibake").worst] == [17]
    assert found(report, "length").numbers["total"] == report.ledger["tokens"]["read"]
    assert (report.lengths.unit, sum(report.lengths.counts)) == ("tokens", 17)
    assert report.roles == {"system": 16, "user": 17, "assistant": 17}


def test_a_pair_is_as_long_as_its_longer_answer(write: Write, tmp_path: Path) -> None:
    def pair(place: int) -> dict[str, object]:
        chat = chat_row(place)["messages"]
        return {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": [{**chat[-1], "content": "No."}]}

    plain = found(data_check.check(write(ROWS), "luthier.yaml"), "length").numbers
    report = data_check.check(write([pair(place) for place in range(16)]), "luthier.yaml")
    assert found(report, "length").numbers["percentiles"] == plain["percentiles"]
    (note,) = [note for note in report.notes if "objective: dpo learns from them" in note]
    assert f"luthier data convert {tmp_path / 'project' / 'train.jsonl'} --to messages --only-good -o answers.jsonl" in note


def test_long_rows_that_the_settings_decide_on_do_not_stop(write: Write) -> None:
    longest = int(found(data_check.check(write(ROWS), "luthier.yaml"), "length").numbers["max"])
    for too_long, verdict in (("error", "stop"), ("drop", "look")):
        config = write(ROWS, f"data.max_length={longest - 1}", f"data.too_long={too_long}")
        assert found(data_check.check(config, "luthier.yaml"), "length").verdict == verdict


def test_a_row_of_weight_two_is_no_duplicate(write: Write) -> None:
    config = write(ROWS)
    source = config.settings.data.sources[0].model_copy(update={"weight": 2.0})
    data = config.settings.data.model_copy(update={"train": [source]})
    weighted = type(config)(config.settings.model_copy(update={"data": data}), config.file, config.given, [])
    report = data_check.check(weighted, "luthier.yaml")
    assert report.ledger["tokens"]["repeated"] == report.ledger["tokens"]["read"]
    assert found(report, "duplicates").of == 16
    assert found(report, "duplicates").found == 0
    assert found(report, "length").numbers["total"] == report.ledger["tokens"]["read"]


def test_checks_can_be_chosen(write: Write) -> None:
    config = write([*ROWS, MOJIBAKE], "checks.off=[html]")

    def names(**chosen):
        return [finding.check for finding in data_check.check(config, "luthier.yaml", quick=True, **chosen).findings]

    assert names(only=["mojibake", "html"]) == ["mojibake"] or names(only=["mojibake", "html"]) == ["mojibake", "html"]
    assert "html" not in names()
    assert {*names()} - {*names(skip=["mojibake"])} == {"mojibake"}
    with pytest.raises(ConfigError, match=r"there is no check 'mojibak'\n  Try: mojibake"):
        names(only=["mojibak"])


def test_without_a_tokenizer_the_rest_is_checked_all_the_same(write: Write) -> None:
    config = write([*ROWS, MOJIBAKE, '{"messages": ['])
    quick = data_check.check(config, "luthier.yaml", quick=True)
    assert "tokens" not in quick.ledger
    assert quick.ledger["rows"] == {"read": 18, "used": 17, "train": 17, "eval": 0, "rejected": {"not_json": 1}}
    assert quick.left_out == ["tokens: they are not counted without a tokenizer (--quick)"]
    assert quick.lengths.unit == "characters"
    assert found(quick, "mojibake").found == 1


def test_where_the_training_libraries_are_missing_the_rows_are_checked_all_the_same(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, MOJIBAKE])
    code = "import sys; sys.modules.update(torch=None, transformers=None, tokenizers=None); import luthier.cli; luthier.cli.main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    call = [sys.executable, "-c", code, "data", "check", str(rows), "--json"]
    told = json.loads(subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout)
    assert 'pip install "luthier[train]"' in told["left_out"][0]
    assert told["ledger"]["rows"]["train"] == 17
    assert next(one["found"] for one in told["checks"] if one["check"] == "mojibake") == 1


def test_a_model_that_was_named_must_be_there(write: Write) -> None:
    config = write(ROWS, "model=./none")
    with pytest.raises(ModelError):
        data_check.check(config, "luthier.yaml")
    report = data_check.check(config, "train.jsonl", needs_model=False)
    assert "none" in report.left_out[0]
    assert report.ledger["rows"]["train"] == 16


def test_rows_that_are_too_long_are_shown_and_stop(write: Write) -> None:
    long = chat_row(0, system="9 " * 600)
    report = data_check.check(write([*ROWS, long]), "luthier.yaml", reporter=Listener())
    assert "1 of 17 rows are longer than max_length (512 tokens)" in report.stopped
    assert report.verdict == "stop"
    assert report.lengths.longest > 1200
    assert found(report, "length").numbers["over_max_length"] == 1
    dropped = data_check.check(write([*ROWS, long], "data.too_long=drop"), "luthier.yaml")
    assert dropped.stopped == ""
    assert dropped.ledger["rows"]["rejected"] == {"too_long": 1}


def test_what_cannot_be_read_at_all_stops_the_check_as_it_stops_training(write: Write) -> None:
    with pytest.raises(DataError) as checked:
        data_check.check(write(['{"messages": ['] * 8), "luthier.yaml")
    with pytest.raises(DataError) as trained:
        sft.fit(write(['{"messages": ['] * 8))
    assert str(checked.value) == str(trained.value)


def test_pairs_and_judged_rows_are_checked_too(write: Write) -> None:
    pairs = [
        {
            "prompt": f"How tall is tree {place}?",
            "chosen": f"It is {place} feet tall, and that is all we know of it.",
            "rejected": f"Who knows about {place}?",
        }
        for place in range(20)
    ]
    report = data_check.check(write([*pairs, pairs[0]]), "luthier.yaml")
    assert report.ledger["rows"]["rejected"] == {"duplicate": 1}
    assert report.roles == {"prompt": 20, "completion": 40}
    assert report.ledger["tokens"]["trained"] > 0
    judged = [{"prompt": pair["prompt"], "completion": pair["chosen"], "label": place % 2 == 0} for place, pair in enumerate(pairs)]
    report = data_check.check(write(judged), "luthier.yaml")
    assert found(report, "balance").numbers["counts"] == {"true": 10, "false": 10}


def test_a_file_alone_can_be_looked_at(write: Write) -> None:
    config = write(ROWS)
    alone = config_of_rows(config.file.parent / "train.jsonl", config.settings.model)
    assert data_check.check(alone, "train.jsonl").ledger["rows"]["train"] == 16
    shorter = config_of_rows(config.file.parent / "train.jsonl", config.settings.model, ["data.max_length=58", "data.too_long=truncate"])
    assert data_check.check(shorter, "train.jsonl").ledger["tokens"]["cut"] > 0


def test_a_row_is_shown_as_the_model_sees_it(write: Write) -> None:
    shown = data_check.show(write(ROWS), first=3, rows=1)
    (spelled,) = shown.rows
    assert shown.template == "the tokenizer's own"
    assert spelled.source.line == 3
    text = "".join(piece for piece, _, _ in spelled.pieces)
    answer = ROWS[2]["messages"][-1]["content"]
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>")
    assert "".join(piece for piece, trained, _ in spelled.pieces if trained) == f"{answer}<|im_end|>"
    assert {piece for piece, _, special in spelled.pieces if special} == {"<|im_start|>", "<|im_end|>"}
    assert [(message.role, message.learned) for message in spelled.messages] == [
        ("system", "only read"),
        ("user", "only read"),
        ("assistant", "learned"),
    ]
    assert 0 < spelled.trained_tokens < spelled.tokens


def test_a_message_that_is_not_to_be_learned_is_shown_so(write: Write) -> None:
    row = chat_row(1)
    row["messages"][1:1] = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "not this", "train": False}]
    (spelled,) = data_check.show(write([row, *ROWS]), first=1, rows=1).rows
    assert [message.learned for message in spelled.messages] == ["only read", "only read", "only read", "only read", "learned"]


def test_a_chosen_template_is_named(write: Write) -> None:
    assert data_check.show(write(ROWS, "template=alpaca"), first=1, rows=1).template == "alpaca (as given)"


def test_rows_past_the_end_are_no_rows(write: Write) -> None:
    assert data_check.show(write(ROWS), first=17, rows=3).rows == []
    assert [spelled.source.line for spelled in data_check.show(write(ROWS), first=15, rows=5).rows] == [15, 16]


def test_a_page_replaces_only_a_page_of_ours(write: Write, tmp_path: Path) -> None:
    report = data_check.check(write(ROWS), "luthier.yaml", quick=True)
    page = tmp_path / "out" / "check.html"
    for _ in range(2):
        written = data_check.write_page(report, page, Listener())
    assert written[0] == page
    assert all(path.parent == tmp_path / "out" / "check-plots" for path in written[1:])
    mine = write_rows(tmp_path / "mine.html", ["my own page"])
    with pytest.raises(CallError, match="is no page of ours"):
        data_check.write_page(report, mine, Listener())
    assert mine.read_text() == "my own page\n"
    (tmp_path / "other-plots").mkdir()
    with pytest.raises(CallError, match="other-plots: is there already"):
        data_check.write_page(report, tmp_path / "other.html", Listener())


def test_without_matplotlib_there_is_a_page_and_a_line_that_says_so(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = data_check.check(write(ROWS), "luthier.yaml", quick=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    listener = Listener()
    assert data_check.write_page(report, tmp_path / "check.html", listener) == [tmp_path / "check.html"]
    assert [line for line in listener.lines if 'pip install "luthier[data]"' in line]
    assert not (tmp_path / "check-plots").exists()


def test_hard_rows_are_measured_with_the_base_where_that_is_asked_for(write: Write) -> None:
    strange = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "\u0416\u0429\u042e\u042f" * 5}]}
    report = data_check.check(write([*ROWS, strange]), "luthier.yaml", only=["hard_rows"])
    (finding,) = report.findings
    assert finding.of == len(ROWS) + 1
    assert finding.numbers["median"] > 0
    assert all("nats a token" in concern.detail for concern in finding.worst)
    without = data_check.check(write(ROWS), "luthier.yaml")
    assert "hard_rows" not in [finding.check for finding in without.findings]


def test_the_judge_of_the_settings_is_asked(write: Write) -> None:
    with canned(lambda number, body: said("WRONG: no")) as server:
        given = [f"checks.judge_endpoint={server.address}", "checks.judge_model=referee", "checks.judge_rows=3"]
        (finding,) = data_check.check(write(ROWS, *given), "luthier.yaml", only=["judge"]).findings
        assert (finding.of, finding.found, len(server.asked)) == (3, 3, 3)
        with pytest.raises(ConfigError, match=r"checks.judge_endpoint: the judge has an address and no model"):
            data_check.check(write(ROWS, given[0]), "luthier.yaml", only=["judge"])
