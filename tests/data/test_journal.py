"""What a killed making finds when it goes on."""

import json
from pathlib import Path

import pytest

from luthier.data import journal
from luthier.errors import CallError, DataError

CALL = {"model": "m", "seed": 0, "id": "first"}
ANSWER = {"kind": "answered", "request": 1}


def begun(path: Path, *entries: dict[str, object]) -> Path:
    made = journal.begin(path, CALL)
    for entry in entries:
        made.add(entry)
    made.close()
    return path


def test_it_goes_on_with_the_old_id_and_every_entry(tmp_path: Path) -> None:
    path = begun(tmp_path / "new" / "j.jsonl", {"kind": "sent", "request": 1}, ANSWER)
    found = journal.resume(path, {**CALL, "id": "second"}, "now")
    assert found.call["id"] == "first"
    assert found.entries == [{"kind": "sent", "request": 1}, ANSWER]
    found.close()


def test_a_line_that_a_kill_cut_is_left_out_for_ever(tmp_path: Path) -> None:
    path = begun(tmp_path / "j.jsonl", ANSWER)
    for request in (2, 3):
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"kind": "answered", "req')
        found = journal.resume(path, CALL, "now")
        found.add({"kind": "sent", "request": request})
        found.close()
    last = journal.resume(path, CALL, "now")
    last.close()
    kinds = [(entry["kind"], entry.get("request")) for entry in last.entries]
    assert kinds == [("answered", 1), ("resumed", None), ("sent", 2), ("resumed", None), ("sent", 3)]


def test_damage_inside_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = begun(tmp_path / "j.jsonl", ANSWER, ANSWER)
    path.write_text(path.read_text().replace('"answered"', '"answered', 1))
    with pytest.raises(DataError, match=r"j\.jsonl:2: this line of the journal cannot be read"):
        journal.resume(path, CALL, "now")


def test_what_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(json.dumps(ANSWER) + "\n")
    with pytest.raises(DataError, match=r"j\.jsonl:1"):
        journal.resume(tmp_path / "j.jsonl", CALL, "now")


def test_another_call_is_refused_once_there_is_an_answer(tmp_path: Path) -> None:
    path = begun(tmp_path / "j.jsonl", ANSWER)
    before = path.read_bytes()
    with pytest.raises(CallError, match='was begun with model "m"; this call has "other"'):
        journal.resume(path, {**CALL, "model": "other"}, "now")
    assert path.read_bytes() == before


def test_without_an_answer_a_mistyped_call_binds_nobody(tmp_path: Path) -> None:
    path = begun(tmp_path / "j.jsonl", {"kind": "sent", "request": 1})
    found = journal.resume(path, {**CALL, "model": "other"}, "now")
    found.close()
    assert (found.call["model"], found.entries) == ("other", [])


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    held = journal.begin(tmp_path / "j.jsonl", CALL)
    with pytest.raises(DataError, match="in use by another process"):
        journal.resume(held.path, CALL, "now")
    held.close()
