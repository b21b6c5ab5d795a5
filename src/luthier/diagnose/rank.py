"""How much of its rank a LoRA adapter uses: the effective rank of its updates B·A, from its file alone.

Effective rank = exp(entropy of the singular values, scaled to sum to 1) (Roy and Vetterli 2007, "The effective rank: a measure of effective
dimensionality", EUSIPCO). It is the rank where all are equal, and 1 where one of them is all there is.

Letters: I inputs, O outputs of a layer, R its rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier import files
from luthier.disk import Disk
from luthier.errors import LuthierError
from luthier.models import weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.", ".lora_B."
NUMBERS = {"F32": np.float32, "F64": np.float64, "F16": np.float16}


@dataclass(frozen=True, slots=True)
class Update:
    """What LoRA adds to one layer: its rank, the effective rank of B·A, and the Frobenius norm of B·A before alpha scales it."""

    layer: str
    rank: int
    effective_rank: float
    norm: float


def updates_of(adapter: Path) -> list[Update]:
    """One for each layer that a LoRA adapter changes; none for adapters of other kinds. Raises LuthierError where the files are damaged."""
    if not (adapter / WEIGHTS).is_file() or files.read_json(adapter / CONFIG).get("peft_type") != "LORA":
        return []
    path = adapter / WEIGHTS
    header = weights.read_header(path)
    pairs = ((name, name.replace(A, B)) for name in sorted(header) if A in name)
    with Disk().open_to_read(path) as file:
        begin = 8 + int.from_bytes(file.read(8), "little")

        def tensor(name: str) -> NDArray[np.float64]:
            first, end = header[name]["data_offsets"]
            file.seek(begin + first)
            return _numbers(file.read(end - first), header[name], path)

        return [_update(a.partition(A)[0], tensor(a), tensor(b)) for a, b in pairs if b in header]


def _numbers(data: bytes, entry: dict[str, Any], path: Path) -> NDArray[np.float64]:
    if entry["dtype"] == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64).reshape(entry["shape"])
    if entry["dtype"] not in NUMBERS:
        raise LuthierError(f"holds numbers of the kind {entry['dtype']}", where=str(path), next_step="save the adapter again in fp32")
    return np.frombuffer(data, NUMBERS[entry["dtype"]]).astype(np.float64).reshape(entry["shape"])


def _update(layer: str, a_RI: NDArray[np.float64], b_OR: NDArray[np.float64]) -> Update:
    # Of B·A, which is never made: with B = Q1·R1 and A' = Q2·R2 the singular values are those of R1·R2', a matrix of R times R.
    small = np.linalg.qr(b_OR).R @ np.linalg.qr(a_RI.T).R.T
    values = np.linalg.svd(small, compute_uv=False)
    return Update(layer.removeprefix("base_model.model."), len(a_RI), effective_rank(values), float(np.sqrt((values**2).sum())))


def effective_rank(singular_values: NDArray[np.float64]) -> float:
    """exp of the entropy of the values scaled to sum to 1; 0 where all are 0."""
    shares = list(_shares(singular_values))
    return float(np.exp(-sum(share * np.log(share) for share in shares))) if shares else 0.0


def _shares(values: NDArray[np.float64]) -> Iterator[float]:
    total = float(values.sum())
    return (float(value) / total for value in values if total > 0 and value > 1e-12 * total)
