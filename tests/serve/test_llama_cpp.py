"""llama.cpp in a process of its own: a small model converted once, and what it says beside what our engine says."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import files
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine
from luthier.errors import MachineError, ModelError
from luthier.export import gguf, merged
from luthier.models import gguf_file
from luthier.records import Source, TokenizedExample, Turn
from luthier.serve.backends.llama_cpp import LlamaCpp

TURNS = [Turn("system", "You turn addresses into JSON."), Turn("user", "150 Pierce Rd, Itasca, IL 60143 — 12  boxes\n")]


def rows(vocabulary: int, count: int = 24, tokens: int = 24, answer: int = 8) -> list[TokenizedExample]:
    """Rows of random tokens, of which the last ones are trained."""
    drawn = torch.randint(3, vocabulary, (count, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return [TokenizedExample(ids, [False] * (tokens - answer) + [True] * answer, Source("row", number)) for number, ids in enumerate(drawn)]


def likeliest(engine: Engine, row: TokenizedExample) -> list[int]:
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([row.token_ids]), use_cache=False).logits[0]
    found: list[int] = logits[row.trained.index(True) - 1 : -1].argmax(dim=-1).tolist()
    return found


def agreement(engine: Engine, served: LlamaCpp, examples: list[TokenizedExample], **how: Any) -> float:
    """The share of places whose likeliest token is the same."""
    found = [next(iter(place)) for row in served.log_probabilities(examples, top=1, **how) for place in row]
    expected = [token for row in examples for token in likeliest(engine, row)]
    assert len(found) == len(expected)
    return sum(one == other for one, other in zip(found, expected, strict=True)) / len(found)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as one GGUF file in f16, made from its merged folder in fp32."""
    folder = tmp_path_factory.mktemp("gguf")
    whole = merged.write_merged(Engine.open(str(tiny_model)), folder / "merged", "fp32")
    return gguf.write_gguf(whole, folder, quantize="f16")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.open(str(tiny_model))


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(model, threads=1, slots=2, context=256) as running:
        yield running


def test_the_file_holds_template_stop_tokens_and_context(model: Path, engine: Engine) -> None:
    found = gguf_file.read(model)
    assert found.template == engine.tokenizer.chat_template
    assert set(engine.stop_ids) <= found.stop_ids
    assert (found.kind, found.context) == ("model", 512)
    assert found.types["F16"] > 0


def test_the_likeliest_tokens_are_our_engines_but_where_two_are_equally_likely(served: LlamaCpp, engine: Engine) -> None:
    examples = rows(500)
    found = served.log_probabilities(examples, top=2)
    assert agreement(engine, served, examples) >= 0.98  # a random model is often undecided; a trained one: below
    for row, places in zip(examples, found, strict=True):
        with torch.no_grad():
            logits = engine.model(input_ids=torch.tensor([row.token_ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        for place, likely in zip(logits[-len(places) :], places, strict=True):
            assert float(place.max() - place[next(iter(likely))]) < 0.02


def test_a_prompt_has_the_same_tokens(served: LlamaCpp, engine: Engine) -> None:
    rendered = served.render([{"role": turn.role, "content": turn.content} for turn in TURNS])
    assert served.tokenize(rendered) == prompt_ids(TURNS, engine.tokenizer)


def test_answers_are_the_engines_and_come_in_their_order(served: LlamaCpp, engine: Engine) -> None:
    prompts = [row.token_ids for row in rows(500, count=6, tokens=12, answer=1)]
    pairs = zip(served.answer(prompts, 6), engine.answer(prompts, max_new_tokens=6), strict=True)
    # f16 may turn one where two tokens of a random model are equally likely.
    assert sum(one == other for one, other in pairs) >= 5


def test_log_probabilities_are_the_engines(served: LlamaCpp, engine: Engine) -> None:
    [row] = rows(500, count=1)
    with torch.no_grad():
        expected = engine.model(input_ids=torch.tensor([row.token_ids])).logits[0, :-1].log_softmax(-1)
    [found] = served.log_probabilities([row], 3, top=5)
    assert len(found) == 3
    for place, likely in zip(expected[-3:], found, strict=True):
        assert list(likely) == place.topk(5).indices.tolist()
        assert list(likely.values()) == pytest.approx(place.topk(5).values.tolist(), abs=0.05)


def test_what_it_says_by_itself_is_not_asked_again_and_tells_the_same(served: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that begin as it answers, some with another token in the middle; in a random model's answers are halves of characters."""
    asked = []
    ask = LlamaCpp.ask
    monkeypatch.setattr(LlamaCpp, "ask", lambda self, path, what: asked.append(what) or ask(self, path, what))
    left_out = fewer = 0
    for number, row in enumerate(rows(500, count=12, tokens=12, answer=1)):
        said = served.say(row.token_ids, 16, top=3)
        left_out += len(said.tokens) > len(said.heads)
        ids = [*row.token_ids, *said.tokens]
        if number % 2:
            ids[17] = 3 + ids[17] % 400
        whole = TokenizedExample(ids, [False] * 12 + [True] * (len(ids) - 12), row.source)
        expected = [served._after(ids[:place], 3, None) for place in range(12, len(ids))]
        asked.clear()
        for given in (said, None):
            found = served.heads(whole, top=3, said=given)
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-2)
                assert max(one, key=lambda token: one[token]) in other
        fewer += len(asked) < len(expected)
    assert left_out >= 1
    assert fewer >= 6


def test_what_it_refuses_is_said(served: LlamaCpp) -> None:
    with pytest.raises(ModelError, match="refuses /completion"):
        served.answer([[5] * 400], 4)


def test_it_ends_with_the_block_and_with_its_owner(model: Path) -> None:
    with LlamaCpp(model, threads=1, slots=1, context=64) as running:
        assert running.running
        assert running._process
        process = running._process
    assert process.returncode == 0
    assert not running.running
    with LlamaCpp(model, threads=1, slots=1, context=64) as running:
        assert running._process
        os.kill(running._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while running.running and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(MachineError, match="does not answer"):
            running.answer([[5, 6]], 1)


def test_with_a_key_it_answers_nobody_else_on_the_machine(model: Path) -> None:
    with LlamaCpp(model, threads=1, slots=1, context=64, key="k" * 32) as running:
        assert running._process
        arguments = Path(f"/proc/{running._process.pid}/cmdline")  # which everyone on the machine can read
        assert not arguments.exists() or running.key not in arguments.read_text()
        assert running.answer([[5, 6]], 1)
        running.key = ""
        with pytest.raises(ModelError, match="refuses /completion"):
            running.answer([[5, 6]], 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_all_programs_of_a_terminal_or_service_does_not_end_it(served: LlamaCpp, number: int) -> None:
    assert served._process
    os.kill(served._process.pid, number)
    time.sleep(0.3)
    assert served.running
    assert served.answer([[5, 6]], 1)


def test_a_file_that_is_cut_never_reaches_it(model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cut"), LlamaCpp(cut):
        pass


def test_a_file_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "odd.gguf", "nosucharch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="cannot load it") as error, LlamaCpp(tmp_path / "odd.gguf", slots=1, context=64):
        pass
    assert str(tmp_path / "odd.gguf") in error.value.where


@pytest.mark.slow
def test_a_rank_stabilized_adapter_beside_its_base_answers_as_in_training(tiny_model: Path, model: Path, tmp_path: Path) -> None:
    trained = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8, "use_rslora": True})
    with torch.no_grad():
        for number, (name, parameter) in enumerate(trained.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    adapter = trained.save_state(tmp_path / "adapter", str(tiny_model))
    found = gguf.write_lora(adapter, tmp_path, base=tiny_model, quantize="f16")
    assert gguf_file.read(found).alpha == pytest.approx(16.0)
    examples = rows(500)
    with LlamaCpp(model, {"other": found}, slots=2, context=256) as running:
        assert agreement(trained, running, examples, adapter="other") >= 0.98
        base = Engine.open(str(tiny_model))
        assert agreement(base, running, examples) >= 0.98  # the base stays the base
        assert agreement(base, running, examples, adapter="other") < 0.9


@pytest.mark.slow
def test_a_model_that_the_converter_does_not_know_is_named(tiny_model: Path, tmp_path: Path) -> None:
    whole = merged.write_merged(Engine.open(str(tiny_model)), tmp_path / "merged", "fp32")
    config = files.read_json(whole / "config.json") | {"architectures": ["NobodyForCausalLM"]}
    files.write_json(whole / "config.json", config)
    with pytest.raises(ModelError, match="NobodyForCausalLM") as error:
        gguf.write_gguf(whole, tmp_path)
    assert "--to merged" in error.value.next_step


@pytest.mark.slow
@pytest.mark.real_model
def test_the_default_model_says_the_same_in_f16_and_nearly_so_in_fewer_bits(default_model: Path, tmp_path: Path) -> None:
    engine = Engine.open(str(default_model))
    questions = [
        "Where is Paris?",
        "Write a haiku about rain.",
        "What is 12 + 30?",
        "Name three colors.",
        "Who wrote Hamlet?",
        "Say hello in French.",
    ]
    asked = [prompt_ids([Turn("user", question)], engine.tokenizer) for question in questions for _ in range(4)]
    answers = [ids + engine.tokenizer(text)["input_ids"][:12] for ids, text in zip(asked, engine.answer(asked, max_new_tokens=12), strict=True)]
    examples = [
        TokenizedExample(ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt)), Source("row", number))
        for number, (prompt, ids) in enumerate(zip(asked, answers, strict=True))
    ]
    whole = merged.write_merged(Engine.open(str(default_model)), tmp_path / "merged", "fp32")
    least = {"f16": 0.995, "q8_0": 0.9, "q4_k_m": 0.6}
    found = {}
    for quantize in least:
        with LlamaCpp(gguf.write_gguf(whole, tmp_path, quantize=quantize), slots=4, context=256) as running:
            found[quantize] = agreement(engine, running, examples)
    assert all(found[quantize] >= limit for quantize, limit in least.items()), found
