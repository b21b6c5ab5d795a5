"""Virtual tokens before every row: prefix tuning, prompt tuning and p-tuning, as PEFT has them. All other weights stay as they are.

Prefix tuning (Li and Liang 2021, arXiv:2101.00190) learns the keys and values of P places in every layer, prompt tuning (Lester 2021,
arXiv:2104.08691) P embeddings, p-tuning (Liu 2021, arXiv:2103.10385) the embeddings and a small network that makes them.

Letters: P virtual tokens, K key/value heads, D head width.
"""

from typing import Any

import peft
import torch
from transformers import DynamicCache

from luthier.config.adapters import PrefixSettings, PromptSettings, PTuningSettings
from luthier.errors import ConfigError, ModelError

CAUSAL = peft.TaskType.CAUSAL_LM


def add_prefix(model: Any, settings: PrefixSettings, *, seed: int) -> peft.PeftModel:
    """The model with P learned keys and values before every row, in each layer.

    Without the network they begin as those of P tokens that the seed draws: drawn numbers would hide the row's own beginning, which many
    models lean on, and the loss would begin far above the base's (section 4.3 of the paper: real words begin best).
    """
    config = peft.PrefixTuningConfig(
        task_type=CAUSAL,
        num_virtual_tokens=settings.num_virtual_tokens,
        prefix_projection=settings.prefix_projection,
        encoder_hidden_size=settings.encoder_hidden_size or _width(model),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = torch.randint(len(model.get_input_embeddings().weight), (settings.num_virtual_tokens,))
    begins = _keys_and_values(model, drawn)
    adapted = _seeded(model, config, seed)
    if not settings.prefix_projection:
        with torch.no_grad():
            _encoder(adapted).embedding.weight.copy_(begins)
    return adapted


def add_prompt(model: Any, settings: PromptSettings, *, seed: int) -> peft.PeftModel:
    """The model with P learned embeddings before every row, which begin as those of tokens that the seed draws."""
    config = peft.PromptTuningConfig(
        task_type=CAUSAL,
        num_virtual_tokens=settings.num_virtual_tokens,
        prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB,
    )
    return _seeded(model, config, seed)


@torch.no_grad()
def begin_with_text(adapted: peft.PeftModel, text: str, tokenizer: Any) -> peft.PeftModel:
    """The learned prompt begins as the embeddings of `text`, whose tokens are cut or repeated until there are as many as virtual tokens.

    PEFT's rule, but with the run's own tokenizer, which PEFT would load by a name. Raises ConfigError for a text without tokens.
    """
    table = _encoder(adapted).embedding.weight
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise ConfigError("the text has no tokens", where="prompt.prompt_tuning_init_text", next_step="write a sentence, or null")
    chosen = torch.tensor([ids[place % len(ids)] for place in range(len(table))], device=table.device)
    base: Any = adapted.get_base_model()
    table.copy_(base.get_input_embeddings()(chosen))
    return adapted


def add_p_tuning(model: Any, settings: PTuningSettings, *, seed: int) -> peft.PeftModel:
    """The model with P embeddings before every row, made by an MLP or an LSTM that is trained with them and not kept."""
    lstm = settings.encoder_reparameterization_type == "LSTM"
    config = peft.PromptEncoderConfig(
        task_type=CAUSAL,
        num_virtual_tokens=settings.num_virtual_tokens,
        encoder_reparameterization_type=settings.encoder_reparameterization_type,
        encoder_hidden_size=settings.encoder_hidden_size or _width(model),
        encoder_num_layers=settings.encoder_num_layers if lstm else 2,
        encoder_dropout=settings.encoder_dropout,
    )
    return _seeded(model, config, seed)


def check_goes_on(config: Any, where: str) -> None:
    """Raises ModelError for a stored adapter (by its settings, or PEFT's) that can answer but not be trained on: the network that made its
    virtual tokens is not stored."""
    if getattr(config, "prefix_projection", False) or isinstance(config, peft.PromptEncoderConfig | PTuningSettings):
        raise ModelError(
            "holds the virtual tokens and not the network that made them, so it cannot be trained on",
            where=where,
            next_step="method: prompt, or prefix with prefix_projection: false; to go on with a run itself: luthier train --resume RUN",
        )


def _seeded(model: Any, config: peft.PeftConfig, seed: int) -> peft.PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted: peft.PeftModel = peft.get_peft_model(model, config)
    return adapted


def _encoder(adapted: peft.PeftModel) -> Any:
    """PEFT's module that makes the virtual tokens."""
    return adapted.prompt_encoder[adapted.active_adapter]


def _width(model: Any) -> int:
    width: int = model.config.get_text_config().hidden_size
    return width


@torch.no_grad()
def _keys_and_values(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What each layer keeps of these tokens, as PEFT's table has it: (P, layers * 2 * K * D). Raises ConfigError where layers keep something else."""
    kept: Any = DynamicCache()  # whole, where the model's own would keep a window
    try:
        model(input_ids=ids[None].to(model.device), past_key_values=kept, use_cache=True)
        parts = [part for layer in kept.layers for part in (layer.keys, layer.values)]
        same = {part.shape for part in parts} == {parts[0].shape} and len(kept.layers) == model.config.get_text_config().num_hidden_layers
    except Exception:  # what a foreign architecture raises has no common class
        same = False
    if not same:
        raise ConfigError(
            f"the layers of {type(model).__name__} do not all keep keys and values of one shape, which a prefix stands for",
            where="method",
            next_step="method: prompt, or p_tuning",
        )
    return torch.cat([part[0].transpose(0, 1).flatten(1) for part in parts], dim=1)
