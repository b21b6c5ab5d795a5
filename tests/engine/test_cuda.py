"""What only a GPU can show: its kernels give what the CPU's code gives, and an update does not wait for the host. `make test-cuda` runs it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import open_tiny, ragged

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, blocks, fp8, kernels, probe, reference, varlen
from luthier.engine.blocks import Group, Rule
from luthier.models import load, lora
from luthier.run_folder import RunFolder
from luthier.train import checkpoint

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
GPU = torch.device("cuda")


def open_on_gpu(folder: Any, precision: str, **settings: Any) -> Engine:
    """The tiny model on the GPU, with an adapter whose B is not zero."""
    model = lora.add(load.load_model(folder, precision, "cuda"), LoraSettings(r=4, lora_alpha=8.0))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator(GPU).manual_seed(1))
    return Engine(model, load.load_tokenizer(folder), **settings)


@pytest.mark.parametrize("name", list(varlen.KERNELS))
@pytest.mark.parametrize("window", [None, 40])
def test_a_kernel_gives_what_blocks_give(name: str, window: int | None) -> None:
    try:
        kernel = varlen.KERNELS[name]()
    except ImportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    groups = [Group(0, (1,), (0,)), Group(1, (30, 30), (0, 1)), Group(61, (200,), ())]
    q, k, v, slope = (torch.randn(261, heads, 64, device=GPU, dtype=torch.bfloat16) for heads in (8, 2, 2, 8))
    leaves = [tuple(torch.randn(tokens, 2, 64, device=GPU) for _ in range(2)) for tokens in (70, 9)]
    learned = [tensor.requires_grad_() for tensor in (q, k, v, *leaves[0], *leaves[1])]
    rule = Rule(64**-0.5, window)
    wanted = blocks.attend(q, k, v, groups, rule, leaves)  # type: ignore[arg-type]
    found = varlen.attend(kernel, varlen.places(groups, [70, 9], GPU), q, k, v, rule, leaves)  # type: ignore[arg-type]
    pairs = zip([found, *torch.autograd.grad(found, learned, slope)], [wanted, *torch.autograd.grad(wanted, learned, slope)], strict=True)
    assert max(float((mine - theirs).float().norm() / theirs.float().norm()) for mine, theirs in pairs) < 2e-2


def test_the_fastest_attention_is_measured_once_and_kept(luthier_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = probe.known_machine("cuda")
    assert measured.attention in {"blocks", *varlen.KERNELS}
    monkeypatch.setattr(probe, "fastest_attention", None)
    assert probe.known_machine("cuda") == measured


def test_the_kernel_library_gives_what_our_own_functions_give() -> None:
    pytest.importorskip("liger_kernel")
    assert kernels.fused(GPU) is not None


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 1e-2)])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_an_update_is_the_plain_twins(precision: str, tolerance: float, share_prefixes: bool, tiny_model: Any) -> None:
    examples = ragged(seed=3, rows=8, prefix=40)
    engine = open_on_gpu(tiny_model, precision, share_prefixes=share_prefixes)
    assert engine.plain_reason == ""
    measured, norm = engine.send_update(examples, 1e-3)()
    plain = open_on_gpu(tiny_model, precision)
    loss = reference.forward_backward(plain.model, examples)
    assert measured.loss == pytest.approx(loss, rel=tolerance)
    assert norm == pytest.approx(plain.optimizer_step(1e-3), rel=10 * tolerance)
    assert norm > 0


def test_the_gpu_learns_what_the_cpu_learns(tiny_model: Any) -> None:
    examples = ragged(seed=3, rows=8)
    on_cpu = open_tiny(tiny_model)
    on_gpu = Engine(open_tiny(tiny_model).model.to(GPU), on_cpu.tokenizer)
    assert on_gpu.forward_backward(examples).loss == pytest.approx(on_cpu.forward_backward(examples).loss, rel=1e-4)
    assert on_gpu.optimizer_step(1e-3) == pytest.approx(on_cpu.optimizer_step(1e-3), rel=1e-3)


def test_an_update_waits_for_nothing(tiny_model: Any) -> None:
    engine = open_on_gpu(tiny_model, "bf16")
    assert engine.reads_late
    examples = ragged(seed=3, rows=8, prefix=40)
    engine.send_update(examples, 1e-3)()  # allocates, and compiles kernels
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        reading = engine.send_update(examples, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    measured, norm = reading()
    assert math.isfinite(measured.loss)
    assert math.isfinite(norm)


def test_a_run_goes_on_from_a_checkpoint(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    engine, examples = open_on_gpu(tiny_model, "bf16"), ragged(seed=3, rows=8)
    engine.send_update(examples, 1e-3)()
    path = checkpoint.write(RunFolder(tmp_path), checkpoint.take(engine, checkpoint.Place(1, "d", 0, "bf16")))
    resumed = open_on_gpu(tiny_model, "bf16")
    checkpoint.load(path, resumed)
    losses = [one.send_update(examples, 1e-3)()[0].loss for one in (engine, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_8_bit_products_are_those_of_the_twin() -> None:
    if torch.cuda.get_device_capability() < fp8.FIRST_CAPABILITY:
        pytest.skip("this GPU has no products in 8 bits")
    torch.manual_seed(0)
    left, right = (fp8.in_8_bits(torch.randn(rows, 128)) for rows in (40, 64))
    on_gpu, other = (fp8.Rows(one.values.to(GPU), one.scales.to(GPU)) for one in (left, right))
    wanted = fp8.product(left, right, torch.float32)
    found = fp8.product(on_gpu, other, torch.bfloat16).float().cpu()
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2


def test_a_base_in_8_bits_says_its_gap_and_learns(tiny_model: Any) -> None:
    if torch.cuda.get_device_capability() < fp8.FIRST_CAPABILITY:
        pytest.skip("this GPU has no products in 8 bits")
    engine, examples = open_on_gpu(tiny_model, "bf16"), ragged(seed=3, rows=8)
    assert "a gap of " in engine.quantize_frozen(examples)
    losses = [engine.send_update(examples, 1e-2)()[0].loss for _ in range(5)]
    assert losses[-1] < losses[0]
