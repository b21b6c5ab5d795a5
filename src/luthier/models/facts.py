"""What a planner must know about a model, without loading it. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, ModelError
from luthier.models import architectures, weights
from luthier.models.architectures import Architecture


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A decoder's sizes: counts of parameters, layers, heads and tokens, and widths of its vectors in numbers.

    In a mixture of experts `parameters` are all of them, `intermediate` is the width of one expert, and `experts_used` of the `experts`
    of each block see a token.
    """

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
    gated: bool = True  # the MLP has three matrices (gate, up, down) and not two, as in GPT-2
    experts: int = 0
    experts_used: int = 0

    @property
    def expert_parameters(self) -> int:
        """Numbers in the matrices of one block's MLP, or of one of its experts."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def active_parameters(self) -> int:
        """Numbers that one token goes through: all but those of the experts that do not see it."""
        return self.parameters - self.layers * (self.experts - self.experts_used) * self.expert_parameters


def check_layers(numbers: Sequence[int], layers: int, where: str) -> None:
    """Raises ConfigError where one of these numbers of layers, which the setting `where` names, is not one of so many layers (from 0)."""
    if numbers and max(numbers) >= layers:
        raise ConfigError(f"layer {max(numbers)} is not there: this model has {layers}", where=where, next_step=f"numbers from 0 to {layers - 1}")


SPELLINGS = {
    # fact           names in config.json, first found wins
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_used": ("num_experts_per_tok", "experts_per_token"),
}


def from_folder(folder: Path) -> ModelFacts:
    """The facts of a model folder: sizes from config.json, the number of parameters from the headers of its weights, or counted from the
    sizes where there are no weights. Raises ModelError where something is missing."""
    config = weights.read_config(folder)
    where = folder / "config.json"
    if not weights.are_there(folder):
        return from_config(config, where)
    shapes = weights.tensor_shapes(folder)
    tied = not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in shapes)
    return _sizes(config, where, parameters=sum(weights.count(shape) for shape in shapes.values()), tied=tied)


def from_config(config: dict[str, Any], where: Path) -> ModelFacts:
    """The facts that follow from config.json alone, which lies at `where`; parameters are counted from the sizes.

    Raises ModelError where a size is missing, for a model that is no decoder, and for an architecture that is not in the table.
    """
    text = _of_decoder(config)
    architecture = architectures.of_config(text)
    if architecture is None:
        raise ModelError(
            f"parameters of model_type {text.get('model_type')!r} cannot be counted from sizes, and no weights lie beside it",
            where=str(where),
            next_step=f"fetch its *.safetensors too, or one of: {', '.join(architectures.ARCHITECTURES)}",
        )
    sizes = _sizes(config, where, parameters=0, tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", architecture.tied))))
    return replace(sizes, parameters=count_parameters(sizes, architecture))


def _sizes(config: dict[str, Any], where: Path, *, parameters: int, tied: bool) -> ModelFacts:
    text = _of_decoder(config)
    if config.get("is_encoder_decoder"):
        raise ModelError("has an encoder, and only decoders are trained", where=str(where), next_step="choose another: luthier models list")
    hidden, heads = _number(text, "hidden", where), _number(text, "heads", where)
    architecture = architectures.of_config(text)
    return ModelFacts(
        parameters=parameters,
        layers=_number(text, "layers", where),
        hidden=hidden,
        intermediate=_number(text, "intermediate", where, default=4 * hidden),
        heads=heads,
        kv_heads=_number(text, "kv_heads", where, default=heads),
        head_dim=_number(text, "head_dim", where, default=hidden // heads),
        vocabulary=_number(text, "vocabulary", where),
        context=_number(text, "context", where),
        tied=tied,
        gated=architecture.gated if architecture else True,
        experts=_number(text, "experts", where, default=0),
        experts_used=_number(text, "experts_used", where, default=0) if _number(text, "experts", where, default=0) else 0,
    )


def count_parameters(facts: ModelFacts, architecture: Architecture) -> int:
    """All numbers of a decoder of these sizes (`facts.parameters` is not read): tables, the last norm, and its blocks."""
    tables = (1 if facts.tied else 2) * facts.vocabulary * facts.hidden
    tables += facts.vocabulary * architecture.head_bias + facts.context * facts.hidden * architecture.learned_positions
    norm = architecture.norm_vectors * facts.hidden
    block = _attention_parameters(facts, architecture) + _mlp_parameters(facts, architecture) + architecture.block_norms * norm
    return tables + norm + facts.layers * block


def _attention_parameters(facts: ModelFacts, architecture: Architecture) -> int:
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    biases = {"": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + facts.hidden}[architecture.attention_bias]
    norms = {"": 0, "head": 2 * facts.head_dim, "all": queries + keys}[architecture.query_key_norms]
    return 2 * facts.hidden * (queries + keys) + biases + norms + facts.heads * architecture.sinks


def _mlp_parameters(facts: ModelFacts, architecture: Architecture) -> int:
    biases = architecture.mlp_bias * ((2 if facts.gated else 1) * facts.intermediate + facts.hidden)
    router = (facts.hidden + architecture.router_bias) * facts.experts
    return max(1, facts.experts) * (facts.expert_parameters + biases) + router


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


def _number(config: dict[str, Any], fact: str, where: Path, default: int | None = None) -> int:
    for name in SPELLINGS[fact]:
        if isinstance(value := config.get(name), int):
            return value
    if default is not None:
        return default
    raise ModelError(
        f"does not say {fact} ({' or '.join(SPELLINGS[fact])})",
        where=str(where),
        next_step="choose a decoder-only language model (luthier models list), or mend config.json",
    )
