"""Looking at the rows: the same books as training keeps, and each row as the model sees it."""

import json

import pytest
from conftest_runs import SYSTEM, Listener, Write, chat_row

from luthier.config.load import config_of_rows
from luthier.errors import DataError
from luthier.recipes import data_check, sft

ROWS = [chat_row(place) for place in range(16)]


def test_a_check_counts_what_training_will_use(write: Write) -> None:
    config = write([*ROWS, ROWS[0], '{"messages": ['])
    prepared = data_check.check(config)
    assert prepared.ledger == json.loads(sft.fit(config).ledger.read_text(encoding="utf-8"))
    assert prepared.ledger["rows"]["rejected"]["duplicate"] == 1
    assert prepared.ledger["rows"]["read"] == 18


def test_a_row_is_shown_as_the_model_sees_it(write: Write) -> None:
    (spelled,) = data_check.show(write(ROWS), first=3, rows=1)
    assert spelled.source.line == 3
    text = "".join(piece for piece, _, _ in spelled.pieces)
    answer = ROWS[2]["messages"][-1]["content"]
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>")
    assert "".join(piece for piece, trained, _ in spelled.pieces if trained) == f"{answer}<|im_end|>"
    assert {piece for piece, _, special in spelled.pieces if special} == {"<|im_start|>", "<|im_end|>"}
    assert 0 < spelled.trained_tokens < spelled.tokens


def test_rows_past_the_end_are_no_rows(write: Write) -> None:
    assert data_check.show(write(ROWS), first=17, rows=3) == []
    assert [spelled.source.line for spelled in data_check.show(write(ROWS), first=15, rows=5)] == [15, 16]


def test_a_file_alone_can_be_looked_at(write: Write) -> None:
    config = write(ROWS)
    alone = config_of_rows(config.file.parent / "train.jsonl", config.settings.model)
    assert len(data_check.check(alone).train) == 16


def test_what_would_stop_training_stops_the_check(write: Write) -> None:
    with pytest.raises(DataError) as checked:
        data_check.check(write(['{"messages": ['] * 8))
    with pytest.raises(DataError) as trained:
        sft.fit(write(['{"messages": ['] * 8))
    assert str(checked.value) == str(trained.value)


def test_rows_that_are_too_long_are_named(write: Write) -> None:
    long = chat_row(0, system="9 " * 600)
    with pytest.raises(DataError, match=r"1 of 17 rows are longer than max_length \(512 tokens\)"):
        data_check.check(write([*ROWS, long]), Listener())
    prepared = data_check.check(write([*ROWS, long], "data.too_long=drop"))
    assert prepared.ledger["rows"]["rejected"] == {"too_long": 1}
