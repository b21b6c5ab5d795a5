"""What this machine can do: its devices, its memory, and how fast it multiplies in bf16 and in fp32 (timed, not assumed)."""

import time

import torch

from luthier import files
from luthier.plan.machine import memory_bytes, processor, store_machine, stored_machine, usable_cores
from luthier.records import Machine

# 1,024 rows through a layer of 576 x 1536: the shape of a small model's work.
ROWS, INPUTS, OUTPUTS = 1024, 576, 1536


def measure(device: str = "auto") -> Machine:
    """Time one product in each format, on the device that `auto` means here. Takes well under a second."""
    device = best_device() if device == "auto" else device
    return Machine(
        device=device,
        name=torch.cuda.get_device_name() if device == "cuda" else processor()[0],
        cores=usable_cores(),
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if device == "cuda" else memory_bytes(),
        bf16_gflops=_rate(torch.bfloat16, device),
        fp32_gflops=_rate(torch.float32, device),
    )


def known_machine(device: str) -> Machine:
    """This machine as it was measured first, and stored: so that `auto` means the same in every run."""
    stored = stored_machine(files.home())
    if stored and stored.device == device:
        return stored
    measured = measure(device)
    store_machine(files.home(), measured)
    return measured


def best_device() -> str:
    """cuda where there is one, else the CPU. (Apple's GPU has not been tried: `device: mps` chooses it by hand.)"""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _rate(dtype: torch.dtype, device: str) -> float:
    left = torch.randn(ROWS, INPUTS, device=device, dtype=dtype)
    right = torch.randn(INPUTS, OUTPUTS, device=device, dtype=dtype)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 1:  # a processor that emulates bf16 needs no seven proofs
            break
    return round(2 * ROWS * INPUTS * OUTPUTS / sorted(seconds)[len(seconds) // 2] / 1e9, 1)
