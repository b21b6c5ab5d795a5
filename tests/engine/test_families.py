"""Every family of models that the guides name, tiny and random: it trains, saves, reloads through other tools, and merges; and the table of
docs/methods.md says what it lacks."""

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_architectures import FOUR, GEMMA2, NO_DROPOUT, WINDOW, WINDOWS, build, rows
from transformers import AutoModelForCausalLM

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine
from luthier.export.merged import write_merged
from luthier.models import load, lora

GEMMA3 = {"head_dim": 8, "query_pre_attn_scalar": 24, **WINDOWS}
# class        (what differs from the sizes of test_architectures)
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama":    {},
    "Mistral":  {"sliding_window": WINDOW},
    "Mixtral":  {"num_local_experts": 4},
    "Gemma":    {"head_dim": 8},
    "Gemma2":   {**GEMMA2, **WINDOWS},
    "Gemma3":   GEMMA3,
    "Phi":      {},
    "Phi3":     {},
    "Qwen2":    {},
    "Qwen3":    {"head_dim": 8},
    "Qwen2Moe": FOUR,
    "Qwen3Moe": {**FOUR, "head_dim": 8},
    "Olmo":     {},
    "Olmo2":    {},
    "SmolLM3":  {},
    "GPT2":     NO_DROPOUT,
    "GPTNeoX":  {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    "GptOss":   {"num_local_experts": 4, "head_dim": 8},
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
# | Llama 1-3 | `Llama` | fast | `q_proj`, ... | `lm_head` |
ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
IDS = torch.tensor([rows()[3].token_ids])


@pytest.fixture
def base(tmp_path: Path, family: str) -> Path:
    build(family, FAMILIES[family]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def opened(base: Path, tokenizer: Path, *, adapted: bool) -> Engine:
    model = load.load_model(base, "fp32", "cpu")
    model = lora.add(model, LoraSettings(r=4, lora_alpha=8.0)) if adapted else model.requires_grad_(True)
    return Engine(model, load.load_tokenizer(tokenizer))


def train(engine: Engine) -> None:
    losses = []
    for _ in range(3):
        losses.append(engine.forward_backward(rows(24)).loss)
        engine.optimizer_step(1e-2)
    assert losses[2] < losses[1] < losses[0]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


def with_own_attention(engine: Engine) -> Any:
    if not engine.plain_reason:
        engine.go_plain("for the test")
    return engine.model


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_trains_reloads_with_peft_and_merges(base: Path, tiny_model: Path, tmp_path: Path, family: str) -> None:
    engine = opened(base, tiny_model, adapted=True)
    at_first = logits(AutoModelForCausalLM.from_pretrained(base))
    train(engine)
    engine.save_state(tmp_path / "adapter", str(base))
    trained = logits(with_own_attention(engine))
    assert not torch.allclose(trained, at_first, atol=1e-3)

    plain = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")), trained)

    write_merged(engine, tmp_path / "merged", "fp32")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((merged - trained).abs().max()) < 1e-4 * float(trained.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_trains_and_reloads_with_transformers(base: Path, tiny_model: Path, tmp_path: Path, family: str) -> None:
    engine = opened(base, tiny_model, adapted=False)
    untouched = {name: weight.detach().clone() for name, weight in engine.model.named_parameters()}
    train(engine)
    engine.save_state(tmp_path / "model")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(reloaded), logits(with_own_attention(engine)))
    assert not [name for name, weight in engine.model.named_parameters() if torch.equal(weight, untouched[name])]


def measured(engine: Engine) -> tuple[str, set[str], set[str]]:
    """Why a family runs plainly, which kinds of matrices in its layers get an adapter, and which stay as they are."""
    model = engine.model.get_base_model()
    adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    matrices = (name.split(".") for name, weight in model.named_parameters() if weight.ndim > 1 and not weight.requires_grad)
    owners = {parts[-2] for parts in matrices if "0" in parts and "base_layer" not in parts}
    return engine.plain_reason, adapted, {"router" if owner == "gate" else owner for owner in owners}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_a_family_lacks(tiny_model: Path, family: str) -> None:
    table = {match[1]: match for match in ROW.finditer(DOCS.read_text(encoding="utf-8"))}
    assert table.keys() == FAMILIES.keys()
    model = lora.add(build(family, FAMILIES[family]), LoraSettings(r=4, lora_alpha=8.0))
    reason, adapted, frozen = measured(Engine(model, load.load_tokenizer(tiny_model)))
    _, path, with_adapter, without = table[family].groups()
    assert (path.partition(":")[0].strip(), path.partition(":")[2].strip()) == ("plain" if reason else "fast", reason)
    assert set(re.findall(r"`(\w+)`", with_adapter)) == adapted
    assert set(re.findall(r"`(\w+)`", without)) == frozen
