"""Untuned models on the user's rows: the numbers are those of a plain forward, and a model that cannot be measured is no end."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, chat_row, write_rows

from luthier.errors import ConfigError, DataError
from luthier.recipes import model_bench
from luthier.recipes.model_bench import Benched


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("bench") / "rows.jsonl", [chat_row(place) for place in range(6)])


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The same weights behind another vocabulary: it has no merges, so that a token is a byte."""
    folder = tmp_path / "bytes"
    shutil.copytree(tiny_model, folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    stored["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder


def nats(model: Any, ids: list[int], first: int) -> float:
    """Of the tokens from `first` on, by Transformers' own forward."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logits[place - 1, ids[place]]) for place in range(first, len(ids)))


def test_bits_per_byte_and_perplexity_are_those_of_a_plain_forward(tiny_model: Path, rows: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    of_answers = of_texts = 0.0
    tokens = answer_bytes = text_bytes = 0
    for place in range(6):
        messages = chat_row(place)["messages"]
        asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        answer = messages[-1]["content"]
        before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in (asked, f"{answer}<|im_end|>"))
        of_answers += nats(model, before + after, len(before))
        tokens += len(after)
        answer_bytes += len(answer.encode())
        text = "\n".join(message["content"] for message in messages)
        of_texts += nats(model, [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids], 1)
        text_bytes += len(text.encode())
    (found,) = model_bench.bench([str(tiny_model)], str(rows))
    assert found.bits_per_byte == pytest.approx(of_answers / math.log(2) / answer_bytes, rel=1e-4)
    assert found.text_bits_per_byte == pytest.approx(of_texts / math.log(2) / text_bytes, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(of_answers / tokens), rel=1e-4)
    assert (found.rows, found.metrics["exact_match"].n, found.problem) == (6, 6, "")


def test_the_best_comes_first_and_what_cannot_be_measured_last(tiny_model: Path, other_model: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}", encoding="utf-8")
    names = [str(tmp_path / "broken"), str(other_model), "no-such-model", str(tiny_model), "llama-2-70b"]
    found = model_bench.bench(names, str(rows), wanted=["exact_match", "valid_json"])
    measured = [one for one in found if not one.problem]
    assert sorted(one.model for one in measured) == sorted([str(tiny_model), str(other_model)])
    assert found[:2] == sorted(measured, key=lambda one: one.bits_per_byte or 0)
    assert measured[0].bits_per_byte != measured[1].bits_per_byte
    assert set(measured[0].metrics) == {"exact_match", "valid_json"}
    problems = {one.model: one.problem for one in found if one.problem}
    assert problems.keys() == {str(tmp_path / "broken"), "no-such-model", "llama-2-70b"}
    assert "no model of the catalog" in problems["no-such-model"]
    assert "need 276 GB" in problems["llama-2-70b"]  # before anything is fetched


def test_all_models_are_measured_on_the_rows_that_each_can_read(tiny_model: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Pierce Rd " * 300}, {"role": "assistant", "content": "yes"}]}
    path = write_rows(tmp_path / "rows.jsonl", [chat_row(0), long, chat_row(1)])
    heard = Listener()
    (found,) = model_bench.bench([str(tiny_model)], str(path), heard)
    assert found.rows == 2
    assert "1 of 3 rows are left out: not each model can read them whole" in heard.lines
    with pytest.raises(DataError, match="no row can be read whole"):
        model_bench.bench([str(tiny_model)], str(write_rows(tmp_path / "long.jsonl", [long])))


def test_plain_text_has_bits_and_no_answers(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"{number} Pierce Rd, Itasca"} for number in range(4)])
    (found,) = model_bench.bench([str(tiny_model)], str(path))
    assert found.bits_per_byte
    assert found.metrics == {}


def test_many_rows_are_drawn_evenly(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat_row(place) for place in range(12)])
    ten: list[Benched] = model_bench.bench([str(tiny_model)], str(path), most_rows=5)
    picked = write_rows(tmp_path / "picked.jsonl", [chat_row(place) for place in (0, 2, 4, 7, 9)])
    (found,) = model_bench.bench([str(tiny_model)], str(picked))
    assert (ten[0].rows, ten[0].bits_per_byte) == (5, pytest.approx(found.bits_per_byte, rel=1e-6))


@pytest.mark.parametrize("metric", ["perplexity", "token_accuracy", "length", "stop_rate"])
def test_a_metric_that_is_not_of_texts_is_refused_before_a_model_is_opened(metric: str, rows: Path) -> None:
    with pytest.raises(ConfigError, match=f"{metric} is not counted") as refused:
        model_bench.bench(["no-such-model"], str(rows), wanted=["exact_match", metric])
    assert "luthier eval" in refused.value.next_step
