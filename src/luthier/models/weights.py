"""A model folder as it lies on disk: its config and the headers of its weights, read and checked without torch."""

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

from luthier.errors import ModelError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The format's own limit; a larger number means that the file is something else.
LONGEST_HEADER_BYTES = 100_000_000
LFS_POINTER = b"version https://git-lfs"
# Of the beginning and of the middle of each tensor, in its fingerprint.
SAMPLE_BYTES = 2048
UNREADABLE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError where it is missing or cut."""
    return read_object(folder / "config.json", "name a folder that holds config.json, *.safetensors and the tokenizer's files")


def read_object(path: Path, next_step: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelError where it is missing, unreadable or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("is missing", where=str(path), next_step=next_step) from error
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), next_step="mend the file's rights") from error
    except ValueError as error:
        raise ModelError(f"is not whole JSON ({error})", where=str(path), next_step="download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"holds a {type(value).__name__} where an object is expected", where=str(path), next_step=next_step)
    return value


def are_there(folder: Path) -> bool:
    """Whether anything in the folder looks like weights, loadable or not."""
    return any(file.suffix in (".safetensors", *UNREADABLE) or file.name == INDEX for file in folder.iterdir())


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files that make up the model, in order. Raises ModelError where there are none, or one is missing."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        return _files_of_index(folder)
    others = sorted(file.name for file in folder.iterdir() if file.suffix in UNREADABLE)
    found = f" (there is {', '.join(others[:3])}: pickled or packed weights are not loaded)" if others else ""
    raise ModelError(
        f"holds no {WHOLE} and no {INDEX}{found}",
        where=str(folder),
        next_step="save the model with model.save_pretrained(FOLDER) of Transformers, which writes safetensors",
    )


def _files_of_index(folder: Path) -> list[Path]:
    index = folder / INDEX
    again = "download the model again"
    weight_map = read_object(index, again).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError("has no weight_map", where=str(index), next_step=again)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"names {name!r}, which lies outside the folder", where=str(index), next_step="do not use this model")
        if not (folder / name).is_file():
            raise ModelError(f"names {name}, which is missing ({len(names)} files in all)", where=str(index), next_step=again)
    return [folder / name for name in names]


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Every tensor's shape, from the headers alone. Raises ModelError for a file that is cut or no safetensors."""
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        header = read_header(path)
        _check_index(path, header)
        shapes |= {name: entry["shape"] for name, entry in header.items()}
    return shapes


def _check_index(path: Path, header: dict[str, dict[str, Any]]) -> None:
    """Raises ModelError where the index says of a tensor that it lies in this file, and it does not."""
    if path.name == WHOLE:
        return
    index = path.with_name(INDEX)
    weight_map = read_object(index, "download the model again")["weight_map"]
    missing = sorted(name for name, file in weight_map.items() if file == path.name and name not in header)
    if missing:
        raise ModelError(
            f"says that {missing[0]} lies in {path.name}, which does not hold it", where=str(index), next_step="download the model again"
        )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file by name (dtype, shape, data_offsets), after its length was checked against its size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        if start.startswith(LFS_POINTER):
            raise ModelError("is a Git LFS pointer, not the weights", where=str(path), next_step="git lfs install && git lfs pull")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else LONGEST_HEADER_BYTES
        if 8 + length > size or length >= LONGEST_HEADER_BYTES:
            raise _broken(path, f"its header does not fit into its {size:,} bytes")
        file.seek(8)
        header_bytes = file.read(length)
    try:
        header = {name: entry for name, entry in json.loads(header_bytes).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise _broken(path, "its header is not that of a safetensors file") from error
    if 8 + length + end != size:
        raise _broken(path, f"it has {size:,} bytes and its header promises {8 + length + end:,}")
    return header


def fingerprint(folder: Path) -> str:
    """A sha256 that tells models apart in milliseconds: every tensor's name, dtype and shape, and a sample of its bytes.

    The same tensors cut into other files give the same.
    """
    digest = hashlib.sha256()
    parts: dict[str, bytes] = {}
    for path in weight_files(folder):
        header = read_header(path)
        with open(path, "rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                sample = b""
                for place in (first, (first + last) // 2):
                    file.seek(begin + place)
                    sample += file.read(min(SAMPLE_BYTES, last - place))
                parts[name] = json.dumps([name, entry["dtype"], entry["shape"]]).encode() + sample
    for _, part in sorted(parts.items()):
        digest.update(part)
    return digest.hexdigest()


def count(shape: list[int]) -> int:
    """Numbers in a tensor of this shape."""
    return math.prod(shape)


def _broken(path: Path, reason: str) -> ModelError:
    return ModelError(f"cut or damaged: {reason}", where=str(path), next_step="download the model again")
