"""The fast update must give the loss and the gradients of the plain one, however it is cut."""

from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, reference, update
from luthier.engine.batches import lay_out

EXACT = 2e-5  # relative, fp32


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_twin(engine: Engine, prefix: int, micro_batch_tokens: int, share_prefixes: bool) -> None:
    examples = ragged(seed=prefix, rows=7, prefix=prefix)
    plain_loss = reference.forward_backward(engine.model, examples)
    plain = gradients(engine)
    step = lay_out(examples, micro_batch_tokens=micro_batch_tokens, share_prefixes=share_prefixes)
    assert bool(step.passes) == (share_prefixes and prefix > 0)
    assert update.forward_backward(engine.model, engine.head, step) == pytest.approx(plain_loss, rel=1e-6)
    assert furthest(gradients(engine), plain) < EXACT


def test_long_documents_go_in_blocks_with_the_same_gradients(engine: Engine) -> None:
    examples = ragged(seed=1, rows=5, prefix=30, longest=440)
    assert max(len(example.token_ids) for example in examples) > 330
    plain_loss = reference.forward_backward(engine.model, examples)
    plain = gradients(engine)
    assert engine.forward_backward(examples).loss == pytest.approx(plain_loss, rel=1e-6)
    assert furthest(gradients(engine), plain) < EXACT


def test_the_loss_of_an_update_is_one_mean_over_its_tokens_and_not_a_mean_of_means(engine: Engine) -> None:
    short, *_, long = sorted(ragged(seed=7, rows=6), key=lambda example: example.trained_tokens)
    assert long.trained_tokens > 1.5 * short.trained_tokens
    alone = [engine.held_out_loss([example]) for example in (short, long)]
    together = engine.forward_backward([short, long]).loss
    weighted = (alone[0] * short.trained_tokens + alone[1] * long.trained_tokens) / (short.trained_tokens + long.trained_tokens)
    assert together == pytest.approx(weighted, rel=1e-5)
    assert together != pytest.approx(sum(alone) / 2, rel=1e-3)


def test_no_document_sees_another(engine: Engine) -> None:
    """What stands in one row must not move another row's loss."""
    first, second, other = ragged(seed=8, rows=3)
    apart = engine.held_out_loss([first])
    for neighbor in (second, other):
        both = engine.held_out_loss([first, neighbor])
        alone = engine.held_out_loss([neighbor])
        total = apart * first.trained_tokens + alone * neighbor.trained_tokens
        assert both == pytest.approx(total / (first.trained_tokens + neighbor.trained_tokens), rel=1e-5)


def test_the_held_out_loss_does_not_depend_on_the_batch_and_leaves_the_mode_alone(engine: Engine) -> None:
    examples = ragged(seed=9, rows=40, prefix=20)
    engine.model.train()
    at_once = engine.held_out_loss(examples)
    assert engine.model.training
    weighted = sum(engine.held_out_loss([example]) * example.trained_tokens for example in examples)
    assert at_once == pytest.approx(weighted / sum(example.trained_tokens for example in examples), rel=1e-5)


def test_a_shared_prefix_saves_work_and_says_so(engine: Engine) -> None:
    examples = ragged(seed=2, rows=8, prefix=64, longest=20)
    report = engine.forward_backward(examples)
    assert report.logical_tokens == sum(len(example.token_ids) for example in examples)
    assert report.executed_tokens < report.logical_tokens / 3
    assert report.trained_tokens == sum(example.trained_tokens for example in examples)


def test_only_the_adapter_gets_gradients_and_all_of_it_does(engine: Engine) -> None:
    engine.forward_backward(ragged(seed=1, rows=4, prefix=20))
    found = gradients(engine)
    assert all("lora_" in name for name in found)
    assert len(found) == 2 * 7 * 2  # two layers, seven projections, A and B
    assert all(float(gradient.abs().max()) > 0 for gradient in found.values())


def test_an_update_that_is_not_finite_changes_nothing(engine: Engine) -> None:
    engine.forward_backward(ragged(seed=1, rows=4))
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    engine.trained_parameters[0].grad[0, 0] = float("nan")  # type: ignore[index]
    norm = engine.optimizer_step(1e-2)
    assert norm != norm
    assert all(torch.equal(one, other) for one, other in zip(before, engine.trained_parameters, strict=True))


def test_training_lowers_the_loss_and_gradients_are_clipped(tiny_model) -> None:  # type: ignore[no-untyped-def]
    engine = open_tiny(tiny_model, max_grad_norm=0.5)
    examples = ragged(seed=4, rows=4)
    losses = []
    for _ in range(30):
        losses.append(engine.forward_backward(examples).loss)
        norm = engine.optimizer_step(1e-2)
    assert losses[-1] < 0.7 * losses[0]
    assert norm > 0.0


def test_where_the_fast_path_is_wrong_the_engine_goes_on_plainly_and_says_why(engine: Engine) -> None:
    examples = ragged(seed=6, rows=3)
    right = engine.held_out_loss(examples)
    assert engine.check(examples[0]) < 1e-5
    assert engine.plain_reason == ""
    engine.head.scale = 1.1
    assert engine.check(examples[0]) > 1e-3
    assert "differs" in engine.plain_reason
    assert engine.held_out_loss(examples) == pytest.approx(right, rel=1e-5)
    report = engine.forward_backward(examples)
    assert report.loss == pytest.approx(right, rel=1e-5)
    assert report.executed_tokens == report.logical_tokens


def test_two_updates_worth_of_gradients_add_up(engine: Engine) -> None:
    first, second = ragged(seed=1, rows=4, prefix=20), ragged(seed=2, rows=4)
    apart = []
    for examples in (first, second):
        engine.forward_backward(examples)
        apart.append(gradients(engine))
    engine.forward_backward(first)
    engine.forward_backward(second)
    assert furthest(gradients(engine), {name: apart[0][name] + apart[1][name] for name in apart[0]}) < EXACT


def test_nothing_is_shared_beside_dropout(tiny_model) -> None:  # type: ignore[no-untyped-def]
    from luthier.models import load, lora

    model = lora.add(load.load_model(tiny_model, "fp32", "cpu"), LoraSettings(r=4, lora_alpha=8.0, lora_dropout=0.1))
    assert not Engine(model, load.load_tokenizer(tiny_model)).share_prefixes


def test_an_answer_ends_inside_the_context_and_a_prompt_must_leave_room(engine: Engine) -> None:
    from luthier.errors import DataError

    assert engine._room_for(510, 100) == 2
    with pytest.raises(DataError, match=r"the prompt has 512 tokens and the model's context 512"):
        engine.answer([[5] * 512], max_new_tokens=3)


def test_a_prompt_that_fills_the_context_does_not_cut_the_answers_to_others(engine: Engine) -> None:
    short = [[5, 6, 7], [8, 9]]
    told: list[int] = []
    alone = engine.answer(short, max_new_tokens=6)
    together = engine.answer([short[0], [5] * 510, short[1]], max_new_tokens=6, on_answers=told.append)
    assert [together[0], together[2]] == alone
    assert told[-1] == 3
    assert sorted(told) == told


def test_a_model_whose_attention_cannot_be_replaced_runs_plainly() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    falcon = FalconForCausalLM(FalconConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)).eval()
    engine = Engine(falcon, None)
    examples = ragged(seed=3, rows=4)
    alone = sum(engine.held_out_loss([example]) * example.trained_tokens for example in examples)
    assert engine.held_out_loss(examples) == pytest.approx(alone / sum(example.trained_tokens for example in examples), rel=1e-5)
    assert "attention" in engine.plain_reason


@pytest.mark.slow
@pytest.mark.real_model
def test_rounding_alone_gives_nothing_up(default_model: Path) -> None:
    """In bf16 one short row differs by up to 3 % between two right ways to compute it; several together do not."""
    engine = Engine.open(str(default_model), lora={"r": 8}, precision="bf16")
    rows = [
        {"messages": [{"role": "user", "content": f"{number} Oak Street"}, {"role": "assistant", "content": "yes, it is"}]} for number in range(8)
    ]
    assert engine.check(*engine.tokenize(rows)) < 2e-2
    assert engine.plain_reason == ""
