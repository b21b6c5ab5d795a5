"""What the plan knows of optimizers: their rates and their memory."""

import pytest

from luthier.models.facts import ModelFacts
from luthier.plan.hyperparameters import learning_rate
from luthier.plan.memory import full_run_bytes


def test_lion_takes_a_fifth_of_the_rate_and_says_so(smollm2: ModelFacts) -> None:
    adamw, lion = (learning_rate(smollm2, "lora", optim) for optim in ("adamw", "lion"))
    assert lion.value == pytest.approx(0.2 * adamw.value)  # type: ignore[operator]
    assert "times 0.2 for lion" in lion.why
    assert learning_rate(smollm2, "full", "muon") == learning_rate(smollm2, "full")


def test_muon_keeps_one_moment_of_the_layers_and_two_of_the_embedding(smollm2: ModelFacts) -> None:
    part = {optim: full_run_bytes(smollm2, "bf16", 512, 100, 0, optim=optim)["gradients and optimizer"] for optim in ("adamw", "muon", "lion")}
    table = smollm2.vocabulary * smollm2.hidden
    assert part["adamw"] - part["muon"] == pytest.approx(4 * (smollm2.parameters - table), rel=1e-6)
    assert part["muon"] - part["lion"] == pytest.approx(4 * table, rel=1e-6)
