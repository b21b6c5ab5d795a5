"""Losses of whole answers: the fast engine must agree with the plain twin, however the update is cut."""

from collections.abc import Sequence

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged
from torch import Tensor

from luthier.engine import Engine, reference
from luthier.engine.batches import lay_out
from luthier.records import Source, TokenizedExample

EXACT = 1e-5  # relative, fp32


def pairs(count: int, prompt: int, seed: int = 0) -> list[TokenizedExample]:
    """Two answers to each of `count` prompts of so many tokens."""
    found = []
    for number in range(count):
        asked, *answers = (ragged(seed + 10 * number + part, 1, longest=20)[0].token_ids for part in range(3))
        asked = (asked * 40)[:prompt]
        found += [TokenizedExample(asked + one, [False] * len(asked) + [True] * len(one), Source("rows", number + 1)) for one in answers]
    return found


def margin_loss(places: list[int], logps: Tensor) -> Tensor:
    """A loss that couples the two answers of each pair, and is no sum of their own losses."""
    here = {place: index for index, place in enumerate(places)}
    firsts = [place for place in places if place % 2 == 0]
    margins = torch.stack([logps[here[place]] - logps[here[place + 1]] for place in firsts])
    return torch.nn.functional.softplus(-0.1 * margins).sum()


def together(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    return [[place, place + 1] for place in range(0, len(examples), 2)]


@pytest.mark.parametrize("prompt", [4, 60])
@pytest.mark.parametrize("micro_batch_tokens", [1, 90, 4096])
def test_loss_and_gradients_are_those_of_the_plain_twin(tiny_model: object, prompt: int, micro_batch_tokens: int) -> None:
    engine = open_tiny(tiny_model, micro_batch_tokens=micro_batch_tokens)  # type: ignore[arg-type]
    examples = pairs(4, prompt)
    plain = reference.forward_backward_judged(engine.model, examples, together(examples), margin_loss)
    of_plain = gradients(engine)
    measured = engine.forward_backward_judged(examples, together(examples), margin_loss)
    assert (measured.executed_tokens < 0.8 * measured.logical_tokens) == (prompt == 60)
    assert measured.loss == pytest.approx(plain, rel=EXACT)
    assert furthest(gradients(engine), of_plain) < EXACT


def test_the_loss_does_not_depend_on_the_cut(tiny_model: object) -> None:
    examples = pairs(6, 30)
    losses = []
    for tokens in (1, 100, 333, 4096):
        engine = open_tiny(tiny_model, micro_batch_tokens=tokens)  # type: ignore[arg-type]
        losses.append(engine.forward_backward_judged(examples, together(examples), margin_loss).loss)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_a_loss_that_nothing_can_lower_gives_no_gradient(tiny_model: object) -> None:
    engine = open_tiny(tiny_model)  # type: ignore[arg-type]
    examples = pairs(2, 4)
    engine.forward_backward_judged(examples, together(examples), lambda places, logps: (logps * 0.0).sum())
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients(engine).values())


def test_log_probabilities_are_the_same_by_both_paths_and_in_the_order_of_the_rows(tiny_model: object) -> None:
    fast, plain = open_tiny(tiny_model), open_tiny(tiny_model, attn_implementation="sdpa")  # type: ignore[arg-type]
    examples = pairs(40, 12)
    assert fast.log_probabilities(examples) == pytest.approx(plain.log_probabilities(examples), rel=EXACT)
    assert fast.log_probabilities(examples[7:8])[0] == pytest.approx(fast.log_probabilities(examples)[7], rel=EXACT)
    assert fast.log_probabilities([]) == []


def test_dropout_draws_alike_however_the_update_is_cut(tiny_model: object) -> None:
    losses, found = [], []
    for tokens in (1, 4096):
        engine: Engine = open_tiny(tiny_model, dropout=0.3, micro_batch_tokens=tokens)  # type: ignore[arg-type]
        torch.manual_seed(3)
        examples = pairs(4, 10)
        losses.append(engine.forward_backward_judged(examples, together(examples), margin_loss).loss)
        found.append(gradients(engine))
    assert losses[0] == pytest.approx(losses[1], rel=EXACT)
    assert furthest(*found) < 5 * EXACT


def test_groups_stay_in_one_micro_batch_and_documents_stand_by_length() -> None:
    examples = pairs(6, 10)
    step = lay_out(examples, micro_batch_tokens=70, share_prefixes=False, together=together(examples))
    assert len(step.micro_batches) > 1
    for documents in step.micro_batches:
        places = {document.place for document in documents}
        assert all(place ^ 1 in places for place in places)
        assert [len(one.inputs) for one in documents] == sorted(len(one.inputs) for one in documents)


def test_the_head_weighs_rows(tiny_model: object) -> None:
    engine = open_tiny(tiny_model)  # type: ignore[arg-type]
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, weights = torch.arange(7), torch.linspace(-1, 2, 7)
    total, each = engine.head.losses(hidden, targets, weights_N=weights)
    (slopes,) = torch.autograd.grad(total, hidden)
    expected = torch.nn.functional.cross_entropy(engine.head.logits(hidden, engine.head.weight), targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert torch.allclose(each, expected.detach(), atol=1e-5)
    assert float(total) == pytest.approx(float((expected * weights).sum()), rel=1e-5)
    assert torch.allclose(slopes, wanted, atol=1e-6)
