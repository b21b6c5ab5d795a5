import json

import numpy as np
import pytest

from luthier.data import ledger
from luthier.errors import LuthierError
from luthier.records import Conversation, Source, Turn

SOURCE = {"file": "a.jsonl", "sha256": "x"}
ROWS = {"read": 5, "train": 3, "eval": 1, "rejected": {"duplicate": 1}}
TOKENS = {"read": 10, "trained": 4, "masked": 7, "cut": 2, "repeated": 3}


def test_books_that_add_up_are_closed() -> None:
    closed = ledger.close([SOURCE, SOURCE], [ROWS, {**ROWS, "rejected": {"too_long": 1}}], [TOKENS, TOKENS], eval_tokens=9)
    assert closed["rows"] == {"read": 10, "used": 8, "train": 6, "eval": 2, "rejected": {"duplicate": 1, "too_long": 1}}
    assert closed["tokens"] == {"read": 20, "trained": 8, "masked": 14, "cut": 4, "repeated": 6}
    assert closed["sources"][0] == {"file": "a.jsonl", "sha256": "x", "rows": 5, "used": 4, "rejected": {"duplicate": 1}, "tokens": TOKENS}


@pytest.mark.parametrize("changed", [{"read": 6}, {"train": 2}, {"rejected": {}}])
def test_a_lost_row_stops_the_run(changed: dict[str, object]) -> None:
    with pytest.raises(LuthierError, match=r"a.jsonl: \d rows were read, but \d used and \d set aside make \d"):
        ledger.close([SOURCE], [{**ROWS, **changed}], [TOKENS], eval_tokens=0)


@pytest.mark.parametrize("name", list(TOKENS))
def test_a_lost_token_stops_the_run(name: str) -> None:
    with pytest.raises(LuthierError, match=r"tokens were read and \d repeated"):
        ledger.close([SOURCE], [ROWS], [{**TOKENS, name: TOKENS[name] + 1}], eval_tokens=0)


def test_an_example_that_stands_there_twice_is_repeated() -> None:
    numbers = np.asarray([10, 4, 6], dtype=np.int64)
    nothing = np.zeros(3, np.int64)
    counts = ledger.count_tokens(numbers, nothing, nothing, numbers, np.asarray([3, 1, 2]), np.asarray([0, 1, 1, 1]))
    assert counts == {"read": 14, "trained": 6, "masked": 16, "cut": 0, "repeated": 8}
    assert counts["read"] + counts["repeated"] == counts["trained"] + counts["masked"] + counts["cut"]


def test_held_out_rows_come_back_with_all_that_their_messages_held() -> None:
    turns = (Turn("user", "x"), Turn("assistant", "", False, '{"tool_calls": [{"function": {"arguments": {"a": null}, "name": "f"}}]}'))
    row = Conversation(turns, Source("a.jsonl", 3), tools='[{"type": "function"}]')
    assert ledger._conversation(json.loads(json.dumps(ledger.held_out_row(row)))) == row
