"""Noise on embeddings and smoothed labels: the fast path and the plain one, however an update is cut, and never when something is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged
from test_architectures import ARCHITECTURES, build, rows

from luthier.engine import Engine, noise
from luthier.engine.draws import Draws
from luthier.engine.head import Head
from luthier.models import load

EXACT = 1e-5
NOISE: dict[str, Any] = {"neftune_noise_alpha": 5.0}
SMOOTH: dict[str, Any] = {"label_smoothing": 0.1}


def update(engine: Engine, seed: int = 7) -> tuple[float, list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(seed)  # as the training loop does for every update
    report = engine.forward_backward(ragged(seed=3, rows=7, prefix=20), row_losses=True)
    return report.loss, report.row_losses or [], gradients(engine)


@pytest.mark.parametrize("settings", [NOISE, SMOOTH, NOISE | SMOOTH], ids=["noise", "smoothing", "both"])
@pytest.mark.parametrize("what", ["lora", "full"])
def test_the_fast_path_is_the_plain_one(tiny_model: Path, settings: dict[str, Any], what: str) -> None:
    def opened() -> Engine:
        if what == "lora":
            return open_tiny(tiny_model, **settings)
        return Engine(load.load_model(tiny_model, "fp32", "cpu").requires_grad_(True), load.load_tokenizer(tiny_model), **settings)

    fast, plain = opened(), opened()
    plain.go_plain("for the test")
    loss, by_row, gradient = update(plain)
    for fast.micro_batch_tokens in (1, 100, 4096):
        found = update(fast)
        assert found[0] == pytest.approx(loss, rel=EXACT)
        assert found[1] == pytest.approx(by_row, rel=EXACT)
        assert furthest(found[2], gradient) < EXACT


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "llama-untied"])
def test_smoothing_is_that_of_torch_in_every_kind_of_head(architecture: str) -> None:
    engine = Engine(build(*ARCHITECTURES[architecture]).requires_grad_(True), None, **SMOOTH)
    plain = build(*ARCHITECTURES[architecture])
    plain.set_attn_implementation("eager")
    examples = rows()
    loss = torch.zeros(())
    for example in examples:
        logits = plain(torch.tensor([example.token_ids])).logits[0, :-1].double()
        labels = torch.tensor([token if on else -100 for token, on in zip(example.token_ids, example.trained, strict=True)])[1:]
        loss = loss + torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    mean = loss / sum(example.trained_tokens for example in examples)
    mean.backward()
    assert engine.forward_backward(examples).loss == pytest.approx(float(mean), rel=EXACT)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    floor = 1e-4 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in gradients(engine).items():
        assert float((gradient - expected[name]).norm() / expected[name].norm().clamp_min(floor)) < EXACT, name


def test_the_losses_of_a_head_are_smoothed_only_where_that_is_asked_for() -> None:
    head = Head(build(*ARCHITECTURES["llama"]), label_smoothing=0.1)
    hidden, targets = torch.randn(9, 32), torch.randint(0, 200, (9,))
    logits = torch.nn.functional.linear(hidden, head.weight)
    for smoothing, arguments in ((0.0, ()), (0.3, (0.3,))):
        expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(head.losses(hidden, targets, *arguments)[1], expected.detach())


def test_noise_is_drawn_anew_for_each_update_and_row_and_for_nothing_else(tiny_model: Path) -> None:
    engine, quiet = open_tiny(tiny_model, **NOISE), open_tiny(tiny_model)
    assert update(engine)[0] == update(engine)[0]
    assert update(engine, seed=8)[0] != update(engine)[0]
    twice = [ragged(seed=3, rows=1)[0]] * 2
    first, second = engine.forward_backward(twice, row_losses=True).row_losses or []
    assert first != second
    assert engine.sharing == "none, as one dropout mask or noise would serve all rows"
    engine.forget_gradients()
    # What is measured has no noise and no smoothing.
    examples = ragged(seed=3, rows=7)
    smooth = open_tiny(tiny_model, **SMOOTH)
    assert update(smooth)[0] != update(quiet)[0]
    assert engine.held_out_loss(examples) == smooth.held_out_loss(examples) == quiet.held_out_loss(examples)
    for one in (engine, smooth):
        assert one.check(examples[0]) < EXACT
        one.go_plain("for the test")
        assert one.held_out_loss(examples) == pytest.approx(quiet.held_out_loss(examples), rel=EXACT)


def test_noise_is_as_large_as_the_paper_says() -> None:
    model = build("Llama", {}).train()
    draws = Draws(seed=1)
    draws.begin_micro_batch([(0, 40), (1, 10)], [50, 12])
    ids = torch.randint(3, 200, (1, 50))
    plain = model.get_input_embeddings()(ids)
    noise.install(model, 5.0, draws)
    added = (model.get_input_embeddings()(ids) - plain)[0].detach()
    for piece, length in ((added[:40], 50), (added[40:], 12)):
        bound = 5.0 / (length * 32) ** 0.5
        assert 0.9 * bound < float(piece.abs().max()) <= bound * (1 + 1e-4)
        assert float(piece.mean()) == pytest.approx(0.0, abs=0.1 * bound)
        assert float(piece.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    # A row cut short has the beginning of its noise.
    shorter = ids[:, :30]
    draws.begin_micro_batch([(0, 30)], [50])
    torch.testing.assert_close((model.get_input_embeddings()(shorter) - plain[:, :30])[0].detach(), added[:30])
    torch.testing.assert_close(model.eval().get_input_embeddings()(shorter), plain[:, :30])
