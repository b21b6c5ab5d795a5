"""How many numbers a method trains: plain arithmetic on a model's facts."""

from collections.abc import Callable
from typing import Any

from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts, bottleneck_width
from luthier.plan import memory


def trained_parameters(settings: Settings, facts: ModelFacts) -> int:
    """Numbers that a run of these settings trains."""
    return TRAINED[settings.method](settings, facts)


def _lora(settings: Settings, facts: ModelFacts) -> int:
    asked = settings.lora
    tables = memory.table_parameters(facts, bool(asked.modules_to_save), len(settings.tokenizer.add_special_tokens))
    dora = asked.use_dora or settings.method == "dora"
    adapted = (facts, asked.numbers[0], asked.target_modules, asked.layers_to_transform)
    return memory.lora_parameters(*adapted, rank_pattern=asked.rank_pattern, dora=dora) + tables


def _bottleneck(settings: Settings, facts: ModelFacts) -> int:
    asked = settings.bottleneck
    width = bottleneck_width(facts.hidden, asked.reduction_factor)
    one = 2 * width * facts.hidden + width + facts.hidden  # two matrices and their biases
    return facts.layers * one * (2 if asked.kind == "houlsby" else 1)


def _ia3(settings: Settings, facts: ModelFacts) -> int:
    asked = settings.ia3
    layers = ["k_proj", "v_proj", "down_proj"] if asked.target_modules == "auto" else asked.target_modules
    inner = ["down_proj"] if asked.feedforward_modules == "auto" else asked.feedforward_modules
    of_inputs = memory.adapted_shapes(facts, inner)
    return sum(shape[0] if name in of_inputs else shape[1] for name, shape in memory.adapted_shapes(facts, layers).items())


def _peft(settings: Settings, facts: ModelFacts) -> int:
    """What the type trains beside each layer; a type that is not here is taken for LoRA of its own r."""
    asked = settings.peft
    kind = str(asked.get("type", "")).upper().replace("-", "_")
    if kind in _BESIDE_BLOCKS:
        return _BESIDE_BLOCKS[kind](asked, facts)
    given = asked.get("target_modules")
    shapes = memory.adapted_shapes(facts, given if isinstance(given, str | list) else "all-linear")
    count = _BESIDE_A_LAYER.get(kind, _like_lora)
    return sum(count(asked, *shape) for shape in shapes.values())


def _like_lora(asked: dict[str, Any], inputs: int, outputs: int) -> int:
    return _number(asked, "r", 16) * (inputs + outputs)


def _number(asked: dict[str, Any], name: str, default: int) -> int:
    value = asked.get(name)
    return value if isinstance(value, int) and value > 0 else default


_BESIDE_BLOCKS: dict[str, Callable[[dict[str, Any], ModelFacts], int]] = {
    # peft.type   numbers in all
    "LN_TUNING": lambda asked, facts: (2 * facts.layers + 1) * facts.hidden,
    "ADAPTION_PROMPT": lambda asked, facts: _number(asked, "adapter_layers", facts.layers) * (_number(asked, "adapter_len", 10) * facts.hidden + 1),
    "IA3": lambda asked, facts: facts.layers * (2 * facts.kv_heads * facts.head_dim + facts.intermediate),
}
_BESIDE_A_LAYER: dict[str, Callable[[dict[str, Any], int, int], int]] = {
    # peft.type   numbers beside a layer of so many inputs and outputs, with PEFT's own defaults
    "VERA": lambda asked, inputs, outputs: _number(asked, "r", 256) + outputs,
    "OFT": lambda asked, inputs, outputs: inputs * (_number(asked, "oft_block_size", 32) - 1) // 2,
    "BOFT": lambda asked, inputs, outputs: inputs * _number(asked, "boft_block_size", 4) + outputs,
    "FOURIERFT": lambda asked, inputs, outputs: _number(asked, "n_frequency", 1000),
    "WAVEFT": lambda asked, inputs, outputs: _number(asked, "n_frequency", 2592),
    "HRA": lambda asked, inputs, outputs: _number(asked, "r", 8) * inputs,
    "MISS": lambda asked, inputs, outputs: _number(asked, "r", 64) * outputs,
    "LOHA": lambda asked, inputs, outputs: 2 * _number(asked, "r", 8) * (inputs + outputs),
}


def _prefix(settings: Settings, facts: ModelFacts) -> int:
    asked = settings.prefix
    kept = facts.kv_heads * facts.head_dim
    if not asked.prefix_projection:
        return asked.num_virtual_tokens * 2 * facts.layers * kept
    width = asked.encoder_hidden_size or facts.hidden
    return asked.num_virtual_tokens * kept + (kept + 1) * width + (width + 1) * 2 * facts.layers * kept


def _prompt(settings: Settings, facts: ModelFacts) -> int:
    return settings.prompt.num_virtual_tokens * facts.hidden


def _p_tuning(settings: Settings, facts: ModelFacts) -> int:
    asked, hidden = settings.p_tuning, facts.hidden
    width, embeddings = asked.encoder_hidden_size or hidden, asked.num_virtual_tokens * hidden
    if asked.encoder_reparameterization_type == "MLP":
        return embeddings + (hidden + 1) * width + (width + 1) * width + (width + 1) * hidden
    # Two directions of four gates, each with weights of its inputs and of its state, and two biases.
    below = [hidden, *(2 * width for _ in range(asked.encoder_num_layers - 1))]
    lstm = sum(8 * width * (inputs + width + 2) for inputs in below)
    return embeddings + lstm + (2 * width + 1) * 2 * width + (2 * width + 1) * hidden


def _full(settings: Settings, facts: ModelFacts) -> int:
    frozen = settings.freeze.numbers()
    in_blocks = facts.layers - len(frozen)
    in_body = (memory.body_parameters(facts) - facts.hidden) * in_blocks // facts.layers + facts.hidden  # hidden: the last norm
    return in_body + full_tables(settings, facts)


def full_tables(settings: Settings, facts: ModelFacts) -> int:
    """Numbers that method: full trains in the embedding and the head."""
    return memory.table_parameters(facts, True, 0) - (facts.vocabulary * facts.hidden if settings.freeze.embeddings else 0)


TRAINED: dict[str, Callable[[Settings, ModelFacts], int]] = {
    # method   numbers
    "lora": _lora,
    "dora": _lora,
    "qlora": _lora,
    "bottleneck": _bottleneck,
    "ia3": _ia3,
    "peft": _peft,
    "prefix": _prefix,
    "prompt": _prompt,
    "p_tuning": _p_tuning,
    "full": _full,
}
