"""The losses of preference tuning: plain functions of log-probabilities, each with its paper.

Letters: P pairs, E examples of an update. All log-probabilities are sums over the trained tokens of one answer, in nats, fp64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.config.preference import BETA, PreferenceSettings
from luthier.records import Judged, TokenizedExample

# Of log-probability a token, in nats: the nearest to a certain answer that has finite odds.
ALMOST_CERTAIN = -1e-12


@dataclass(frozen=True, slots=True)
class Sides:
    """The answers of one side of several pairs: their log-probabilities, the same before the training, and their trained tokens."""

    logps_P: Tensor
    reference_P: Tensor
    tokens_P: Tensor

    @property
    def ratios_P(self) -> Tensor:
        return self.logps_P - self.reference_P

    @property
    def means_P(self) -> Tensor:
        """Log-probability a token."""
        return self.logps_P / self.tokens_P


@dataclass(frozen=True, slots=True)
class Weights:
    """The settings of preference tuning, all resolved."""

    beta: float
    loss_type: str
    label_smoothing: float
    simpo_gamma: float
    orpo_weight: float
    sft_weight: float
    desirable_weight: float
    undesirable_weight: float


def weights_of(settings: PreferenceSettings, objective: str) -> Weights:
    """The settings as numbers; `beta: auto` is the objective's own (orpo, which has none, gets 1)."""
    values = settings.model_dump()
    return Weights(**values | {"beta": BETA.get(objective, 1.0) if settings.beta == "auto" else settings.beta})


def sigmoid(margins_P: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(margin) (Rafailov 2023, arXiv:2305.18290, eq. 7), where a share of the pairs may stand the wrong way round
    (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3)."""
    return -(1 - label_smoothing) * logsigmoid(margins_P) - label_smoothing * logsigmoid(-margins_P)


def dpo(chosen: Sides, rejected: Sides, weights: Weights) -> Tensor:
    """Of the margin between the log-ratios log pi/pi_ref of both answers:

    sigmoid  -log sigmoid(beta * margin): Rafailov 2023, arXiv:2305.18290, eq. 7
    ipo      (margin a token - 1 / (2 beta))^2: Azar 2023, arXiv:2310.12036, eq. 17 (beta is its tau; a token, as its authors run it)
    hinge    max(0, 1 - beta * margin): Zhao 2023, arXiv:2305.10425, eq. 1, with the normalization of Liu 2023, arXiv:2309.06657, section 3
    """
    margins = chosen.ratios_P - rejected.ratios_P
    if weights.loss_type == "ipo":
        return (chosen.ratios_P / chosen.tokens_P - rejected.ratios_P / rejected.tokens_P - 1 / (2 * weights.beta)).square()
    if weights.loss_type == "hinge":
        return torch.relu(1 - weights.beta * margins)
    return sigmoid(weights.beta * margins, weights.label_smoothing)


def simpo(chosen: Sides, rejected: Sides, weights: Weights) -> Tensor:
    """-log sigmoid(beta * (chosen - rejected) - gamma), of log-probabilities a token (Meng 2024, arXiv:2405.14734, eq. 6)."""
    return sigmoid(weights.beta * (chosen.means_P - rejected.means_P) - weights.simpo_gamma, weights.label_smoothing)


def orpo(chosen: Sides, rejected: Sides, weights: Weights) -> Tensor:
    """lambda * -log sigmoid(log odds(chosen) - log odds(rejected)), odds = p / (1 - p), p the mean probability of a token (Hong 2024,
    arXiv:2403.07691, eq. 4 and 7); the loss of the better answer (eq. 6) is added by `Update`."""
    means = [side.means_P.clamp(max=ALMOST_CERTAIN) for side in (chosen, rejected)]
    log_odds = [mean_P - torch.log(-torch.expm1(mean_P)) for mean_P in means]
    return -weights.orpo_weight * logsigmoid(log_odds[0] - log_odds[1])


def kto(ratios_E: Tensor, good_E: Tensor, drift: float, weights: Weights) -> Tensor:
    """1 - sigmoid(beta * (ratio - drift)) of a good answer, 1 - sigmoid(beta * (drift - ratio)) of a bad one, each with its weight
    (Ethayarajh 2024, arXiv:2402.01306, eq. 8). `drift` is z0, the KL divergence from the start, without gradient."""
    signs = torch.where(good_E, 1.0, -1.0).double()
    sizes = torch.where(good_E, weights.desirable_weight, weights.undesirable_weight).double()
    return sizes * (1 - torch.sigmoid(signs * weights.beta * (ratios_E - drift)))


PAIRED: dict[str, Callable[[Sides, Sides, Weights], Tensor]] = {"dpo": dpo, "orpo": orpo, "simpo": simpo}


@dataclass(slots=True)
class Update:
    """The loss of one update (or of the held-out rows) as the engine asks for it: parts of it, of some examples; and what it measured.

    `drift` is KTO's z0. The loss of an update is the mean over its rows, and that of the better answers over their trained tokens.
    """

    rows: Sequence[Judged]
    objective: str
    weights: Weights
    drift: float = 0.0
    row_losses: list[float] = field(init=False)
    examples: list[TokenizedExample] = field(init=False)
    together: list[list[int]] = field(init=False)
    _row_of: list[int] = field(init=False)
    _logps: list[float] = field(init=False)
    _chosen_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.examples = [example for row in self.rows for example in row.examples]
        self._row_of = [place for place, row in enumerate(self.rows) for _ in row.examples]
        self.together = [[] for _ in self.rows]
        for place, row in enumerate(self._row_of):
            self.together[row].append(place)
        self.row_losses, self._logps = [0.0] * len(self.rows), [0.0] * len(self.examples)
        self._chosen_tokens = sum(row.chosen.trained_tokens for row in self.rows if row.chosen)

    def loss(self, places: list[int], logps_E: Tensor) -> Tensor:
        """The part of the loss that the examples at `places` make, of their log-probabilities; both answers of a row are there."""
        here = {place: index for index, place in enumerate(places)}
        for place, value in zip(places, logps_E.detach().tolist(), strict=True):
            self._logps[place] = value
        rows = sorted({self._row_of[place] for place in places})
        each = self._kto(rows, here, logps_E) if self.objective == "kto" else self._paired(rows, here, logps_E)
        for row, value in zip(rows, each.detach().tolist(), strict=True):
            self.row_losses[row] = value
        return each.sum() / len(self.rows)

    def _paired(self, rows: list[int], here: dict[int, int], logps_E: Tensor) -> Tensor:
        chosen, rejected = (self._side(rows, which, here, logps_E) for which in (0, 1))
        losses = PAIRED[self.objective](chosen, rejected, self.weights)
        of_answers = 1.0 if self.objective == "orpo" else self.weights.sft_weight
        # A mean over the tokens of all better answers, as rows of a mean over the rows.
        return losses - of_answers * len(self.rows) / self._chosen_tokens * chosen.logps_P if of_answers else losses

    def _side(self, rows: list[int], which: int, here: dict[int, int], logps_E: Tensor) -> Sides:
        places = [self.together[row][which] for row in rows]
        reference = [self.rows[row].reference[which] if self.rows[row].reference else 0.0 for row in rows]
        tokens = [self.examples[place].trained_tokens for place in places]
        return Sides(logps_E[[here[place] for place in places]], *(torch.tensor(values, dtype=torch.float64) for values in (reference, tokens)))

    def _kto(self, rows: list[int], here: dict[int, int], logps_E: Tensor) -> Tensor:
        side = self._side(rows, 0, here, logps_E)
        good = torch.tensor([self.rows[row].chosen is not None for row in rows])
        return kto(side.ratios_P, good, self.drift, self.weights)

    @property
    def metrics(self) -> dict[str, float]:
        """Rewards, margins, accuracies and log-probabilities by TRL's names, as means over the rows. KTO has them for each side that occurs."""
        rewards, logps = self._by_side(self._reward), self._by_side(lambda row, which: self._logps[self.together[row][which]])
        found = {f"rewards/{side}": _mean(values) for side, values in rewards.items() if values}
        found |= {f"logps/{side}": _mean(values) for side, values in logps.items() if values}
        if self.objective == "kto":
            found["kl"] = self.drift
        else:
            margins = [good - bad for good, bad in zip(rewards["chosen"], rewards["rejected"], strict=True)]
            found["rewards/accuracies"] = _mean([float(margin > 0) for margin in margins])
        if len(found) and {"rewards/chosen", "rewards/rejected"} <= set(found):
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

    def _reward(self, row: int, which: int) -> float:
        """What the objective compares: beta times the log-ratio (dpo, kto) or the log-probability a token (simpo; orpo, with its weight)."""
        place = self.together[row][which]
        if self.objective in ("dpo", "kto"):
            return self.weights.beta * (self._logps[place] - self.rows[row].reference[which])
        weight = self.weights.orpo_weight if self.objective == "orpo" else self.weights.beta
        return weight * self._logps[place] / self.examples[place].trained_tokens

    def _by_side(self, value: Callable[[int, int], float]) -> dict[str, list[float]]:
        """`value` of each answer, by its row and its place in the row."""
        sides: dict[str, list[float]] = {"chosen": [], "rejected": []}
        for row, judged in enumerate(self.rows):
            for which, example in enumerate(judged.examples):
                sides["chosen" if example is judged.chosen else "rejected"].append(value(row, which))
        return sides


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
