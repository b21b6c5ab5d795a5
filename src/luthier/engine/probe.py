"""What this machine can do: its devices, its memory, and how fast it multiplies in bf16 and in fp32 (timed, not assumed)."""

import functools
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from luthier import files
from luthier.engine import blocks, varlen
from luthier.errors import ConfigError
from luthier.plan.cuda import Build
from luthier.plan.machine import memory_bytes, processor, store_machine, stored_machine, usable_cores
from luthier.plan.tested import is_older
from luthier.records import Machine

# 1,024 rows through a layer of 576 x 1536: the shape of a small model's work.
ROWS, INPUTS, OUTPUTS = 1024, 576, 1536
# The packed documents that attention kernels are tried on: a shared prefix, documents of many lengths, a model of 8 billion's heads.
PREFIX, DOCUMENTS, WINDOW = 256, (64, 200, 200, 900, 2000), 1000
HEADS, KV_HEADS, WIDTH = 32, 8, 128
# torch's own attention for packed documents takes windows and grouped queries since then.
VARLEN_SINCE = "2.13"
# A kernel whose output or gradient is further from that of blocks.py (relative, bf16) is not used, however fast it is.
SAME_ATTENTION = 2e-2


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
        # GPUs before compute capability 8 emulate bf16.
        fp16_gflops=_rate(torch.float16, device) if device == "cuda" and torch.cuda.get_device_capability() < (8, 0) else 0.0,
        attention=fastest_attention(torch.device(device), varlen.KERNELS) if device == "cuda" else "",
        host_bytes=memory_bytes() if device == "cuda" else 0,
    )


def known_machine(device: str) -> Machine:
    """This machine as it was measured first, and stored: so that `auto` means the same in every run."""
    stored = stored_machine(files.home())
    if stored and stored.device == device and (stored.attention or device != "cuda"):
        return stored
    measured = measure(device)
    store_machine(files.home(), measured)
    return measured


def best_device() -> str:
    """cuda where there is one, else the CPU. (Apple's GPU has not been tried: `device: mps` chooses it by hand.)"""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_attention(name: str, device: str) -> None:
    """Raises ConfigError where Transformers cannot use this attention here (training.attn_implementation)."""
    if name != "flash_attention_2":
        return
    missing = "runs on CUDA only" if device != "cuda" else "" if find_spec("flash_attn") else "needs the package flash-attn"
    if missing:
        raise ConfigError(
            f"flash_attention_2 {missing}",
            where="training.attn_implementation",
            next_step="training.attn_implementation: auto" + (", or pip install flash-attn" if device == "cuda" else ""),
        )


def this_build() -> Build:
    """The torch that is installed, as luthier.plan.cuda judges it beside the driver."""
    has_varlen = find_spec("torch.nn.attention.varlen") is not None and not is_older(torch.__version__, VARLEN_SINCE)
    architectures = tuple(torch.cuda.get_arch_list())
    return Build(torch.__version__, torch.version.cuda or "", architectures, torch.compiled_with_cxx11_abi(), torch.cuda.is_available(), has_varlen)


def nf4_error(device: str) -> float:
    """How far a product with a matrix in 4 bits (nf4, bitsandbytes) is from the exact one, relative; about 0.09 where the kernels work."""
    import bitsandbytes

    four_bits: Any = bitsandbytes
    draw: Any = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    rows, weight = draw(8, 256).to(device), draw(128, 256).to(device)
    held, state = four_bits.functional.quantize_4bit(weight, quant_type="nf4")
    made: Tensor = four_bits.matmul_4bit(rows, held.t(), quant_state=state)
    exact = rows @ weight.T
    return float((made - exact).norm() / exact.norm())


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


@functools.cache
def attention_kernel(device: torch.device) -> varlen.Product | None:
    """The attention for packed documents that is fastest on this device, timed once for the machine; None: blocks.py."""
    make = varlen.KERNELS.get(known_machine("cuda").attention) if device.type == "cuda" else None
    return make() if make else None


def fastest_attention(device: torch.device, kernels: dict[str, Callable[[], varlen.Product]]) -> str:
    """The name of the fastest attention on this device, forward and backward, of `kernels` and "blocks"; one that computes something else is out."""
    run = functools.partial(_attention_trial, device)
    reference, seconds = run(None), {"blocks": _seconds(lambda: run(None), device)}
    for name, make in kernels.items():
        try:
            product = make()
            right = all(float((one - other).norm() / other.norm()) < SAME_ATTENTION for one, other in zip(run(product), reference, strict=True))
        except (ImportError, RuntimeError, TypeError, ValueError, NotImplementedError):  # not installed, or not for this device or version
            continue
        if right:
            seconds[name] = _seconds(functools.partial(run, product), device)
    return min(seconds, key=lambda name: seconds[name])


@torch.enable_grad()
def _attention_trial(device: torch.device, product: varlen.Product | None) -> tuple[Tensor, ...]:
    """Output and gradients of attention over the documents of the trial, in fp32."""
    draw: Any = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device, dtype=torch.bfloat16)
    q, k, v, slope = (draw(sum(DOCUMENTS), heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    leaves = [(draw(PREFIX, KV_HEADS, WIDTH).float(), draw(PREFIX, KV_HEADS, WIDTH).float())]
    groups = [blocks.Group(sum(DOCUMENTS[:place]), (length,), (0,)) for place, length in enumerate(DOCUMENTS)]
    rule = blocks.Rule(WIDTH**-0.5, window=WINDOW)
    learned = [tensor.requires_grad_() for tensor in (q, k, v, *leaves[0])]
    if product is None:
        mixed = blocks.attend(q, k, v, groups, rule, leaves)
    else:
        mixed = varlen.attend(product, varlen.places(groups, [PREFIX], device), q, k, v, rule, leaves)
    return mixed.detach().float(), *(one.float() for one in torch.autograd.grad(mixed, learned, slope))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
