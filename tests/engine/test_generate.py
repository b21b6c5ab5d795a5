"""Answers must be those of Transformers' own `generate`, whatever the batch, the shared beginning and the architecture."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest_engine import open_tiny

from luthier.engine import Engine, attention, generate
from luthier.engine.generate import How
from luthier.engine.sampling import Sampling
from luthier.errors import DataError
from luthier.models import find
from luthier.records import Turn
from luthier.reporting import Silent

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,  # a tied random model repeats its last token, whatever its attention does
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES = {
    # name       config of Transformers            what stands out
    "llama":    ("LlamaConfig",      {}),
    "mistral":  ("MistralConfig",    {"sliding_window": 9}),
    "qwen3":    ("Qwen3Config",      {"head_dim": 24, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "gemma2":   ("Gemma2Config",     {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3":   ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8, "layer_types": MIXED_LAYERS}),
    "phi3":     ("Phi3Config",       {"sliding_window": 11}),
    "gpt2":     ("GPT2Config",       {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "granite":  ("GraniteConfig",    {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "cohere2":  ("Cohere2Config",    {"logit_scale": 0.25, "sliding_window": 8}),
    "phi":      ("PhiConfig",        {}),  # its head has a bias
}  # fmt: skip


def prompts_of(rows: int, prefix: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    beginning = [draw.randrange(3, 300) for _ in range(prefix)]
    return [beginning + [draw.randrange(3, 300) for _ in range(draw.randint(1, 25))] for _ in range(rows)]


def of_transformers(model: Any, prompts: list[list[int]], new_tokens: int, **settings: Any) -> list[list[int]]:
    """What Transformers answers, a prompt at a time and without any end."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | settings
        answers.append(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, **settings)[0, len(prompt) :].tolist())
    return answers


def until(answer: list[int], stop: int) -> list[int]:
    return answer[: answer.index(stop)] if stop in answer else answer


def frequent(answers: list[list[int]]) -> int:
    """A token that ends some answers early and others late or never, so that rows leave the batch at different times."""
    said = [token for answer in answers for token in answer[3:]]
    return max(set(said), key=said.count)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    name, own = ARCHITECTURES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SIZES | own)).eval()


@pytest.mark.parametrize("prefix", [0, 20])
def test_greedy_answers_are_those_of_transformers(model: Any, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(9, prefix)
    model.set_attn_implementation("eager")
    free = of_transformers(model, prompts, 12)
    stop = frequent(free)
    expected = [until(answer, stop) for answer in free]
    assert len({len(answer) for answer in expected}) > 1
    assert len({tuple(answer) for answer in free}) > 4
    how = How(frozenset({stop}))
    assert generate.answer(model, prompts[:2], How(frozenset({stop}), plain=True), 12) == expected[:2]
    model.set_attn_implementation(attention.DOORS["eager"])
    done: list[int] = []
    assert generate.answer(model, prompts, how, 12, done.append) == expected
    assert done == [9]
    assert [generate.answer(model, [prompt], how, 12)[0] for prompt in prompts] == expected
    assert [list(generate.stream(model, prompt, how, 12)) for prompt in prompts] == expected
    monkeypatch.setattr(generate, "BATCH_TOKENS", 120)
    shuffled = random.Random(1).sample(range(9), 9)
    again = generate.answer(model, [prompts[place] for place in shuffled], how, 12, done.append)
    assert again == [expected[place] for place in shuffled]
    assert done[1] < done[-1] == 9  # in more than one batch


@pytest.mark.parametrize("prefix", [0, 20])
def test_every_logit_is_that_of_the_model_itself(model: Any, prefix: int) -> None:
    prompts = prompts_of(5, prefix)
    going = [prompts, *([[9, 8, 7, 6, 5]] * 12)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        texts = [prompt + [tokens[row] for tokens in going[1:]] for row, prompt in enumerate(prompts)]
        expected = [model(input_ids=torch.tensor([text])).logits[0, -13:] for text in texts]
        model.set_attn_implementation(attention.DOORS["eager"])
        runner = generate.Fast(model, generate.run_prefix(model, prompts[0][:prefix]) if prefix else {}, prefix)
        order = sorted(range(5), key=lambda row: len(prompts[row]))
        found = [runner.begin([prompts[row] for row in order], 12)]
        found += [runner.go_on(torch.tensor([tokens[row] for row in order])) for tokens in going[1:]]
    for place, row in enumerate(order):
        torch.testing.assert_close(torch.stack([logits[place] for logits in found]), expected[row], atol=1e-4, rtol=1e-5)


def test_each_row_has_its_own_limit(engine: Engine) -> None:
    prompts = prompts_of(4, 5)
    whole = generate.answer(engine.model, prompts, How(frozenset()), 9)
    assert generate.answer(engine.model, prompts, How(frozenset()), [9, 2, 5, 1]) == [
        answer[:limit] for answer, limit in zip(whole, [9, 2, 5, 1], strict=True)
    ]


def test_one_prompt_twice_no_prompt_at_all_and_an_empty_one(engine: Engine) -> None:
    prompt = prompts_of(1, 5)[0]
    one, other = generate.answer(engine.model, [prompt, prompt], How(frozenset()), 5)
    assert one == other == of_transformers(engine.model, [prompt], 5)[0]
    assert generate.answer(engine.model, [], How(frozenset()), 5) == []
    with pytest.raises(DataError, match="no tokens"):
        generate.answer(engine.model, [prompt, []], How(frozenset()), 5)


def test_batches_hold_as_many_rows_as_the_tokens_allow() -> None:
    lengths = [1000, 10, 20_000, 12, 900, 11]
    found = list(generate.batches(lengths, [100] * 6, 128))
    assert found == [[1, 5, 3, 4, 0], [2]]
    assert max(len(batch) for batch in generate.batches([1] * 1000, [20] * 1000, 128)) == 128
    long = list(generate.batches([1000] * 64, [1000] * 64, 128))
    assert [len(batch) for batch in long] == [8] * 8  # 16,384 // 2,000
    assert sorted(place for batch in long for place in batch) == list(range(64))


def addresses(runner: generate.Fast) -> list[int]:
    """Where the keys of the first layer lie, block by block."""
    return [keys.data_ptr() for keys, _ in runner.state.kept[0]]


def test_kept_keys_are_not_copied_as_the_answer_grows(engine: Engine) -> None:
    runner = generate.Fast(engine.model, {}, 0)
    with torch.no_grad():
        tokens = runner.begin(prompts_of(3, 0), 300).argmax(dim=-1)
        first = addresses(runner)
        for _ in range(299):
            tokens = runner.go_on(tokens).argmax(dim=-1)
            assert addresses(runner)[: len(first)] == first
            first = addresses(runner)
    longest = max(map(len, prompts_of(3, 0)))
    assert runner.state.sizes == [longest, 32, 32, 64, 128, 44]  # no more than was asked for


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=0.8, top_p=0.9, top_k=40, repetition_penalty=1.2, seed=3)])
def test_a_seed_gives_the_same_answers_whatever_the_batch_and_the_order(engine: Engine, sampling: Sampling) -> None:
    prompts = prompts_of(7, 10)
    free = generate.answer(engine.model, prompts, How(frozenset(), sampling), 12)
    stops = frozenset(answer[3] for answer in free[::2])
    how = How(stops, sampling)
    together = generate.answer(engine.model, prompts, how, 12)
    # Rows that end early, here more than half of them, leave the others' draws alone.
    assert together == [list(itertools.takewhile(lambda token: token not in stops, answer)) for answer in free]
    assert 3 <= sum(len(answer) < 12 for answer in together) < 7
    assert together == [generate.answer(engine.model, [prompt], how, 12)[0] for prompt in prompts]
    assert together == generate.answer(engine.model, prompts[::-1], how, 12)[::-1]
    assert together == [list(generate.stream(engine.model, prompt, how, 12)) for prompt in prompts]
    assert together == generate.answer(engine.model, prompts, How(stops, sampling, plain=True), 12)
    other = How(frozenset(), Sampling(temperature=1.0, seed=4))
    assert together != generate.answer(engine.model, prompts, other, 12)


def test_a_prompt_that_is_asked_three_times_has_three_answers(engine: Engine) -> None:
    prompt = prompts_of(1, 10)[0]
    answers = generate.answer(engine.model, [prompt] * 3, How(frozenset(), Sampling(temperature=1.0)), 8)
    assert len({tuple(answer) for answer in answers}) == 3


def test_a_repetition_penalty_acts_on_greedy_answers_as_in_transformers(engine: Engine) -> None:
    prompts = prompts_of(5, 10)
    how = How(frozenset(), Sampling(repetition_penalty=1.4))
    penalized = generate.answer(engine.model, prompts, how, 12)
    assert penalized == of_transformers(engine.model, prompts, 12, repetition_penalty=1.4)
    assert penalized != generate.answer(engine.model, prompts, How(frozenset()), 12)


def test_the_four_calls_of_the_readme(tiny_model: Path, tmp_path: Path) -> None:
    engine = Engine.open(str(tiny_model), lora={"r": 4}, seed=0)
    rows = [{"messages": [{"role": "user", "content": "street"}, {"role": "assistant", "content": "the guitar answers"}]}] * 4
    examples = engine.tokenize(rows)
    for _ in range(60):
        loss = engine.forward_backward(examples).loss
        engine.optimizer_step(1e-2)
    assert loss < 0.2
    assert engine.sample("street", max_new_tokens=20) == "the guitar answers"
    saved = engine.save_state(tmp_path / "adapter")
    again = Engine.open(str(tiny_model), adapter=str(saved))
    assert again.sample("street", max_new_tokens=20) == "the guitar answers"
    assert "".join(again.stream([Turn("user", "street")], max_new_tokens=20)) == "the guitar answers"
    assert again.sample("street", max_new_tokens=20, stop=" answers") == "the guitar"
    assert open_tiny(find.find(str(tiny_model), Silent())).sample("street", max_new_tokens=5) != "the guitar answers"


QUESTIONS = [
    "What is a luthier?",
    "Write one sentence about rain.",
    "2 + 2 =",
    "Name three rivers of Europe, and say for each of them through which countries it flows.",
    "Translate to French: the house is small.",
    "hi",
]


# Where a processor has no bf16 of its own, its products take ten times as long.
@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, default_model: Path) -> Engine:
    return Engine.open(str(default_model), precision=request.param, device="cpu")


@pytest.mark.real_model
def test_the_default_model_says_what_transformers_makes_it_say(real: Engine) -> None:
    from luthier.data.tokenize import prompt_ids

    prompts = [prompt_ids([Turn("user", question)], real.tokenizer) for question in QUESTIONS]
    real.model.eval()
    real.model.set_attn_implementation("sdpa")
    expected = of_transformers(real.model, prompts, 24)
    real.model.set_attn_implementation(attention.DOORS["sdpa"])
    tolerance = 1e-4 if real.model.dtype == torch.float32 else 0.26  # logits of bf16 above 16 stand 0.125 apart
    for answers in (
        generate.answer(real.model, prompts, How(frozenset()), 24),
        [generate.answer(real.model, [prompt], How(frozenset()), 24)[0] for prompt in prompts],
    ):
        for prompt, answer, right in zip(prompts, answers, expected, strict=True):
            assert apart(real.model, prompt, answer, right) < tolerance


def apart(model: Any, prompt: list[int], answer: list[int], right: list[int]) -> float:
    """By how much the log-probabilities of the first token differ in which two answers differ; 0 for equal ones."""
    place = next((place for place, (one, other) in enumerate(zip(answer, right, strict=True)) if one != other), None)
    if place is None:
        return 0.0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + right[:place]]), use_cache=False).logits[0, -1]
    log_probabilities = logits.double().log_softmax(dim=-1)
    return abs(float(log_probabilities[answer[place]] - log_probabilities[right[place]]))
