"""AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475): what the win rate would be at equal lengths."""

import math
from collections.abc import Sequence

import numpy as np

from luthier.evaluate.intervals import Z_95
from luthier.records import Metric

# A ridge so small that it only matters where every comparison went the same way and the likelihood has no maximum.
RIDGE = 1e-2
STEPS, ENOUGH = 100, 1e-10


def length_controlled(preferences: Sequence[float], lengths: Sequence[int], rival_lengths: Sequence[int]) -> Metric | None:
    """The win rate with the effect of length taken out, with its 95 % interval; None where all lengths differ alike.

    preferences   1 where the model's answer was preferred, 0 where the rival's was, 0.5 for a tie; what lies between is allowed
    lengths       of the answers, in characters

    Fits by maximum likelihood  p = sigmoid(theta + phi * tanh(d / std(d))),  d = length - rival's length,  and gives sigmoid(theta): the
    paper's model without its third term, the difficulty of each instruction, which is known for AlpacaEval's own 805 only
    (`length_controlled_minimal` there). The interval is that of theta, by the curvature of the likelihood, taken through the sigmoid.
    """
    longer = np.asarray(lengths, dtype=np.float64) - np.asarray(rival_lengths, dtype=np.float64)
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    if spread == 0:
        return None
    features = np.stack([np.ones(len(longer)), np.tanh(longer / spread)], axis=1)
    weights, covariance = _fit(features, np.asarray(preferences, dtype=np.float64))
    theta, error = float(weights[0]), math.sqrt(float(covariance[0, 0]))
    return Metric(_sigmoid(theta), _sigmoid(theta - Z_95 * error), _sigmoid(theta + Z_95 * error), len(longer))


def _fit(features: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a logistic regression with targets in [0, 1], and their covariance: Newton's steps, halved until each one gains."""
    weights = np.zeros(features.shape[1])
    for _ in range(STEPS):
        shares = 1 / (1 + np.exp(-(features @ weights)))
        gradient = features.T @ (wanted - shares) - RIDGE * weights
        step = np.linalg.solve(_curvature(features, weights), gradient)
        while _likelihood(features, wanted, weights + step) < _likelihood(features, wanted, weights) - ENOUGH:
            step = step / 2
        weights = weights + step
        if float(np.abs(step).max()) < ENOUGH:
            break
    return weights, np.linalg.inv(_curvature(features, weights))


def _curvature(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shares = 1 / (1 + np.exp(-(features @ weights)))
    return np.asarray(features.T @ (features * (shares * (1 - shares))[:, None]) + RIDGE * np.eye(len(weights)))


def _likelihood(features: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> float:
    scores = features @ weights
    return float((wanted * scores - np.logaddexp(0, scores)).sum() - RIDGE / 2 * (weights**2).sum())


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
