"""Cures that several findings share, with the settings that they change."""

from typing import Any

from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.diagnose.finding import Cure


def rounded(number: float) -> float:
    """A setting's number, as people write it."""
    return float(f"{number:.1e}")


def rate_of(settings: Settings) -> float:
    return float(str(settings.training.learning_rate))  # a run's settings are resolved


def rate(value: float, what: str = "") -> Cure:
    value = rounded(value)
    return Cure(f"{what}training.learning_rate={value:g}", {"training.learning_rate": value})


def longer(settings: Settings) -> Cure:
    """Twice the updates."""
    return _as_long(settings, 2.0, "train longer")


def shorter(settings: Settings) -> Cure:
    """Half the updates."""
    return _as_long(settings, 0.5, "a shorter run")


def _as_long(settings: Settings, times: float, what: str) -> Cure:
    if settings.training.max_steps:
        steps = max(1, round(times * settings.training.max_steps))
        return Cure(f"{what}: training.max_steps={steps}", {"training.max_steps": steps})
    epochs = times * float(settings.training.num_train_epochs)
    return Cure(f"{what}: training.num_train_epochs={epochs:g}", {"training.num_train_epochs": epochs})


def milder(settings: Settings) -> list[Cure]:
    """Against learning by heart: dropout and a lower rank, or weight decay where nothing of LoRA is trained."""
    if "lora" not in METHODS[settings.method].blocks:
        return [Cure("training.weight_decay=0.1", {"training.weight_decay": 0.1})] if settings.training.weight_decay < 0.1 else []
    drops, now = float(settings.lora.lora_dropout), int(settings.lora.r)
    dropout = 0.1 if drops >= 0.05 else 0.05
    cures = [Cure(f"lora.lora_dropout={dropout} (0.05 to 0.1 are usual)", {"lora.lora_dropout": dropout})] if drops < 0.1 else []
    return [*cures, ranked(settings, now // 2, "a lower rank: ")] if now > 2 else cures


def ranked(settings: Settings, rank: int, what: str = "") -> Cure:
    """Another rank, with an alpha that leaves alpha / rank as it is."""
    alpha = float(settings.lora.lora_alpha) * rank / int(settings.lora.r)
    changes: dict[str, Any] = {"lora.r": rank, "lora.lora_alpha": alpha}
    return Cure(f"{what}lora.r={rank} lora.lora_alpha={alpha:g}", changes)
