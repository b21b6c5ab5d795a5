"""Write a whole model with its tokenizer as Transformers reads it, releases before 5 too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from luthier import files, tensor_file
from luthier.errors import ModelError
from luthier.models.load import save_tokenizer
from luthier.models.weights import INDEX
from luthier.tensor_file import Stored

# A model that is larger is cut into files of so many bytes.
SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def stored(tensor: Tensor) -> Stored:
    """A tensor as a file holds it. It is read (from a GPU too) when its turn to be written has come."""
    data = tensor.detach()
    return Stored(DTYPE_NAMES[data.dtype], tuple(data.shape), lambda: data.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of `tensors`, whole or not at all."""
    files.write_pieces(path, tensor_file.pieces({name: stored(tensor) for name, tensor in tensors.items()}, {"format": "pt"}))


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor of floating numbers holds no NaN and no infinity."""
    # A finite sum proves that all its addends are, in a fraction of the time; one that is not may merely be too large.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def save_model(model: Any, folder: Path, tokenizer: Any, stop_ids: set[int], shard_bytes: int | None = None) -> Path:
    """Write `model` in its own number format into `folder`, whole or not at all, in files of `shard_bytes` (None: SHARD_BYTES). Other programs
    stop where this one does (`stop_ids`).

    Raises ModelError where a weight is not finite: then nothing is written.
    """
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not all_finite(tensor.detach()):
            next_step = "lower training.learning_rate and resume from the last checkpoint"
            raise ModelError(f"{name} holds values that are not finite", where=str(folder), next_step=next_step)
    if model.generation_config is not None:
        stops = sorted(stop_ids)
        model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops

    def fill(staging: Path) -> None:
        if model.generation_config is not None:
            model.generation_config.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        files.write_json(staging / "config.json", config_of(model, model.dtype))
        cut = tensor_file.shards({name: stored(tensor) for name, tensor in _tensors(model).items()}, shard_bytes or SHARD_BYTES)
        for name, group in cut.items():
            files.write_pieces(staging / name, tensor_file.pieces(group, {"format": "pt"}))
        if len(cut) > 1:
            files.write_bytes(staging / INDEX, tensor_file.index(cut))

    return files.build_folder(folder, fill)


def _tensors(model: Any) -> dict[str, Tensor]:
    """What a file of the model holds: each tied weight once, by the names of the published models, as save_pretrained of Transformers does it."""
    ignored = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    found: dict[str, Tensor] = revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
    return found


def config_of(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a model whose weights are stored as `dtype`. Transformers 4 reads other names than 5, and is silently wrong where
    it finds none (rope_theta becomes 10,000): both are written."""
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["architectures"] = [type(model).__name__]
    config["torch_dtype"] = config["dtype"] = str(dtype).removeprefix("torch.")
    return config
