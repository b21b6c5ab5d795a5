"""A Modelfile: its template in Go's language gives the prompts that the model was trained with, or there is none."""

import re
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.data.tokenize import prompt_ids
from luthier.errors import ModelError
from luthier.export import ollama
from luthier.models import load
from luthier.records import Turn

SYSTEM = "You turn addresses into JSON."
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "12  boxes\n"}]


def gguf_stub(folder: Path) -> Path:
    """A GGUF file without weights, of a model for 512 tokens."""
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "model-f16.gguf", "llama")
    writer.add_context_length(512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model-f16.gguf"


def in_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go makes of such a template: a range over messages, with a choice by role."""
    inside = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL)
    assert inside
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else|\Z)', inside[1], re.DOTALL))
    return "".join(branches[one["role"]].replace("{{ .Content }}", one["content"]) for one in messages) + inside[2]


def contract(folder: Path, tokenizer: Any, **changed: Any) -> Path:
    turns = [Turn("system", SYSTEM), Turn("user", "150 Pierce Rd")]
    golden = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns], "tools": "", "ids": prompt_ids(turns, tokenizer)}
    agreed = {"templated": True, "system": SYSTEM, "stop_tokens": ["<|im_end|>"], "golden": [golden]}
    files.write_json(folder / "contract.json", agreed | changed)
    return folder / "contract.json"


def test_the_template_in_go_gives_the_same_prompts(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    found = ollama.write_modelfile(gguf_stub(tmp_path), tmp_path, merged=tiny_model, contract=contract(tmp_path, tokenizer))
    text = found.read_text(encoding="utf-8")
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template
    for messages in (CHAT, [{"role": "system", "content": SYSTEM}, *CHAT]):
        with_system = messages if messages[0]["role"] == "system" else [{"role": "system", "content": "You are a helpful assistant."}, *messages]
        assert in_go(template[1], with_system) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_the_modelfile_names_file_stop_tokens_context_and_system(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    model = gguf_stub(tmp_path)
    adapter = tmp_path / "adapter-f16.gguf"
    found = ollama.write_modelfile(model, tmp_path, merged=tiny_model, contract=contract(tmp_path, tokenizer), adapter=adapter)
    lines = found.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["FROM ./model-f16.gguf", "ADAPTER ./adapter-f16.gguf", 'PARAMETER stop """<|im_end|>"""', "PARAMETER num_ctx 512"]
    assert lines[-1] == f'SYSTEM """{SYSTEM}"""'


def test_the_templates_own_system_message_is_written_where_the_run_has_none(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    found = ollama.write_modelfile(gguf_stub(tmp_path), tmp_path, merged=tiny_model, contract=contract(tmp_path, tokenizer, system=None))
    assert found.read_text(encoding="utf-8").endswith('SYSTEM """You are a helpful assistant."""\n')


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}", "trims"),
        (
            "{% for m in messages %}{{ loop.index }}{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
            "counts",
        ),
        ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m['content'] }}{% endfor %}", "no system"),
    ],
)
def test_a_template_that_cannot_be_proved_is_left_out_with_a_line(template: str, why: str, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    agreed = contract(tmp_path, tokenizer)
    tokenizer.chat_template = template
    assert ollama.proved(tokenizer, []) is None, why
    tokenizer.save_pretrained(tmp_path)
    text = ollama.write_modelfile(gguf_stub(tmp_path), tmp_path, merged=tmp_path, contract=agreed).read_text(encoding="utf-8")
    assert 'TEMPLATE "' not in text
    assert "# No TEMPLATE" in text


def test_golden_prompts_of_another_template_prove_nothing(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    golden = files.read_json(contract(tmp_path, tokenizer))["golden"]
    assert ollama.proved(tokenizer, golden)
    golden[0]["ids"] = golden[0]["ids"][1:]
    assert ollama.proved(tokenizer, golden) is None


def test_a_system_message_that_a_modelfile_cannot_hold_is_named(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model)
    agreed = contract(tmp_path, tokenizer, system='Say """hello""" now')
    with pytest.raises(ModelError, match="cannot stand in a Modelfile"):
        ollama.write_modelfile(gguf_stub(tmp_path), tmp_path, merged=tiny_model, contract=agreed)
