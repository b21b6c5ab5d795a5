"""Batched answers with a shared prefix must be those of the plain loop, row by row."""

import random
from pathlib import Path

import pytest
from conftest_engine import open_tiny

from luthier.engine import Engine, generate, reference
from luthier.models import find
from luthier.records import Turn


def prompts_of(rows: int, prefix: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    beginning = [draw.randrange(3, 500) for _ in range(prefix)]
    return [beginning + [draw.randrange(3, 500) for _ in range(draw.randint(1, 25))] for _ in range(rows)]


def common_stop(engine: Engine, prompts: list[list[int]]) -> set[int]:
    """A token that ends some answers early and others late, so that rows leave the batch at different times."""
    answers = reference.answer(engine.model, prompts, stop_ids=set(), max_new_tokens=12)
    said = [token for answer in answers for token in answer[3:]]
    return {max(set(said), key=said.count)}


@pytest.mark.parametrize("prefix", [0, 30])
@pytest.mark.parametrize("rows", [1, 9])
def test_answers_are_those_of_the_plain_loop(engine: Engine, prefix: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "BATCH_ROWS", 4)
    prompts = prompts_of(rows, prefix)
    stop = common_stop(engine, prompts)
    plain = reference.answer(engine.model, prompts, stop_ids=stop, max_new_tokens=12)
    done: list[int] = []
    assert generate.answer(engine.model, prompts, stop_ids=stop, max_new_tokens=12, on_answers=done.append) == plain
    assert done[-1] == rows
    assert len({len(answer) for answer in plain}) > 1 or rows == 1


def test_one_prompt_twice_and_no_prompt_at_all(engine: Engine) -> None:
    prompt = prompts_of(1, 5)[0]
    one, other = generate.answer(engine.model, [prompt, prompt], stop_ids=set(), max_new_tokens=5)
    assert one == other == reference.answer(engine.model, [prompt], stop_ids=set(), max_new_tokens=5)[0]
    assert generate.answer(engine.model, [], stop_ids=set(), max_new_tokens=5) == []


def test_a_stream_says_the_same_and_stops_at_its_limit(engine: Engine) -> None:
    prompt = prompts_of(1, 10)[0]
    plain = reference.answer(engine.model, [prompt], stop_ids=set(), max_new_tokens=7)[0]
    assert list(generate.stream(engine.model, prompt, stop_ids=set(), max_new_tokens=7)) == plain
    assert list(generate.stream(engine.model, prompt, stop_ids={plain[3]}, max_new_tokens=7)) == plain[: plain.index(plain[3])]


def test_streamed_pieces_never_break_a_character(engine: Engine) -> None:
    ids = engine.tokenizer("naïve 漢字 🎻", add_special_tokens=False)["input_ids"]
    pieces = list(engine._pieces(iter(ids)))
    assert "".join(pieces) == "naïve 漢字 🎻"
    assert not any("\ufffd" in piece for piece in pieces)


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
    assert (
        open_tiny(find.find(str(tiny_model), __import__("luthier.reporting").reporting.Silent())).sample("street", max_new_tokens=5)
        != "the guitar answers"
    )
