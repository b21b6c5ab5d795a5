"""luthier plan as a user sees it."""

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def project(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    call("init", "project")
    return tmp_path / "project" / "luthier.yaml"


def test_a_plan_shows_the_decision_every_auto_with_its_source_the_memory_and_what_it_costs_elsewhere(call: Any, project: Path) -> None:
    shown = call("plan", project).out
    assert "decision: a prompt with examples first, then method: lora" in shown
    assert re.search(r"^setting +value +usual +why +source$", shown, re.MULTILINE)
    assert re.search(r"^training\.learning_rate +0\.001 +0\.0005 to 0\.003 +usual for lora on 135M parameters.* Schulman 2025", shown, re.MULTILINE)
    assert re.search(r"^lora\.r +8 +8 to 64 +under 1,000 rows +guides", shown, re.MULTILINE)
    assert re.search(r"^training\.weight_decay +0 +0 to 0\.1 +not auto", shown, re.MULTILINE)
    bars = dict(re.findall(r"^  (\w[\w ]*?) +[\d.]+ [GM]B  (#+)$", shown, re.MULTILINE))
    assert len(bars["process"]) == 40 > len(bars["weights"]) > len(bars["activations"]) > 0
    assert re.search(r"^GB +8 +16 +24 +48 +80$", shown, re.MULTILINE)
    assert re.search(r"^a100-80gb +yes +< 1 minute +< 0\.01$", shown, re.MULTILINE)
    assert "warning" not in shown
    assert "does not fit" not in shown


def test_what_does_not_fit_is_shown_with_what_to_change_first_and_the_method_to_take(call: Any, project: Path) -> None:
    shown = call("plan", project, "model=llama-3.1-8b-instruct", "max_memory=14GB", "training.precision=bf16").out
    assert "lora would not fit, qlora does" in shown
    assert f"luthier plan {project} model=llama-3.1-8b-instruct max_memory=14GB training.precision=bf16 method=qlora\n" in shown
    assert re.search(r"does not fit in 85% of max_memory: 14GB\. Try: method: qlora", shown)
    assert re.search(r"^change +the largest row then needs\nmethod: qlora +[\d.]+ GB", shown, re.MULTILINE)
    fits = call("plan", project, "model=llama-3.1-8b-instruct", "max_memory=14GB", "training.precision=bf16", "method=qlora").out
    assert "decision: a prompt with examples first, then method: qlora" in fits
    assert "does not fit" not in fits


def test_what_only_the_user_knows_changes_the_plan(call: Any, project: Path) -> None:
    found = call("plan", project, "plan.domain=far", "plan.facts=changing", "training.learning_rate=0.1", "--json").json
    assert found["decision"]["first"] == "retrieve"
    assert found["settings"]["lora"]["r"] == 64
    assert [note for note in found["notes"] if note.startswith("warning: training.learning_rate is 0.1")]
    assert call("plan", project, "plan.domain=fra").code != 0


def test_prices_are_the_users_own_where_they_are_given(call: Any, project: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n[hours]\nthis = 3600.0\n', encoding="utf-8")
    shown = call("plan", project, "--prices", tmp_path / "prices.toml").out
    assert re.search(r"^time: about .* of training on .*, [\d.]+ EUR \(an estimate\)$", shown, re.MULTILINE)
    (tmp_path / "prices.toml").write_text("[hours]\nthis = -1\n", encoding="utf-8")
    assert "is no price of an hour" in call("plan", project, "--prices", tmp_path / "prices.toml").problem
