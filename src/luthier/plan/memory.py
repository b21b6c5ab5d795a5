"""How much memory a run needs: plain arithmetic on a model's facts. All sizes in bytes."""

from luthier.models.facts import ModelFacts

PRECISION_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# The two moments of AdamW for one trained number: fp32, or 8 bits each in blocks of 256 that have an fp32 scale.
MOMENTS_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256}
# fp32 weight and gradient.
TRAINED_NUMBER_BYTES = 8
# torch and transformers (400 MB when imported), and what the allocator and oneDNN keep for the many shapes of a run: the demo stood at
# 1.1 GB after one update and at 2.6 GB after 224 (peak_bytes in metrics.jsonl, 2026-11-22).
PROCESS_BYTES = 1_000_000_000
# The engine holds to these. A chunk of logits: below some hundred rows a product with a head is spent on reading the head; above 256
# nothing is won (49,152 words).
LOGITS_CHUNK_ROWS = 256
LOGITS_CHUNK_BYTES = 96 * 2**20
# Above so many visible tokens the probabilities of attention are computed again in the backward pass: kept, they would take more memory
# than everything else. Queries of a block: small ones waste less above the diagonal, large ones make better products.
KEPT_ATTENTION_TOKENS = 1024
ATTENTION_BLOCK = 64


def linear_shapes(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer of one block, by its usual name."""
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return {
        "q_proj": (facts.hidden, queries),
        "k_proj": (facts.hidden, keys),
        "v_proj": (facts.hidden, keys),
        "o_proj": (queries, facts.hidden),
        "gate_proj": (facts.hidden, facts.intermediate),
        "up_proj": (facts.hidden, facts.intermediate),
        "down_proj": (facts.intermediate, facts.hidden),
    }


def lora_parameters(facts: ModelFacts, r: int, targets: str | list[str], layers: list[int] | None = None) -> int:
    """Numbers that LoRA trains: layers * sum of r * (inputs + outputs) over the adapted linear layers (Hu 2021, section 4.1).

    `targets` is "all-linear" or names; a name that is not a usual one (a fused or renamed layer) counts as hidden * hidden.
    `layers` are the numbers of the layers that are adapted; none given: all.
    """
    shapes = linear_shapes(facts)
    names = list(shapes) if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
    adapted = [shapes.get(name.rpartition(".")[2], (facts.hidden, facts.hidden)) for name in names]
    return (len(set(layers or ())) or facts.layers) * r * sum(inputs + outputs for inputs, outputs in adapted)


def table_parameters(facts: ModelFacts, whole: bool, added_tokens: int) -> int:
    """Numbers that are trained in the embedding and the head: all of their rows, or those of added tokens; once where they are tied."""
    rows = facts.vocabulary if whole else added_tokens
    return (1 if facts.tied else 2) * rows * facts.hidden


def body_parameters(facts: ModelFacts) -> int:
    """Numbers in the blocks: all parameters less the embedding, and less the head where it is not the embedding again."""
    tables = 1 if facts.tied else 2
    return facts.parameters - tables * facts.vocabulary * facts.hidden


def activation_bytes_per_token(facts: ModelFacts, number_bytes: int, recomputed: str = "off") -> int:
    """What the backward pass needs of one token, in all blocks.

    A block keeps: two residual inputs and two normed ones (4 * hidden), the norms' fp32 copies (2 * 2 * hidden * 4 bytes), queries and
    the attention's output (2 * heads * head_dim), keys and values (2 * kv_heads * head_dim), and four of the MLP's width
    (gate, up, silu(gate), product). `recomputed` (training.gradient_checkpointing) keeps less of all blocks but one, which is being
    computed again: selective all but the norms' copies and the MLP's width, full the input alone.
    """
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    around_attention = (4 * facts.hidden + 2 * queries + 2 * keys) * number_bytes
    block = around_attention + 4 * facts.intermediate * number_bytes + 16 * facts.hidden
    kept = {"off": block, "selective": around_attention, "full": facts.hidden * number_bytes}[recomputed]
    return facts.layers * kept + block - kept


def attention_bytes_per_token(facts: ModelFacts, row_tokens: int, number_bytes: int, recomputed: str = "off") -> int:
    """Attention weights kept for one token of rows of this length: layers * heads * the keys that a token sees, none above
    KEPT_ATTENTION_TOKENS. Half of a row's keys are later ones; what is computed goes in blocks of ATTENTION_BLOCK queries."""
    if row_tokens > KEPT_ATTENTION_TOKENS:
        return 0
    layers = 1 if recomputed == "full" else facts.layers
    return layers * facts.heads * (min(row_tokens, ATTENTION_BLOCK) + row_tokens) // 2 * number_bytes


def shared_prefix_bytes(facts: ModelFacts, prefix_tokens: int, number_bytes: int, recomputed: str = "off") -> int:
    """A prefix that is computed once for an update: its activations wait for the update's end, and its keys and values
    (2 * layers * kv_heads * head_dim numbers a token) collect an fp32 gradient."""
    keys_values = 2 * facts.layers * facts.kv_heads * facts.head_dim * (number_bytes + 4)
    return prefix_tokens * (activation_bytes_per_token(facts, number_bytes, recomputed) + keys_values)


def logits_bytes(facts: ModelFacts) -> int:
    """One chunk of logits and its gradient, in fp32: 2 * rows * vocabulary * 4. No larger logits ever exist."""
    return 2 * min(LOGITS_CHUNK_ROWS * facts.vocabulary * 4, LOGITS_CHUNK_BYTES)


def lora_run_bytes(
    facts: ModelFacts,
    trained: int,
    precision: str,
    micro_batch_tokens: int,
    row_tokens: int,
    prefix_tokens: int,
    *,
    optim: str = "adamw",
    recomputed: str = "off",
    frozen_base: str = "bf16",
) -> dict[str, int]:
    """Peak memory of a LoRA run by what needs it.

    `trained` is lora_parameters(...); `micro_batch_tokens` the tokens that go through the model at once; `row_tokens` a usual row's
    length; `prefix_tokens` what is shared (0: nothing); `optim`, `recomputed` and `frozen_base` are training.optim,
    training.gradient_checkpointing and training.frozen_base (fp8 keeps two more forms of the weights, of a byte each).
    """
    return {
        "process": PROCESS_BYTES,
        "weights": facts.parameters * (PRECISION_BYTES[precision] + 2 * (frozen_base == "fp8")),
        "adapter and optimizer": round((TRAINED_NUMBER_BYTES + MOMENTS_BYTES[optim]) * trained),
        **_passing_bytes(facts, precision, micro_batch_tokens, row_tokens, prefix_tokens, recomputed),
    }


def full_run_bytes(
    facts: ModelFacts,
    precision: str,
    micro_batch_tokens: int,
    row_tokens: int,
    prefix_tokens: int,
    *,
    optim: str = "adamw",
    recomputed: str = "off",
) -> dict[str, int]:
    """Peak memory of a run that trains every weight, by what needs it; the arguments are those of lora_run_bytes.

    A weight has an fp32 gradient and its moments, and an fp32 master where it is not fp32 itself; the head's gradient is gathered in
    fp32 and handed on in the weights' format (vocabulary * hidden numbers of each).
    """
    number_bytes = PRECISION_BYTES[precision]
    of_number = MOMENTS_BYTES[optim] + (4 if number_bytes == 4 else TRAINED_NUMBER_BYTES)
    return {
        "process": PROCESS_BYTES,
        "weights": facts.parameters * number_bytes,
        "gradients and optimizer": round(of_number * facts.parameters) + (4 + number_bytes) * facts.vocabulary * facts.hidden,
        **_passing_bytes(facts, precision, micro_batch_tokens, row_tokens, prefix_tokens, recomputed),
    }


def _passing_bytes(
    facts: ModelFacts, precision: str, micro_batch_tokens: int, row_tokens: int, prefix_tokens: int, recomputed: str
) -> dict[str, int]:
    """What tokens need on their way through the model, whatever is trained."""
    number_bytes = PRECISION_BYTES[precision]
    per_token = activation_bytes_per_token(facts, number_bytes, recomputed) + attention_bytes_per_token(facts, row_tokens, number_bytes, recomputed)
    return {
        "activations": micro_batch_tokens * per_token,
        "shared prefix": shared_prefix_bytes(facts, prefix_tokens, number_bytes, recomputed),
        "logits": logits_bytes(facts),
    }
