"""Every architecture on the fast path against the same model as Transformers and PEFT run it: one row at a time, eager attention, full logits."""

import copy
import random
from typing import Any

import pytest
import torch
import transformers
from conftest_engine import gradients

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, reference
from luthier.engine.batches import lay_out
from luthier.errors import ConfigError
from luthier.models import lora
from luthier.records import Source, TokenizedExample

EXACT = 1e-5  # relative, fp32
VOCABULARY = 200
WINDOW = 7  # far shorter than the rows
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "head_dim": 4, "num_key_value_heads": 4}
GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
GRANITE = {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.5}
# name            (class without its ending, what differs from SIZES)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama":           ("Llama",     {"tie_word_embeddings": True}),
    "llama-untied":    ("Llama",     {"tie_word_embeddings": False}),
    "mistral":         ("Mistral",   {"sliding_window": WINDOW}),
    "qwen2":           ("Qwen2",     {}),
    "qwen2-windows":   ("Qwen2",     {"use_sliding_window": True, **WINDOWS}),
    "qwen3":           ("Qwen3",     {"head_dim": 8}),
    "gemma2":          ("Gemma2",    {**GEMMA2, **WINDOWS}),
    "gemma3":          ("Gemma3",    {"head_dim": 8, "query_pre_attn_scalar": 24, **WINDOWS}),
    "phi3":            ("Phi3",      {"sliding_window": WINDOW}),
    "phi":             ("Phi",       {}),
    "granite":         ("Granite",   GRANITE),
    "cohere":          ("Cohere",    {"logit_scale": 0.3}),
    "cohere2":         ("Cohere2",   {"logit_scale": 0.3, **WINDOWS}),
    "deepseek-v3":     ("DeepseekV3", {**MLA, "first_k_dense_replace": 9}),
    "gpt2":            ("GPT2",      NO_DROPOUT),
}  # fmt: skip
FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral":         ("Mixtral",    {"num_local_experts": 4}),
    "qwen2-moe":       ("Qwen2Moe",   FOUR),
    "qwen3-moe":       ("Qwen3Moe",   {**FOUR, "head_dim": 8}),
    "jetmoe":          ("JetMoe",     {"num_local_experts": 4, "kv_channels": 8}),
    "deepseek-v2":     ("DeepseekV2", {**MLA, **ROUTED}),
}  # fmt: skip
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0, "eos_token_id": 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
# name            (class, what differs, a part of what the engine says)
PLAIN: dict[str, tuple[str, dict[str, Any], str]] = {
    "recurrent":        ("Mamba",     MAMBA,                                    "recurrent layers"),
    "hybrid":           ("Qwen3Next", {**FOUR, **HYBRID, "head_dim": 8},        "recurrent layers"),
    "sinks":            ("GptOss",    {"num_local_experts": 4, "head_dim": 8},  "sinks"),
    "dropout":          ("Llama",     {"attention_dropout": 0.1},               "dropped while it trains"),
    "gpt2-dropout":     ("GPT2",      {"attn_pdrop": 0.1},                      "dropped while it trains"),
    "own-positions":    ("Bloom",     {},                                       "positions"),
    "lost-layout":      ("StableLm",  {},                                       "where documents begin"),
    "window-in-mask":   ("Phimoe",    {"sliding_window": WINDOW, "num_local_experts": 4}, "the window"),
    "twice":            ("DiffLlama", {},                                       "more than once"),
    "own-mask":         ("Doge",      {},                                       "mask of its own"),
    "own-attention":    ("Falcon",    {},                                       "cannot be replaced"),
    "head":             ("Bert",      {"is_decoder": True},                     "head"),
}  # fmt: skip
# Tokens that all rows begin with, and the ways to run them: prefix sharing, and tokens of a micro-batch.
CUTS = {0: [(False, 1), (False, 60), (False, 4096)], 24: [(False, 100), (True, 60)]}
# What is trained: the layers that get an adapter of rank 4, or the whole model.
TRAINED: dict[str, str | list[str] | None] = {"all-linear": "all-linear", "q-v": ["q_proj", "v_proj"], "full": None}
BOTH_ENDS = [(architecture, what) for architecture in ARCHITECTURES | EXPERTS for what in ("all-linear", "full")]
SOME = ["llama", "gemma2", "mistral", "granite", "mixtral"]


def build(name: str, settings: dict[str, Any]) -> Any:
    """A random model whose biases and norms are not those of a fresh one, which would hide mistakes."""
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    sizes = settings if name == "Mamba" else {**GPT2, **settings} if name == "GPT2" else {**SIZES, **settings}
    known = {"head_dim", "sliding_window", "layer_types"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class = getattr(transformers, f"{name}LMHeadModel" if name in ("Bert", "GPT2") else f"{name}ForCausalLM")
        model = model_class(config_class(**sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    assert all(getattr(model.config, key) == settings[key] for key in known & settings.keys())
    return model.eval()


def trained(model: Any, what: str | list[str] | None, dropout: float = 0.0) -> Any:
    """The model with an adapter that changes its answers, or with everything trained."""
    if what is None:
        return model.requires_grad_(True)
    adapted = lora.add(model, LoraSettings(r=4, lora_alpha=8.0, lora_dropout=dropout, target_modules=what))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def pair(architecture: str, what: str = "all-linear", **settings: Any) -> tuple[Engine, Any]:
    """An engine and, in a copy that it has not touched, the plain model."""
    name, differs = (ARCHITECTURES | EXPERTS)[architecture]
    model = trained(build(name, differs), TRAINED[what])
    plain = copy.deepcopy(model)
    (plain.get_base_model() if what != "full" else plain).set_attn_implementation("eager")
    engine = Engine(model, None, **settings)
    assert engine.plain_reason == ""
    return engine, plain


def row(ids: list[int], spans: list[tuple[int, int]], line: int) -> TokenizedExample:
    return TokenizedExample(ids, [any(begin <= place < end for begin, end in spans) for place in range(len(ids))], Source("rows", line))


def rows(prefix: int = 0) -> list[TokenizedExample]:
    """Ragged rows of one turn and of several, with one-token answers, an early answer and tails that are not trained."""
    draw = random.Random(prefix)
    beginning = [draw.randrange(3, VOCABULARY) for _ in range(prefix)]
    # the length of a row's own part, and its trained spans
    shapes = [(2, [(1, 2)]), (30, [(29, 30)]), (25, [(3, 7), (12, 13), (20, 24)]), (41, [(1, 41)]), (11, [(5, 9)]), (28, [(2, 5), (27, 28)])]
    return [
        row(
            beginning + [draw.randrange(3, VOCABULARY) for _ in range(tokens)],
            [(prefix + begin, prefix + end) for begin, end in spans],
            line,
        )
        for line, (tokens, spans) in enumerate(shapes, start=1)
    ]  # fmt: skip


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, relative to its norm; where that is nearly zero, to 1e-4 of the largest one."""
    assert one.keys() == other.keys()
    assert one
    floor = 1e-4 * max(float(gradient.norm()) for gradient in other.values())
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp_min(floor)) for name in one)


class Plain:
    """The plain model, in the shape that `gradients` reads."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def update(self, examples: list[TokenizedExample]) -> tuple[float, dict[str, torch.Tensor]]:
        return reference.forward_backward(self.model, examples), gradients(self)  # type: ignore[arg-type]


@pytest.mark.parametrize(("architecture", "what"), [*BOTH_ENDS, *((architecture, "q-v") for architecture in SOME)])
def test_loss_and_every_gradient_are_those_of_the_plain_model(architecture: str, what: str):
    engine, plain = pair(architecture, what)
    for prefix, ways in CUTS.items():
        examples = rows(prefix)
        loss, expected = Plain(plain).update(examples)
        for engine.share_prefixes, engine.micro_batch_tokens in ways:
            report = engine.forward_backward(examples)
            assert report.loss == pytest.approx(loss, rel=EXACT)
            assert differ(gradients(engine), expected) < EXACT
            assert (report.executed_tokens < 0.7 * report.logical_tokens) == engine.share_prefixes


@pytest.mark.parametrize("architecture", SOME)
def test_gradients_of_two_updates_add_up(architecture: str):
    engine, plain = pair(architecture)
    first, second = rows(24), rows()
    reference.forward_backward(plain, first)
    _, expected = Plain(plain).update(second)
    engine.forward_backward(first)
    engine.forward_backward(second)
    assert differ(gradients(engine), expected) < EXACT


@pytest.mark.parametrize("architecture", SOME)
def test_chosen_and_rejected_share_their_prompt(architecture: str):
    engine, plain = pair(architecture)
    draw = random.Random(5)
    pairs = []
    for number in range(2):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(80 + 10 * number)]
        for tokens in (9, 14):
            ids = [*prompt, *(draw.randrange(3, VOCABULARY) for _ in range(tokens))]
            pairs.append(row(ids, [(len(prompt), len(ids))], number + 1))
    assert len(lay_out(pairs, micro_batch_tokens=4096, share_prefixes=True).passes[0]) == 2
    loss, expected = Plain(plain).update(pairs)
    with torch.no_grad():
        by_row = [float(reference.loss_sum(plain, example)) / example.trained_tokens for example in pairs]
    for share_prefixes in (False, True):
        engine.share_prefixes = share_prefixes
        report = engine.forward_backward(pairs, row_losses=True)
        assert report.loss == pytest.approx(loss, rel=EXACT)
        assert report.row_losses == pytest.approx(by_row, rel=EXACT)
        assert differ(gradients(engine), expected) < EXACT


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
def test_the_result_does_not_depend_on_the_budget(architecture: str, dropout: float):
    name, differs = (ARCHITECTURES | EXPERTS)[architecture]
    engine = Engine(trained(build(name, differs), "all-linear", dropout), None)
    examples = [example for _ in range(3) for example in rows()][:17]
    found = []
    for cuts, micro_batch_tokens in {1: 4096, 3: 150, 17: 1}.items():
        assert len(lay_out(examples, micro_batch_tokens=micro_batch_tokens, share_prefixes=False).micro_batches) == cuts
        engine.micro_batch_tokens, engine.share_prefixes = micro_batch_tokens, False
        torch.manual_seed(7)  # as the training loop does for every update
        found.append((engine.forward_backward(examples).loss, gradients(engine)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert differ(gradient, found[0][1]) < 2e-6


def test_dropout_changes_the_update_and_differs_between_its_rows():
    name, differs = ARCHITECTURES["llama"]
    engine = Engine(trained(build(name, differs), "all-linear", 0.3), None)
    without = Engine(trained(build(name, differs), "all-linear"), None)
    twice = [rows()[3], rows()[3]]
    first, second = engine.forward_backward(twice, row_losses=True).row_losses or []
    assert first != pytest.approx(second, rel=1e-4)
    assert first != pytest.approx(without.forward_backward(twice).loss, rel=1e-4)


@pytest.mark.parametrize("architecture", PLAIN)
def test_what_an_architecture_does_not_allow_runs_plainly_and_says_so(architecture: str):
    name, differs, words = PLAIN[architecture]
    model = build(name, differs)
    plain = copy.deepcopy(model)
    engine = Engine(model.requires_grad_(True), None)
    assert words in engine.plain_reason
    examples = rows(24)
    if "dropout" not in architecture:
        with torch.no_grad():
            losses = sum(float(reference.loss_sum(plain, example)) for example in examples)
        assert engine.held_out_loss(examples) == pytest.approx(losses / sum(example.trained_tokens for example in examples), rel=EXACT)
    report = engine.forward_backward(examples)
    assert report.executed_tokens == report.logical_tokens
    assert all(float(gradient.abs().max()) < float("inf") for gradient in gradients(engine).values())


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "cohere2", "llama-untied"])
def test_a_model_that_the_engine_opened_still_works_without_it(architecture: str):
    engine, plain = pair(architecture)
    ids = torch.tensor([rows()[3].token_ids])
    with torch.no_grad():
        torch.testing.assert_close(engine.model.eval()(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    assert engine.check(rows()[3]) < EXACT
    engine.go_plain("for the test")
    with torch.no_grad():
        torch.testing.assert_close(engine.model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_an_attention_that_is_wrong_for_a_model_is_refused():
    with pytest.raises(ConfigError, match=r"training.attn_implementation: Gemma2ForCausalLM cannot run with sdpa"):
        Engine(build(*ARCHITECTURES["gemma2"]), None, attn_implementation="sdpa")
    assert "was asked for" in Engine(build(*ARCHITECTURES["gemma2"]), None, attn_implementation="eager").plain_reason


def test_rows_run_one_by_one_where_a_long_one_changes_the_encoding_of_positions():
    factors = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {**factors, "original_max_position_embeddings": 50, "partial_rotary_factor": 1.0}
    model = build("Phi3", {"rope_parameters": rope, "max_position_embeddings": 100, "original_max_position_embeddings": 50})
    engine, plain = Engine(model, None), copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    for prefix, words in ((0, ""), (24, "more than 50 tokens, and one has 65")):  # rows of 41 and of 65 tokens
        examples = rows(prefix)
        with torch.no_grad():
            losses = sum(float(reference.loss_sum(plain, example)) for example in examples)
        assert engine.held_out_loss(examples) == pytest.approx(losses / sum(example.trained_tokens for example in examples), rel=EXACT)
        assert words in engine.plain_reason
        assert bool(words) == bool(engine.plain_reason)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_routers_and_experts_are_left_out_of_all_linear(architecture: str):
    name, differs = EXPERTS[architecture]
    model = trained(build(name, differs), "all-linear")
    adapted = {parameter.rpartition(".lora_")[0] for parameter, weight in model.named_parameters() if weight.requires_grad}
    assert any("self_att" in module for module in adapted)
    assert not [module for module in adapted if any(part in ("gate", "router", "experts", "shared_expert_gate") for part in module.split(".")[5:])]
    stored = model.peft_config["default"]
    assert not stored.target_parameters
