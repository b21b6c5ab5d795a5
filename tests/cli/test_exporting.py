"""luthier export as it is called: what it says, what it leaves, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import files


@pytest.fixture
def run(call: Any, settings_file: Path) -> Path:
    return Path(call("train", settings_file, "--json").json["run"])


def test_one_run_leaves_by_several_doors(call: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call("export", run, "--precision", "fp32", "--shard-size", "50KB")
    assert (shown.code, shown.err) == (0, "")
    for words in ("merged, run by luthier fp32", "mean KL", "at most 1e-06", "same likeliest word", "100.0%", "perplexity of the answers", "passed"):
        assert words in shown.out
    cut = sorted(path.name for path in (run / "merged").glob("*.safetensors"))
    assert len(cut) > 2
    assert max((run / "merged" / name).stat().st_size for name in cut) < 140_000  # the embedding is one tensor of 128 KB
    assert "vllm serve ./merged --served-model-name merged" in (run / "merged" / "SERVE.md").read_text(encoding="utf-8")
    assert json.loads((run / "merged" / "parity.json").read_text(encoding="utf-8"))[0]["passed"] is True

    taken = call("export", run, "--folder", run / "merged")
    assert (taken.code, "is there already, and nothing is overwritten" in taken.problem) == (1, True)

    bundled = call("export", run, "--to", "bundle", "--folder", tmp_path / "out", "--json")
    assert bundled.code == 0
    assert bundled.json["artifact"] == "out"
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names >= {
        "adapter/adapter_model.safetensors",
        "contract.json",
        "report.html",
        "README.md",
        "NOTICE",
        "parity.json",
        "SERVE.md",
        "SHA256SUMS",
    }
    assert "files are as they were written" in call("export", "--check", tmp_path / "out").out
    files.write_text(tmp_path / "out" / "NOTICE", "nothing is owed to anyone")
    changed = call("export", "--check", tmp_path / "out")
    assert (changed.code, "NOTICE is changed" in changed.problem) == (3, True)

    nowhere = call("export", run, "--to", "hub")
    assert (nowhere.code, "is no repository" in nowhere.problem, (run / "hub").exists()) == (2, True, False)
    pushed = call("export", run, "--to", "hub", "--repo", "me/support", "--dry-run")
    assert pushed.code == 0
    assert "a push to me/support would send:" in pushed.out
    assert "  README.md  0.00 MB" in pushed.out
    card = (run / "hub" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "library_name: peft" in card

    chosen = call("export", run, "--for", "multi-task")
    assert (chosen.code, (run / "adapter-export").is_dir()) == (0, True)
    assert "--for multi-task: --to adapter, for cpu: one base stays loaded" in chosen.out
    assert "vllm: takes it (rank" in chosen.out

    monkeypatch.setattr(files, "free_bytes", lambda path: 1_000)
    full = call("export", run)
    assert (full.code, "the export needs about" in full.problem) == (5, True)


def test_several_exports_of_one_call_ask_the_trained_model_once(call: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.export import asking

    asked = []
    of_engine = asking.of_engine
    monkeypatch.setattr(asking, "of_engine", lambda engine, questions: asked.append(engine) or of_engine(engine, questions))
    made = call("export", run, "--to", "merged", "--to", "adapter", "--precision", "fp32", "--json")
    assert made.code == 0, made.err
    assert [one["artifact"] for one in made.json] == ["merged", "adapter-export"]
    assert all(one["passed"] for one in made.json)
    assert (run / "adapter-export").is_dir()
    assert [one["stored"] for one in made.json] == ["fp32", "fp32"]
    assert len(asked) == 3  # the trained model, and each artifact

    for words, problem in [
        (("--to", "merged", "--to", "adapter", "--folder", tmp_path / "one"), "several exports have their own places"),
        (("--to", "merged", "--to", "bundle"), "--to bundle stands alone"),
        (("--to", "merged", "--to", "int8", "--quantize", "q8_0"), "--quantize has no effect on merged, int8"),
        (("--to", "merged", "--quantize", "q8_0"), "--quantize has no effect on merged"),
        (("--to", "gguf", "--lora", "--quantize", "f16", "--quantize", "q8_0"), "q8_0"),
        (("--to", "merged", "--to", "adapter", "--onto", "original"), "only a merged adapter of method: qlora"),
    ]:
        refused = call("export", run, *words)
        assert (refused.code, problem in refused.problem) == (2, True), refused.problem
        assert "comparing" not in refused.err + refused.out, "nothing is made before all of it is known to be possible"


def test_every_artifact_of_a_call_is_made_and_the_first_that_answers_otherwise_ends_it(call: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.export import parity

    monkeypatch.setitem(parity.THRESHOLDS, "bf16", {"mean_kl": 0.0})
    ended = call("export", run, "--to", "merged", "--to", "adapter")
    assert ended.code == 4
    assert "merged.failed" in ended.problem
    assert (run / "adapter-export").is_dir()


def test_what_answers_otherwise_ends_with_4_and_is_put_aside(call: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.export import parity

    monkeypatch.setitem(parity.THRESHOLDS, "bf16", {"mean_kl": 0.0})
    ended = call("export", run)
    assert ended.code == 4
    assert "merged.failed: what was written does not answer as the trained model does: mean_kl is" in ended.problem
    assert "  Try: --precision fp32 keeps every digit" in ended.err
    assert not (run / "merged").exists()
    assert json.loads((run / "merged.failed" / "parity.json").read_text(encoding="utf-8"))[0]["passed"] is False
