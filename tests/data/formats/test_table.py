import subprocess
import sys
from typing import Any, get_args

import pytest
from format_rows import ASK, GOOD, SAY, TREE, all_of, one, read, said, why

from luthier.config.data import FormatName
from luthier.data.formats.build import Built
from luthier.data.formats.table import FORMATS
from luthier.records import Rejected, Turn


def test_the_settings_and_the_table_name_the_same_formats() -> None:
    assert set(get_args(FormatName)) == set(FORMATS) == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_every_format_is_found_by_its_columns_said_back_and_read(name: str) -> None:
    rows, turns = GOOD[name]
    formatted = read([{**row, "id": 4} for row in rows])
    first = next(formatted.built)
    assert isinstance(first, Built), first
    assert (formatted.name, said(first.conversation)) == (name, turns)
    assert formatted.evidence.startswith(f"{name} (column")
    assert all(column in formatted.evidence for column in rows[0] if column in ("messages", "instruction", "parent_id", "time", "label"))
    assert first.conversation.templated == (name not in ("completion", "text"))
    list(formatted.built)
    assert f"not read: id ({len(rows)})" in "; ".join(formatted.notes())


@pytest.mark.parametrize("name", GOOD)
def test_the_name_of_the_format_reads_the_same_rows(name: str) -> None:
    rows, _ = GOOD[name]
    assert all_of(*rows, format=name) == all_of(*rows)
    assert "data.format says so" in read(rows, format=name).evidence


def test_the_system_column_and_the_tools_stand_with_every_chat() -> None:
    for row in (GOOD["dolly"][0][0], GOOD["question_answer"][0][0], GOOD["preference"][0][0], GOOD["kto"][0][0]):
        conversation = one({**row, "system": "Be kind.", "tools": [{"name": "f"}]})
        assert conversation.turns[0] == Turn("system", "Be kind.")
        assert conversation.tools == '[{"name": "f"}]'


# --- preference and kto


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK], "chosen": [SAY], "rejected": [{"role": "assistant", "content": "bad"}]},
        {"prompt": "u", "chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "bad"}]},
        {"chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "bad"}]},
        {"chosen_messages": [ASK, SAY], "rejected_messages": [ASK, {"role": "assistant", "content": "bad"}]},
        {"question": "u", "chosen": "a", "rejected": "bad"},
        {"instruction": "u", "input": "", "chosen": "a", "rejected": "bad"},
        {"conversations": [{"from": "human", "value": "u"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "bad"}},
        {"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: bad"},
    ],
)
def test_a_preference_is_one_prompt_and_two_answers_however_it_is_written(row: dict[str, Any]) -> None:
    conversation = one(row)
    assert conversation.turns == (Turn("user", "u"), Turn("assistant", "a"))
    assert conversation.rejected == (Turn("assistant", "bad"),)
    assert conversation.templated


def test_a_preference_in_plain_text_stays_plain_text() -> None:
    formatted = read([{"prompt": "u", "chosen": "a", "rejected": "bad"}])
    [built] = formatted.built
    assert isinstance(built, Built)
    assert not built.conversation.templated
    assert built.conversation.rejected == (Turn("completion", "bad"),)
    assert "without a chat template" in formatted.notes()[0]
    assert one({"prompt": "u", "chosen": "a", "rejected": "bad"}, columns={"question": "prompt"}).templated


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"prompt": "u", "completion": "a", "label": True}, True),
        ({"prompt": [ASK], "completion": [SAY], "label": 0}, False),
        ({"messages": [ASK, SAY], "kto_tag": True}, True),
        ({"instruction": "u", "input": "", "output": "a", "kto_tag": False}, False),
    ],
)
def test_a_verdict_goes_with_any_simple_format(row: dict[str, Any], label: bool) -> None:
    assert one(row).label is label


def test_a_label_in_words_is_a_category_and_no_verdict() -> None:
    conversation = one({"messages": [ASK, SAY], "label": "spam"})
    assert (conversation.label, conversation.category) == (None, "spam")
    assert one(GOOD["dolly"][0][0]).category == "open_qa"


# --- trees and logs


def test_a_tree_gives_its_best_path_or_all_of_them_and_counts_its_rows_once() -> None:
    nested = [{"message_tree_id": "1", "prompt": TREE}]
    for rows, lines in ((nested, 1), (GOOD["openassistant"][0], 3)):
        built = all_of(*rows, tree_paths="all")
        assert [(one.conversation.answer, one.rows) for one in built if isinstance(one, Built)] == [("worse", 1 if lines == 1 else 3), ("a", 0)]
        [best] = all_of(*rows)
        assert isinstance(best, Built)
        assert (best.conversation.answer, best.rows, best.raw.count("\n") + 1) == ("a", lines, lines)


def test_a_path_goes_on_to_its_last_answer_and_passes_deleted_messages() -> None:
    deep = {
        "text": "u",
        "role": "prompter",
        "replies": [
            {"text": "gone", "role": "assistant", "rank": 0, "deleted": True},
            {
                "text": "a",
                "role": "assistant",
                "rank": None,
                "replies": [{"text": "u2", "role": "prompter", "replies": [{"text": "a2", "role": "assistant"}]}],
            },
        ],
    }
    assert said(one({"message_tree_id": "1", "prompt": deep})) == [("user", "u"), ("assistant", "a"), ("user", "u2"), ("assistant", "a2")]
    assert [said(b.conversation)[-1] for b in all_of({"message_tree_id": "1", "prompt": deep}, tree_paths="all") if isinstance(b, Built)] == [
        ("assistant", "a2")
    ]


def test_messages_without_a_root_are_set_aside_one_by_one() -> None:
    def row(id: object, parent: object) -> dict[str, object]:
        return {"message_id": id, "parent_id": parent, "role": "prompter", "text": "x"}

    found = all_of(row("1", "2"), row("2", "1"), row("3", "gone"), row("4", "3"), row("5", None), row("5", None), row(["6"], None))
    reasons = {entry.source.line: entry.reason for entry in found if isinstance(entry, Rejected)}
    assert reasons == {
        1: "circle_of_parents",
        2: "circle_of_parents",
        3: "unknown_parent",
        4: "unknown_parent",
        5: "no_answer",
        6: "message_id_twice",
        7: "no_message_id",
    }


def test_a_log_is_sorted_by_its_time_and_kept_in_order_without_one() -> None:
    first, second = all_of(*GOOD["message_log"][0])
    assert isinstance(first, Built)
    assert isinstance(second, Built)
    assert (first.rows, first.conversation.source.line, first.raw.count("\n")) == (2, 1, 1)
    assert said(second.conversation) == [("user", "x"), ("assistant", "y")]
    [untimed] = all_of({"conversation_id": "c", "role": "user", "content": "u"}, {"conversation_id": "c", "role": "assistant", "content": "a"})
    assert isinstance(untimed, Built)
    assert said(untimed.conversation) == [("user", "u"), ("assistant", "a")]
    soon = all_of(
        {"conversation_id": "c", "role": "user", "text": "u", "time": 5}, {"conversation_id": "c", "role": "assistant", "text": "a", "time": "soon"}
    )
    assert [(entry.reason, entry.source.line) for entry in soon if isinstance(entry, Rejected)] == [("no_time", 1), ("no_time", 2)]
    assert 'line 2.time: is "soon"; write seconds or an ISO 8601 time' in soon[0].detail  # type: ignore[union-attr]


def test_one_that_answers_nobody_spoils_only_its_own_conversation() -> None:
    rows = [{"conversation_id": id, "role": role, "text": "x"} for id, role in ((1, "user"), (2, "assistant"), (1, "assistant"), (None, "user"))]
    found = all_of(*rows)
    assert [(type(entry).__name__, entry.source.line if isinstance(entry, Rejected) else entry.rows) for entry in found] == [
        ("Rejected", 4),
        ("Built", 2),
        ("Rejected", 2),
    ]
    assert why({"conversation_id": 2, "role": "assistant", "text": "x"}).detail.startswith("line 1: is assistant, and it begins")


def test_the_formats_need_no_torch() -> None:
    code = (
        "import sys; import luthier.data.formats.build, luthier.data.formats.schema; sys.exit({'torch', 'transformers'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
