"""What may differ from a stored run is one short list, and the guide shows it."""

import re
from pathlib import Path

import pytest

from luthier.config.settings import Settings
from luthier.errors import RunError
from luthier.run_folder import RunFolder
from luthier.train import differences, resuming

SETTINGS = Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}}).model_dump(mode="json")
GUIDE = Path(__file__).parents[2] / "docs" / "runs.md"


def answer(what: str, then: object, now: object) -> str:
    (found,) = differences.between({what: then, "other": 1}, {what: now, "other": 1})
    return found.harmless


def test_only_what_both_sides_know_is_compared() -> None:
    assert differences.between({"gone": 1, "same": 2}, {"same": 2, "new": 3}) == []


VERSIONS = {
    # library        then      now       harmless
    "torch":        ("2.13.0", "2.13.1", True),
    "transformers": ("5.23.0", "5.24.0", False),
    "luthier":      ("0.1.0", "0.2.0", False),
    "peft":         ("0.21.2", "0.21.10", True),
    "safetensors":  ("0.6.0", "1.0.0", True),
}  # fmt: skip


@pytest.mark.parametrize("library", VERSIONS)
def test_a_patch_release_is_harmless_and_another_release_is_not(library: str) -> None:
    then, now, harmless = VERSIONS[library]
    assert bool(answer(library, then, now)) == harmless


@pytest.mark.parametrize(
    "what", ["seed", "training.learning_rate", "lora.lora_dropout", "data.max_length", "data", "base", "template text", "tokenizer"]
)
def test_what_decides_the_result_is_refused(what: str) -> None:
    assert answer(what, "one", "another") == ""


def test_all_that_is_refused_is_named_with_its_values(tmp_path: Path) -> None:
    found = differences.between({"seed": 1, "lora.r": 4, "host": "a"}, {"seed": 2, "lora.r": 8, "host": "b"})
    with pytest.raises(RunError) as refused:
        differences.refuse(found, RunFolder(tmp_path))
    assert refused.value.problem == "seed was 1 and is now 2; lora.r was 4 and is now 8"
    differences.refuse(found[2:], RunFolder(tmp_path))


def test_the_guide_names_every_harmless_change() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    guide = text[text.index("| may change |") : text.index("Such changes may be given")]
    assert [name for name in [*differences.HARMLESS, *differences.LIBRARIES] if name.removesuffix("s") not in guide] == []
    rows = [row.split("|")[1] for row in guide.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"checks.*", "launch.*"} == set(resuming.leaves(SETTINGS)) & set(
        differences.HARMLESS
    )


def test_no_hash_has_the_name_of_a_setting_that_may_change() -> None:
    """What a file holds is judged by its own name: `template` the setting may change, and its text may not."""
    assert set(resuming.CONTENTS).isdisjoint(differences.HARMLESS)
