"""What a reader sees of an answer: its text up to a stop string, and pieces of which nothing has to be taken back."""

from pathlib import Path

import pytest

from luthier.engine import Engine
from luthier.engine.answers import text_of
from luthier.errors import CallError
from luthier.records import Turn

ANSWER = "Rain falls.\n\nUser: and then? naïve 漢字 🎻 END."
STOPS = ["\n\nUser:", "END", "then? na", "漢字", "Rain", "not there", "字 🎻 EN"]


@pytest.fixture
def ids(engine: Engine) -> list[int]:
    found: list[int] = engine.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    return found


def test_pieces_never_break_a_character(engine: Engine, ids: list[int]) -> None:
    pieces = list(text_of(engine.tokenizer, ()).pieces(iter(ids)))
    assert "".join(pieces) == ANSWER
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10


@pytest.mark.parametrize("stop", STOPS)
def test_an_answer_ends_before_a_stop_string_even_over_token_borders(engine: Engine, ids: list[int], stop: str) -> None:
    text = text_of(engine.tokenizer, ["neither this", stop])
    expected = ANSWER.partition(stop)[0]
    ended = next((count for count in range(1, len(ids) + 1) if text.ended(ids[:count])), None)
    assert (ended is None) == (stop not in ANSWER)
    read = ids[:ended]  # what the decoder hands out: the token that completes the stop string is the last one
    assert text.of(read) == expected
    shown = ""
    for piece in text.pieces(iter(read)):
        assert piece
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


def test_the_beginning_of_a_stop_string_waits_until_it_is_decided(engine: Engine) -> None:
    ids = engine.tokenizer("a EN b", add_special_tokens=False)["input_ids"]
    text = text_of(engine.tokenizer, "END")
    shown = ""
    for count, token in enumerate(text.pieces(iter(ids))):
        shown += token
        assert not shown.endswith(("E", "EN")), count
    assert shown == "a EN b"
    assert "".join(text.pieces(iter(ids[:-2]))) == "a E"  # what waited is said when nothing follows


def test_control_tokens_inside_do_not_hide_a_stop_string(engine: Engine) -> None:
    inside = engine.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = engine.tokenizer("the EN", add_special_tokens=False)["input_ids"]
    rest = engine.tokenizer("D.", add_special_tokens=False)["input_ids"]
    text = text_of(engine.tokenizer, "END")
    assert any(text.ended([*ids, inside, inside, *rest[: count + 1]]) for count in range(len(rest)))


def test_answer_and_stream_stop_at_the_same_place(engine: Engine) -> None:
    from luthier.data.tokenize import prompt_ids

    turns = [[Turn("user", question)] for question in ("street", "guitar", "Who answers?")]
    prompts = [prompt_ids(one, engine.tokenizer) for one in turns]
    whole = engine.answer(prompts, max_new_tokens=24)
    stop = whole[0][len(whole[0]) // 2 :][:3]
    expected = [answer.partition(stop)[0] for answer in whole]
    assert expected != whole
    assert engine.answer(prompts, max_new_tokens=24, stop=stop) == expected
    assert engine.answer(prompts, max_new_tokens=24, stop=(stop, "not there")) == expected
    assert ["".join(engine.stream(one, max_new_tokens=24, stop=stop)) for one in turns] == expected


def test_a_model_that_runs_plainly_answers_the_same(engine: Engine) -> None:
    from luthier.engine.sampling import Sampling

    turns = [Turn("user", "street")]
    sampling = Sampling(temperature=1.0, seed=2)
    fast = "".join(engine.stream(turns, max_new_tokens=12)), "".join(engine.stream(turns, max_new_tokens=12, sampling=sampling))
    engine.go_plain("asked to")
    assert ("".join(engine.stream(turns, max_new_tokens=12)), "".join(engine.stream(turns, max_new_tokens=12, sampling=sampling))) == fast


def test_an_empty_stop_string_is_refused(engine: Engine) -> None:
    with pytest.raises(CallError, match="stop"):
        engine.sample("street", stop="")


def test_an_answer_ends_at_the_end_tokens_of_tokenizer_template_and_model(tiny_model: Path) -> None:
    engine = Engine.open(str(tiny_model))
    engine.tokenizer.eos_token = "<|endoftext|>"  # 0; the template still writes <|im_end|>, which is 2
    engine.model.generation_config.eos_token_id = [7, 9]
    assert engine.stop_ids == {0, 2, 7, 9}
    engine.model.generation_config.eos_token_id = 7
    assert engine.stop_ids == {0, 2, 7}
