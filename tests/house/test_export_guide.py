"""docs/export.md says what the tables of the export say."""

from pathlib import Path

import pytest

from luthier.export import deployment, parity, targets
from luthier.export.targets import Target

GUIDE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", targets.TARGETS.values(), ids=lambda target: target.name)
def test_the_guide_has_the_row_of_each_target(target: Target) -> None:
    stored = ", ".join(target.stored) + (f" (`{target.option}`)" if target.option else "")
    row = " | ".join([f"`{target.name}`", target.of, stored, target.libraries or "-", target.read_by])
    assert f"| {row} |" in GUIDE


@pytest.mark.parametrize("use", deployment.USES)
def test_the_guide_has_the_row_of_each_use(use: str) -> None:
    shown = [f"`{choice.to}`" + (f" ({choice.stored})" if choice.to == "gguf" else "") for choice in deployment.USES[use]]
    assert f"| `{use}` | {shown[0]} | {shown[1]} |" in GUIDE


def test_the_guide_has_the_limits() -> None:
    exact = parity.THRESHOLDS["fp32"]
    assert exact == {"max_logit_difference_in_std": 1e-4, "mean_kl": 1e-6, "greedy_agreement": 0.99}
    assert "| fp32 | logits 1e-4 of their standard deviation apart, mean KL 1e-6, 99 % equal answers |" in GUIDE
    assert parity.THRESHOLDS["bf16"] == parity.THRESHOLDS["fp16"] == {"mean_kl": 1e-3}
    assert "| bf16, fp16 | mean KL 1e-3 |" in GUIDE
    assert parity.THRESHOLDS["f16"] == {"top1_agreement": 0.995}
    assert "the same likeliest word at 99.5 % of the tokens" in GUIDE
    assert f"may be {parity.ALLOWED_LOSS} worse" in GUIDE


def test_what_has_no_certificate_is_not_offered() -> None:
    assert "onnx" not in targets.ALL
    assert "There is no ONNX" in GUIDE
