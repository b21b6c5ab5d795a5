"""AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475): what the win rate would be at equal lengths."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.errors import DataError
from luthier.evaluate.intervals import Z_95
from luthier.records import Metric

# A ridge so small that it only matters where every comparison went the same way and the likelihood has no maximum.
RIDGE = 1e-2
STEPS, ENOUGH = 100, 1e-10
# What each row of the two gamed baselines weighs beside a comparison: 0.2, halved since there are two.
GAMED_WEIGHT = 0.1
COLUMNS = ("index", "instruction_difficulty", "preference", "std_delta_len")
NEXT_STEP = "give AlpacaEval's df_gamed.csv (the hub's data set tatsu-lab/alpaca_eval)"


@dataclass(frozen=True, slots=True)
class Difficulties:
    """AlpacaEval's df_gamed.csv: the difficulty of each instruction, by its place among the questions, and what was preferred where the
    baseline itself was told to be brief or wordy, with the lengths' difference in standard deviations (the baseline's less the other's)."""

    by_question: dict[int, float]
    gamed: np.ndarray  # a row each: difference, difficulty, preference


def read_difficulties(path: Path) -> Difficulties:
    """Raises DataError where the file is not AlpacaEval's."""
    by_question: dict[int, float] = {}
    gamed = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                index, difficulty, preference, difference = (float(row[name]) for name in COLUMNS)
                if not index.is_integer():
                    raise ValueError(f"{row[COLUMNS[0]]!r} is no place")
                by_question.setdefault(int(index), difficulty)
                gamed.append((difference, difficulty, preference))
    except KeyError as error:
        raise DataError(f"has no column {error}", where=str(path), next_step=NEXT_STEP) from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), next_step=NEXT_STEP) from error
    if not np.isfinite(gamed).all() or not gamed or not all(0 <= preference <= 1 for _, _, preference in gamed):
        raise DataError("holds no rows, a number that is not finite, or a preference outside 0 to 1", where=str(path), next_step=NEXT_STEP)
    return Difficulties(by_question, np.asarray(gamed))


def length_controlled(
    preferences: Sequence[float], lengths: Sequence[int], rival_lengths: Sequence[int], places: Sequence[int] = (), known: Difficulties | None = None
) -> Metric | None:
    """The win rate with the effect of length taken out, with its 95 % interval; None where all lengths differ alike.

    preferences   1 where the model's answer was preferred, 0 where the rival's was, 0.5 for a tie; what lies between is allowed
    lengths       of the answers, in characters
    places        of the instructions among AlpacaEval's 805, from 0, where their difficulties are `known`

    Fits by maximum likelihood  p = sigmoid(theta + phi * tanh(d / std(d))),  d = rival's length - length,  and gives sigmoid(theta). With known
    difficulties there is a third term, psi * difficulty, the gamed baselines are fitted beside (they have phi and psi, no theta), and the mean
    of  sigmoid(theta + psi * difficulty)  is given. The interval is by the curvature of the likelihood, taken through the sigmoid.
    """
    shorter = np.asarray(rival_lengths, dtype=np.float64) - np.asarray(lengths, dtype=np.float64)
    spread = float(shorter.std(ddof=1)) if len(shorter) > 1 else 0.0
    if spread == 0:
        return None
    one, wanted = np.ones(len(shorter)), np.asarray(preferences, dtype=np.float64)
    features = np.stack([one, np.tanh(shorter / spread)], axis=1)
    equal = np.stack([one, 0 * one], axis=1)
    counts = one
    if known:
        hard = np.asarray([known.by_question[place] for place in places])[:, None]
        features, equal = np.hstack([features, hard]), np.hstack([equal, hard])
        difference, difficulty, preferred = known.gamed.T
        features = np.vstack([features, np.stack([0 * difference, np.tanh(difference), difficulty], axis=1)])
        wanted, counts = np.append(wanted, preferred), np.append(counts, np.full(len(preferred), GAMED_WEIGHT))
    weights, covariance = _fit(features, wanted, counts)
    return _mean_share(equal, weights, covariance)


def _mean_share(features: np.ndarray, weights: np.ndarray, covariance: np.ndarray) -> Metric:
    """The mean of the predicted preferences. Its error is that of the weights (delta method), on the scale of the logit."""
    shares = _shares(features, weights)
    mean = float(shares.mean())
    slope = (shares * (1 - shares)) @ features / len(shares)
    logit = math.log(mean / (1 - mean))
    error = math.sqrt(float(slope @ covariance @ slope)) / (mean * (1 - mean))
    return Metric(mean, _sigmoid(logit - Z_95 * error), _sigmoid(logit + Z_95 * error), len(shares))


def _fit(features: np.ndarray, wanted: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a logistic regression with targets in [0, 1], and their covariance: Newton's steps, halved until each one gains.

    Each row counts `counts` times.
    """
    weights = np.zeros(features.shape[1])
    for _ in range(STEPS):
        gradient = features.T @ (counts * (wanted - _shares(features, weights))) - RIDGE * weights
        step = np.linalg.solve(_curvature(features, counts, weights), gradient)
        while _likelihood(features, wanted, counts, weights + step) < _likelihood(features, wanted, counts, weights) - ENOUGH:
            step = step / 2
        weights = weights + step
        if float(np.abs(step).max()) < ENOUGH:
            break
    return weights, np.linalg.inv(_curvature(features, counts, weights))


def _curvature(features: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shares = _shares(features, weights)
    return np.asarray(features.T @ (features * (counts * shares * (1 - shares))[:, None]) + RIDGE * np.eye(len(weights)))


def _likelihood(features: np.ndarray, wanted: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> float:
    scores = features @ weights
    return float((counts * (wanted * scores - np.logaddexp(0, scores))).sum() - RIDGE / 2 * (weights**2).sum())


def _shares(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-(features @ weights))))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
