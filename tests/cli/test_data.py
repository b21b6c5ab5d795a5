"""luthier data check | clean | show as they are typed: what is printed, in which order, and with which exit code they end."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.app import main


def row(place: int, answer: str = "") -> dict[str, str]:
    return {"prompt": f"What stands at number {place}?", "completion": answer or f"A house with {place} windows stands there."}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows), encoding="utf-8")
    return path


MOJIBAKE = row(99, "It is the cafÃ© where they donâ€™t hurry at all.")
# No general guidance on the number of rows in tests of a dozen.
CHECK = ("data", "check", "rows.jsonl", "--quick", "--skip", "size,diversity")


def test_a_check_says_what_was_read_what_became_of_it_and_what_to_do(call: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*(row(place) for place in range(60)), row(3), MOJIBAKE, '{"prompt": '])
    outcome = call(*CHECK)
    assert outcome.code == 0
    order = [
        "rows.jsonl: completion (columns prompt, completion), 63 rows",
        "  rows.jsonl:63: not_json: ",
        "rows: 63 read = 61 to train on + 0 held out + 2 set aside",
        "look  mojibake ",
        "good  nothing was found by empty_or_tiny_answer, ",
        "not run: ",
        "\nmojibake: ",
        "  rows.jsonl:62: ",
        "length in characters: ",
        "left out: tokens",
        "Look here: ",
        "Next: luthier data clean rows.jsonl --only mojibake --to clean.jsonl\n",
    ]
    places = [outcome.out.find(part) for part in order]
    assert -1 not in places, [part for part, place in zip(order, places, strict=True) if place < 0]
    assert places == sorted(places)


def test_the_exit_code_tells_a_script_not_to_train(call: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [row(place) for place in range(60)])
    good = call(*CHECK)
    assert (good.code, "Good: " in good.out) == (0, True)
    write(tmp_path / "rows.jsonl", [*(row(place) for place in range(10)), *({**MOJIBAKE, "prompt": f"Where is {place}?"} for place in range(10))])
    bad = call(*CHECK)
    assert (bad.code, "Do not train on these rows yet: " in bad.out) == (3, True)
    assert call(*CHECK, "--json").code == 3


def test_with_json_nothing_else_stands_on_standard_output(call: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*(row(place) for place in range(60)), MOJIBAKE])
    told = call(*CHECK, "--json", "--html", "page.html").json
    assert (told["schema"], told["verdict"], told["ledger"]["rows"]["train"]) == (1, "look", 61)
    assert next(one for one in told["checks"] if one["check"] == "mojibake")["worst"][0]["line"] == 61
    assert (tmp_path / "page.html").is_file()


def test_rows_may_come_through_a_pipe(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, luthier_home: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [row(place) for place in range(60)]).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows)))
    assert call("data", "check", "-", "--quick", "--json").json["ledger"]["rows"]["train"] == 60


@pytest.mark.parametrize("target", [".", "*.jsonl"])
def test_a_folder_and_a_pattern_are_checked_with_their_files_by_name(call: Any, tmp_path: Path, target: str, tiny_model: Path) -> None:
    write(tmp_path / "a.jsonl", [row(place) for place in range(30)])
    write(tmp_path / "b.jsonl", [row(place) for place in range(30, 70)])
    outcome = call("data", "check", target, "--model", tiny_model, "--json")
    sources = outcome.json["ledger"]["sources"]
    assert [(source["file"].removeprefix("./"), source["rows"]) for source in sources] == [("a.jsonl", 30), ("b.jsonl", 40)]
    assert sum(source["tokens"]["trained"] for source in sources) == outcome.json["ledger"]["tokens"]["trained"] > 0
    assert "a.jsonl  30    30    0" in call("data", "check", target, "--model", tiny_model).out


def test_what_stands_in_rows_commands_no_terminal(call: Any, tmp_path: Path, tiny_model: Path) -> None:
    """`call` holds that no control character is printed."""
    evil = "the \x1b]0;owned\x07\x1b[2Jtext is here and long enough for all."
    chats = [{"messages": [{"role": "user", "content": str(place)}, {"role": "assistant", "content": evil}]} for place in range(60)]
    write(tmp_path / "rows.jsonl", [*chats, {"messages": [{"role": "user\x1b[2J", "content": "a"}, {"role": "assistant", "content": evil}]}])
    checked = call(*CHECK)
    assert "control_characters" in checked.out
    assert "rows.jsonl:61: unknown_role" in checked.out
    assert call("data", "clean", "rows.jsonl", "--only", "duplicates", "--to", "clean.jsonl").code == 0
    assert "\\x1b[2Jtext is here" in call("data", "show", "rows.jsonl", "--model", tiny_model).out


def test_cleaning_says_what_went_and_where(call: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*(row(place) for place in range(10)), row(3), row(4), "{"])
    outcome = call("data", "clean", "rows.jsonl", "--to", "out/clean.jsonl")
    assert outcome.code == 0
    assert "rows: 13 read = 10 kept + 3 taken out\n  2 duplicates\n" in outcome.out
    assert "kept: out/clean.jsonl\ntaken out: out/clean.removed.jsonl\n" in outcome.out
    again = call("data", "clean", "rows.jsonl", "--to", "out/clean.jsonl")
    assert (again.code, "nothing is overwritten" in again.problem) == (2, True)
    told = call("data", "clean", "rows.jsonl", "--to", "other.jsonl", "--json").json
    assert told["rows"] == {"read": 13, "kept": 10, "removed": 3}
    assert Path(told["kept_file"]).is_file()
    assert Path(told["removed_file"]).is_file()


def test_a_row_is_shown_with_its_template_and_what_is_learned_of_each_message(call: Any, settings_file: Path) -> None:
    outcome = call("data", "show", settings_file, "--row", "2", "--rows", "2")
    lines = outcome.out.split("\n")
    start = lines.index("template: the tokenizer's own")
    assert lines[start + 1].startswith("rows.jsonl:2  ")
    assert [line.split()[1:] for line in lines[start + 2 : start + 4]] == [["prompt", "only", "read"], ["completion", "learned"]]
    assert "[[ Itasca 1" in outcome.out
    assert "rows.jsonl:3  " in outcome.out
    shown = call("data", "show", settings_file, "--json").json
    assert (shown["schema"], shown["template"]) == (1, "the tokenizer's own")
    (told,) = shown["rows"]
    assert [message["learned"] for message in told["messages"]] == ["only read", "learned"]
    assert "".join(piece["text"] for piece in told["pieces"] if piece["trained"]).startswith(" Itasca 0")
    past = call("data", "show", settings_file, "--row", "7")
    assert (past.code, "there is no training example 7" in past.problem) == (2, True)


def test_the_group_lists_all_of_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["luthier", "data", "--help"])
    with pytest.raises(SystemExit):
        main()
    words = capsys.readouterr().out.split()
    assert {"check", "clean", "show", "tokens", "tokenizer", "synth", "split", "mix", "convert", "schema"} <= set(words)
