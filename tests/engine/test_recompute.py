"""Gradient checkpointing drops activations and changes nothing else."""

from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged
from torch.autograd.graph import saved_tensors_hooks
from transformers import Gemma2Config, GPT2Config

from luthier.engine import Engine
from luthier.models import load

MODES = ("selective", "full")


def kept_bytes(engine: Engine) -> int:
    """What one forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    engine.model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = engine.model(input_ids=torch.arange(3, 303)[None], use_cache=False)
    frozen = {parameter.untyped_storage().data_ptr() for parameter in engine.model.parameters()}
    del output
    return sum(size for place, size in kept.items() if place not in frozen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_are_those_without_it(tiny_model: Path, mode: str, prefix: int, full: bool) -> None:
    found = []
    examples = ragged(seed=3, rows=7, prefix=prefix)
    for asked in ("off", mode):
        settings = {"gradient_checkpointing": asked, "micro_batch_tokens": 120}
        if full:
            engine = Engine(load.load_model(tiny_model, "fp32", "cpu"), load.load_tokenizer(tiny_model), **settings)  # type: ignore[arg-type]
        else:
            engine = open_tiny(tiny_model, **settings)
        report = engine.forward_backward(examples)
        assert (report.executed_tokens < 0.8 * report.logical_tokens) == (prefix > 0)
        found.append((report.loss, gradients(engine)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-7)
    assert furthest(found[1][1], found[0][1]) < 1e-6


def test_less_is_kept_the_more_is_computed_again(tiny_model: Path) -> None:
    sizes = [kept_bytes(Engine(load.load_model(tiny_model, "fp32", "cpu"), object(), gradient_checkpointing=mode)) for mode in ("off", *MODES)]  # type: ignore[arg-type]
    assert sizes[1] < 0.75 * sizes[0]
    assert sizes[2] < 0.5 * sizes[1]


@pytest.mark.parametrize("config", [GPT2Config, Gemma2Config])
def test_the_parts_are_found_in_other_architectures_too(config: type) -> None:
    sizes = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {} if config is GPT2Config else {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes, **more, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    kept = [kept_bytes(Engine(model, object(), gradient_checkpointing=mode)) for mode in ("off",)]  # type: ignore[arg-type]
    for mode in MODES:
        engine = Engine(model, object(), gradient_checkpointing=mode)  # type: ignore[arg-type]
        kept.append(kept_bytes(engine))
        engine.recomputing.stop()
    assert kept[0] > kept[1] > kept[2]


def test_its_price_is_measured_and_nothing_is_learned(tiny_model: Path) -> None:
    engine = open_tiny(tiny_model, gradient_checkpointing="full")
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    assert -0.9 < engine.price_of_checkpointing(ragged(seed=3, rows=2)) < 20
    assert all(torch.equal(one, other) for one, other in zip(before, engine.trained_parameters, strict=True))
    assert all(parameter.grad is None for parameter in engine.trained_parameters)
    # It is on again afterwards.
    assert all("forward" in part.__dict__ for part in engine.recomputing._parts)


@pytest.mark.parametrize("mode", MODES)
def test_it_stays_on_where_the_engine_goes_on_plainly(tiny_model: Path, mode: str) -> None:
    engine = open_tiny(tiny_model, gradient_checkpointing=mode)
    engine.go_plain("a test")
    examples = ragged(seed=3, rows=3)
    loss = engine.forward_backward(examples).loss
    assert loss == pytest.approx(open_tiny(tiny_model).forward_backward(examples).loss, rel=1e-6)
    engine.recomputing.stop()
    assert kept_bytes(open_tiny(tiny_model, gradient_checkpointing=mode)) < kept_bytes(engine)
