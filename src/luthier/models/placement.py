"""One model over several places (device_map): blocks that lie elsewhere are fetched when they compute, and let go behind it.

Everything is computed on one device, by the same code as ever; GPUs beside it, the memory and the disk are places for weights. Embedding,
head and norms stay on the device. Exact: the same weights meet the same inputs.
"""

import atexit
import difflib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import ConfigError
from luthier.models.blocks import known_blocks

DISK = "disk"
# Of a GPU's and of the machine's memory: the rest is for what passes through, and for the system.
GPU_SHARE, MEMORY_SHARE = 0.6, 0.7
Asked = str | Mapping[str, str | int]


def place_of_parts(folder: Path, asked: Asked, dtype: torch.dtype, device: str, memory_bytes: int) -> dict[str, str]:
    """Transformers' device_map for the model in `folder`, which computes on `device`: a place for each block, all else on the device.

    `asked` is the setting: auto (fill the GPUs, then the memory of `memory_bytes`, then the disk), or places by the names of parts. Raises
    ConfigError for a part that the model has not, or that cannot lie elsewhere, and for a device that is not here.
    """
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config)
    found = known_blocks(model, "device_map")
    names = {name: block for name, block in model.named_modules() if any(block is one for one in found)}
    rest = list(_parts_without(model, names))
    if isinstance(asked, str):
        sizes = {name: sum(one.numel() for one in block.parameters()) * dtype.itemsize for name, block in names.items()}
        tables = sum(one.numel() for one in model.parameters()) * dtype.itemsize - sum(sizes.values())
        places = dict(_filled(sizes, tables, device, memory_bytes))
    else:
        places = {name: _place_of(name, asked, device) for name in names}
        _require_known(asked, list(names), rest, device)
    return {**dict.fromkeys(rest, device), **places}


def _parts_without(model: nn.Module, blocks: Mapping[str, nn.Module], prefix: str = "") -> Iterator[str]:
    """The largest parts of a model that hold none of its blocks."""
    for child, module in model.named_children():
        name = f"{prefix}{child}"
        if any(other.startswith(f"{name}.") for other in blocks):
            yield from _parts_without(module, blocks, f"{name}.")
        elif name not in blocks:
            yield name


def _place_of(block: str, asked: Mapping[str, str | int], device: str) -> str:
    """The place that the longest name around a block says; the device where none does."""
    around = [name for name in asked if name in ("", block) or block.startswith(f"{name}.")]
    return _spelled(asked[max(around, key=len)]) if around else device


def _spelled(place: str | int) -> str:
    return f"cuda:{place}" if isinstance(place, int) else place


def _require_known(asked: Mapping[str, str | int], blocks: list[str], rest: list[str], device: str) -> None:
    for name, place in asked.items():
        spelled = _spelled(place)
        if spelled not in ("cpu", DISK, *(["cuda"] if _gpus() else []), *(f"cuda:{number}" for number in range(_gpus()))):
            known = ", ".join(["cpu", DISK, *map(str, range(_gpus()))])
            raise ConfigError(f"{place!r} is no place here", where=f"device_map.{name}", next_step=f"one of: {known}")
        if not name or any(block == name or block.startswith(f"{name}.") for block in blocks):
            continue
        if name not in rest:
            near = difflib.get_close_matches(name, [*blocks, *rest], n=1)
            problem = f"{name} is no block of this model, and no part around them"
            raise ConfigError(problem, where="device_map", next_step=f"did you mean {near[0]}?" if near else f"such as {blocks[0]}")
        if torch.device(spelled if spelled != DISK else "meta").type != torch.device(device).type:
            raise ConfigError(f"{name} stays on {device}, where everything is computed", where=f"device_map.{name}", next_step="take it out")


def _gpus() -> int:
    return torch.cuda.device_count()


def _filled(sizes: Mapping[str, int], tables: int, device: str, memory_bytes: int) -> Iterator[tuple[str, str]]:
    """A place for each block, in order: as many as fit on the device, then on further GPUs, then in the memory, then on the disk."""
    room = [(f"cuda:{number}", GPU_SHARE * torch.cuda.get_device_properties(number).total_memory) for number in range(_gpus())]
    room = room if device.startswith("cuda") else []
    places = [*room, ("cpu", MEMORY_SHARE * memory_bytes)]
    left = {place: size - tables * (index == 0) for index, (place, size) in enumerate(places)}
    for name, size in sizes.items():
        place = next((one for one, there in left.items() if there >= size), DISK)
        if place != DISK:
            left[place] -= size
        yield name, device if place == places[0][0] else place


def folder_for_disk() -> Path:
    """An empty folder for what is kept on the disk in another format than the model's files have; `install` sees that it goes."""
    # They say that weights are not where they seem to be, which is what was asked for.
    for library in ("accelerate.big_modeling", "transformers.modeling_utils"):
        logging.getLogger(library).addFilter(lambda record: "on the meta device" not in record.getMessage())
    folder = Path(tempfile.mkdtemp(prefix="luthier-device-map-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def install(model: Any, device: str, folder: Path) -> Any:
    """Give each block of a freshly loaded model that does not lie on `device` a forward that fetches it first. `folder` goes with the model."""
    from accelerate.hooks import remove_hook_from_module

    sources = {block: _sources(block, torch.device(device)) for block in known_blocks(model, "device_map")}
    remove_hook_from_module(model, recurse=True)
    for block, kept in sources.items():
        if kept:
            for module, name, _ in kept:
                _put(module, name, _stand_in(module, name, device))
            block.forward = _fetching(block.forward, kept, device)
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


Source = tuple[nn.Module, str, Callable[[], Tensor]]


def _sources(block: nn.Module, device: torch.device) -> list[Source]:
    """Each weight of a block that lies elsewhere: its module, its name, and where it is had from."""
    found: list[Source] = []
    for module in block.modules():
        hook = getattr(module, "_hf_hook", None)
        for name, weight in module._parameters.items():
            if weight is not None and weight.device.type == "meta":
                found.append((module, name, partial(hook.weights_map.__getitem__, name)))  # type: ignore[union-attr]
            elif weight is not None and not _is_on(weight.device, device):
                found.append((module, name, partial(_itself, weight.detach())))
    return found


def _is_on(there: torch.device, device: torch.device) -> bool:
    """Whether both are the same; a device without a number is the first of its kind."""
    return there.type == device.type and (there.index or 0) == (device.index or 0)


def _itself(weight: Tensor) -> Tensor:
    return weight


def _put(module: nn.Module, name: str, weight: Tensor) -> None:
    module._parameters[name] = nn.Parameter(weight, requires_grad=False)


def _stand_in(module: nn.Module, name: str, device: str) -> Tensor:
    """A weight of the right shape, format and device that takes no memory. NaN: whoever reads it outside the block's forward sees that."""
    weight: Any = module._parameters[name]
    return torch.full((1,), torch.nan, dtype=weight.dtype, device=device).expand(weight.shape)


def _fetching(forward: Callable[..., Any], kept: list[Source], device: str) -> Callable[..., Any]:
    stand_ins = [module._parameters[name] for module, name, _ in kept]

    def run(*args: Any, **kwargs: Any) -> Any:
        for (module, name, source), stand_in in zip(kept, stand_ins, strict=True):
            _put(module, name, source().to(device=device, dtype=stand_in.dtype))  # type: ignore[union-attr]
        try:
            return forward(*args, **kwargs)
        finally:
            for (module, name, _), stand_in in zip(kept, stand_ins, strict=True):
                module._parameters[name] = stand_in

    return run
