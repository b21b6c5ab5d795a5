"""Numbers on their way between the host and a GPU, without one waiting for the other. On a CPU nothing is on its way."""

from typing import Any

import torch
from torch import Tensor


def to_device(numbers: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """A list or array of whole numbers as a tensor there. From pageable memory a copy to a GPU would wait for all that was asked of it."""
    tensor = torch.as_tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Late:
    """A number that a GPU is still making. `float` waits for this one, and for nothing that was asked of the GPU after it."""

    __slots__ = ("_host", "_made")

    def __init__(self, number: Tensor) -> None:
        self._host = torch.empty((), dtype=torch.float32, pin_memory=number.is_cuda)
        self._host.copy_(number.detach(), non_blocking=True)
        self._made = torch.cuda.Event() if number.is_cuda else None
        if self._made is not None:
            self._made.record()

    def __float__(self) -> float:
        if self._made is not None:
            self._made.synchronize()
        return float(self._host)
