import json
from typing import Any

from luthier.data.us_addresses import demo_rows

FIELDS = ["name", "street", "unit", "city", "state", "zip"]


def messages(path: Any) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def bare(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def test_the_demo_is_measured_on_addresses_that_it_never_saw() -> None:
    train, test = (messages(path) for path in demo_rows())
    assert (len(train), len(test)) == (896, 320)
    for part in ("content", "street"):
        sides = [
            {bare(row[1]["content"] if part == "content" else json.loads(row[2]["content"]).get("street", row[1]["content"])) for row in side}
            for side in (train, test)
        ]
        assert not sides[0] & sides[1]
    assert len({bare(row[1]["content"]) for row in train + test}) == len(train + test)


def test_every_answer_copies_its_fields_from_the_address() -> None:
    systems = set()
    for path, least in zip(demo_rows(), (2, 3), strict=True):
        for system, user, assistant in messages(path):
            systems.add(system["content"])
            fields = json.loads(assistant["content"])
            assert assistant["content"] == json.dumps(fields, ensure_ascii=False)
            assert list(fields) == [name for name in FIELDS if name in fields]
            assert len(fields) >= least
            assert "city" in fields or path.name == "train.jsonl"
            assert all(value and value in user["content"] for value in fields.values())
    assert len(systems) == 1  # so that the engine can share it


def test_the_license_lies_beside_the_rows() -> None:
    folder = demo_rows()[0].parent
    assert (folder / "LICENSE").read_text().startswith("The MIT License (MIT)\n\nCopyright (c) 2014 The Atlanta Journal Constitution")
    assert "usaddress" in (folder / "README.md").read_text()
