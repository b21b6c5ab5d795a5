"""A merged model in 4 or 8 bits, stored as compressed-tensors has it: Transformers (with that library) and vLLM load the folder as it is.

Rounded by torch alone (docs/decisions/0011). Linear layers of the blocks are rounded; embedding, head, norms, biases and routers are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from luthier import files, tensor_file
from luthier.errors import ModelError
from luthier.export import awq, gptq, rounding
from luthier.export.calibration import Grams, Work, in_turn, rows_of
from luthier.export.rounding import Rounded
from luthier.models import load, save, weights
from luthier.models.blocks import known_blocks
from luthier.models.targets import ROUTER, linear_layers
from luthier.tensor_file import Stored

FORMATS = {
    # what is stored    compressed-tensors calls that
    "int4": "pack-quantized",
    "int8": "int-quantized",
    "fp8": "float-quantized",
}
TOKEN_WISE = {"dynamic": True, "strategy": "token", "symmetric": True, "num_bits": 8}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A merged model, and which of its layers are rounded."""

    model: Any
    folder: Path
    layers: list[str]
    dtype: torch.dtype  # that its numbers are stored in, and scales with them


def write_gptq(merged: Path, to: Path, *, calibration: Sequence[list[int]]) -> Path:
    """Write the model in `merged` into the folder `to` with weights of 4 bits by GPTQ. `calibration` are token ids of training rows.

    Raises ModelError for a model that cannot be rounded so, before anything is computed.
    """
    opened = _open(merged)
    group = _group(opened)
    found: dict[str, Rounded] = {}

    def work(name: str, layer: Any, gram: Tensor) -> None:
        found[name] = gptq.solve(layer.weight.float(), gram, group, opened.dtype)

    _each_layer(opened, calibration, work, found)
    return _write(opened, to, "int4", found, group)


def write_awq(merged: Path, to: Path, *, calibration: Sequence[list[int]]) -> Path:
    """The same by AWQ."""
    opened = _open(merged)
    group = _group(opened)
    found: dict[str, Rounded] = {}
    changed: dict[str, Tensor] = {}
    prefix = _prefix(opened)

    def before(number: int, block: nn.Module, grams: Grams, run: Callable[[], Tensor]) -> None:
        for source in awq.fold(block, grams, run, group, opened.dtype, str(merged)):
            for name, parameter in block.get_submodule(source).named_parameters():
                changed[f"{prefix}.{number}.{source}.{name}"] = parameter

    def work(name: str, layer: Any, gram: Tensor) -> None:
        found[name] = rounding.four_bits(layer.weight.float(), group, opened.dtype)

    _each_layer(opened, calibration, work, found, before)
    return _write(opened, to, "int4", found, group, changed)


def write_int8(merged: Path, to: Path) -> Path:
    """Weights in 8-bit whole numbers, a scale a row; activations are rounded to 8 bits token by token while the model runs."""
    opened = _open(merged)
    return _write(opened, to, "int8", _round_all(opened, rounding.eight_bits))


def write_fp8(merged: Path, to: Path) -> Path:
    """Weights in 8-bit floating point (e4m3), a scale a row; activations likewise token by token while the model runs."""
    opened = _open(merged)
    return _write(opened, to, "fp8", _round_all(opened, rounding.float8))


def _open(merged: Path) -> _Opened:
    model = load.load_model(merged, "fp32", "cpu")
    blocks = known_blocks(model, "compressing")
    if fused := [name for name, parameter in blocks.named_parameters() if parameter.dim() > 2]:
        raise ModelError(f"its experts are fused in one tensor ({fused[0]})", where=str(merged), next_step="--to gguf, which rounds them too")
    inside = {module for module in blocks.modules() if type(module) is nn.Linear}
    layers = [name for name in linear_layers(model) if model.get_submodule(name) in inside and not ROUTER.search(name)]
    stored = weights.tensor_shapes(merged)
    unknown = [name for name in layers if f"{name}.weight" not in stored]
    if unknown or not layers:
        what = f"its file has no {unknown[0]}.weight" if unknown else "none of its layers is a plain linear one"
        raise ModelError(f"cannot be compressed: {what}", where=str(merged), next_step="--to gguf")
    dtype = load.DTYPES.get(_short(str(weights.read_config(merged).get("dtype"))), torch.float32)
    return _Opened(model, merged, layers, dtype)


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")


def _prefix(opened: _Opened) -> str:
    blocks = known_blocks(opened.model, "compressing")
    found: str = next(name for name, module in opened.model.named_modules() if module is blocks)
    return found


def _group(opened: _Opened) -> int:
    """The numbers that share a scale. Raises ModelError where no usual group divides the rows."""
    lengths = {opened.model.get_submodule(name).in_features for name in opened.layers}
    found = rounding.group_size(lengths)
    if found is None:
        odd = min(length for length in lengths if length % rounding.GROUPS[-1])
        raise ModelError(
            f"4 bits are stored in groups of {', '.join(map(str, rounding.GROUPS))}, and rows of {odd} numbers are no multiple of any",
            where=str(opened.folder),
            next_step="--to int8, --to fp8 or --to gguf",
        )
    return found


@torch.no_grad()
def _round_all(opened: _Opened, rounded: Callable[[Any, torch.dtype], Rounded]) -> dict[str, Rounded]:
    return {name: rounded(opened.model.get_submodule(name).weight.float(), opened.dtype) for name in opened.layers}


def _each_layer(
    opened: _Opened,
    rows: Sequence[list[int]],
    work: Callable[[str, Any, Tensor], None],
    found: Mapping[str, Rounded],
    before: Work = lambda number, block, grams, run: None,
) -> None:
    """Call `work` for each layer, block after block, and go on with the weight that it has put into `found`."""
    prefix = _prefix(opened)

    def on_block(number: int, block: nn.Module, grams: Grams, run: Callable[[], Tensor]) -> None:
        before(number, block, grams, run)
        for name, gram in grams.items():
            layer: Any = block.get_submodule(name)
            whole = f"{prefix}.{number}.{name}"
            work(whole, layer, gram)
            layer.weight.copy_(found[whole].weight())

    in_turn(opened.model, rows_of(rows), opened.layers, on_block)


def _write(
    opened: _Opened,
    to: Path,
    stored: str,
    found: Mapping[str, Rounded],
    group: int | None = None,
    changed: Mapping[str, Tensor] | None = None,
) -> Path:
    others = {path for path in opened.folder.iterdir() if path.suffix != ".safetensors" and path.name not in ("config.json", weights.INDEX)}
    for path in sorted(others):
        files.write_bytes(to / path.name, path.read_bytes())
    config = weights.read_config(opened.folder) | {"quantization_config": _config(opened, stored, found, group)}
    files.write_json(to / "config.json", config)
    cut = tensor_file.shards(_tensors(opened, found, changed or {}, stored == "int4"), save.SHARD_BYTES)
    for name, tensors in cut.items():
        files.write_pieces(to / name, tensor_file.pieces(tensors, {"format": "pt"}))
    if len(cut) > 1:
        files.write_bytes(to / weights.INDEX, tensor_file.index(cut))
    return to


def _config(opened: _Opened, stored: str, found: Mapping[str, Rounded], group: int | None) -> dict[str, Any]:
    kind = "float" if stored == "fp8" else "int"
    bits = 4 if stored == "int4" else 8
    rows = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    scheme: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **rows},
        "input_activations": None if stored == "int4" else {**TOKEN_WISE, "type": kind},
        "output_activations": None,
    }
    kept = [name for name, module in opened.model.named_modules() if isinstance(module, nn.Linear) and name not in found]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMATS[stored],
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": kept,
    }


def _tensors(opened: _Opened, found: Mapping[str, Rounded], changed: Mapping[str, Tensor], in_four: bool) -> dict[str, Stored]:
    """What the files hold: rounded layers as their parts, and what stayed as it was. Those are read when their turn has come."""
    tensors: dict[str, Stored] = {}
    for path in weights.weight_files(opened.folder):
        for name, entry in weights.read_header(path).items():
            layer = name.removesuffix(".weight")
            if layer in found:
                tensors |= {f"{layer}.{part}": save.stored(tensor) for part, tensor in _parts(found[layer], in_four).items()}
            elif name in changed:
                tensors[name] = save.stored(changed[name].to(opened.dtype))
            else:
                tensors[name] = _as_it_was(path, name, entry)
    return tensors


def _parts(rounded: Rounded, in_four: bool) -> dict[str, Tensor]:
    """A layer's tensors by the names of compressed-tensors."""
    if not in_four:
        return {"weight": rounded.numbers, "weight_scale": rounded.scales}
    return {
        "weight_packed": rounding.packed(rounded.numbers),
        "weight_scale": rounded.scales,
        "weight_shape": torch.tensor(rounded.numbers.shape),
    }


def _as_it_was(path: Path, name: str, entry: Mapping[str, Any]) -> Stored:
    def read() -> Any:
        with safe_open(path, framework="pt") as file:
            return save.stored(file.get_tensor(name)).data()

    return Stored(str(entry["dtype"]), tuple(entry["shape"]), read)
