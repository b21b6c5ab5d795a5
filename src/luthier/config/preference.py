"""The settings of preference tuning, and which of them each objective reads."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.config.section import Auto, Section

Objective = Literal["sft", "dpo", "orpo", "simpo", "kto"]


class PreferenceSettings(Section):
    """How rows that judge are learned from (docs/preference.md). Names are TRL's, where it has one."""

    loss_type: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="dpo: what the margin of a pair costs")
    beta: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="dpo, simpo, kto: how much a difference in log-probability counts; dpo and kto: higher stays closer to the start"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo (sigmoid), simpo: the share of pairs that may be the wrong way round")
    simpo_gamma: float = Field(1.0, ge=0, description="simpo: the margin that a pair should have")
    orpo_weight: float = Field(0.1, gt=0, description="orpo: weight of the odds ratio beside the loss of the better answer (the paper's lambda)")
    sft_weight: float = Field(0.0, ge=0, description="dpo, simpo: weight of the better answer's own loss beside that of the pair")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of good answers")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of bad answers")


# Which settings each objective reads; one that is given beside another objective is refused.
READ = {
    "sft":   (),
    "dpo":   ("loss_type", "beta", "label_smoothing", "sft_weight"),
    "orpo":  ("orpo_weight",),
    "simpo": ("beta", "label_smoothing", "simpo_gamma", "sft_weight"),
    "kto":   ("beta", "desirable_weight", "undesirable_weight"),
}  # fmt: skip
# What `beta: auto` becomes: the papers' own values (SimPO: Meng 2024, section 3 and appendix B; the others are TRL's defaults too).
BETA = {"dpo": 0.1, "simpo": 2.0, "kto": 0.1}
# The format of the rows that each objective learns from.
ROWS = {"dpo": "preference", "orpo": "preference", "simpo": "preference", "kto": "kto"}
# What the held-out rows give beside the loss, by TRL's names.
_SIDES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
MEASURED = {
    "sft":   ("perplexity",),
    "dpo":   (*_SIDES, "rewards/accuracies"),
    "orpo":  (*_SIDES, "rewards/accuracies"),
    "simpo": (*_SIDES, "rewards/accuracies"),
    "kto":   (*_SIDES, "kl"),
}  # fmt: skip
# Objectives that compare with the model before the training.
REFERENCED = {"dpo", "kto"}
