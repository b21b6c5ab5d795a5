"""Does the exported model answer as the trained one does? Measured on held-out prompts, from what lies on the disk.

Letters: T tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from luthier.config.metric_names import lower_is_better
from luthier.records import Parity

THRESHOLDS: dict[str, dict[str, float]] = {
    # stored as    most difference of a logit in their standard deviations, most mean KL (nats a token), least share of equal answers
    "fp32": {"max_logit_difference_in_std": 1e-4, "mean_kl": 1e-6, "greedy_agreement": 0.99},
    # Rounding alone turns undecided answers: so equal answers are reported, not judged.
    "bf16": {"mean_kl": 1e-3},
    "fp16": {"mean_kl": 1e-3},
    # GGUF: llama.cpp gives the likeliest words, with other sums than torch's.
    "f16": {"top1_agreement": 0.995},
}
# An adapter that was trained beside a quantized base, merged onto the one that was quantized: it has not learned to answer for it.
ORIGINAL = "original"
ON_ORIGINAL = {"mean_kl": 0.1}
# What has fewer bits is measured, and its metrics may be lower by so much, unless the user says otherwise.
ALLOWED_LOSS = 0.1
AT_LEAST = {"greedy_agreement", "top1_agreement"}


@dataclass(frozen=True, slots=True)
class _Distances:
    """What logits give; None where an engine does not."""

    max_logit_difference: float | None = None
    max_logit_difference_in_std: float | None = None
    mean_kl: float | None = None
    max_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model says: the texts of its answers to the prompts, and of given rows what predicts their answers."""

    texts: list[str]
    logits: list[Tensor] = field(default_factory=list)  # T x V of each row, its last trained tokens; none where the engine does not give them
    likeliest: list[list[int]] = field(default_factory=list)  # of each row the likeliest word at those places
    losses: list[float] = field(default_factory=list)  # nats, of each token that `logits` predict
    # Where an engine tells the log-probabilities (nats) of the likeliest words alone, in place of logits: of each row, at those places.
    heads: list[list[dict[int, float]]] = field(default_factory=list)


def threshold(stored: str, onto: str = "", allow_loss: float | None = None) -> dict[str, float]:
    """What an artifact in the number format `stored` is judged by; with `allow_loss` its metrics too."""
    found = ON_ORIGINAL if onto == ORIGINAL else THRESHOLDS.get(stored, {})
    if allow_loss is None and found:
        return dict(found)
    return {**found, "loss_of_metric": ALLOWED_LOSS if allow_loss is None else allow_loss}


def compare(
    trained: Answers,
    exported: Answers,
    *,
    artifact: str,
    engine: str,
    stored: str,
    limits: Mapping[str, float],
    onto: str = "",
    metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> Parity:
    """The certificate of one artifact. `metrics` are the run's own, of both models; `onto` is the base that an adapter was merged onto."""
    equal = [one == other for one, other in zip(trained.texts, exported.texts, strict=True)]
    scores = {name: dict(of_both) for name, of_both in (metrics or {}).items()}
    distances = _of_heads(trained.logits, exported.heads) if exported.heads else _distances(trained.logits, exported.logits)
    agreement, top1 = sum(equal) / len(equal) if equal else 1.0, _agreement(trained.likeliest, exported.likeliest)
    perplexity = _perplexities(trained, exported)
    loss = _loss(scores, perplexity, top1)
    return Parity(
        artifact=artifact,
        engine=engine,
        max_logit_difference=distances.max_logit_difference,
        mean_kl=distances.mean_kl,
        greedy_agreement=agreement,
        threshold=dict(limits),
        passed=holds({**dataclasses.asdict(distances), "greedy_agreement": agreement, "top1_agreement": top1, "loss_of_metric": loss}, limits),
        onto=onto,
        stored=stored,
        max_kl=distances.max_kl,
        max_logit_difference_in_std=distances.max_logit_difference_in_std,
        top1_agreement=top1,
        perplexity=perplexity,
        metrics=scores,
        prompts=len(equal),
    )


def holds(measured: Mapping[str, float | None], limits: Mapping[str, float]) -> bool:
    """Whether nothing is further off than allowed. Agreement has a least value, the others a most; what was not measured does not hold."""
    found = {name: measured[name] for name in limits}
    return all(
        value is not None and (value >= limits[name] if name in AT_LEAST else value <= limits[name]) for name, value in found.items()
    )  # one that is no number is neither


def broken(parity: Parity) -> list[str]:
    """What is further off than allowed, in words."""
    loss = _loss(parity.metrics, parity.perplexity, parity.top1_agreement)
    measured = {name: loss if name == "loss_of_metric" else getattr(parity, name) for name in parity.threshold}
    return [
        f"{name} is {value:.3g} and may be {'no less' if name in AT_LEAST else 'no more'} than {parity.threshold[name]:g}"
        for name, value in measured.items()
        if not holds({name: value}, {name: parity.threshold[name]})
    ]


def in_words(parity: Parity) -> list[list[str]]:
    """The certificate as rows of a table: what was measured, the number, and what is allowed."""
    numbers = {
        "mean_kl": ("mean KL", "nats a token", parity.mean_kl),
        "max_kl": ("largest KL", "nats", parity.max_kl),
        "max_logit_difference_in_std": ("largest difference of a logit", "of their standard deviation", parity.max_logit_difference_in_std),
    }
    shares = {"top1_agreement": ("same likeliest word", parity.top1_agreement), "greedy_agreement": ("equal answers", parity.greedy_agreement)}
    limits = parity.threshold
    rows = [[what, f"{value:.2g} {unit}", _limit(limits, name)] for name, (what, unit, value) in numbers.items() if value is not None]
    rows += [[what, f"{value:.1%}", _limit(limits, name)] for name, (what, value) in shares.items() if value is not None]
    most = f"at most {limits['loss_of_metric']:g} worse" if "loss_of_metric" in limits else ""
    rows += [[name, f"{of_both['trained']:.3g} -> {of_both['artifact']:.3g}", most] for name, of_both in parity.metrics.items()]
    if parity.perplexity:
        rows.append(["perplexity of the answers", f"{parity.perplexity['trained']:.4g} -> {parity.perplexity['artifact']:.4g}", ""])
    return rows


def _limit(limits: Mapping[str, float], name: str) -> str:
    if name not in limits:
        return ""
    return f"at least {limits[name]:.1%}" if name in AT_LEAST else f"at most {limits[name]:g}"


def _loss(metrics: Mapping[str, Mapping[str, float]], perplexity: Mapping[str, float], top1_agreement: float | None) -> float:
    """What the artifact is worse by: in the metric that lost most; without one the share by which the perplexity rose, or of other words."""
    if metrics:
        return max(lost(name, of_both) for name, of_both in metrics.items())
    if perplexity:
        return perplexity["artifact"] / perplexity["trained"] - 1
    return 1 - top1_agreement if top1_agreement is not None else 0.0


def lost(metric: str, of_both: Mapping[str, float]) -> float:
    """By how much the artifact is worse in a metric; negative where it is better."""
    worse = of_both["trained"] - of_both["artifact"]
    return -worse if lower_is_better(metric) else worse


def kl_divergence(trained_TV: Float[Tensor, "T V"], exported_TV: Float[Tensor, "T V"]) -> Float[Tensor, "T"]:
    """KL(trained || exported) of each token, in nats."""
    trained, exported = (torch.log_softmax(logits.double(), dim=-1) for logits in (trained_TV, exported_TV))
    return (trained.exp() * (trained - exported)).sum(dim=-1)


def kl_of_head(trained_V: Float[Tensor, "V"], head: Mapping[int, float]) -> float:
    """KL(trained || exported) in nats, from the log-probabilities of the exported model's likeliest words: all others count as one word.

    Never more than the KL over all words (the data-processing inequality), and next to it where the head holds nearly all of both.
    """
    words = torch.tensor(list(head))
    p = torch.log_softmax(trained_V.double(), dim=-1).exp()[words]
    q = torch.tensor(list(head.values()), dtype=torch.float64).exp()
    p, q = (torch.cat([shares, (1 - shares.sum()).clamp_min(1e-12).reshape(1)]) for shares in (p, q))
    return float((p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log())).sum())


def furthest(trained: Answers, exported: Answers) -> tuple[int, int]:
    """The row and the place in it (counted from the end, 1 is the last) where the two differ most; (-1, 0) where they nowhere do."""
    if exported.logits:
        kl = [kl_divergence(one, other).nan_to_num(torch.inf) for one, other in zip(trained.logits, exported.logits, strict=True)]
        row = max(range(len(kl)), key=lambda place: float(kl[place].max()))
        return row, len(kl[row]) - int(kl[row].argmax())
    for row, (one, other) in enumerate(zip(trained.likeliest, exported.likeliest, strict=True)):
        for place, (first, second) in enumerate(zip(one, other, strict=True)):
            if first != second:
                return row, len(one) - place
    return -1, 0


def _distances(trained: Sequence[Tensor], exported: Sequence[Tensor]) -> _Distances:
    if not exported or not trained:
        return _Distances()
    # A row at a time, and the largest by hand: max() would pass over what is no number.
    difference = torch.stack([(one - other).abs().max() for one, other in zip(trained, exported, strict=True)]).max()
    kl = torch.cat([kl_divergence(one, other) for one, other in zip(trained, exported, strict=True)])
    return _Distances(
        max_logit_difference=float(difference),
        max_logit_difference_in_std=float(difference / _standard_deviation(trained)),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
    )


def _of_heads(trained: Sequence[Tensor], heads: Sequence[Sequence[Mapping[int, float]]]) -> _Distances:
    pairs = [pair for logits_TV, of_row in zip(trained, heads, strict=True) for pair in zip(logits_TV, of_row, strict=True)]
    kl = torch.tensor([kl_of_head(logits_V, head) for logits_V, head in pairs], dtype=torch.float64)
    return _Distances(mean_kl=float(kl.mean()), max_kl=float(kl.max()))


def _standard_deviation(logits: Sequence[Tensor]) -> Tensor:
    """Of all logits of all rows, without a second copy of them."""
    numbers = sum(one.numel() for one in logits)
    mean = torch.stack([one.double().sum() for one in logits]).sum() / numbers
    return (torch.stack([(one - mean.float()).double().square().sum() for one in logits]).sum() / numbers).sqrt()


def _agreement(trained: Sequence[Sequence[int]], exported: Sequence[Sequence[int]]) -> float | None:
    pairs = [(one, other) for ours, theirs in zip(trained, exported, strict=True) for one, other in zip(ours, theirs, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None


def _perplexities(trained: Answers, exported: Answers) -> dict[str, float]:
    if not trained.losses or not exported.losses:
        return {}
    both = {"trained": trained.losses, "artifact": exported.losses}
    return {name: float(torch.tensor(losses, dtype=torch.float64).mean().exp()) for name, losses in both.items()}
