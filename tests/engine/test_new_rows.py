"""Models whose embedding is trained, in some rows or whole: the fast update agrees with the plain one, and no row is left without gradient."""

import copy
from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, ragged
from transformers import LlamaForCausalLM

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, generate, reference
from luthier.models import load, lora, vocabulary
from luthier.records import TokenizedExample

EXACT = 2e-5  # relative, fp32
NEW = ["<|call|>", "<|result|>"]
SAVED = ["embed_tokens", "lm_head"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, with its head tied to the embedding or not."""
    if request.param:
        return tiny_model
    model = load.load_model(tiny_model, "fp32", "cpu")
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    untied = LlamaForCausalLM(config)
    untied.load_state_dict(model.state_dict())
    with torch.no_grad():
        untied.lm_head.weight.mul_(0.9)
    untied.save_pretrained(tmp_path / "untied")
    load.load_tokenizer(tiny_model).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def open_engine(folder: Path, precision: str = "fp32", saved: list[str] | None = None) -> tuple[Engine, list[int]]:
    """An engine that trains two added tokens (or, with `saved`, the whole tables) beside a LoRA adapter that changes answers."""
    tokenizer = load.load_tokenizer(folder, added_tokens=NEW)
    model = load.load_model(folder, precision, "cpu")  # type: ignore[arg-type]
    new = vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer).new
    model = lora.add(model, LoraSettings(r=4, lora_alpha=8.0, modules_to_save=saved or []), trained_tokens=new)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return Engine(model, tokenizer), new


def rows_with(new: list[int], prefix: int = 0) -> list[TokenizedExample]:
    """Random rows that hold the new tokens: as context, as target, and (with `prefix`) in what all rows share."""
    rows = []
    for row in ragged(seed=3, rows=6, prefix=prefix):
        ids = list(row.token_ids)
        if prefix:
            ids[5] = new[1]
        ids[prefix], ids[prefix + 1] = new[0], new[1]  # ragged trains the second token after the prefix
        rows.append(TokenizedExample(ids, row.trained, row.source))
    return rows


@pytest.mark.parametrize("saved", [None, SAVED], ids=["rows", "whole"])
@pytest.mark.parametrize("prefix", [0, 40])
def test_loss_and_gradients_are_those_of_the_plain_twin(folder: Path, prefix: int, saved: list[str] | None):
    engine, new = open_engine(folder, saved=saved)
    assert engine.plain_reason == ""
    examples = rows_with(new, prefix)
    plain_loss = reference.forward_backward(engine.model, examples)
    plain = gradients(engine)
    assert engine.forward_backward(examples).loss == pytest.approx(plain_loss, rel=1e-6)
    fast = gradients(engine)
    assert furthest(fast, plain) < EXACT
    tables = {name: gradient for name, gradient in fast.items() if "lora_" not in name}
    assert len(tables) == (1 if vocabulary.tied(load.load_model(folder, "fp32", "cpu")) else 2)
    for gradient in tables.values():
        rows = gradient if saved is None else gradient[new]
        assert (rows.norm(dim=-1) > 0).all()


@pytest.mark.parametrize("saved", [None, SAVED], ids=["rows", "whole"])
def test_in_bf16_what_is_trained_is_fp32_and_agrees_with_the_plain_twin(folder: Path, saved: list[str] | None):
    engine, new = open_engine(folder, "bf16", saved)
    assert {parameter.dtype for parameter in engine.trained_parameters} == {torch.float32}
    examples = rows_with(new)
    assert engine.check(examples[0]) < 2e-2
    assert engine.plain_reason == ""
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    engine.forward_backward(examples)
    engine.optimizer_step(1e-6)
    assert all(not torch.equal(one, other) for one, other in zip(before, engine.trained_parameters, strict=True))


@pytest.mark.parametrize("saved", [None, SAVED], ids=["rows", "whole"])
def test_training_moves_the_new_rows_and_leaves_the_base_alone(folder: Path, saved: list[str] | None):
    engine, new = open_engine(folder, saved=saved)
    examples = rows_with(new)
    with engine.model.disable_adapter():
        base = engine.held_out_loss(examples)
    losses = []
    for _ in range(20):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(1e-2)
    assert losses[-1] < 0.7 * losses[0]
    with engine.model.disable_adapter():
        assert engine.held_out_loss(examples) == pytest.approx(base, rel=1e-6)
    if saved is None:
        now = engine.model.get_base_model().get_input_embeddings().weight
        stored = load.load_model(folder, "fp32", "cpu").get_input_embeddings().weight
        old = [token for token in range(len(stored)) if token not in new]
        assert torch.equal(now[old], stored[old])


@pytest.mark.parametrize("saved", [None, SAVED], ids=["rows", "whole"])
def test_answers_are_those_of_the_plain_twin(folder: Path, saved: list[str] | None):
    engine, new = open_engine(folder, saved=saved)
    with torch.no_grad():
        for parameter in engine.trained_parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.02)
    prompts = [[*range(3, 20), new[0]], [*range(3, 15), new[1], 7]]
    engine.model.eval()
    plain = generate.answer(engine.model, prompts, generate.How(frozenset(), plain=True), max_new_tokens=8)
    decoded = [engine.tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
    assert engine.answer(prompts, max_new_tokens=8) == decoded or engine.stop_ids & {token for ids in plain for token in ids}
