"""The same bits from the same update: a CPU gives them with the same threads; a GPU only where it is kept from its faster operations."""

import os

import torch
import torch.utils.deterministic

# Two buffers of 4 MiB each for cuBLAS, which then always adds in one order (NVIDIA's cuBLAS manual, "Results reproducibility").
CUBLAS_WORKSPACE = ":4096:8"


def enter(asked: bool, device: str) -> None:
    """For all that this process computes from here on. Where it is `asked` for, an operation that has no deterministic form raises
    RuntimeError on a GPU; elsewhere torch takes one where it has one, and goes on. To be called before the first product on the GPU."""
    torch.use_deterministic_algorithms(True, warn_only=not asked)
    # Else every new buffer would be filled first, and nothing here reads one that is empty.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "cuda":
        torch.backends.cuda.enable_mem_efficient_sdp(not asked)  # its backward pass adds in any order
        torch.backends.cudnn.benchmark = not asked and torch.backends.cudnn.benchmark
        if asked:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)


def asked_for() -> bool:
    """Whether nothing may be used that gives other bits the next time."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
