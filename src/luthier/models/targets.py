"""Which linear layers of a model get an adapter: names or an expression in, the short names that other tools know too out."""

import re
from collections.abc import Sequence
from typing import Any

import peft
import torch
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from luthier.errors import ConfigError
from luthier.models import layer_names
from luthier.models.layer_names import ends_with, short

# Layers that choose among experts; trained, they would send tokens elsewhere than the experts were made for.
ROUTER = re.compile(r"(^|\.)(gate|\w*router\w*|\w*expert_gate)(\.|$)")
ALL = "all-linear"


def resolve(model: Any, wanted: str | Sequence[str], layers: Sequence[int] = (), where: str = "lora.target_modules") -> list[str]:
    """The layers that `wanted` means: all-linear, names, or one regular expression for whole names (re.fullmatch, as PEFT has it).

    They come as the last parts of their names (q_proj), which vLLM, SGLang and LoRAX read; as whole names only where an expression
    takes some of the layers of a name. The head is never among them, routers and experts only where they are named. Raises ConfigError
    for what matches nothing, and for an expression beside `layers`, numbers of layers that are chosen already.
    """
    linear = linear_layers(model)
    if wanted == ALL or list(wanted) == [ALL]:
        return [name for name in short(linear) if name not in _routers(linear) and not _names_experts(model, name)]
    if isinstance(wanted, str) and not any(ends_with(name, wanted) for name in linear):
        return _of_expression(model, wanted, linear, layers, where)
    return _of_names(model, [wanted] if isinstance(wanted, str) else list(wanted), linear, where)


def linear_layers(model: Any) -> list[str]:
    """The whole names of the model's linear layers, in order, without the head."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not head]


def _routers(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names if ROUTER.search(name)}


def _of_names(model: Any, wanted: list[str], linear: list[str], where: str) -> list[str]:
    layer_names.require_names(wanted, linear, where)
    if experts := [target for target in wanted if _names_experts(model, target)]:
        raise ConfigError(
            f"{', '.join(experts)}: PEFT would take the experts of this model for them, which stay as they are",
            where=where,
            next_step="all-linear, which leaves the experts and the router out",
        )
    return wanted


def _of_expression(model: Any, expression: str, linear: list[str], layers: Sequence[int], where: str) -> list[str]:
    pattern = re.compile(expression)
    if layers:
        raise ConfigError(
            "an expression for whole names chooses the layers itself, and layers_to_transform chooses them too",
            where=where,
            next_step=rf"write the numbers into the expression (.*\.(1|2)\..*{short(linear)[0]}), or name the layers: [{short(linear)[0]}]",
        )
    left_out = _routers(linear)
    matched = [name for name in linear if pattern.fullmatch(name) and name.rpartition(".")[2] not in left_out]
    matched = [name for name in matched if not _names_experts(model, name)]
    if not matched:
        raise layer_names.no_match(expression, linear, where)
    names = short(matched)
    every = [name for name in linear if name.rpartition(".")[2] in names]
    return names if every == matched else matched


def _names_experts(model: Any, target: str) -> bool:
    """Whether PEFT takes this name of a layer for the experts that Transformers 5 keeps fused in one tensor."""
    config = peft.LoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one half of a fused tensor
        return True
    return target not in (config.target_modules or [])
