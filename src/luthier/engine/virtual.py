"""Virtual tokens (prefix, prompt and p-tuning) on the fast path: what every row begins with, so they are the root of all shared prefixes.

Prefix tuning gives the root's keys and values as they are; for the other two the root's embeddings run through the model, once an update.
PEFT would do either in a forward of its own, which the fast path does not enter.

Letters: P virtual tokens, K key/value heads, D head and model width.
"""

from typing import Any

from peft import PeftModel, PeftType, PromptLearningConfig
from torch import Tensor

from luthier.engine.packed import KeysValues

# The root's place among the parts of a Pool; the others count from 0.
ROOT = -1
EMBEDDED = (PeftType.PROMPT_TUNING, PeftType.P_TUNING)


def config_of(model: Any) -> PromptLearningConfig | None:
    """PEFT's settings of the virtual tokens that stand before every row; None where there are none, or while the adapter is switched off."""
    if not isinstance(model, PeftModel) or not model.has_active_enabled_adapter:
        return None
    config = model.active_peft_config
    return config if isinstance(config, PromptLearningConfig) else None


def tokens(model: Any) -> int:
    """How many virtual tokens stand before every row."""
    config = config_of(model)
    return config.num_virtual_tokens if config else 0


def run_tokens(model: Any) -> int:
    """How many of them run through the model."""
    config = config_of(model)
    return config.num_virtual_tokens if config and config.peft_type in EMBEDDED else 0


def is_prefix(model: Any) -> bool:
    """Whether keys and values stand before every row, which come into a plain forward as a cache."""
    config = config_of(model)
    return config is not None and config.peft_type not in EMBEDDED


def keys_values(model: Any) -> dict[int, KeysValues]:
    """The prefix of each layer, (P, K, D), with the graph that made it."""
    kept: Any = model.get_prompt(1)
    return {place: (layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for place, layer in enumerate(kept.layers)}


def embeddings(model: Any) -> Tensor:
    """The virtual tokens, (1, P, D), in the format of the model's own embeddings, with the graph that made them."""
    prompt: Any = model.get_prompt(1)
    embedded: Tensor = prompt.to(model.get_base_model().get_input_embeddings().weight.dtype)
    return embedded


def hindrance(model: Any) -> str:
    """Why the virtual tokens of this model cannot be a root; "" where they can, or where there are none."""
    config = config_of(model)
    if config is None or config.peft_type in EMBEDDED:
        return ""
    if config.peft_type != PeftType.PREFIX_TUNING:
        return f"{PeftType(config.peft_type).value} puts its tokens before a row in a forward of its own"
    layers = getattr(model.get_prompt(1), "layers", [])
    lengths = {0 if layer.keys is None else layer.keys.shape[-2] for layer in layers}
    if len(layers) != model.get_base_model().config.get_text_config().num_hidden_layers or lengths != {config.num_virtual_tokens}:
        return "PEFT does not give every layer the whole prefix"
    return ""
