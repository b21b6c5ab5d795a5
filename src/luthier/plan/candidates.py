"""Which model to tune: the catalog's models ranked for a task, a device and a use, each with its reasons, and the others with theirs.

Plain arithmetic on the catalog's facts; the rules are choosing.toml's. The same wishes give the same answer.
"""

import functools
import math
from dataclasses import dataclass

from luthier.models import catalog, licenses
from luthier.models.catalog import ModelCard
from luthier.models.facts import ModelFacts
from luthier.models.licenses import Audit
from luthier.plan import memory, time
from luthier.plan.cost import USABLE_SHARE
from luthier.plan.hyperparameters import band
from luthier.plan.in_words import duration, size
from luthier.plan.machine import rules as hyperparameter_rules
from luthier.plan.wishes import Device, Wishes, device_rules, rules

METHODS = ("lora", "qlora", "full")
PLAIN_LICENSES = ("Apache-2.0", "MIT")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that would do: its points, how it is tuned, what that takes, what its license says, and why it stands where it stands."""

    name: str
    hub: str
    points: float
    method: str
    memory_bytes: dict[str, int]
    training_seconds: float
    token_ms: float
    license: Audit
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model that would not do, and all that speaks against it."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Candidates, best first; refusals by name; and what to think of before any training."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    advice: tuple[str, ...]


def choose(wishes: Wishes) -> Choice:
    """The models of the catalog for these wishes: one version, base or instruct, of each size."""
    judged = [_judge(card, wishes) for card in _versions(wishes)]
    ranked = sorted((one for one in judged if isinstance(one, Candidate)), key=lambda one: (-one.points, one.name))
    return Choice(tuple(ranked), tuple(one for one in judged if isinstance(one, Refusal)), _advice(wishes))


def _versions(wishes: Wishes) -> list[ModelCard]:
    """Of each size the version that suits: base where a far domain has many rows, else instruct; the only one where there is one."""
    wanted = "base" if wishes.domain == "far" and wishes.rows >= rules()["domain"]["far_base_rows"] and wishes.task != "chat" else "instruct"
    sizes: dict[str, ModelCard] = {}
    for card in catalog.cards():
        if card.size not in sizes or card.kind == wanted:
            sizes[card.size] = card
    return [sizes[size] for size in sorted(sizes)]


def _judge(card: ModelCard, wishes: Wishes) -> Candidate | Refusal:
    needs = memory_by_method(card.facts, max(wishes.context, rules()["usual"]["micro_batch_tokens"]), wishes.device.kind)
    method = _method(needs, wishes)
    verdict = licenses.audit(card.name, card.license, wishes.use)
    seconds, (token_ms, form) = training_seconds(card.facts, method or "qlora", wishes), _answering(card.facts, wishes)
    if against := _against(card, wishes, verdict, needs, method, seconds, token_ms):
        return Refusal(card.name, tuple(against))
    assert method is not None
    terms = _terms(card, wishes, method)
    reasons = [f"{points:+.1f} {why}" for points, why in terms]
    reasons.append(f"memory: {', '.join(f'{name} {size(needs[name])}' for name in METHODS)} (estimates); {size(_usable(wishes.device))} may be taken")
    reasons.append(f"about {duration(seconds)} of training with {method}, and {token_ms:.0f} ms for a token of an answer in {form} (estimates)")
    named = [language for language in wishes.languages if language in card.languages]
    reasons.append(f"names {', '.join(named) or 'none of the wanted'} among its languages ({card.many_languages or len(card.languages)})")
    reasons.append(f"{verdict.verdict}: {verdict.license}")
    return Candidate(card.name, card.hub, round(sum(points for points, _ in terms), 1), method, needs, seconds, token_ms, verdict, tuple(reasons))


def memory_by_method(facts: ModelFacts, row_tokens: int, kind: str) -> dict[str, int]:
    """Bytes that training takes at its peak on a device of this kind, by method, one row of this length at once and activations computed
    again: rank 16 on all linear layers, or every weight with AdamW."""
    trained = _adapter_parameters(facts)
    passing = (row_tokens, row_tokens, 0)
    bits, keeps_attention = memory.quantized_bits("nf4", True), kind != "cuda"
    costs = {
        "lora": memory.lora_run_bytes(facts, trained, "bf16", *passing, recomputed="full", device=kind, keeps_attention=keeps_attention),
        "qlora": memory.lora_run_bytes(
            facts, trained, "bf16", *passing, recomputed="full", linear_bits=bits, device=kind, keeps_attention=keeps_attention
        ),
        "full": memory.full_run_bytes(facts, "bf16", *passing, recomputed="full", device=kind, keeps_attention=keeps_attention),
    }
    return {method: sum(costs[method].values()) for method in METHODS}


@functools.cache
def _adapter_parameters(facts: ModelFacts) -> int:
    return memory.lora_parameters(facts, rules()["usual"]["rank"], "all-linear")


def training_seconds(facts: ModelFacts, method: str, wishes: Wishes) -> float:
    """Estimated seconds of a run over the rows, as many passes as is usual for their number, activations computed again."""
    usual = rules()["usual"]
    row_tokens = max(usual["row_tokens"], wishes.context // 2)
    passes = band(hyperparameter_rules()["num_train_epochs"]["bands"], wishes.rows)[1]
    executed = wishes.rows * passes * row_tokens
    if method == "full":
        flops = time.full_flops(facts, executed, executed // 2, row_tokens)
    else:
        flops = time.lora_flops(facts, _adapter_parameters(facts), executed, executed // 2, row_tokens)
    if method == "qlora":
        flops += time.dequantized_flops(facts, math.ceil(executed / usual["micro_batch_tokens"]))
    return time.seconds(flops + time.recomputed_flops(facts, "full", executed, row_tokens), wishes.device.gflops, wishes.device.kind)


def token_milliseconds(facts: ModelFacts, device: Device, number_bytes: float) -> float:
    """Estimated milliseconds for one token of one answer: every number that the token goes through is read once."""
    read = facts.active_parameters - (0 if facts.tied else facts.vocabulary * facts.hidden)
    share: float = device_rules()["bandwidth_share"]
    return 1000 * number_bytes * read / (device.bandwidth * share)


def _answering(facts: ModelFacts, wishes: Wishes) -> tuple[float, str]:
    """Milliseconds for a token, and the form of the weights: bf16 where that fits and is fast enough, else 4 bits."""
    full = token_milliseconds(facts, wishes.device, 2)
    if 2 * facts.parameters <= _usable(wishes.device) and (not wishes.latency_ms or full <= wishes.latency_ms):
        return full, "bf16"
    return token_milliseconds(facts, wishes.device, memory.quantized_bits("nf4", True) / 8), "4 bits"


def _method(needs: dict[str, int], wishes: Wishes) -> str | None:
    order = ("full", "lora", "qlora") if wishes.rows >= rules()["usual"]["full_rows"] else ("lora", "qlora")
    return next((method for method in order if needs[method] <= _usable(wishes.device)), None)


def _usable(device: Device) -> float:
    return USABLE_SHARE * device.memory_bytes


def _against(
    card: ModelCard, wishes: Wishes, verdict: Audit, needs: dict[str, int], method: str | None, seconds: float, token_ms: float
) -> list[str]:
    against = [] if verdict.verdict.startswith("allowed") else [f"{verdict.verdict} ({wishes.use}): {verdict.license}"]
    if missing := [language for language in wishes.languages if language not in card.languages and not card.many_languages]:
        against.append(f"does not name {', '.join(missing)} among its languages ({', '.join(card.languages)})")
    if wishes.context > card.extended:
        against.append(f"its context is {card.extended:,} tokens, and {wishes.context:,} are asked for")
    if method is None:
        least = min(needs, key=lambda one: needs[one])
        against.append(f"needs about {size(needs[least])} with {least}, and {size(_usable(wishes.device))} may be taken of {wishes.device.name}")
    elif seconds > wishes.hours * 3600:
        against.append(f"would train about {duration(seconds)} here, and {wishes.hours:g} hours are granted")
    if wishes.latency_ms and token_ms > wishes.latency_ms:
        against.append(f"takes about {token_ms:.0f} ms for a token of an answer, and {wishes.latency_ms:g} are granted")
    return against


def _terms(card: ModelCard, wishes: Wishes, method: str) -> list[tuple[float, str]]:
    """Every part of the points, with its reason."""
    worth, price = rules()["points"], rules()["tasks"][wishes.task]
    price *= rules()["domain"]["far_price"] if wishes.domain == "far" else 1.0
    size = math.sqrt(card.facts.active_parameters * card.facts.parameters)
    counts = "geometric mean of those that see a token and all" if card.has_experts else "parameters"
    terms = [_ability(card), (-price * math.log2(size / 1e9), f"{size / 1e9:.3g}B {counts}; {wishes.task} pays {price:g} points a doubling")]
    if card.score is None:
        terms.append((worth["no_score"], "no published score"))
    if card.has_experts:
        terms.append((worth["experts"], f"{card.facts.experts} experts: LoRA leaves them as they are, and all lie in memory"))
    if card.license not in PLAIN_LICENSES and wishes.use in ("commercial", "saas"):
        terms.append((worth["own_license"], f"license of its own: {card.license}"))
    if method == "qlora":
        terms.append((worth["four_bits"], "fits with a base in 4 bits only"))
    if unnamed := [language for language in wishes.languages if language not in card.languages]:
        terms.append((worth["unnamed_language"], f"does not name {', '.join(unnamed)}; it claims {card.many_languages}"))
    if wishes.context > card.facts.context:
        terms.append((worth["yarn"], f"beyond {card.facts.context:,} tokens with YaRN only"))
    if wishes.open_data and card.open_data:
        terms.append((worth["open_data"], "its training data is published"))
    return terms


def _ability(card: ModelCard) -> tuple[float, str]:
    if card.score is not None:
        return card.score.mmlu, f"MMLU of its {card.score.of} version, as published ({card.score.source})"
    return round(usual_score(card.facts.active_parameters), 1), "MMLU that is usual for its size in the catalog"


@functools.cache
def _fit() -> tuple[float, float]:
    """MMLU of the catalog's scored sizes as a straight line over the logarithm of their active parameters: height at 1B, rise a doubling."""
    scored = {card.size: (math.log2(card.facts.active_parameters / 1e9), card.score.mmlu) for card in catalog.cards() if card.score}
    places, scores = zip(*scored.values(), strict=True)
    middle, mean = sum(places) / len(places), sum(scores) / len(scores)
    rise = sum((x - middle) * (y - mean) for x, y in scored.values()) / sum((x - middle) ** 2 for x in places)
    return mean - rise * middle, rise


def usual_score(active_parameters: int) -> float:
    """MMLU in percent that the catalog's models of this size have on the whole; 25 is guessing."""
    height, rise = _fit()
    return max(25.0, height + rise * math.log2(active_parameters / 1e9))


def _advice(wishes: Wishes) -> tuple[str, ...]:
    few = rules()["usual"]["few_rows"]
    advice = [f"{wishes.rows} rows are few: try a prompt with examples first, and count how often it is right"] if wishes.rows < few else []
    if wishes.task == "rag":
        advice.append("facts that change belong into retrieval; tune for the form of the answer")
    advice.append("MMLU is one test of knowledge in English: luthier eval on your own rows counts more")
    return tuple(advice)
