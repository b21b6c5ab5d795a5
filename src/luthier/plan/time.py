"""How long a run takes: floating-point operations over a measured rate. Always an estimate, and training only."""

from luthier.models.facts import ModelFacts
from luthier.plan.memory import body_parameters

# Share of the probe's rate that a whole update reaches: 0.45 with 1,000 tokens an update, 0.23 in `luthier demo` (330 tokens an update)
# (2 cores with bf16 units, 2026-11-22).
EFFICIENCY = 0.36


def executed_tokens(row_tokens: int, rows: int, updates: int, prefix_tokens: int) -> int:
    """Tokens that go through the model in `updates` updates over `rows` rows of `row_tokens` tokens in all.

    A prefix that all rows begin with is run once an update and not once a row.
    """
    return row_tokens - prefix_tokens * max(0, rows - updates)


def attention_flops(facts: ModelFacts, visible_tokens: float) -> float:
    """Forward operations of attention for one token: 2 * visible tokens * heads * head_dim * layers (two products, half the square)."""
    return 2 * visible_tokens * facts.heads * facts.head_dim * facts.layers


def lora_flops(facts: ModelFacts, trained: int, executed: int, trained_tokens: int, visible_tokens: float) -> float:
    """Operations of a LoRA run: executed * (4 * body + 6 * trained + 3 * attention) + trained_tokens * 4 * vocabulary * hidden.

    4 and not 6: frozen weights have no gradient of their own (forward 2, gradient of the input 2).
    """
    per_token = 4 * body_parameters(facts) + 6 * trained + 3 * attention_flops(facts, visible_tokens)
    return executed * per_token + trained_tokens * 4.0 * facts.vocabulary * facts.hidden


def full_flops(facts: ModelFacts, executed: int, trained_tokens: int, visible_tokens: float) -> float:
    """Operations of a run that trains every weight: executed * (6 * body + 3 * attention) + trained_tokens * 6 * vocabulary * hidden."""
    per_token = 6 * body_parameters(facts) + 3 * attention_flops(facts, visible_tokens)
    return executed * per_token + trained_tokens * 6.0 * facts.vocabulary * facts.hidden


def recomputed_flops(facts: ModelFacts, recomputed: str, executed: int, visible_tokens: float) -> float:
    """Operations that gradient checkpointing adds: the blocks' forward pass (full), or two of the MLP's three products (selective)."""
    per_token = {
        "off": 0.0,
        "selective": 4.0 * facts.layers * facts.hidden * facts.intermediate,
        "full": 2 * body_parameters(facts) + attention_flops(facts, visible_tokens),
    }
    return executed * per_token[recomputed]


def seconds(flops: float, gflops: float) -> float:
    """Estimated seconds for `flops` operations on a machine whose matrix products run at `gflops` GFLOP/s."""
    return flops / (gflops * 1e9 * EFFICIENCY)
