"""Put LoRA adapters (Hu 2021, arXiv:2106.09685) beside a model's linear layers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch

from luthier.config.adapters import LoraSettings
from luthier.errors import ConfigError
from luthier.models import initial, targets, vocabulary, weights
from luthier.models.adapters import CONFIG, with_fp32_tables
from luthier.models.earlier import settings_of as settings_of
from luthier.models.facts import check_layers


def add(model: Any, settings: LoraSettings, *, seed: int = 0, trained_tokens: Sequence[int] = (), dora: bool = False) -> peft.PeftModel:
    """The model with fresh adapters; only they are trained. The same seed gives the same adapters.

    `trained_tokens` are ids whose rows of the embedding and the head are trained too; `dora` trains the length of each weight column
    too, as `use_dora` does. With init_lora_weights: eva they start at zero, until `initial.by_variance` has seen rows. Raises ConfigError
    for names that the model has not.
    """
    saved = _saved_tables(model, settings.modules_to_save)
    r, alpha, dropout = settings.numbers
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=_whole(alpha),
        lora_dropout=dropout,
        target_modules=targets.resolve(model, settings.target_modules, settings.layers_to_transform),
        use_rslora=settings.use_rslora,
        use_dora=dora or settings.use_dora,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern={pattern: _whole(alpha) for pattern, alpha in settings.alpha_pattern.items()},
        layers_to_transform=_layers(model, settings.layers_to_transform),
        modules_to_save=saved or None,
        ensure_weight_tying=bool(saved) and vocabulary.tied(model),
        trainable_token_indices=vocabulary.trained_layers(model, trained_tokens) if trained_tokens and not saved else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = with_fp32_tables(peft.get_peft_model(model, config))
        _check_patterns(adapted, settings)
        initial.begin(adapted, settings.init_lora_weights)
    return adapted


def _whole(alpha: float) -> Any:
    """As vLLM expects it in the file, where it is a whole number; PEFT takes fractions too."""
    return int(alpha) if alpha == int(alpha) else alpha


ELSEWHERE = {
    # in adapter_config.json     what that means to other programs
    "use_dora":                "vLLM, SGLang, LoRAX and llama.cpp do not read the column lengths of use_dora",
    "modules_to_save":         "vLLM, SGLang, LoRAX and llama.cpp do not read an embedding or a head from an adapter (lora.modules_to_save)",
    "trainable_token_indices": "vLLM, SGLang, LoRAX and llama.cpp do not read the rows of added tokens from an adapter",
    "use_rslora":              "llama.cpp's converter passes over use_rslora and would scale the adapter wrongly",
    "alpha_pattern":           "llama.cpp's converter passes over alpha_pattern and would scale some layers wrongly",
}  # fmt: skip


def hindrances(folder: Path) -> list[str]:
    """What keeps other programs from reading the adapter in `folder` as it is, a line each; the merged model holds all of it."""
    config = weights.read_object(folder / CONFIG, "name a folder that holds an adapter")
    return [f"{what}: export --to merged for these" for name, what in ELSEWHERE.items() if config.get(name)]


def _patterns(settings: LoraSettings) -> list[tuple[str, str]]:
    return [(f"lora.{field}", pattern) for field in ("rank_pattern", "alpha_pattern") for pattern in getattr(settings, field)]


def _check_patterns(model: Any, settings: LoraSettings) -> None:
    """Raises ConfigError for a pattern that no adapted layer's name ends with: PEFT would pass over it."""
    adapted = [name for name, _ in initial.lora_layers(model)]
    for where, pattern in _patterns(settings):
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
            names = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
            raise ConfigError(f"{pattern!r} matches no adapted layer", where=where, next_step=f"adapted are: {names} (a whole name is {adapted[0]})")


def _saved_tables(model: Any, wanted: Sequence[str]) -> list[str]:
    """The embedding and the head by their short names, where they are trained whole: both or none, since a token stands in both."""
    known = vocabulary.table_names(model)
    unknown = [name for name in wanted if name not in known]
    if unknown or (wanted and not vocabulary.tied(model) and set(wanted) != set(known)):
        problem = f"only the embedding and the head are saved whole, not {unknown[0]}" if unknown else "the embedding and the head go together"
        raise ConfigError(problem, where="lora.modules_to_save", next_step=f"lora.modules_to_save: [{', '.join(known)}]")
    return known if wanted else []


def _layers(model: Any, wanted: Sequence[int]) -> list[int] | None:
    """The layers that get an adapter, by number; None stands for all, as PEFT has it."""
    check_layers(wanted, model.config.get_text_config().num_hidden_layers, "lora.layers_to_transform")
    return sorted(set(wanted)) or None
