"""The license of a folder is read from what lies in it; where nothing or two things are said, that is said."""

import json
from pathlib import Path

import pytest

from luthier.config.data import DataSettings
from luthier.errors import ModelError
from luthier.models import audit, find

LLAMA = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\nLlama 3.1 Version Release Date: July 23, 2024"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_model_of_the_catalog_is_judged_by_the_catalog():
    found = audit.audit("llama-3.2-1b-instruct", "saas")
    assert (found.model, found.verdict) == ("llama-3.2-1b-instruct", "allowed with obligations")
    assert "Built with Llama" in found.include
    assert audit.audit("meta-llama/Llama-3.2-1B-Instruct", "saas") == found


@pytest.mark.parametrize(
    ("front", "license_", "verdict"),
    [
        ("license: apache-2.0", "Apache License 2.0 (Apache-2.0)", "allowed"),
        ("license: other\nlicense_name: qwen-research", "Qwen Research License Agreement (qwen-research)", "not for this use"),
        ("license: cc-by-nc-4.0", "Creative Commons Attribution-NonCommercial 4.0 (CC-BY-NC-4.0)", "not for this use"),
        ("license: other", "other: not in Luthier's table", "unknown"),
        ("license: bespoke", "bespoke: not in Luthier's table", "unknown"),
        ("base_model: meta-llama/Llama-3.1-8B", "Llama 3.1 Community License (llama3.1)", "allowed with obligations"),
        ("base_model:\n- google/gemma-2-9b", "Gemma Terms of Use (gemma)", "allowed with obligations"),
    ],
)
def test_the_front_matter_of_a_readme_is_read(front: str, license_: str, verdict: str, folder: Path):
    (folder / "README.md").write_text(f"---\n{front}\nlanguage:\n- en\n---\n# A model\n")
    found = audit.audit(str(folder), "saas")
    assert (found.license, found.verdict) == (license_, verdict)


def test_the_text_of_a_license_file_is_known(folder: Path):
    (folder / "LICENSE").write_text(LLAMA)
    assert audit.audit(str(folder), "saas").license == "Llama 3.1 Community License (llama3.1)"
    (folder / "LICENSE").write_text("Only on Sundays.")
    assert audit.audit(str(folder), "saas").license == "a text that Luthier does not know: not in Luthier's table"


def test_an_adapter_stands_under_the_license_of_its_base(folder: Path):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/gemma-3-4b-it"}))
    found = audit.audit(str(folder), "commercial")
    assert found.license == "Gemma Terms of Use (gemma)"
    assert "its base google/gemma-3-4b-it says gemma" in found.notes


def test_two_places_that_differ_give_no_permission(folder: Path):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE").write_text(LLAMA)
    found = audit.audit(str(folder), "research")
    assert found.verdict == "unknown"
    assert found.notes[:3] == ("README.md says MIT", "LICENSE says llama3.1", "they differ: ask whoever made it")


def test_a_folder_that_says_nothing_is_no_permission(folder: Path):
    found = audit.audit(str(folder), "research")
    assert (found.verdict, found.license) == ("unknown", "no license was found")
    assert "no front matter in README.md, no LICENSE" in found.notes[0]


def test_front_matter_that_is_no_yaml_is_named(folder: Path):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ModelError, match=r"README.md: its front matter is no YAML"):
        audit.audit(str(folder), "research")


def test_a_name_that_is_nothing_is_named():
    with pytest.raises(ModelError, match="is no model of the catalog, no folder and no hub id"):
        audit.audit("gemma-9", "saas")


def test_a_hub_id_is_asked_for_its_small_files_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, list[str]]] = []

    def download(model: str, path: Path, wanted: list[str]) -> Path:
        asked.append((model, wanted))
        return folder

    monkeypatch.setattr(find, "_download", download)
    (folder / "LICENSE").write_text(LLAMA)
    assert audit.audit("org/model", "saas").license == "Llama 3.1 Community License (llama3.1)"
    assert asked == [("org/model", find.SMALL)]
    assert not any("safetensors" in pattern for pattern in find.SMALL)


def rows(*sources: dict[str, str]) -> list[dict[str, str]]:
    return [{"source": "rows.jsonl", "license": "", "attribution": "", **source} for source in sources]


def test_a_run_keeps_the_license_of_its_model_and_says_what_is_not_stated(folder: Path):
    stated = {"source": "org/rows", "license": "cc-by-4.0", "attribution": "The authors of rows"}
    kept = audit.attribution("llama-3.2-1b-instruct", folder, rows({}, stated), folder)
    assert (kept["model"]["license"], "Built with Llama" in kept["model"]["include"]) == ("llama3.2", True)
    assert any("700 million" in text for text in kept["model"]["asks_for"])
    assert [row["license"] for row in kept["rows"]] == ["not stated", "CC-BY-4.0"]
    assert kept["rows"][1]["attribution"] == "The authors of rows"
    assert kept["adapter"] is None


def test_the_sources_are_those_of_the_settings_with_what_they_state():
    data = DataSettings.model_validate(
        {"train": ["a.jsonl", {"path": "b.jsonl", "license": "MIT", "attribution": "B"}], "replay": "5%", "replay_from": "c.jsonl"}
    )
    assert audit.sources(data) == [
        {"source": "a.jsonl", "license": "", "attribution": ""},
        {"source": "b.jsonl", "license": "MIT", "attribution": "B"},
        {"source": "c.jsonl", "license": "", "attribution": ""},
    ]
    own = audit.sources(DataSettings.model_validate({"train": "a.jsonl", "replay": "5%"}))
    assert [(row["source"], row["license"]) for row in own[1:]] == [("the general rows of Luthier (data.replay)", "CC0-1.0")]


def test_a_model_that_states_nothing_or_nonsense_stops_no_run(folder: Path):
    assert audit.attribution("./mine", folder, [], folder)["model"]["license"] == "not stated"
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    kept = audit.attribution("./mine", folder, [], folder)["model"]
    assert (kept["license"], "no YAML" in kept["notes"][0]) == ("not stated", True)


def test_an_adapter_that_is_gone_on_from_brings_its_license_and_the_rows_of_its_run(folder: Path):
    """A run that went on from a run that went on from another: the rows of all three are kept."""
    first = folder / "first"
    for name, source in (("first", "one.jsonl"), ("second", "two.jsonl")):
        adapter = folder / name / "adapter"
        adapter.mkdir(parents=True)
        kept = audit.attribution("gemma-3-4b-it", folder, rows({"source": source}), folder, None if name == "first" else first / "adapter")
        (folder / name / "environment.json").write_text(json.dumps({"licenses": kept}))
    kept = audit.attribution("gemma-3-4b-it", folder, rows({"source": "three.jsonl"}), folder, folder / "second" / "adapter")
    assert (kept["adapter"]["name"], kept["adapter"]["license"]) == (str(folder / "second"), "gemma")
    assert [row["source"] for row in kept["adapter"]["rows"]] == ["one.jsonl", "two.jsonl"]


def test_an_adapter_from_elsewhere_brings_what_its_folder_states(folder: Path):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    kept = audit.attribution("gemma-3-4b-it", folder, [], folder, folder)
    assert (kept["adapter"]["license"], kept["adapter"]["rows"]) == ("MIT", [])
