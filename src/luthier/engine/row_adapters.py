"""From an adapter's folder to what a server gives each request: LoRA, bottleneck, prefix, prompt and p-tuning adapters."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier import files
from luthier.config.adapters import BottleneckSettings
from luthier.engine import update
from luthier.engine.by_row import Behind, LowRank, RowAdapter
from luthier.engine.packed import KeysValues, Packed
from luthier.errors import ModelError
from luthier.models import adapters, bottleneck, quantized

PEFT_PREFIX = "base_model.model."
# Starts that take a part off the base (PEFT's names), and switches that change what a layer does.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MORE_THAN_LORA = ("use_dora", "alora_invocation_tokens", "layer_replication", "use_qalora", "arrow_config", "target_parameters", "lora_bias")
PREFIXES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
MERGE = "luthier export RUN --to merged, and serve that folder"


def load(model: Any, folder: Path) -> RowAdapter:
    """The adapter stored in `folder`, for the base `model`, which is left as it is.

    Strict: made for this base, every tensor finite and at home in it. Raises ModelError, also for kinds that a server cannot choose for each
    request (DoRA, IA3, trained embeddings ...).
    """
    config, tensors = adapters.read_stored(folder, model)
    key = files.sha256(folder / adapters.CONFIG) + files.sha256(folder / adapters.WEIGHTS)
    kind = str(config.get("peft_type"))
    try:
        if kind == bottleneck.TYPE:
            return RowAdapter(key, behind=_behind(model, folder, config, tensors))
        if kind == "LORA":
            return RowAdapter(key, low_rank=_low_rank(model, folder, config, tensors))
        if kind in PREFIXES:
            return RowAdapter(key, prefix=_prefix(model, folder, kind, tensors))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, re.error) as error:
        problem = f"its {adapters.CONFIG} and its tensors cannot be read together ({type(error).__name__}: {error})"
        raise ModelError(problem, where=str(folder), next_step="save the adapter again") from error
    raise ModelError(f"adapters of kind {kind} are not chosen for each request", where=str(folder), next_step=MERGE)


def _low_rank(model: Any, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, LowRank]:
    _check_plain(folder, config)
    found: dict[str, LowRank] = {}
    device = update.device_of(model)
    halves = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    foreign = sorted(name for name in halves if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    if foreign:
        raise ModelError(f"{foreign[0]} is more than LoRA adds, and is not chosen for each request", where=str(folder), next_step=MERGE)
    for name in sorted({name.rpartition(".lora_")[0] for name in halves}):
        down, up = halves.get(f"{name}.lora_A.weight"), halves.get(f"{name}.lora_B.weight")
        if down is None or up is None:
            raise ModelError(f"lacks one half of {name}", where=str(folder), next_step="save the adapter again")
        _check_shape(model, folder, name, down, up)
        alpha = _of_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
        rank = len(down)
        found[name] = LowRank(down.to(device), up.to(device), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if not found:
        raise ModelError("holds no LoRA matrices: it would answer as the base", where=str(folder), next_step="save the adapter again")
    return found


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    """Raises ModelError for a LoRA that is more than two narrow matrices a layer."""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ModelError(f"init_lora_weights is {start}, which changes the base too", where=str(folder), next_step=MERGE)
    if more := [name for name in MORE_THAN_LORA if config.get(name)]:
        raise ModelError(f"{more[0]} is more than LoRA adds, and is not chosen for each request", where=str(folder), next_step=MERGE)


def _of_pattern(patterns: dict[str, Any], name: str, otherwise: Any) -> float:
    """PEFT's rule: the first pattern that the end of the layer's name matches."""
    return float(next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), otherwise))


def _check_shape(model: Any, folder: Path, name: str, down: Tensor, up: Tensor) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"the base has no layer {name}", where=str(folder), next_step="serve it on the base it was made for") from error
    if module is model.get_output_embeddings():
        raise ModelError("adapts the head, which is not done for each request", where=str(folder), next_step=MERGE)
    if not (isinstance(module, nn.Linear) or quantized.is_quantized(module)):
        raise ModelError(f"{name} is a {type(module).__name__}, no linear layer", where=str(folder), next_step=MERGE)
    expected = [module.in_features, module.out_features]
    if [down.shape[1], up.shape[0]] != expected or down.shape[0] != up.shape[1]:
        problem = f"{name} is {list(down.shape)} and {list(up.shape)}, and the base's layer takes {expected[0]} and gives {expected[1]}"
        raise ModelError(problem, where=str(folder), next_step="serve it on the base it was made for")


def _behind(model: Any, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Behind]:
    settings = BottleneckSettings.model_validate({name: value for name, value in config.items() if name in BottleneckSettings.model_fields})
    _, reads_input = bottleneck.KINDS[settings.kind]
    width = model.config.get_text_config().hidden_size
    found = {}
    for name in sorted({name.rpartition(".bottleneck_")[0] + "." + name.rpartition(".bottleneck_")[2].partition(".")[0] for name in tensors}):
        block, _, part = name.rpartition(".")
        one = bottleneck.Bottleneck(width, settings)
        own = f"{block}.bottleneck_{part}."
        try:
            model.get_submodule(name)
            one.load_state_dict({stored.removeprefix(own): tensor for stored, tensor in tensors.items() if stored.startswith(own)})
        except (AttributeError, RuntimeError) as error:
            raise ModelError(f"does not fit the base at {name}", where=str(folder), next_step="serve it on the base it was made for") from error
        found[name] = Behind(one.requires_grad_(False).to(update.device_of(model)), reads_input)
    return found


def _stored_prompt(folder: Path, tensors: dict[str, Tensor]) -> Tensor:
    if set(tensors) != {"prompt_embeddings"}:
        raise ModelError("holds other tensors than its virtual tokens", where=str(folder), next_step="save the adapter again with PEFT")
    return tensors["prompt_embeddings"]


@torch.no_grad()
def _prefix(model: Any, folder: Path, kind: str, tensors: dict[str, Tensor]) -> dict[int, KeysValues]:
    stored = _stored_prompt(folder, tensors)
    device, dtype, config = update.device_of(model), model.get_input_embeddings().weight.dtype, model.config.get_text_config()
    if kind == "PREFIX_TUNING":
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        layers = config.num_hidden_layers
        if stored.shape[1] % (2 * layers * kv_heads):
            problem = f"its virtual tokens are {stored.shape[1]} wide, which {layers} layers of {kv_heads} heads do not divide"
            raise ModelError(problem, where=str(folder), next_step="serve it on the base it was made for")
        by_layer = stored.to(device, dtype).view(len(stored), layers, 2, kv_heads, -1)
        return {layer: (by_layer[:, layer, 0], by_layer[:, layer, 1]) for layer in range(layers)}
    if stored.shape[1] != config.hidden_size:
        problem = f"its virtual tokens are {stored.shape[1]} wide, and the base is {config.hidden_size}"
        raise ModelError(problem, where=str(folder), next_step="serve it on the base it was made for")
    layout = Packed([len(stored)], record=True)
    update.run(model, stored.to(device, dtype)[None], torch.arange(len(stored), device=device)[None], layout)
    return layout.recorded
