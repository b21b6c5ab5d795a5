"""Every weight trained: the gradients of the plain twin, fp32 masters behind bf16 and fp16, and a folder that other tools load."""

from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, ragged
from transformers import AutoModelForCausalLM

from luthier.engine import Engine, reference
from luthier.engine.masters import Masters
from luthier.models import load
from luthier.records import Source, TokenizedExample

EXACT = 1e-5  # relative, fp32


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with its head tied to the embedding, or not."""
    if request.param == "tied":
        return tiny_model
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).contiguous())
    model.save_pretrained(tmp_path / "untied")
    load.load_tokenizer(tiny_model).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def open_full(folder: Path, precision: str = "fp32", **settings: object) -> Engine:
    model = load.load_model(folder, precision, "cpu")  # type: ignore[arg-type]
    return Engine(model, load.load_tokenizer(folder), **settings)  # type: ignore[arg-type]


def plain_gradients(folder: Path, examples: list[TokenizedExample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a model that no engine has touched."""
    model = load.load_model(folder, "fp32", "cpu").train()
    loss = reference.forward_backward(model, examples)
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 4096])
def test_loss_and_every_gradient_are_those_of_the_plain_twin(folder: Path, prefix: int, micro_batch_tokens: int) -> None:
    examples = ragged(seed=prefix, rows=7, prefix=prefix)
    loss, plain = plain_gradients(folder, examples)
    engine = open_full(folder, micro_batch_tokens=micro_batch_tokens)
    assert engine.forward_backward(examples).loss == pytest.approx(loss, rel=1e-6)
    assert furthest(gradients(engine), plain) < EXACT


def test_the_row_of_the_padding_token_learns_as_little_from_its_inputs_as_in_transformers(tiny_model: Path) -> None:
    examples = [TokenizedExample([5, 0, 0, 7, 9, 11], [False, False, False, True, True, True], Source("rows", 1))]
    engine = open_full(tiny_model)
    assert engine.model.get_input_embeddings().padding_idx == 0
    engine.forward_backward(examples)
    _, plain = plain_gradients(tiny_model, examples)
    assert furthest(gradients(engine), plain) < EXACT


def test_gradients_of_bf16_weights_are_gathered_in_fp32(tiny_model: Path) -> None:
    """A word that stands in every place: its thousand addends would be lost in a bf16 sum."""
    examples = [TokenizedExample([7] * 400, [False] * 300 + [True] * 100, Source("rows", row)) for row in range(3)]
    _, plain = plain_gradients(tiny_model, examples)
    engine = open_full(tiny_model, "bf16", share_prefixes=False, micro_batch_tokens=400)
    engine.forward_backward(examples)
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    name = "model.embed_tokens.weight"
    masters = engine.masters.weights[name].grad
    assert masters is not None
    assert masters.dtype == torch.float32
    assert float((masters - plain[name]).norm() / plain[name].norm()) < 0.03


@pytest.mark.parametrize(("precision", "rate"), [("bf16", 4e-5), ("fp16", 5e-6)])
def test_updates_too_small_for_the_weights_are_kept_in_their_masters(tiny_model: Path, precision: str, rate: float) -> None:
    engine = open_full(tiny_model, precision)
    before = {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}
    examples = ragged(seed=1, rows=4)
    moved = []
    for _ in range(30):
        engine.forward_backward(examples)
        engine.optimizer_step(rate)
        moved.append(sum(int((parameter != before[name]).sum()) for name, parameter in engine.model.named_parameters()))
    total = sum(parameter.numel() for parameter in engine.model.parameters())
    # One update turns few of the weights over; without masters it would stay at these few.
    assert moved[0] < 0.25 * total
    assert moved[-1] > 0.5 * total
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(parameter, engine.masters.weights[name].to(parameter.dtype))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_few_rows_are_learned_by_heart(tiny_model: Path, precision: str) -> None:
    engine = open_full(tiny_model, precision)
    examples = ragged(seed=4, rows=8, prefix=20)
    losses = []
    for _ in range(60):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(2e-3)
    assert losses[0] > 3
    assert losses[-1] < 0.05


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_saved_model_is_what_transformers_loads_and_says_the_same(folder: Path, precision: str, tmp_path: Path) -> None:
    tied = load.load_model(folder, "fp32", "cpu").config.tie_word_embeddings
    engine = open_full(folder, precision)
    for _ in range(3):
        engine.forward_backward(ragged(seed=4, rows=4))
        engine.optimizer_step(1e-2)
    saved = engine.save_state(tmp_path / "model")
    other = AutoModelForCausalLM.from_pretrained(saved)
    assert other.dtype == load.DTYPES[precision]
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, engine.model.get_parameter(name))
    assert (other.get_input_embeddings().weight is other.get_output_embeddings().weight) == tied
    again = Engine.open(str(saved), full=True, precision=precision)  # type: ignore[arg-type]
    examples = ragged(seed=5, rows=4)
    assert again.held_out_loss(examples) == engine.held_out_loss(examples)
    assert again.sample("Where?", max_new_tokens=5) == engine.sample("Where?", max_new_tokens=5)
    # Saving is no end: the engine goes on as it was.
    assert engine.plain_reason == ""
    assert engine.forward_backward(examples).loss > 0


def test_a_model_that_is_opened_to_answer_has_no_masters_and_is_not_trained(tiny_model: Path) -> None:
    engine = Engine.open(str(tiny_model), precision="bf16")
    engine.sample("Where?", max_new_tokens=2)
    assert engine.trained_parameters == []
    assert engine._masters is None


def test_gradients_are_gathered_in_memory_that_is_kept(tiny_model: Path) -> None:
    model = load.load_model(tiny_model, "bf16", "cpu")
    masters = Masters(model)
    weight = model.model.norm.weight
    places = []
    for addends in (1, 2):
        for _ in range(addends):
            (weight * 3.0).sum().backward()
        master = masters.weights["model.norm.weight"]
        assert master.grad is not None
        assert torch.equal(master.grad, torch.full_like(master, 3.0 * addends))
        places.append(master.grad.data_ptr())
        masters.forget_gradients()
        assert master.grad is None
    assert places[0] == places[1]
