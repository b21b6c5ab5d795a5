"""What a planner must know about a model, without loading it. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, ModelError
from luthier.models import weights


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A decoder's sizes: counts of parameters, layers, heads and tokens, and widths of its vectors in numbers."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool  # the head is the embedding, stored once


def check_layers(numbers: Sequence[int], layers: int, where: str) -> None:
    """Raises ConfigError where one of these numbers of layers, which the setting `where` names, is not one of so many layers (from 0)."""
    if numbers and max(numbers) >= layers:
        raise ConfigError(f"layer {max(numbers)} is not there: this model has {layers}", where=where, next_step=f"numbers from 0 to {layers - 1}")


SPELLINGS = {
    # fact           names in config.json, first found wins
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
}


def from_folder(folder: Path) -> ModelFacts:
    """The facts of a model folder, from config.json and the headers of its weights. Raises ModelError where one is missing."""
    config = weights.read_config(folder)
    text = _of_decoder(config)
    shapes = weights.tensor_shapes(folder)
    hidden, heads = _number(text, "hidden", folder), _number(text, "heads", folder)
    return ModelFacts(
        parameters=sum(weights.count(shape) for shape in shapes.values()),
        layers=_number(text, "layers", folder),
        hidden=hidden,
        intermediate=_number(text, "intermediate", folder, default=4 * hidden),
        heads=heads,
        kv_heads=_number(text, "kv_heads", folder, default=heads),
        head_dim=_number(text, "head_dim", folder, default=hidden // heads),
        vocabulary=_number(text, "vocabulary", folder),
        context=_number(text, "context", folder),
        tied=not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in shapes),
    )


def bottleneck_width(hidden: int, reduction_factor: float) -> int:
    """Numbers between the two layers of a bottleneck adapter, for a model of this width."""
    return max(1, round(hidden / reduction_factor))


def context_length(folder: Path) -> int | None:
    """The longest row in tokens that the model was made for, or None where its config does not say."""
    config = _of_decoder(weights.read_config(folder))
    return next((config[name] for name in SPELLINGS["context"] if isinstance(config.get(name), int)), None)


def _of_decoder(config: dict[str, Any]) -> dict[str, Any]:
    # A model that also sees images keeps the decoder's sizes one level down.
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number(config: dict[str, Any], fact: str, folder: Path, default: int | None = None) -> int:
    for name in SPELLINGS[fact]:
        if isinstance(value := config.get(name), int):
            return value
    if default is not None:
        return default
    raise ModelError(
        f"does not say {fact} ({' or '.join(SPELLINGS[fact])})",
        where=str(folder / "config.json"),
        next_step="choose a decoder-only language model (luthier models list), or mend config.json",
    )
