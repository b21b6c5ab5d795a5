"""Virtual tokens on the fast path: loss, gradients and answers are those of PEFT's own forward, however an update is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest_engine import furthest, gradients, ragged

from luthier.config.settings import Settings
from luthier.engine import Engine, frozen, generate, reference, update
from luthier.engine.batches import lay_out
from luthier.errors import DataError
from luthier.models import load, methods
from luthier.records import Source, TokenizedExample

EXACT = 2e-5  # relative, fp32
VARIANTS = {
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 5}},
    "prefix with its network": {"method": "prefix", "prefix": {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 24}},
    "prompt": {"method": "prompt", "prompt": {"num_virtual_tokens": 5}},
    "p_tuning": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 24}},
    "p_tuning, LSTM": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM"}},
}


SIZES = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 24}
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name            config of Transformers  model           what differs from SIZES
    "mistral":        ("MistralConfig",    "MistralForCausalLM", {"sliding_window": 7}),
    "mistral, short": ("MistralConfig",    "MistralForCausalLM", {"sliding_window": 3}),
    "qwen3":          ("Qwen3Config",      "Qwen3ForCausalLM",   {"head_dim": 24}),
    "gemma2":         ("Gemma2Config",     "Gemma2ForCausalLM",  {**GEMMA, **WINDOWS, "attn_logit_softcapping": 3.0}),
    "gemma3":         ("Gemma3TextConfig", "Gemma3ForCausalLM",  {**GEMMA, **WINDOWS}),
    "gemma3, short":  ("Gemma3TextConfig", "Gemma3ForCausalLM",  {**GEMMA, **WINDOWS, "sliding_window": 4}),
    "phi3":           ("Phi3Config",       "Phi3ForCausalLM",    {"sliding_window": 7}),
    "gpt2":           ("GPT2Config",       "GPT2LMHeadModel",    GPT2),
}  # fmt: skip
REASONS = {("gemma3, short", "prefix"): "PEFT does not give every layer the whole prefix"}


def build(config: str, model: str, differs: dict[str, Any]) -> Any:
    sizes = {"vocab_size": 200, **differs} if model.startswith("GPT2") else {**SIZES, **differs}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(initializer_range=0.2, **sizes)).eval()


def example_of(seed: int, tokens: int) -> TokenizedExample:
    ids = torch.randint(3, 200, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return TokenizedExample(ids, [False] * 5 + [True] * (tokens - 5), Source("rows", seed + 1))


def settings_of(variant: str) -> Settings:
    return Settings.model_validate({"model": "tiny", "data": {"train": "rows.jsonl"}} | VARIANTS[variant])


def engine_with(variant: str, folder: Path, **how: Any) -> Engine:
    tokenizer = load.load_tokenizer(folder)
    return Engine(methods.add(load.load_model(folder, "fp32", "cpu"), settings_of(variant), (), tokenizer), tokenizer, **how)


@pytest.fixture(params=list(VARIANTS))
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> Engine:
    made = engine_with(request.param, tiny_model)
    assert made.plain_reason == ""
    return made


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_twin(engine: Engine, prefix: int, micro_batch_tokens: int, share_prefixes: bool) -> None:
    examples = ragged(seed=prefix, rows=7, prefix=prefix)
    plain_loss = reference.forward_backward(engine.model, examples)
    plain = gradients(engine)
    assert len(plain) == len(engine.masters.weights)
    assert all(float(gradient.abs().max()) > 0 for gradient in plain.values())
    step = lay_out(examples, micro_batch_tokens=micro_batch_tokens, share_prefixes=share_prefixes)
    assert update.forward_backward(engine.model, engine.head, step) == pytest.approx(plain_loss, rel=1e-6)
    assert furthest(gradients(engine), plain) < EXACT


def test_no_row_sees_another_and_the_held_out_loss_is_the_plain_one(engine: Engine) -> None:
    examples = ragged(seed=9, rows=9, prefix=20)
    with torch.no_grad():
        plain = sum(float(reference.loss_sum(engine.model.eval(), example)) for example in examples)
    engine.model.train()
    assert engine.held_out_loss(examples) == pytest.approx(plain / sum(example.trained_tokens for example in examples), rel=1e-6)
    assert engine.model.training
    assert engine.check(examples[0]) < 1e-6
    assert engine.plain_reason == ""


PROMPTS = [[5, 6, 7, 8, *range(20, 20 + own)] for own in (1, 9, 4)]


def test_answers_are_those_of_peft_itself_with_and_without_the_virtual_tokens(engine: Engine) -> None:
    model = engine.model.eval()

    def of_transformers(prompt: list[int]) -> list[int]:
        told = {"attention_mask": torch.ones(1, len(prompt), dtype=torch.long), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        found: list[int] = model.generate(input_ids=torch.tensor([prompt]), **told)[0].tolist()
        return found[-8:]

    def answers(plain: bool = False) -> list[list[int]]:
        return generate.answer(model, PROMPTS, generate.How(frozenset(), plain=plain), 8)

    with_them = answers()
    assert with_them == answers(plain=True) == [of_transformers(prompt) for prompt in PROMPTS]
    assert [list(generate.stream(model, prompt, generate.How(frozenset()), 8)) for prompt in PROMPTS] == with_them
    with model.disable_adapter():
        without = answers()
        assert without == answers(plain=True)
    base = Engine(load.load_model(Path(model.get_base_model().name_or_path), "fp32", "cpu"), engine.tokenizer)
    assert without == generate.answer(base.model, PROMPTS, generate.How(frozenset()), 8)
    assert without != with_them
    assert answers() == with_them


def test_with_the_adapter_switched_off_the_loss_is_that_of_the_base(engine: Engine, tiny_model: Path) -> None:
    examples = ragged(seed=4, rows=5, prefix=20)
    base = Engine(load.load_model(tiny_model, "fp32", "cpu"), engine.tokenizer)
    with torch.no_grad():
        for weight in engine.trained_parameters:
            weight += 0.3
    tuned, room = engine.held_out_loss(examples), engine.context
    with engine.model.disable_adapter():
        assert engine.held_out_loss(examples) == pytest.approx(base.held_out_loss(examples), rel=1e-6)
        assert engine.context == base.context == 512
    assert room == 507
    assert engine.held_out_loss(examples) == tuned != pytest.approx(base.held_out_loss(examples), rel=1e-3)


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("plain", [False, True])
def test_computing_again_changes_nothing(engine: Engine, mode: str, plain: bool) -> None:
    examples = ragged(seed=3, rows=5, prefix=30)
    report = engine.forward_backward(examples)
    expected = gradients(engine)
    again = Engine(engine.model, engine.tokenizer, gradient_checkpointing=mode)  # type: ignore[arg-type]
    if plain:
        again.go_plain("asked")
    assert again.forward_backward(examples).loss == pytest.approx(report.loss, rel=1e-6)
    assert furthest(gradients(again), expected) < EXACT


@pytest.mark.parametrize(("variant", "run"), [("prefix", 0), ("prompt", 5), ("p_tuning", 5)])
def test_tokens_that_run_are_counted(variant: str, run: int, tiny_model: Path) -> None:
    """A prefix does not run; embeddings do, once an update, or where rows run plainly once a row."""
    engine = engine_with(variant, tiny_model)
    examples = ragged(seed=3, rows=4, prefix=30)
    step = lay_out(examples, micro_batch_tokens=4096, share_prefixes=True)
    report = engine.forward_backward(examples)
    assert (report.logical_tokens, report.executed_tokens) == (step.logical_tokens, step.executed_tokens + run)
    engine.go_plain("asked")
    assert engine.forward_backward(examples).executed_tokens == step.logical_tokens + 4 * run


def test_nothing_below_is_cached_since_every_layer_sees_them(engine: Engine) -> None:
    assert frozen.frozen_layers(engine.model) == (0, "every layer sees the virtual tokens, which are trained")


def test_the_virtual_tokens_learn(engine: Engine) -> None:
    examples = ragged(seed=4, rows=4, longest=10)
    losses = []
    for _ in range(30):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(3e-2)
    assert losses[-1] < 0.9 * losses[0]


def test_a_virtual_token_that_fills_the_context_leaves_no_room(tiny_model: Path) -> None:
    engine = engine_with("prompt", tiny_model)
    assert engine.has_room([5] * 506)
    assert not engine.has_room([5] * 507)
    with pytest.raises(DataError, match="context 507"):
        engine.answer([[5] * 507], max_new_tokens=1)


@pytest.mark.parametrize("variant", ["prefix", "prompt"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_other_architectures_agree_with_peft_or_say_why_not(architecture: str, variant: str) -> None:
    """Windows shorter than rows and even than the virtual tokens, other heads, positions that are learned, embeddings that are scaled."""
    engine = Engine(methods.add(build(*ARCHITECTURES[architecture]), settings_of(variant)), None)
    examples = [example_of(seed, 20) for seed in range(4)]
    plain_loss = reference.forward_backward(engine.model, examples)
    plain = gradients(engine)
    assert engine.plain_reason == REASONS.get((architecture, variant), "")
    assert engine.forward_backward(examples).loss == pytest.approx(plain_loss, rel=1e-6)
    assert furthest(gradients(engine), plain) < EXACT
    prompts = [example.token_ids[:length] for example, length in zip(examples, (4, 9, 14, 3), strict=True)]
    answers = [generate.answer(engine.model, prompts, generate.How(frozenset(), plain=plain), 6) for plain in (bool(engine.plain_reason), True)]
    assert answers[0] == answers[1]
