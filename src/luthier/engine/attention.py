"""The attention door: what a model's attention does is chosen by the `luthier_layout` in its keyword arguments.

Entered through Transformers' attention interface. Without a layout the call goes to SDPA, or for a model that SDPA is wrong for (Gemma 2
caps its scores) to the model's own plain attention: so a model that the engine opened still works everywhere else.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from luthier.engine.blocks import Rule
from luthier.engine.decoding import Decoding
from luthier.errors import ConfigError

# The door's name, by the plain attention that a model has without a layout.
DOORS = {"sdpa": "luthier", "eager": "luthier_eager"}
# What a layer may tell its attention besides `luthier_layout`; anything else would change the attention.
KNOWN = {
    "scaling",
    "sliding_window",
    "softcap",
    "is_causal",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "num_items_in_batch",
}
UNKNOWN = {
    "dropout": "part of its attention is dropped while it trains",
    "s_aux": "its attention has sinks",
    "position_bias": "its attention adds a bias by distance",
    "indices": "its attention picks the keys that it sees",
}


def plain_name(name: str) -> str:
    """The plain attention behind a door; of any other implementation, its own name."""
    return next((plain for plain, door in DOORS.items() if door == name), name)


def set_plain(model: Any, name: str) -> None:
    """Have the model attend as Transformers does under this name. Raises ConfigError where that is wrong for this model."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        where = "training.attn_implementation"
        raise ConfigError(f"{type(model).__name__} cannot run with {name}", where=where, next_step=f"{where}: auto, or eager") from error


def _door(plain: Callable[..., Any]) -> Callable[..., tuple[Tensor, None]]:
    """An attention that does as its layout says; without one, what `plain` does."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, None]:
        layout = kwargs.pop("luthier_layout", None)
        if layout is None:
            _check_told(query, attention_mask)
            return plain(module, query, key, value, attention_mask, **kwargs)[0], None
        return _with_layout(layout, module, query, key, value, attention_mask, kwargs)

    return attention


def _own_eager(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The plain attention that a model brings along."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def _check_told(query: Tensor, mask: Tensor | None) -> None:
    """A mask of one number comes from the engine alone: then the layout was lost on the way."""
    if mask is not None and mask.numel() == 1 and query.shape[-2] > 1:
        raise NotImplementedError("its layers do not tell their attention where documents begin")


def _with_layout(
    layout: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, told: dict[str, Any]
) -> tuple[Tensor, None]:
    if foreign := [name for name, value in told.items() if name not in KNOWN and value is not None and not (name == "dropout" and value == 0.0)]:
        raise NotImplementedError(UNKNOWN.get(foreign[0], f"its attention is told {foreign[0]}, which the fast path does not know"))
    if mask is not None and mask.numel() > 1:
        raise NotImplementedError("its attention makes a mask of its own")
    if told.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise NotImplementedError("its attention also looks ahead")
    rule = Rule(told.get("scaling") or query.shape[-1] ** -0.5, told.get("sliding_window"), told.get("softcap"))
    if isinstance(layout, Decoding):
        return layout.attend(module.layer_idx, query, key, value, rule), None
    return layout.attend(module.layer_idx, query[0], key[0], value[0], rule)[None], None


AttentionInterface.register(DOORS["sdpa"], _door(sdpa_attention_forward))
AttentionInterface.register(DOORS["eager"], _door(_own_eager))
AttentionMaskInterface.register(DOORS["sdpa"], sdpa_mask)
AttentionMaskInterface.register(DOORS["eager"], eager_mask)
