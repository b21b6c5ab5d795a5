"""A run keeps the licenses of its model, its rows and its adapter; the report shows them, and an export carries a NOTICE of them."""

from pathlib import Path

import pytest
from conftest_runs import Listener, Write, chat_row

from luthier import files
from luthier.config.load import load_config
from luthier.diagnose.report import write_report
from luthier.recipes import handover, sft
from luthier.run_folder import RunFolder


def test_the_license_of_the_model_and_of_the_rows_go_to_the_run_and_its_report(copied: RunFolder) -> None:
    environment = files.read_json(copied.environment)
    kept = environment["licenses"]
    assert kept["model"]["license"] == "not stated"
    assert "holds no license" in kept["model"]["notes"][0]
    assert [row["license"] for row in kept["rows"]] == ["not stated"]
    kept["model"] |= {"license": "llama3.2", "include": ["Built with Llama"]}
    files.write_json(copied.environment, environment)
    report = write_report(copied).read_text(encoding="utf-8")
    for words in ("licenses.model.license", "llama3.2", "Built with Llama", "licenses.rows"):
        assert words in report


def licensed(run: RunFolder, license_: str, base: Path | None = None) -> None:
    """As if the run's model stood under this license, and lay in `base`."""
    environment = files.read_json(run.environment)
    environment["licenses"]["model"]["license"] = license_
    environment["model_folder"] = str(base or environment["model_folder"])
    files.write_json(run.environment, environment)


@pytest.mark.parametrize("to", ["adapter", "merged"])
def test_an_export_carries_a_notice_and_the_texts_of_its_base(to: str, copied: RunFolder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", encoding="utf-8")
    (base / "NOTICE").write_text("of the base", encoding="utf-8")
    licensed(copied, "llama3.2", base)
    listener = Listener()
    folder, parity = handover.export(copied, to, listener, folder=tmp_path / "support")
    text = (folder / "NOTICE").read_text(encoding="utf-8")
    assert text.startswith("support was made from ")
    assert "Llama 3.2 Community License (llama3.2)" in text
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"
    assert (folder / "NOTICE.base").read_text(encoding="utf-8") == "of the base"
    assert "its name has to begin with 'Llama'" in next(line for line in listener.lines if line.startswith("NOTICE says"))
    assert parity.passed


def test_an_export_of_a_run_that_kept_no_licenses_has_a_notice_too(copied: RunFolder) -> None:
    environment = files.read_json(copied.environment)
    del environment["licenses"]
    files.write_json(copied.environment, environment)
    folder, _ = handover.export(copied, "adapter")
    assert "License: not stated" in (folder / "NOTICE").read_text(encoding="utf-8")


def test_what_the_settings_say_of_a_source_goes_to_the_run_and_to_the_next(write: Write) -> None:
    stated = "data.train=[{path: train.jsonl, license: cc-by-4.0, attribution: The authors}]"
    first = sft.fit(write([chat_row(place) for place in range(3)], stated, "training.max_steps=1", name="first"))
    (row,) = files.read_json(first.environment)["licenses"]["rows"]
    assert (row["license"], row["attribution"]) == ("CC-BY-4.0", "The authors")
    assert load_config(first.config).settings.data.sources[0].attribution == "The authors"
    second = sft.fit(write([chat_row(place) for place in range(3)], f"init_from={first.path}", "training.max_steps=1", name="second"))
    adapter = files.read_json(second.environment)["licenses"]["adapter"]
    assert (adapter["name"], adapter["rows"]) == (str(first.path), [row])
