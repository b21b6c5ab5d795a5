"""Attention through a kernel for variable lengths, with the kernel's plain twin in its place: what blocks.py gives, with the gradients."""

import time
import weakref
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged
from torch import Tensor

from luthier.engine import blocks, packed, probe, varlen
from luthier.engine.blocks import Rule
from luthier.engine.packed import Packed

CPU = torch.device("cpu")


def twin(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int, longest_k: int, scale: float, window: tuple[int, int]
) -> Tensor:
    """What torch's varlen_attn computes, one document at a time: the ends of queries and keys are aligned."""
    mixed = []
    for place in range(len(ends_q) - 1):
        mine, theirs = (slice(int(ends[place]), int(ends[place + 1])) for ends in (ends_q, ends_k))
        queries, keys, values = q[mine], *(tensor[theirs].repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
        assert len(queries) <= longest_q
        assert len(keys) <= longest_k
        stands = torch.arange(len(queries))[:, None] + len(keys) - len(queries)
        key = torch.arange(len(keys))
        hidden = (key > stands + window[1]) | ((key < stands - window[0]) if window[0] >= 0 else False)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        mixed.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values))
    return torch.cat(mixed)


@pytest.mark.parametrize("window", [None, 1, 9, 30])
@pytest.mark.parametrize(("lengths", "paths"), [
    ([1, 4, 5, 17], [()] * 4),
    ([3, 3, 8, 1, 20, 20], [(0,)] * 3 + [(0, 2), (1,), (1,)]),
    ([7, 2, 2], [(), (1, 0, 2), (2,)]),
])  # fmt: skip
def test_outputs_and_gradients_are_those_of_blocks(window: int | None, lengths: list[int], paths: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, sum(lengths), 8, requires_grad=True) for heads in (6, 2, 2))
    pool = {
        part: {0: (torch.randn(tokens, 2, 8, requires_grad=True), torch.randn(tokens, 2, 8, requires_grad=True))}
        for part, tokens in enumerate((5, 11, 2))
    }
    used = sorted({part for path in paths for part in path})
    learned = [q, k, v, *(leaf for part in used for leaf in pool[part][0])]
    slope = torch.randn(sum(lengths), 6, 8)
    found = []
    for kernel in (None, twin):
        mixed = Packed(lengths, paths, pool, kernel=kernel).attend(0, q, k, v, Rule(0.3, window))
        found.append([mixed, *torch.autograd.grad(mixed, learned, slope)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_whole_update_gives_the_same_gradients(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    examples = ragged(seed=5, rows=8, prefix=40)
    plain = open_tiny(tiny_model)
    loss, wanted = plain.forward_backward(examples).loss, gradients(plain)
    monkeypatch.setattr(varlen, "supports", lambda *_: True)
    monkeypatch.setattr(probe, "attention_kernel", lambda device: twin)
    monkeypatch.setattr(packed, "attend", None)  # blocks must not be asked
    engine = open_tiny(tiny_model, micro_batch_tokens=100)
    measured = engine.forward_backward(examples)
    assert measured.executed_tokens < measured.logical_tokens
    assert measured.loss == pytest.approx(loss, rel=1e-6)
    assert furthest(gradients(engine), wanted) < 1e-5


def test_places_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    honest = varlen.places
    monkeypatch.setattr(varlen, "places", lambda *told: calls.append(1) or honest(*told))  # type: ignore[func-returns-value]
    layout, q, k = Packed([2, 3], kernel=twin), torch.randn(4, 5, 8), torch.randn(2, 5, 8)
    for layer in range(3):
        layout.attend(layer, q, k, k, Rule(1.0))
    assert len(calls) == 1


def test_gathered_keys_are_not_kept_for_the_backward_pass() -> None:
    given: list[weakref.ref[Tensor]] = []

    class Whole(torch.autograd.Function):
        """A kernel keeps the very tensors it was given; the plain twin keeps pieces of them."""

        @staticmethod
        def forward(ctx, q, k, v, *told):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(q, k, v)
            ctx.told = told
            given.extend([weakref.ref(k), weakref.ref(v)])
            return twin(q, k, v, *told)

        @staticmethod
        def backward(ctx, slope):  # type: ignore[no-untyped-def]
            inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            with torch.enable_grad():
                return *torch.autograd.grad(twin(*inputs, *ctx.told), inputs, slope), *[None] * len(ctx.told)

    q, k, v = (torch.randn(24, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    leaf_k, leaf_v = (torch.randn(50, 2, 8, requires_grad=True) for _ in range(2))
    groups, rule, slope = [blocks.Group(0, (4,) * 6, (0,))], Rule(0.3), torch.randn(24, 4, 8)
    learned = [q, k, v, leaf_k, leaf_v]
    wanted = torch.autograd.grad(blocks.attend(q, k, v, groups, rule, [(leaf_k, leaf_v)]), learned, slope)
    mixed = varlen.attend(Whole.apply, varlen.places(groups, [50], CPU), q, k, v, rule, [(leaf_k, leaf_v)])
    assert [one() for one in given] == [None, None]
    for mine, theirs in zip(torch.autograd.grad(mixed, learned, slope), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_probe_takes_the_fastest_kernel_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DOCUMENTS": (5, 30), "PREFIX": 7, "WINDOW": 9}.items():
        monkeypatch.setattr(probe, name, value)
    honest = blocks.attend
    monkeypatch.setattr(blocks, "attend", lambda *told: time.sleep(0.2) or honest(*told))  # type: ignore[func-returns-value]

    def missing() -> varlen.Product:
        raise ImportError("flash_attn")

    def forgets_the_window(*told: Any) -> Tensor:
        kernel: Any = twin
        mixed: Tensor = kernel(*told[:-1], (-1, 0))
        return mixed

    kernels = {"missing": missing, "wrong": lambda: forgets_the_window}
    assert probe.fastest_attention(CPU, kernels) == "blocks"
    with torch.no_grad():  # so it may be asked first
        assert probe.fastest_attention(CPU, kernels | {"twin": lambda: twin}) == "twin"


def test_kernels_take_half_precision_without_soft_capping_only() -> None:
    q = torch.randn(3, 2, 8, dtype=torch.bfloat16)
    assert varlen.supports(q, q, Rule(1.0))
    assert not varlen.supports(q, q, Rule(1.0, softcap=30.0))
    assert not varlen.supports(q.float(), q.float(), Rule(1.0))
    assert not varlen.supports(q[..., :4], q[..., :4], Rule(1.0))
