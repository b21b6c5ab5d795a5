"""What decoders have beside their large matrices, by the model_type of config.json, so that their numbers can be counted. No torch here."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a decoder has beside its embedding, its head and the matrices of attention and MLP, which all have.

    `block_norms`: norms in a block; `norm_vectors`: vectors of one, 1 a weight, 2 a weight and a bias, 0 nothing that is learned.
    `query_key_norms`: a weight for one head's width, or for all heads'. Biases are those of the linear layers. `gated`: the MLP has
    three matrices and not two. `learned_positions`: a table of positions. `sinks`: a number for each head.
    """

    block_norms: int = 2
    norm_vectors: int = 1
    query_key_norms: Literal["", "head", "all"] = ""
    attention_bias: Literal["", "qkv", "all"] = ""
    mlp_bias: bool = False
    head_bias: bool = False
    router_bias: bool = False
    gated: bool = True
    learned_positions: bool = False
    sinks: bool = False
    tied: bool = False  # where config.json does not say


LLAMA = Architecture()
ARCHITECTURES = {
    # model_type     beside the matrices
    "gemma":         Architecture(tied=True),
    "gemma2":        Architecture(block_norms=4, tied=True),
    "gemma3":        Architecture(block_norms=4, query_key_norms="head", tied=True),
    "gemma3_text":   Architecture(block_norms=4, query_key_norms="head", tied=True),
    "gpt2":          Architecture(norm_vectors=2, attention_bias="all", mlp_bias=True, gated=False, learned_positions=True, tied=True),
    "gpt_neox":      Architecture(norm_vectors=2, attention_bias="all", mlp_bias=True, gated=False),
    "gpt_oss":       Architecture(attention_bias="all", mlp_bias=True, router_bias=True, sinks=True),
    "granite":       LLAMA,
    "llama":         LLAMA,
    "mistral":       LLAMA,
    "mixtral":       LLAMA,
    "olmo":          Architecture(norm_vectors=0),
    "olmo2":         Architecture(query_key_norms="all"),
    "olmo3":         Architecture(query_key_norms="all"),
    "phi":           Architecture(block_norms=1, norm_vectors=2, attention_bias="all", mlp_bias=True, head_bias=True, gated=False),
    "phi3":          LLAMA,
    "qwen2":         Architecture(attention_bias="qkv"),
    "qwen3":         Architecture(query_key_norms="head"),
    "qwen3_moe":     Architecture(query_key_norms="head"),
    "smollm3":       Architecture(tied=True),
    "starcoder2":    Architecture(norm_vectors=2, attention_bias="all", mlp_bias=True, gated=False, tied=True),
}  # fmt: skip
# Biases that config.json may ask for in families whose usual models have none.
BIAS_SETTINGS = {"attention_bias": "all", "mlp_bias": True}


def of_config(config: dict[str, Any]) -> Architecture | None:
    """The architecture that config.json names, with the biases that it asks for; None for one that is not in the table."""
    known = ARCHITECTURES.get(str(config.get("model_type", "")))
    if known is None or known is not LLAMA:
        return known
    asked = {name: value for name, value in BIAS_SETTINGS.items() if config.get(name) is True}
    return Architecture(**{**asked}) if asked else known  # type: ignore[arg-type]
