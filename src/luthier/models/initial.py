"""LoRA adapters that do not start at zero, and how such a run is saved as plain LoRA.

The base is left as it is, in memory too. A start that says something (A0 and B0, PiSSA's for one) is taken off again by a second, frozen
adapter of -B0 and A0 beside the trained one, so that W x + s (B A - B0 A0) x is learned and the model begins as its base. PEFT changes
the base's weights instead, to W - s B0 A0: in bf16 that rounds them, and with the adapter switched off the base would be gone.
What is saved is [A; A0] and [B, -B0], one plain LoRA of twice the rank, which is what was trained, number by number.

Letters: I inputs, O outputs, R rank.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier import files
from luthier.errors import ConfigError
from luthier.models import quantized, weights
from luthier.models.save import write_tensors
from luthier.records import TokenizedExample

TRAINED, FROZEN = "default", "start"
FILE = "start.safetensors"
WHERE = "lora.init_lora_weights"
# Above so many rows or columns the singular vectors are approached by 16 rounds of power iteration (the PiSSA paper's fast form).
EXACT_WIDTH = 1024
# Rows that EVA looks at, at most.
EVA_ROWS = 64
IGNORED = -100


def principal(weight_OI: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B from the largest singular values (PiSSA, Meng 2024, arXiv:2404.02948)."""
    u, s, v = _svd(weight_OI, r)
    root = (s / scale).sqrt()
    return root[:, None] * v, u * root


def orthonormal(weight_OI: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B from the QR decomposition (OLoRA, Büyükakyüz 2024, arXiv:2406.01775)."""
    q, upper = torch.linalg.qr(weight_OI)
    return upper[:r], q[:, :r]


def rounding_error(weight_OI: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B from the largest singular values of what 4 bits (NF4) would lose (LoftQ, Li 2023, arXiv:2310.08659, one round)."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError as error:
        raise ConfigError("loftq needs bitsandbytes, which is not here", where=WHERE, next_step='pip install "luthier[optim]"') from error
    rounded = dequantize_4bit(*quantize_4bit(weight_OI.contiguous(), quant_type="nf4"))
    return principal(weight_OI - rounded, r, scale)


def orthogonal(layer: Any) -> None:
    """A and B with rows in two halves that are orthogonal to each other, so that B A is zero up to rounding (as PEFT's "orthogonal")."""
    a, b = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
    r = len(a)
    if r % 2:
        raise ConfigError(f"orthogonal needs an even rank, and r is {r}", where=WHERE, next_step=f"lora.r: {r + 1}")
    q = torch.linalg.qr(torch.randn(r, r))[0]
    a.copy_((torch.randn(a.shape[1], r // 2) @ q[0::2]).T / 10)
    b.copy_(torch.randn(b.shape[0], r // 2) @ q[1::2] / 10)


STARTS: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {
    # init_lora_weights   A0 and B0 from a weight, the rank and the scale
    "pissa": principal,
    "olora": orthonormal,
    "loftq": rounding_error,
}


def _svd(weight_OI: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    if max(weight_OI.shape) <= EXACT_WIDTH:
        u, s, v = torch.linalg.svd(weight_OI, full_matrices=False)
        return u[:, :r], s[:r], v[:r]
    u, s, v_IR = torch.svd_lowrank(weight_OI, r, niter=16)
    return u, s, v_IR.T


@torch.no_grad()
def begin(model: peft.PeftModel, how: str) -> None:
    """Start the fresh adapters of `model` as `how` (lora.init_lora_weights) says; torch's random numbers decide what is drawn.

    Raises ConfigError for a rank that is wider than a layer.
    """
    for name, layer in lora_layers(model):
        if how == "orthogonal":
            orthogonal(layer)
        elif how in STARTS:
            _begin_layer(model, name, layer, how)


def _begin_layer(model: Any, name: str, layer: Any, how: str) -> None:
    rounded_base = how == "loftq" and quantized.is_quantized(layer.get_base_layer())
    weight_OI = _unrounded(model, name) if rounded_base else _weight(layer)
    r, scale = layer.r[TRAINED], layer.scaling[TRAINED]
    if r > min(weight_OI.shape):
        narrow = min(weight_OI.shape)
        raise ConfigError(f"{how} takes r = {r} directions from {name}, which has {narrow}", where=WHERE, next_step=f"lora.r: {narrow} or less")
    if rounded_base:
        # The base has lost it already: the adapter gives back what it can, and nothing is taken off.
        a, b = principal(weight_OI.to(_weight(layer).device) - _weight(layer), r, scale)
    else:
        a, b = STARTS[how](weight_OI, r, scale)
        _take_off(layer, a, b)
    layer.lora_A[TRAINED].weight.copy_(a)
    layer.lora_B[TRAINED].weight.copy_(b)


def _take_off(layer: Any, a: Tensor, b: Tensor) -> None:
    """Put the frozen adapter (A0, -B0) beside the trained one."""
    alpha = layer.lora_alpha[TRAINED]
    config = peft.LoraConfig(r=layer.r[TRAINED], lora_alpha=alpha, use_rslora=layer.use_rslora[TRAINED], lora_dropout=0.0)
    layer.update_layer(FROZEN, layer.r[TRAINED], alpha, config)
    for linear, value in ((layer.lora_A[FROZEN], a), (layer.lora_B[FROZEN], -b)):
        # No parameter: switching adapters off and on makes PEFT train every parameter of those that are on.
        del linear.weight
        linear.register_buffer("weight", value.float().contiguous().clone(), persistent=False)
    layer.set_adapter([TRAINED, FROZEN])


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted layers by their whole names in the base model."""
    base = model.get_base_model()
    return ((name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer) and TRAINED in module.lora_A)


def _weight(layer: Any) -> Tensor:
    """The base's weight, (O, I) in fp32."""
    base = layer.get_base_layer()
    weight = quantized.weight_of(base, torch.float32) if quantized.is_quantized(base) else base.weight
    whole: Tensor = (weight.T if getattr(layer, "fan_in_fan_out", False) else weight).detach().float()
    return whole


def _unrounded(model: Any, name: str) -> Tensor:
    """The weight of a quantized layer as it lies on disk, (O, I) in fp32."""
    folder = Path(model.get_base_model().name_or_path)
    key = f"{name}.weight"
    for path in weights.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if key in file.keys():  # noqa: SIM118  # a safetensors file is no dict
                found: Tensor = file.get_tensor(key)
                return found.float()
    raise ConfigError(f"loftq needs the unrounded {key}, which is not in {folder}", where=WHERE, next_step=f"{WHERE}: default")


def by_variance(model: peft.PeftModel, examples: Iterable[TokenizedExample], seed: int) -> None:
    """Start A along the directions in which the inputs of a layer vary most on `examples` (EVA, Paischer 2024, arXiv:2410.07170).

    B stays zero, so the model begins as its base to the bit. Raises ConfigError where the rows hold fewer trained tokens than the rank.
    """
    config: Any = model.peft_config[TRAINED]
    kept = {name: getattr(config, name) for name in ("target_modules", "rank_pattern", "alpha_pattern")}  # PEFT would write whole names
    config.init_lora_weights, config.eva_config = "eva", peft.EvaConfig(rho=1.0)  # 1: every layer keeps its rank
    widest = max(layer.r[TRAINED] for _, layer in lora_layers(model))
    batches = _eva_batches(list(itertools.islice(examples, EVA_ROWS)), widest)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    config = model.peft_config[TRAINED]
    config.init_lora_weights, config.eva_config = True, None
    for name, value in kept.items():
        setattr(config, name, value)


def _eva_batches(examples: Sequence[TokenizedExample], least_tokens: int) -> list[dict[str, Tensor]]:
    """Padded batches that hold at least so many trained tokens each: PEFT passes over smaller ones, for ever where all are."""
    batches: list[list[TokenizedExample]] = [[]]
    for example in examples:
        if sum(one.trained_tokens for one in batches[-1]) >= least_tokens:
            batches.append([])
        batches[-1].append(example)
    whole = [batch for batch in batches if sum(example.trained_tokens for example in batch) >= least_tokens]
    if not whole:
        found = sum(example.trained_tokens for example in examples)
        raise ConfigError(
            f"eva starts from training rows, and the first {len(examples)} hold {found} trained tokens for a rank of {least_tokens}",
            where=WHERE,
            next_step=f"a smaller lora.r, or {WHERE}: default",
        )
    return [_padded(batch) for batch in whole]


def _padded(batch: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    def rows(values: list[list[int]], filling: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(value) for value in values], batch_first=True, padding_value=filling)

    labels = [[token if trained else IGNORED for token, trained in zip(one.token_ids, one.trained, strict=True)] for one in batch]
    return {
        "input_ids": rows([one.token_ids for one in batch], 0),
        "attention_mask": rows([[1] * len(one.token_ids) for one in batch], 0),
        "labels": rows(labels, IGNORED),
    }


def frozen(model: Any) -> dict[str, Tensor]:
    """A0 and -B0 of every layer that has them, by the names that PEFT gives to the trained A and B in a file."""
    if not isinstance(model, peft.PeftModel):
        return {}
    return {
        f"base_model.model.{name}.{part}.weight": getattr(layer, part)[FROZEN].weight
        for name, layer in lora_layers(model)
        if FROZEN in layer.lora_A
        for part in ("lora_A", "lora_B")
    }


def keep(model: Any, folder: Path) -> None:
    """Write what the adapters started at into `folder`, for a run to go on from; nothing where they started at zero."""
    if kept := frozen(model):
        files.build_folder(folder, lambda staging: write_tensors(staging / FILE, kept))


def take(model: peft.PeftModel, folder: Path) -> None:
    """Give fresh adapters the start that `keep` wrote; the trained weights come from a checkpoint."""
    stored = load_file(folder / FILE)
    with torch.no_grad():
        for name, layer in lora_layers(model):
            a, b = (stored[f"base_model.model.{name}.{part}.weight"].to(layer.get_base_layer().weight.device) for part in ("lora_A", "lora_B"))
            _take_off(layer, a, -b)


def as_plain(model: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A stored adapter and its config as one plain LoRA of twice the rank: the trained one with its start taken off."""
    beside = frozen(model)
    wide = {
        name: torch.cat([tensor, beside[name].to(tensor.device, tensor.dtype)], dim=1 if ".lora_B." in name else 0) if name in beside else tensor
        for name, tensor in tensors.items()
    }
    # The scale stays: alpha / r, or alpha / sqrt(r).
    grown = math.sqrt(2) if config["use_rslora"] else 2
    changes = {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": grown * config["lora_alpha"],
        "rank_pattern": {name: 2 * r for name, r in config["rank_pattern"].items()},
        "alpha_pattern": {name: grown * alpha for name, alpha in config["alpha_pattern"].items()},
    }
    return wide, config | changes
