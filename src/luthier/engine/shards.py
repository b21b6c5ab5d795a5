"""A weight that ranks share: torch's DTensor, cut by rows or by columns. What of it is here, and how it becomes whole."""

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
    """The part that is here, in the same memory."""
    tensor: Tensor = weight.detach().to_local()
    return tensor


def dimension(weight: Any) -> int:
    """Along what it is cut: 0, its rows, or 1, its columns."""
    return int(weight.placements[-1].dim)


def first(weight: Any) -> int:
    """Where this rank's rows (or columns) begin. Every rank but the last ones has as many as the first (torch.chunk's rule)."""
    mesh, size = weight.device_mesh, weight.shape[dimension(weight)]
    each: int = -(-size // mesh.size(mesh.ndim - 1))
    return int(min(each * mesh.get_local_rank(mesh.ndim - 1), size))


def part_of(weight: Any, tensor: Tensor) -> Tensor:
    """The part of a whole tensor that this rank has of a weight."""
    along = dimension(weight)
    return tensor.narrow(along, first(weight), here(weight).shape[along]).contiguous()  # a fused optimizer reads moments as they lie


def writes(weight: Any) -> bool:
    """Whether this rank is the one of all replicas that writes its part."""
    return bool(weight.device_mesh.ndim == 1 or weight.device_mesh.get_local_rank(0) == 0)
