"""The names of a model's linear layers without loading it: from the headers of its weights, else from its architecture. No torch here."""

import re
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import ConfigError
from luthier.models import weights

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# Linear layers of one block by model_type of config.json. Experts are none: they are fused in tensors.
OF_BLOCKS = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3", "smollm3"), _GATED
    ),
    **dict.fromkeys(("gpt_oss", "mixtral", "qwen3_moe"), _ATTENTION),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "phi": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "starcoder2": (*_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
}
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
# Matrices that are no linear layers below a head: tables, the head, routers, and experts as their files have them.
NO_LINEAR = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|\w*router\w*|experts|gate|rotary_emb)(\.|$)")


def of_weights(folder: Path) -> list[str]:
    """The whole names of the linear layers of the model in `folder`, as its weights name them."""
    shapes = weights.tensor_shapes(folder)
    return [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2 and not NO_LINEAR.search(name)
    ]


def of_architecture(model_type: str, layers: int) -> list[str]:
    """The same by model_type, for so many blocks; [] for one that is not in the table."""
    blocks = BLOCKS.get(model_type, "model.layers")
    return [f"{blocks}.{number}.{name}" for number in range(layers) for name in OF_BLOCKS.get(model_type, ())]


def require(wanted: str | Sequence[str], linear: Sequence[str], where: str) -> None:
    """Raises ConfigError where `wanted` (all-linear, names, or one regular expression for whole names) means none of these layers."""
    if wanted == "all-linear" or list(wanted) == ["all-linear"]:
        return
    if isinstance(wanted, str) and not any(ends_with(name, wanted) for name in linear):
        if not any(re.fullmatch(wanted, name) for name in linear):
            raise no_match(wanted, linear, where)
        return
    require_names([wanted] if isinstance(wanted, str) else list(wanted), linear, where)


def require_names(wanted: list[str], linear: Sequence[str], where: str) -> None:
    """Raises ConfigError for a name that no linear layer ends with."""
    unknown = [target for target in wanted if not any(ends_with(name, target) for name in linear)]
    if unknown or not wanted:
        raise ConfigError(
            f"this model has no linear layer {', '.join(unknown)}" if unknown else "no layer is named",
            where=where,
            next_step=f"all-linear, or some of: {', '.join(short(linear))}",
        )


def no_match(expression: str, linear: Sequence[str], where: str) -> ConfigError:
    """The error for a name or expression that means no layer."""
    return ConfigError(
        f"no linear layer has {expression!r} as its name, nor does its whole name match it",
        where=where,
        next_step=f"all-linear, or some of: {', '.join(short(linear))} (a whole name is {linear[0]})",
    )


def ends_with(name: str, target: str) -> bool:
    """Whether a whole name is `target`, or ends with it as its last parts."""
    return f".{name}".endswith(f".{target}")


def short(names: Sequence[str]) -> list[str]:
    """The last parts of whole names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})
