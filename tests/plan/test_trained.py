"""How many numbers a method trains, against what the engine counts on the default model (30 layers of width 576)."""

import pytest

from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import memory, time
from luthier.plan.trained import trained_parameters

# Counted in the models that the engine opens (2026-11-23); HRA and OFT are those of PEFT with all linear layers.
COUNTED = {
    "pfeiffer": ({"method": "bottleneck"}, 1_262_520),
    "houlsby": ({"method": "bottleneck", "bottleneck": {"kind": "houlsby"}}, 2_525_040),
    "wider": ({"method": "bottleneck", "bottleneck": {"reduction_factor": 8}}, 2_507_760),
    "ia3": ({"method": "ia3"}, 57_600),
    "vera": ({"method": "peft", "peft": {"type": "VERA", "r": 16}}, 158_880),
    "hra": ({"method": "peft", "peft": {"type": "hra"}}, 1_198_080),
    "oft": ({"method": "peft", "peft": {"type": "OFT"}}, 2_321_280),
    "ln_tuning": ({"method": "peft", "peft": {"type": "LN_TUNING"}}, 35_136),
    "frozen below": ({"method": "full", "freeze": {"layers": "0-19", "embeddings": True}}, 35_401_536),
    "full": ({"method": "full"}, 134_515_008),
}


def settings(**sections: object) -> Settings:
    return Settings.model_validate({"model": "m", "data": {"train": "t.jsonl"}, **sections})


@pytest.mark.parametrize("name", COUNTED)
def test_it_is_what_the_engine_counts(name: str, smollm2: ModelFacts) -> None:
    sections, counted = COUNTED[name]
    assert trained_parameters(settings(**sections), smollm2) == counted


def test_what_is_frozen_takes_no_memory_for_training_and_less_time(smollm2: ModelFacts) -> None:
    frozen = {"trained": 35_401_536, "head_is_trained": False, "idle_layers": 20}
    whole, part = (memory.full_run_bytes(smollm2, "bf16", 1000, 110, 0, **more) for more in ({}, frozen))
    assert part["gradients and optimizer"] == 16 * 35_401_536
    assert part["gradients and optimizer"] < 0.3 * whole["gradients and optimizer"]
    assert part["activations"] < 0.4 * whole["activations"]
    assert part["weights"] == whole["weights"]

    body = memory.body_parameters(smollm2)
    flops = time.full_flops(smollm2, 1, 0, 0.0, frozen_layers=20, idle_layers=20)
    assert flops == pytest.approx(6 * body - (20 / 30) * 4 * body)  # forward alone in the lowest 20
