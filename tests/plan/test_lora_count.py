"""What the plan counts of LoRA is what the model that is made trains."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.models import facts, load, methods
from luthier.plan.trained import trained_parameters

LORA: dict[str, dict[str, Any]] = {
    "all layers": {"lora": {"r": 4}},
    "two names": {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
    "an expression": {"lora": {"r": 4, "target_modules": r".*\.(q|down)_proj"}},
    "an expression for one layer": {"lora": {"r": 4, "target_modules": r"model\.layers\.1\..*proj"}},
    "one layer": {"lora": {"r": 4, "layers_to_transform": [1]}},
    "ranks by name": {"lora": {"r": 4, "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7}}},
    "column lengths": {"lora": {"r": 4, "use_dora": True, "rank_pattern": {"o_proj": 8}}},
    "dora by its short name": {"method": "dora", "lora": {"r": 4}},
    "another start": {"lora": {"r": 4, "init_lora_weights": "pissa"}},
    "tables too": {"lora": {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"]}},
}


@pytest.mark.parametrize("case", LORA)
def test_lora_is_counted_as_it_is_made(case: str, tiny_model: Path) -> None:
    settings = Settings.model_validate({"model": str(tiny_model), "data": {"train": "-"}} | LORA[case])
    model = methods.add(load.load_model(tiny_model, "fp32", "cpu"), settings)
    made = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained_parameters(settings, facts.from_folder(tiny_model)) == made
