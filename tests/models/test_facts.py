"""Facts read from a folder are those of the loaded model."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.errors import ModelError
from luthier.models import facts, load


def test_the_facts_of_a_folder_are_those_of_the_model(tiny_model: Path):
    found = facts.from_folder(tiny_model)
    model = load.load_model(tiny_model, "fp32", "cpu")
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found == facts.ModelFacts(
        parameters=found.parameters,
        layers=2,
        hidden=64,
        intermediate=128,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocabulary=500,
        context=512,
        tied=True,
    )


def test_sizes_that_a_config_leaves_out_follow_from_the_others(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    config = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_inner": None, "vocab_size": 500, "n_positions": 512}
    (folder / "config.json").write_text(json.dumps(config))
    found = facts.from_folder(folder)
    assert (found.layers, found.kv_heads, found.head_dim, found.intermediate, found.context) == (2, 4, 16, 256, 512)


def test_a_config_without_sizes_is_named(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "odd"}')
    with pytest.raises(ModelError, match=r"odd/config.json: does not say hidden \(hidden_size or n_embd"):
        facts.from_folder(folder)
