"""Does the exported model answer as the trained one does? Measured on held-out prompts, from what lies on the disk.

Letters: T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from luthier.records import Parity, TokenizedExample

Logits = Callable[[TokenizedExample], Float[Tensor, "T V"]]

THRESHOLDS = {
    # stored as    most mean KL (nats a token)       most difference of a logit       least share of equal answers
    "fp32": {"mean_kl": 1e-6, "max_logit_difference": 1e-2, "greedy_agreement": 0.99},
    # Rounding alone gives up to 5e-3 where answers are undecided, and then turns some of them: so equal answers are reported, not judged.
    "bf16": {"mean_kl": 1e-2},
    "fp16": {"mean_kl": 1e-2},
}
# An adapter that was trained beside a quantized base, merged onto the one that was quantized: it has not learned to answer for it.
ORIGINAL = "original"
ON_ORIGINAL = {"mean_kl": 0.1}


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model says to the prompts: the text, and the logits that predict the answers of given rows."""

    texts: list[str]
    logits: list[Tensor]


def compare(trained: Answers, exported: Answers, *, artifact: str, engine: str, precision: str, onto: str = "") -> Parity:
    """The certificate of one artifact. `onto` is the base that an adapter was merged onto, where there was a choice."""
    differences = [float((one - other).abs().max()) for one, other in zip(trained.logits, exported.logits, strict=True)]
    kl = torch.cat([kl_divergence(one, other) for one, other in zip(trained.logits, exported.logits, strict=True)])
    equal = [one == other for one, other in zip(trained.texts, exported.texts, strict=True)]
    measured = {"max_logit_difference": max(differences), "mean_kl": float(kl.mean()), "greedy_agreement": sum(equal) / len(equal) if equal else 1.0}
    threshold = ON_ORIGINAL if onto == ORIGINAL else THRESHOLDS[precision]
    return Parity(artifact=artifact, engine=engine, threshold=threshold, passed=holds(measured, threshold), **measured, onto=onto)


def holds(measured: dict[str, float], threshold: dict[str, float]) -> bool:
    """Whether nothing is further off than allowed. Agreement has a least value, the others a most."""
    return all(measured[name] >= limit if name == "greedy_agreement" else measured[name] <= limit for name, limit in threshold.items())


def kl_divergence(trained_TV: Float[Tensor, "T V"], exported_TV: Float[Tensor, "T V"]) -> Float[Tensor, "T"]:
    """KL(trained || exported) of each token, in nats."""
    trained, exported = (torch.log_softmax(logits.double(), dim=-1) for logits in (trained_TV, exported_TV))
    return (trained.exp() * (trained - exported)).sum(dim=-1)


def answers_of(
    logits: Logits, answer: Callable[[Sequence[list[int]]], list[str]], prompts: Sequence[list[int]], rows: Sequence[TokenizedExample]
) -> Answers:
    """Ask a model: greedy answers to the prompts, and the logits of the right answers of `rows`."""
    return Answers(answer(prompts), [logits(row) for row in rows])
