"""Bottleneck, IA3, PEFT's other methods and a part of the weights on the fast path: loss and gradients of the plain twin, and what goes plain."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, ragged

from luthier.config.adapters import BottleneckSettings, FreezeSettings, Ia3Settings
from luthier.engine import Engine, tuners
from luthier.errors import ConfigError
from luthier.models import bottleneck, freeze, load, peft_methods

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from peft_types import TYPES

EXACT = 1e-5  # relative, fp32
FROZEN = FreezeSettings(layers="0", embeddings=True)
# how a model is made ready
METHODS: dict[str, Any] = {
    "houlsby": lambda model: bottleneck.add(model, BottleneckSettings(kind="houlsby")),
    "pfeiffer": lambda model: bottleneck.add(model, BottleneckSettings(kind="pfeiffer", non_linearity="gelu", scaling=2.0)),
    "parallel": lambda model: bottleneck.add(model, BottleneckSettings(kind="parallel")),
    "ia3": lambda model: peft_methods.add_ia3(model, Ia3Settings()),
    "freeze": lambda model: freeze.train_all_but(model, FROZEN),
    "freeze above": lambda model: freeze.train_all_but(model, FreezeSettings(layers=[1])),
}
MIX = {"LILY"}  # what a token becomes depends on the others
DRAWS = {"PVERA"}  # another adapter at every pass
ROUNDS = {"RANDLORA": 5e-5}  # its gradients are sums over all layers' shared bases
PLAIN = {*MIX, "TRAINABLE_TOKENS"}


def opened(folder: Path, method: str, precision: str = "fp32", disturbance: float = 0.05, **settings: Any) -> Engine:
    """An engine whose trained weights are not those of a fresh adapter."""
    model = load.load_model(folder, precision, "cpu")
    make = METHODS.get(method) or (lambda model: peft_methods.add(model, {"type": method, **TYPES[method]}))
    adapted = make(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * disturbance)
    return Engine(adapted, load.load_tokenizer(folder), **settings)


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("micro_batch_tokens", [1, 120])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_every_gradient_are_those_of_the_plain_twin(method: str, micro_batch_tokens: int, prefix: int, tiny_model: Path) -> None:
    examples = ragged(seed=3, rows=7, prefix=prefix)
    engine = opened(tiny_model, method, micro_batch_tokens=micro_batch_tokens)
    assert engine.plain_reason == ""
    report = engine.forward_backward(examples)
    fast = gradients(engine)
    assert (report.executed_tokens < 0.8 * report.logical_tokens) == (prefix > 0)
    engine.go_plain("to compare")
    assert engine.forward_backward(examples).loss == pytest.approx(report.loss, rel=1e-6)
    assert furthest(fast, gradients(engine)) < EXACT


@pytest.mark.parametrize("kind", sorted(TYPES.keys() - PLAIN - DRAWS))
def test_the_types_of_peft_run_on_the_fast_path(kind: str, tiny_model: Path) -> None:
    examples = ragged(seed=3, rows=7, prefix=40)
    engine = opened(tiny_model, kind, micro_batch_tokens=120)
    assert engine.plain_reason == ""
    report = engine.forward_backward(examples)
    fast = gradients(engine)
    engine.go_plain("to compare")
    assert engine.forward_backward(examples).loss == pytest.approx(report.loss, rel=1e-6)
    plain = gradients(engine)
    # Of all together: some types have single numbers whose gradient is what is left of a sum that cancels.
    difference = torch.cat([(fast[name] - plain[name]).flatten() for name in plain]).norm()
    assert float(difference / torch.cat([gradient.flatten() for gradient in plain.values()]).norm()) < ROUNDS.get(kind, EXACT)


def test_layers_that_mix_tokens_go_plain_and_say_so(tiny_model: Path) -> None:
    engine = opened(tiny_model, "LILY")
    assert engine.plain_reason == "the layers of lily mix the tokens that they are given"
    assert "not one plain matrix" in opened(tiny_model, "TRAINABLE_TOKENS").plain_reason


def test_layers_that_draw_at_random_share_nothing(tiny_model: Path) -> None:
    engine = opened(tiny_model, "PVERA")
    report = engine.forward_backward(ragged(seed=3, rows=7, prefix=40))
    assert report.executed_tokens > 0.95 * report.logical_tokens  # a row's last token predicts nothing and is not run
    assert "none, as one" in engine.sharing
    assert not tuners.draw(opened(tiny_model, "VERA").model)


@pytest.mark.parametrize("kind", sorted(TYPES.keys() - MIX))
def test_the_trial_changes_nothing(kind: str, tiny_model: Path) -> None:
    model = peft_methods.add(load.load_model(tiny_model, "bf16", "cpu"), {"type": kind, **TYPES[kind]})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert tuners.hindrance(model) == ""
    assert tuners.draw(model) == (kind in DRAWS)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_nothing(method: str, mode: Any, tiny_model: Path) -> None:
    examples = ragged(seed=3, rows=7, prefix=40)
    found = []
    for asked in ("off", mode):
        engine = opened(tiny_model, method, micro_batch_tokens=120, gradient_checkpointing=asked)
        found.append((engine.forward_backward(examples).loss, gradients(engine)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-7)
    assert furthest(found[1][1], found[0][1]) < 1e-6


@pytest.mark.parametrize("method", ["houlsby", "parallel", "ia3"])
def test_answers_are_those_of_the_plain_decoder_and_of_the_base_where_it_is_off(method: str, tiny_model: Path) -> None:
    engine, base = opened(tiny_model, method, disturbance=0.5), Engine(load.load_model(tiny_model, "fp32", "cpu"), load.load_tokenizer(tiny_model))
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13]]
    fast = engine.answer(prompts, max_new_tokens=12)
    with engine.model.disable_adapter():
        off = engine.answer(prompts, max_new_tokens=12)
    assert off == base.answer(prompts, max_new_tokens=12)
    engine.go_plain("to compare")
    assert engine.answer(prompts, max_new_tokens=12) == fast != off


@pytest.mark.parametrize("method", ["houlsby", "parallel", "ia3", "freeze", "LN_TUNING"])
def test_it_learns_in_bf16_with_fp32_masters(method: str, tiny_model: Path) -> None:
    engine = opened(tiny_model, method, "bf16")
    examples = ragged(seed=3, rows=7, prefix=40)
    losses = []
    for _ in range(12):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(1e-2)
    assert losses[-1] < losses[0] - 0.1
    assert {weight.dtype for weight in engine.masters.weights.values()} == {torch.float32}


def test_what_is_frozen_has_no_master_no_moments_and_no_backward_pass(tiny_model: Path) -> None:
    model = freeze.train_all_but(load.load_model(tiny_model, "bf16", "cpu"), FROZEN)
    ran_back: list[int] = []

    def note(block: Any, args: Any, output: torch.Tensor) -> None:
        ran_back.extend([block.self_attn.layer_idx] * output.requires_grad)

    for block in model.model.layers:
        block.register_forward_hook(note)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine = Engine(model, load.load_tokenizer(tiny_model))
    ran_back.clear()  # of the trial of two tokens
    engine.forward_backward(ragged(seed=3, rows=7))
    engine.optimizer_step(1e-2)
    assert set(ran_back) == {1}
    trained = {name for name in before if name.startswith(("model.layers.1.", "model.norm"))}
    assert engine.masters.weights.keys() == trained
    assert {id(weight) for weight in engine.optimizer.state} == {id(weight) for weight in engine.masters.weights.values()}
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])} == trained
    assert not any(weight.grad is not None for name, weight in model.named_parameters() if name not in trained)


def test_any_method_is_opened_by_its_name(tiny_model: Path) -> None:
    opened = {
        method: Engine.open(str(tiny_model), method=method, settings=settings)
        for method, settings in {
            "bottleneck": {"kind": "houlsby", "reduction_factor": 8},
            "ia3": {},
            "peft": {"type": "VERA", "r": 16},
            "full": {"layers": "0"},
            "lora": {"r": 4},
        }.items()
    }
    assert isinstance(opened["bottleneck"].model, bottleneck.BottleneckModel)
    assert [opened[method].adapted for method in opened] == [True, True, True, False, True]
    assert len([weight for weight in opened["full"].trained_parameters if weight.dim() > 1]) == 7 + 1
    for engine in opened.values():
        examples = engine.tokenize([{"prompt": "Itasca", "completion": "IL"}])
        assert engine.forward_backward(examples).loss > 0
        assert engine.optimizer_step(1e-3) > 0


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("bottlenek", {}, "there is no method bottlenek"),
        ("bottleneck", {"r": 8}, "method: bottleneck has no setting r\n.*kind, reduction_factor"),
        ("bottleneck", {"kind": "sideways"}, "kind is 'sideways'"),
        ("peft", {"type": "VERRA"}, "PEFT has no type VERRA"),
        ("full", {"layers": "0-1", "embeddings": True}, "nothing but norms"),
    ],
)
def test_a_wrong_setting_is_named(method: str, settings: dict[str, Any], words: str, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine.open(str(tiny_model), method=method, settings=settings)


def test_the_loss_without_the_adapter_is_the_bases(tiny_model: Path) -> None:
    example = ragged(seed=3, rows=1)[0]
    base = Engine(load.load_model(tiny_model, "fp32", "cpu"), load.load_tokenizer(tiny_model)).held_out_loss([example])
    trained, without = opened(tiny_model, "houlsby").losses_with_and_without_adapter(example)
    assert without == pytest.approx(base, rel=1e-6)
    assert trained != pytest.approx(base, rel=1e-4)
