"""A weight that ranks share: torch's DTensor, cut by rows. What of it is here, and how it becomes whole."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shared(model: nn.Module, *, trained: bool) -> dict[str, Any]:
    """The weights that ranks share, by name: all of them, or those that are trained."""
    return {name: one for name, one in model.named_parameters() if isinstance(one, DTensor) and (one.requires_grad or not trained)}


def whole(weight: Any) -> Tensor:
    """All of it, on the CPU; every rank has to ask for it at the same time."""
    tensor: Tensor = weight.detach().full_tensor().cpu()
    return tensor


def here(weight: Any) -> Tensor:
    """The rows that are here, in the same memory."""
    tensor: Tensor = weight.detach().to_local()
    return tensor


def first_row(weight: Any) -> int:
    """Where this rank's rows begin. Every rank but the last ones has as many as the first (torch.chunk's rule)."""
    mesh = weight.device_mesh
    cut = mesh.size(mesh.ndim - 1)
    rows: int = -(-weight.shape[0] // cut)
    return int(min(rows * mesh.get_local_rank(mesh.ndim - 1), weight.shape[0]))


def part_of(weight: Any, tensor: Tensor) -> Tensor:
    """The rows of a whole tensor that this rank has of a weight."""
    start = first_row(weight)
    return tensor[start : start + len(here(weight))]


def writes(weight: Any) -> bool:
    """Whether this rank is the one of all replicas that writes its rows."""
    return bool(weight.device_mesh.ndim == 1 or weight.device_mesh.get_local_rank(0) == 0)
