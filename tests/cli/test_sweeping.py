"""luthier plan --sweep, luthier sweep and luthier models bench, as a user calls them."""

import json
from pathlib import Path
from typing import Any

from luthier.config.search import load_search

ROWS = 60


def project(settings_file: Path) -> Path:
    rows = [{"prompt": f"{number} Pierce Rd ->", "completion": f" Itasca {number}"} for number in range(ROWS)]
    (settings_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings_file.write_text(settings_file.read_text(encoding="utf-8").replace("eval: null", "eval: 10%"), encoding="utf-8")
    return settings_file


def test_what_plan_proposes_is_a_file_that_sweep_takes(call: Any, settings_file: Path, luthier_home: Path) -> None:
    project(settings_file)
    proposed = call("plan", settings_file, "--sweep", "training.learning_rate=1e-3")
    assert proposed.code == 0
    space = settings_file.parent / "sweep.yaml"
    space.write_text(proposed.out, encoding="utf-8")
    search, _ = load_search(space)
    assert search.trials == 12
    assert list(search.settings) == ["training.learning_rate", "training.batch_size", "lora.r"]
    assert "# 12 trials of about" in proposed.out
    assert proposed.out.startswith(f"# luthier sweep {settings_file} --space THIS_FILE training.learning_rate=1e-3\n")
    as_json = call("plan", settings_file, "--sweep", "--json").json
    assert as_json["search"]["trials"] == 12
    ended = call("sweep", settings_file, "--space", space, "--trials", "1", "--json").json
    assert [trial["number"] for trial in ended["trials"]] == [1]
    assert ended["best"]["value"] == min(trial["value"] for trial in ended["trials"])
    again = call("sweep", ended["sweep"], "--json").json
    assert again == ended


def test_a_mistake_is_named_and_nothing_is_made(call: Any, settings_file: Path, luthier_home: Path) -> None:
    project(settings_file)
    space = settings_file.parent / "sweep.yaml"
    space.write_text("settings:\n  training.learning_rte: [1e-4, 1e-3]\n", encoding="utf-8")
    wrong = call("sweep", settings_file, "--space", space)
    assert (wrong.code, "training.learning_rte is no setting" in wrong.problem, "sweep.yaml:2" in wrong.problem) == (1, True, True)
    assert call("sweep", settings_file.parent).problem.endswith("is not the folder of a search (it has no sweep.json)")
    alone = call("sweep", settings_file.parent, "seed=1", "--metric", "loss")
    assert (alone.code, "settings, --metric would change" in alone.problem) == (2, True)
    assert not (settings_file.parent / "runs").exists()


def test_models_are_compared_on_rows(call: Any, settings_file: Path, tiny_model: Path, luthier_home: Path) -> None:
    project(settings_file)
    rows = settings_file.parent / "rows.jsonl"
    shown = call("models", "bench", tiny_model, "no-such-model", "--data", rows, "--rows", "4")
    assert shown.code == 0
    assert "bits/byte answers" in shown.out
    assert "no-such-model: not measured: is no model of the catalog" in shown.out
    (found,) = call("models", "bench", tiny_model, "--data", rows, "--rows", "4", "--metric", "valid_json", "--json").json
    assert (found["rows"], list(found["metrics"])) == (4, ["valid_json"])
    nothing = call("models", "bench", "no-such-model", "--data", rows)
    assert (nothing.code, "none of these models could be measured" in nothing.problem) == (1, True)
