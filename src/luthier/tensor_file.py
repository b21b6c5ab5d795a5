"""The safetensors format, written without torch: a header in JSON, then the bytes of each tensor, one after the other.

Made piece by piece, so that a model is written without a second copy of it (github.com/huggingface/safetensors, "Format").
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from luthier.disk import Buffer

# The format's names, with the bytes of a number.
NUMBER_BYTES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it will lie in a file: `data` gives its bytes (little-endian, row by row) when their turn has come."""

    dtype: str  # a key of NUMBER_BYTES
    shape: tuple[int, ...]
    data: Callable[[], Buffer]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * NUMBER_BYTES[self.dtype]


def pieces(tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> Iterator[Buffer]:
    """The bytes of a safetensors file that holds `tensors`. Raises ValueError where a tensor gives other bytes than its shape says."""
    # Wide numbers first, as the format's own writer does it: each tensor then begins at a multiple of its numbers' size.
    ordered = sorted(tensors.items(), key=lambda item: (-NUMBER_BYTES[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, tensor in ordered:
        data = tensor.data()
        if len(data) != tensor.size_bytes:
            raise ValueError(f"{name} has {len(data)} bytes and its shape {tensor.shape} of {tensor.dtype} {tensor.size_bytes}")
        yield data


def shards(tensors: Mapping[str, Stored], most_bytes: int, stem: str = "model") -> dict[str, dict[str, Stored]]:
    """Tensors cut into files of at most `most_bytes` (a larger tensor has a file of its own), by the names that Transformers gives them."""
    groups: list[dict[str, Stored]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.size_bytes > most_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.size_bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, start=1)}


def index(cut: Mapping[str, Mapping[str, Stored]]) -> bytes:
    """model.safetensors.index.json for files that `shards` gave: which tensor lies where."""
    total_bytes = sum(tensor.size_bytes for group in cut.values() for tensor in group.values())
    weight_map = {name: file for file, group in cut.items() for name in group}
    value = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(value, indent=2) + "\n").encode()
