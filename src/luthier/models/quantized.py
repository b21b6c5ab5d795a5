"""A frozen base in 4 or 8 bits, for adapters to be trained beside (QLoRA, Dettmers 2023, arXiv:2305.14314).

Linear layers are quantized. Norms, biases, the embedding, the head, routers and experts that are fused in one tensor keep the run's format.
Every kind computes x W^T with W in the format of the products: what is trained beside it is trained beside exactly that W, on a GPU as on a
CPU, while it learns as while it answers.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models import load
from luthier.models.targets import ROUTER

# The libraries name more devices, of which none was tried.
DEVICES = {"cpu", "cuda"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a base is quantized: `kind` is qlora.quantization, `source` the format (bf16, fp16, fp32) of the weights that are quantized,
    and `compute` that of the products. `shared`: ranks share the weights, so 4 bits lie in numbers that can be cut as others are."""

    kind: str
    double_quant: bool
    source: str
    compute: str
    shared: bool = False


def quantization_of(settings: Settings, precision: str | None = None) -> Quantization | None:
    """How the base of a run is quantized; None where it is not. `precision` is the format that it is opened in, where that is another than
    the one it was trained in: the weights stay those that were trained beside, and the products take the new format."""
    if settings.method != "qlora":
        return None
    trained, asked = str(settings.training.precision), settings.qlora
    opened = precision or trained
    compute = asked.compute_dtype if asked.compute_dtype != "auto" and opened == trained else opened
    return Quantization(asked.quantization, asked.double_quant, source=trained, compute=compute)


def base_of(settings: Settings) -> str:
    """What a run's adapter stands beside, in words: "a base in nf4", or "an unquantized base"."""
    asked = quantization_of(settings)
    if asked is None:
        return "an unquantized base"
    return f"a base in {asked.kind}" + (" without double_quant" if "4" in asked.kind and not asked.double_quant else "")


def load_model(folder: Path, precision: str, device: str, quantization: Quantization | None) -> Any:
    """The folder's language model as load.load_model gives it, its linear layers quantized while they are read.

    Raises ConfigError where the library is missing, or where nothing in this model can be quantized.
    """
    if quantization is None:
        return load.load_model(folder, precision, device)  # type: ignore[arg-type]
    require(quantization.kind, device)
    load.check_finite_files(folder)  # once quantized, what is not finite no longer shows
    kept = _kept_layers(folder)
    model = load.load_model(folder, quantization.source, device, KINDS[quantization.kind].config(quantization, kept))  # type: ignore[arg-type]
    if next(quantized_layers(model), None) is None:
        raise ConfigError(
            f"{quantization.kind} finds no linear layer in this model that it can quantize", where="qlora.quantization", next_step="method: lora"
        )
    compute = load.DTYPES[quantization.compute]
    for _, layer in quantized_layers(model):
        _prepare(layer, compute)
    return _cast_others(model, load.DTYPES[precision])


def require(kind: str, device: str) -> None:
    """Raises ConfigError where the library of this kind is missing, or has not been tried on this device."""
    library = KINDS[kind].library
    if device not in DEVICES:
        raise ConfigError(f"a base in 4 or 8 bits has not been tried on {device}", where="qlora.quantization", next_step="method: lora")
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"{kind} needs {library}, which is not here", where="qlora.quantization", next_step='pip install "luthier[quant]"'
        ) from error


def _kept_layers(folder: Path) -> list[str]:
    """The linear layers that stay as they are, by their whole names: the head and routers."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name, module in linear if module is head or ROUTER.search(name)]


def _four_bits(asked: Quantization, kept: list[str]) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=asked.kind,
        bnb_4bit_use_double_quant=asked.double_quant,
        bnb_4bit_compute_dtype=load.DTYPES[asked.compute],
        bnb_4bit_quant_storage=load.DTYPES[asked.compute] if asked.shared else torch.uint8,
        llm_int8_skip_modules=kept,
    )


def _eight_bits(asked: Quantization, kept: list[str]) -> Any:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)


def _torchao(asked: Quantization, kept: list[str]) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)


def _of_four_bits(layer: Any, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.quant_state)  # its own: micro-batches run side by side; the layer's, as a weight that was cut has lost it
    state.dtype = dtype  # the format that it gives
    weight: Tensor = dequantize_4bit(layer.weight.data, state)
    return weight


def _of_eight_bits(layer: Any, dtype: torch.dtype) -> Tensor:
    weight: Tensor = layer.weight.CB.float() * (layer.weight.SCB.float() / 127)[:, None]
    return weight.to(dtype)


def _of_torchao(layer: Any, dtype: torch.dtype) -> Tensor:
    weight: Tensor = layer.weight.dequantize(output_dtype=dtype)
    return weight


@dataclass(frozen=True, slots=True)
class Kind:
    """One format: the library that makes it, the class of its layers (or of their weight), what Transformers is told, and its way back."""

    library: str
    made: str
    config: Callable[[Quantization, list[str]], Any]
    weight: Callable[[Any, torch.dtype], Tensor]


KINDS = {
    # qlora.quantization   library      class           Transformers'   a layer's weight in a format
    "nf4": Kind("bitsandbytes", "Linear4bit", _four_bits, _of_four_bits),
    "fp4": Kind("bitsandbytes", "Linear4bit", _four_bits, _of_four_bits),
    "int8": Kind("bitsandbytes", "Linear8bitLt", _eight_bits, _of_eight_bits),
    "int8_torchao": Kind("torchao", "Int8Tensor", _torchao, _of_torchao),
}
_BY_CLASS = {kind.made: kind for kind in KINDS.values()}


def _kind_of(layer: Any) -> Kind | None:
    if not isinstance(layer, nn.Linear):  # PEFT's layers around them have the same names
        return None
    return _BY_CLASS.get(type(layer).__name__) or _BY_CLASS.get(type(layer.weight).__name__)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every quantized layer of the model with its whole name."""
    yield from [(name, layer) for name, layer in model.named_modules() if _kind_of(layer)]


def is_quantized(layer: Any) -> bool:
    """Whether this is a quantized linear layer."""
    return _kind_of(layer) is not None


def weight_of(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight, (outputs, inputs), that a quantized layer stands for, in a format."""
    kind = _kind_of(layer)
    assert kind is not None
    return kind.weight(layer, dtype)


class _Product(torch.autograd.Function):
    """x W^T with a frozen W that is made anew for each product, and again for the gradient of x: no form of it but the small one is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return nn.functional.linear(x, weight_of(layer, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] @ weight_of(ctx.layer, grads[0].dtype), None


def _prepare(layer: Any, compute: torch.dtype) -> None:
    """Make a freshly loaded layer one that can be trained above."""
    layer.compute_dtype = compute
    if type(layer).__name__ == "Linear4bit":
        # On CPUs with AVX512-BF16 bitsandbytes packs the weight anew when it answers, and its backward pass then reads it wrongly ever after.
        layer.support_avx512bf16_for_cpu = False
        layer.weight.quant_state.dtype = compute
        layer.quant_state = layer.weight.quant_state
        return

    # The libraries' own forwards round the inputs too (bitsandbytes, and only while answering), or keep W in full for the backward pass.
    def forward(x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x.to(compute), layer)  # type: ignore[no-untyped-call]
        return product.to(x.dtype)

    layer.forward = forward


def _cast_others(model: Any, dtype: torch.dtype) -> Any:
    """Everything that is not quantized in this format. (Transformers refuses to cast a quantized model.)"""
    held = {id(tensor) for _, layer in quantized_layers(model) for tensor in (layer.weight,)}
    for parameter in model.parameters():
        if id(parameter) not in held and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def unquantized(model: Any) -> Any:
    """The model with every quantized layer replaced by the plain one, in fp32, that it stands for: an ordinary model in fp32."""
    for name, layer in list(quantized_layers(model)):
        weight = weight_of(layer, torch.float32)
        model.set_submodule(name, _plain(layer, weight))
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return _cast_others(model, torch.float32)


def _plain(layer: Any, weight: Tensor) -> nn.Module:
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    transposed = getattr(layer, "source_cls", None) is Conv1D
    outputs, inputs = weight.shape
    with torch.device("meta"):
        plain: Any = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs)
    plain.weight, plain.bias = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False), bias
    module: nn.Module = plain.train(layer.training)
    return module
