"""luthier models list with filters, choose and audit, as a user sees them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_the_list_is_narrowed(call: Any) -> None:
    rows = call("models", "list", "--size", "1B-3B", "--license", "apache", "--instruct", "--json").json
    assert [row["name"] for row in rows] == [
        "olmo-2-1b-instruct",
        "qwen2.5-1.5b-instruct",
        "qwen3-1.7b",
        "smollm2-1.7b-instruct",
        "tinyllama-1.1b-chat",
    ]
    assert [row["unverified"] for row in rows] == [[], ["open_data"], [], [], []]
    assert "46,703 M (12.9 B active)" in call("models", "list", "--family", "mixtral").out
    assert "no model of the catalog is like that" in call("models", "list", "--size", "500B").out
    wrong = call("models", "list", "--size", "large")
    assert (wrong.code, "--size: 'large' is no size" in wrong.err) == (2, True)


def test_a_model_is_shown_with_what_is_known_of_it(call: Any, luthier_home: Path) -> None:
    shown = call("models", "show", "mixtral-8x7b").out
    for line in ("parameters       46702792704", "active_parameters 12879925248", "license_title    Apache License 2.0", "MMLU 70.6 (base version;"):
        assert line in shown
    assert "unverified       open_data" in call("models", "show", "phi-2").out
    assert call("models", "show", "mistralai/Mixtral-8x7B-v0.1", "--json").json["name"] == "mixtral-8x7b"


def test_a_folder_with_its_config_alone_is_shown(call: Any, tmp_path: Path) -> None:
    sizes = '"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024'
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", ' + sizes + "}")
    shown = call("models", "show", tmp_path, "--json").json
    assert (shown["parameters"], shown["gated"], shown["license"]) == (124_439_808, False, None)
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    refused = call("models", "show", tmp_path)
    assert refused.code == 1
    assert "parameters of model_type 'rwkv' cannot be counted from sizes, and no weights lie beside it" in refused.err


def test_a_choice_shows_candidates_reasons_obligations_and_refusals(call: Any, luthier_home: Path) -> None:
    out = call("models", "choose", "--task", "chat", "--rows", "2000", "--device", "rtx-4090", "--use", "saas", "--top", "2").out
    for words in (
        "chat with 2,000 rows on rtx-4090, for saas use",
        "1. qwen3-8b   69.3 points   method: lora   Qwen/Qwen3-8B",
        "+76.9 MMLU of its base version, as published",
        "memory: lora",
        "also possible: qwen3-4b",
        "refused (11):",
        "qwen2.5-3b-instruct: not for this use (saas): Qwen Research License Agreement (qwen-research)",
        "note: MMLU is one test",
    ):
        assert words in out
    known = call("models", "choose", "--profile", "startup", "--json").json
    assert known["candidates"][0]["name"] == "qwen3-8b"
    assert known["wishes"]["use"] == "saas"


def test_what_a_license_asks_for_stands_beside_the_candidate(call: Any, luthier_home: Path) -> None:
    flags = ("--task", "chat", "--device", "h200", "--use", "saas", "--top", "60")
    assert '     to do: give a copy of the agreement, and show "Built with Llama"' in call("models", "choose", *flags).out


def test_without_flags_and_without_a_terminal_the_task_is_asked_for(call: Any, luthier_home: Path) -> None:
    done = call("models", "choose")
    assert done.code == 2
    assert "--task: is not given\n  Try: classification | extraction" in done.err


def test_in_a_terminal_it_asks(call: Any, luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prompt(question: str, default: str) -> str:
        asked.append(question)
        return {"What is the model for?": "code", "On which device?": "h100", "For which use?": "saas"}.get(question.partition(" (")[0], default)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", prompt)
    assert "code with 1,000 rows on h100, for saas use" in call("models", "choose").out
    assert len(asked) == 8


def test_an_audit_says_the_verdict_the_duties_and_the_text(call: Any, tmp_path: Path) -> None:
    out = call("models", "audit", "llama-3.2-1b-instruct", "--use", "commercial").out
    assert out.startswith("llama-3.2-1b-instruct, commercial: allowed with obligations\nlicense: Llama 3.2 Community License (llama3.2)  https://")
    assert "text to include: Built with Llama\n" in out
    assert call("models", "audit", "qwen2.5-3b", "--use", "saas", "--json").json["verdict"] == "not for this use"
    assert "note: " in call("models", "audit", tmp_path, "--use", "saas").out
    assert call("models", "audit", "phi-4", "--use", "resale").code == 2


def test_listing_choosing_and_auditing_leave_the_heavy_libraries_out(tmp_path: Path) -> None:
    verbs = [["list"], ["show", "phi-4"], ["choose", "--profile", "edge"], ["audit", "phi-4"]]
    program = f"import sys\nfrom luthier.cli import main\nfor verb in {verbs!r}:\n    sys.argv = ['luthier', 'models', *verb]\n"
    program += "    try:\n        main()\n    except SystemExit as left:\n        assert not left.code\n"
    program += "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub', 'pyarrow'} & set(sys.modules)\nprint('heavy:', sorted(heavy))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.stdout.strip().endswith("heavy: []"), done.stderr
