"""How long a run takes: floating-point operations over a measured rate. Always an estimate, and training only."""

from luthier.models.facts import ModelFacts
from luthier.plan.memory import active_body_parameters, linear_parameters

# Share of the measured rate that a whole update reaches. CPU: 0.43 to 0.53 for updates of some thousand tokens on 2 cores with bf16 units
# (docs/performance.md); less for updates of a few hundred. GPU: a third of the data sheet's rate, which nothing here has measured.
EFFICIENCY = {"cpu": 0.47, "cuda": 0.36}
# Making a weight of a quantized base takes as long as so many operations of a product (NF4 on 2 cores with bf16 units, 2026-11-23).
DEQUANTIZING_FLOPS = 200


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
    per_token = 4 * active_body_parameters(facts) + 6 * trained + 3 * attention_flops(facts, visible_tokens)
    return executed * per_token + trained_tokens * 4.0 * facts.vocabulary * facts.hidden


def full_flops(
    facts: ModelFacts,
    executed: int,
    trained_tokens: int,
    visible_tokens: float,
    *,
    frozen_layers: int = 0,
    idle_layers: int = 0,
    head_is_trained: bool = True,
) -> float:
    """Operations of a run that trains every weight: executed * (6 * body + 3 * attention) + trained_tokens * 6 * vocabulary * hidden.

    A frozen layer, and a frozen head, has no gradient of its own (4 and not 6); nothing runs back through an idle one (2, and 1 * attention).
    """
    body, attention = active_body_parameters(facts), attention_flops(facts, visible_tokens)
    frozen, idle = frozen_layers / facts.layers, idle_layers / facts.layers
    per_token = body * (6 - 2 * frozen - 2 * idle) + attention * (3 - 2 * idle)
    return executed * per_token + trained_tokens * (6.0 if head_is_trained else 4.0) * facts.vocabulary * facts.hidden


def judging_flops(
    facts: ModelFacts,
    executed: int,
    trained_tokens: int,
    reference_tokens: float,
    reference_trained_tokens: float,
    visible_tokens: float,
    *,
    mismatched: bool,
) -> float:
    """Operations that preference tuning adds: a second pass through the head for what is trained, and the forward pass over the rows whose
    log-probabilities are kept before the training. With `mismatched` (KTO) each row is run forward with another answer, too."""
    body, head = 2 * active_body_parameters(facts) + attention_flops(facts, visible_tokens), 2.0 * facts.vocabulary * facts.hidden
    before = reference_tokens * body + reference_trained_tokens * head
    return trained_tokens * head + before + (before + executed * body + trained_tokens * head if mismatched else 0.0)


def recomputed_flops(facts: ModelFacts, recomputed: str, executed: int, visible_tokens: float) -> float:
    """Operations that gradient checkpointing adds: the blocks' forward pass (full), or two of the MLP's three products (selective)."""
    per_token = {
        "off": 0.0,
        "selective": 4.0 * facts.layers * facts.hidden * facts.intermediate * max(1, facts.experts_used),
        "full": 2 * active_body_parameters(facts) + attention_flops(facts, visible_tokens),
    }
    return executed * per_token[recomputed]


def dequantized_flops(facts: ModelFacts, passes: int) -> float:
    """What making the weights of a quantized base costs, as operations: once for the product and once for its gradient in each pass."""
    return 2.0 * passes * linear_parameters(facts) * DEQUANTIZING_FLOPS


def seconds(flops: float, gflops: float, device: str = "cuda") -> float:
    """Estimated seconds for `flops` operations on a device of this kind whose matrix products run at `gflops` GFLOP/s."""
    return flops / (gflops * 1e9 * EFFICIENCY.get(device, EFFICIENCY["cuda"]))
