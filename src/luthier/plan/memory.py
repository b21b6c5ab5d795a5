"""How much memory a run needs: plain arithmetic on a model's facts. All sizes in bytes."""

import dataclasses
import re

from luthier.models.facts import ModelFacts

PRECISION_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# What an optimizer keeps for one trained number: moments in fp32, or in 8 bits in blocks of 256 that have an fp32 scale. Adafactor has a
# number for each row and column (in 576 x 16 numbers: 592); muon's are those of the layers' matrices, the rest has AdamW's.
MOMENTS_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2 + 8 / 256,
    "adafactor": 0.3,
    "lion": 4.0,
    "lion_8bit": 1 + 4 / 256,
    "muon": 4.0,
    "schedule_free": 8.0,
}
# fp32 weight and gradient.
TRAINED_NUMBER_BYTES = 8
# torch and transformers (400 MB when imported), and what the allocator and oneDNN keep for the many shapes of a run, which grows: the demo
# stood at 1.2 GB after one update, 1.9 GB after 60 and 2.0 GB after 224, and 90 rows of mixed length at 1.2 GB and, 19 updates later,
# 1.64 GB (peak_bytes in metrics.jsonl, 2026-11-23).
PROCESS_BYTES = 1_250_000_000
# On a GPU: CUDA's context, the libraries' workspaces, and what the allocator holds in pieces that are too small.
CUDA_CONTEXT_BYTES = 800_000_000
# The engine holds to these. A chunk of logits: below some hundred rows a product with a head is spent on reading the head; above 256
# nothing is won (49,152 words).
LOGITS_CHUNK_ROWS = 256
LOGITS_CHUNK_BYTES = 96 * 2**20
# Above so many visible tokens the probabilities of attention are computed again in the backward pass: kept, they would take more memory
# than everything else. Queries of a block: small ones waste less above the diagonal, large ones make better products.
KEPT_ATTENTION_TOKENS = 1024
ATTENTION_BLOCK = 64

MLP = ("gate_proj", "up_proj", "down_proj")
# A layer's name, with its parents or without, and no expression.
PLAIN_NAME = re.compile(r"\w+(\.\w+)*")


def linear_shapes(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer of one block, by its usual name. Experts are none: they are fused in tensors of their own,
    which are neither adapted nor quantized."""
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = {
        "q_proj": (facts.hidden, queries),
        "k_proj": (facts.hidden, keys),
        "v_proj": (facts.hidden, keys),
        "o_proj": (queries, facts.hidden),
    }
    entering = dict.fromkeys(("gate_proj", "up_proj") if facts.gated else ("up_proj",), (facts.hidden, facts.intermediate))
    return attention if facts.experts else {**attention, **entering, "down_proj": (facts.intermediate, facts.hidden)}


def lora_parameters(
    facts: ModelFacts,
    r: int,
    targets: str | list[str],
    layers: list[int] | None = None,
    *,
    rank_pattern: dict[str, int] | None = None,
    dora: bool = False,
) -> int:
    """Numbers that LoRA trains: sum of r * (inputs + outputs) over the adapted linear layers (Hu 2021, section 4.1).

    `targets` is "all-linear", names, or an expression for whole names; a name that is not a usual one (a fused or renamed layer) counts
    as hidden * hidden. `layers` are the numbers of the layers that are adapted; none given: all. `rank_pattern` gives some of them
    another r, and `dora` trains a number for each output too.
    """
    ranks = rank_pattern or {}
    # Where all layers have the same adapters, those of one are counted: a plan asks hundreds of times.
    alike = not ranks and not (isinstance(targets, str) and targets != "all-linear" and not PLAIN_NAME.fullmatch(targets))
    adapted = adapted_shapes(facts, targets, [0] if alike else layers)
    count = sum(_rank_of(name, r, ranks) * (inputs + outputs) + dora * outputs for name, (inputs, outputs) in adapted.items())
    return count * len(set(layers or range(facts.layers))) if alike else count


def adapted_shapes(facts: ModelFacts, targets: str | list[str], layers: list[int] | None = None) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the adapted linear layers by the whole names that most families give them."""
    shapes = linear_shapes(facts)
    parents = {name: "mlp" if name in MLP else "self_attn" for name in shapes}
    numbers = sorted(set(layers or range(facts.layers)))
    whole = {f"model.layers.{number}.{parents[name]}.{name}": shape for number in numbers for name, shape in shapes.items()}
    if targets == "all-linear":
        return whole
    if isinstance(targets, str) and not PLAIN_NAME.fullmatch(targets):
        return {name: shape for name, shape in whole.items() if re.fullmatch(targets, name)}
    names = [targets] if isinstance(targets, str) else targets
    sizes = {name: shapes.get(name.rpartition(".")[2], (facts.hidden, facts.hidden)) for name in names}
    return {f"model.layers.{number}.{name}": shape for number in numbers for name, shape in sizes.items()}


def _rank_of(name: str, r: int, ranks: dict[str, int]) -> int:
    return next((rank for pattern, rank in ranks.items() if re.match(rf"(.*\.)?({pattern})$", name)), r)


def table_parameters(facts: ModelFacts, whole: bool, added_tokens: int) -> int:
    """Numbers that are trained in the embedding and the head: all of their rows, or those of added tokens; once where they are tied."""
    rows = facts.vocabulary if whole else added_tokens
    return (1 if facts.tied else 2) * rows * facts.hidden


def body_parameters(facts: ModelFacts) -> int:
    """Numbers in the blocks: all parameters less the embedding, and less the head where it is not the embedding again."""
    tables = 1 if facts.tied else 2
    return facts.parameters - tables * facts.vocabulary * facts.hidden


def active_body_parameters(facts: ModelFacts) -> int:
    """Numbers in the blocks that one token goes through: all but those of the experts that do not see it."""
    return body_parameters(facts) - (facts.parameters - facts.active_parameters)


def activation_bytes_per_token(facts: ModelFacts, number_bytes: int, recomputed: str = "off", norms_are_trained: bool = False) -> int:
    """What the backward pass needs of one token, in all blocks.

    A block keeps: what its two norms read, in fp32 (2 * hidden * 4 bytes), and what they gave (2 * hidden), queries and the attention's
    output (2 * heads * head_dim), keys and values (2 * kv_heads * head_dim), and four of the MLP's width (gate, up, silu(gate), product;
    two where there is no gate), for each expert that sees the token. Where the norms are trained, what they gave is kept twice, without
    their weights and with them. `recomputed` (training.gradient_checkpointing) keeps less of all blocks but one, which is being computed
    again: selective the residual inputs and no fp32 copy, and nothing of the MLP's width; full the input alone.
    """
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    of_attention = (2 * queries + 2 * keys) * number_bytes
    mlp = (4 if facts.gated else 2) * facts.intermediate * max(1, facts.experts_used) * number_bytes
    block = of_attention + mlp + (2 + 2 * norms_are_trained) * facts.hidden * number_bytes + 8 * facts.hidden
    selective = of_attention + 4 * facts.hidden * number_bytes
    kept = {"off": block, "selective": selective, "full": facts.hidden * number_bytes}[recomputed]
    return facts.layers * kept + block - kept


def attention_bytes_per_token(facts: ModelFacts, row_tokens: int, number_bytes: int, recomputed: str = "off") -> int:
    """Attention weights kept for one token of rows of this length: layers * heads * the keys that a token sees, none above
    KEPT_ATTENTION_TOKENS. Half of a row's keys are later ones; what is computed goes in blocks of ATTENTION_BLOCK queries."""
    if row_tokens > KEPT_ATTENTION_TOKENS:
        return 0
    layers = 1 if recomputed == "full" else facts.layers
    return layers * facts.heads * (min(row_tokens, ATTENTION_BLOCK) + row_tokens) // 2 * number_bytes


def kept_bytes(facts: ModelFacts, precision: str, row_tokens: int) -> int:
    """What one row of so many tokens keeps for its backward pass where nothing is computed again."""
    number_bytes = PRECISION_BYTES[precision]
    return row_tokens * (activation_bytes_per_token(facts, number_bytes) + attention_bytes_per_token(facts, row_tokens, number_bytes))


def shared_prefix_bytes(facts: ModelFacts, prefix_tokens: int, number_bytes: int, recomputed: str = "off") -> int:
    """A prefix that is computed once for an update: its activations wait for the update's end, and its keys and values
    (2 * layers * kv_heads * head_dim numbers a token) collect an fp32 gradient."""
    return prefix_tokens * activation_bytes_per_token(facts, number_bytes, recomputed) + keys_values_bytes(facts, prefix_tokens, number_bytes)


def keys_values_bytes(facts: ModelFacts, tokens: int, number_bytes: int) -> int:
    """Keys and values of so many tokens in all layers, with their fp32 gradient."""
    return tokens * 2 * facts.layers * facts.kv_heads * facts.head_dim * (number_bytes + 4)


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
    linear_bits: float | None = None,
    device: str = "cpu",
    keeps_attention: bool = True,
) -> dict[str, int]:
    """Peak memory of a LoRA run by what needs it.

    `trained` is lora_parameters(...); `micro_batch_tokens` the tokens that go through the model at once; `row_tokens` a usual row's
    length; `prefix_tokens` what is shared (0: nothing); `optim`, `recomputed` and `frozen_base` are training.optim,
    training.gradient_checkpointing and training.frozen_base (fp8 keeps two more forms of the weights, of a byte each).
    `linear_bits` are those of a weight of a linear layer where the base is quantized (quantized_bits). With `keeps_attention` the weights of
    attention wait for the backward pass, as blocks.py does it; kernels for GPUs make them again.
    """
    whole = facts.parameters * (PRECISION_BYTES[precision] + 2 * (frozen_base == "fp8"))
    return {
        **_before_anything(device),
        "weights": whole if linear_bits is None else quantized_weights_bytes(facts, precision, linear_bits),
        "adapter and optimizer": round((TRAINED_NUMBER_BYTES + MOMENTS_BYTES[optim]) * trained),
        **_passing_bytes(facts, precision, micro_batch_tokens, row_tokens, prefix_tokens, recomputed, keeps_attention),
    }


def quantized_bits(kind: str, double_quant: bool) -> float:
    """Bits of a quantized weight, with its share of the scales: blocks of 64 with a scale in fp32, or in 8 bits with one in fp32 for 256
    of them (Dettmers 2023, section 3); 8 bits have a scale for each output, about 0.03 bits a weight."""
    return 8.03 if kind.startswith("int8") else 4 + (8 / 64 + 32 / (64 * 256) if double_quant else 32 / 64)


def linear_parameters(facts: ModelFacts) -> int:
    """Numbers in the linear layers of all blocks."""
    return facts.layers * sum(inputs * outputs for inputs, outputs in linear_shapes(facts).values())


def quantized_weights_bytes(facts: ModelFacts, precision: str, linear_bits: float) -> int:
    """A base whose linear layers are quantized and whose other weights are not, and one layer in full: it is made for each product."""
    linear = min(linear_parameters(facts), body_parameters(facts))
    largest = max(inputs * outputs for inputs, outputs in linear_shapes(facts).values())
    return round(linear * linear_bits / 8) + (facts.parameters - linear + largest) * PRECISION_BYTES[precision]


def full_run_bytes(
    facts: ModelFacts,
    precision: str,
    micro_batch_tokens: int,
    row_tokens: int,
    prefix_tokens: int,
    *,
    optim: str = "adamw",
    recomputed: str = "off",
    trained: int | None = None,
    head_is_trained: bool = True,
    idle_layers: int = 0,
    device: str = "cpu",
    keeps_attention: bool = True,
) -> dict[str, int]:
    """Peak memory of a run that trains every weight, by what needs it; the arguments are those of lora_run_bytes.

    Where some are frozen, `trained` are the others; nothing runs back through the lowest `idle_layers`, which keep nothing for it.
    A weight has an fp32 gradient and its moments, and an fp32 master where it is not fp32 itself; the head's gradient is gathered in
    fp32 and handed on in the weights' format (vocabulary * hidden numbers of each).
    """
    number_bytes = PRECISION_BYTES[precision]
    of_number = full_number_bytes(precision, optim)
    of_table = MOMENTS_BYTES["adamw"] - MOMENTS_BYTES["muon"] if optim == "muon" else 0.0
    running_back = dataclasses.replace(facts, layers=facts.layers - idle_layers)
    return {
        **_before_anything(device),
        "weights": facts.parameters * number_bytes,
        "gradients and optimizer": round(of_number * (facts.parameters if trained is None else trained))
        + head_is_trained * round(of_table * (facts.parameters - body_parameters(facts))),
        "head's gradient": head_is_trained * (4 + number_bytes) * facts.vocabulary * facts.hidden,
        **_passing_bytes(running_back, precision, micro_batch_tokens, row_tokens, prefix_tokens, recomputed, keeps_attention, True),
    }


def full_number_bytes(precision: str, optim: str) -> float:
    """What training one of a model's own weights takes beside it: its fp32 gradient and moments, and an fp32 master where it is not fp32 itself."""
    return MOMENTS_BYTES[optim] + (4 if PRECISION_BYTES[precision] == 4 else TRAINED_NUMBER_BYTES)


def _before_anything(device: str) -> dict[str, int]:
    return {"CUDA context": CUDA_CONTEXT_BYTES} if device == "cuda" else {"process": PROCESS_BYTES}


def _passing_bytes(
    facts: ModelFacts,
    precision: str,
    micro_batch_tokens: int,
    row_tokens: int,
    prefix_tokens: int,
    recomputed: str,
    keeps_attention: bool,
    norms_are_trained: bool = False,
) -> dict[str, int]:
    """What tokens need on their way through the model, whatever is trained."""
    number_bytes = PRECISION_BYTES[precision]
    per_token = activation_bytes_per_token(facts, number_bytes, recomputed, norms_are_trained)
    per_token += attention_bytes_per_token(facts, row_tokens, number_bytes, recomputed) if keeps_attention else 0
    return {
        "activations": micro_batch_tokens * per_token,
        "shared prefix": shared_prefix_bytes(facts, prefix_tokens, number_bytes, recomputed),
        "logits": logits_bytes(facts),
    }


def measuring_bytes(
    facts: ModelFacts, precision: str, micro_batch_tokens: int, answers: int, prompt_tokens: int, answer_tokens: int, batch_tokens: int
) -> int:
    """What an evaluation needs beside the weights, where nothing waits for a backward pass: one block's activations of a micro-batch of
    held-out rows, or, if that is more, so many answers at once, prompts as they run through one block, the keys and values of
    `batch_tokens` tokens at most (and those of a layer twice, when finished rows leave), and logits in two formats."""
    number_bytes = PRECISION_BYTES[precision]
    block = activation_bytes_per_token(dataclasses.replace(facts, layers=1), number_bytes)
    kept_tokens = min(answers * (prompt_tokens + answer_tokens), max(batch_tokens, prompt_tokens + answer_tokens))
    kept = kept_tokens * 2 * (facts.layers + 1) * facts.kv_heads * facts.head_dim * number_bytes
    prompts = kept_tokens * prompt_tokens // max(1, prompt_tokens + answer_tokens) * block
    logits = answers * facts.vocabulary * (number_bytes + 4)
    return max(micro_batch_tokens * block, prompts + kept + logits if answers else 0)


def side_by_side_bytes(parts: dict[str, int], trained: int) -> int:
    """What two micro-batches at once take beyond one after the other: gradients of each lane's own, and half of what is on its way again,
    since both are at their peaks at once and what one frees does not fit the other (2,321 tokens of SmolLM2-135M: 3.36 GB became 4.26)."""
    return 2 * 4 * trained + (parts["activations"] + parts["logits"]) // 2
