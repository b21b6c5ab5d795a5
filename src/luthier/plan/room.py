"""How much disk a run takes: its checkpoints, and what it leaves. Arithmetic on a plan."""

from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import memory
from luthier.plan.trained import trained_parameters

FP32_BYTES = 4


def checkpoint_bytes(settings: Settings, facts: ModelFacts) -> int:
    """About one checkpoint: what is trained in fp32 with the optimizer's moments and, with method: full, what is frozen too."""
    trained = trained_parameters(settings, facts)
    frozen = facts.parameters - trained if settings.method == "full" else 0
    return round((FP32_BYTES + memory.MOMENTS_BYTES[settings.training.optim]) * trained + FP32_BYTES * frozen)


def run_bytes(settings: Settings, facts: ModelFacts) -> int:
    """About a whole run: the checkpoints that are kept and the next one, and the adapter or the model that it leaves."""
    training = settings.training
    best = training.save_best or training.load_best_model_at_end
    saves = training.save_strategy != "no" or training.save_minutes is not None
    kept = training.save_total_limit + (training.keep_best if best else 0) + 1 if saves or best else 0
    result = FP32_BYTES * (facts.parameters if settings.method == "full" else trained_parameters(settings, facts))
    return kept * checkpoint_bytes(settings, facts) + result
