"""Temperature scaling of independent probabilities, after training.

Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks" (ICML 2017), for labels that are sigmoids of
their own: p becomes sigmoid(logit(p) / T). One number for all labels cannot overfit much, and does not change the order
of the images within a label. It makes a model less (T > 1) or more (T < 1) sure of itself; it does not correct class
rates (`learning.priors` does).
"""

from __future__ import annotations

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import EPSILON

LOWEST, HIGHEST = 0.1, 10.0
HALVINGS = 60


def scale(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Returns sigmoid(logit(p) / T), float64 of the same shape; 0, 1 and a temperature of 1 change nothing.

    Args:
        probabilities: (n, L) in [0, 1].
        temperature: above 0; one number, or one of each row, (n,).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    t = np.asarray(temperature, dtype=np.float64)
    t = t[:, None] if t.ndim else t
    with np.errstate(divide="ignore", over="ignore"):
        scaled = 1.0 / (1.0 + np.exp(-_logit(p) / t))
    return np.where(t == 1.0, p, scaled)


def fit_temperature(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the temperature of the lowest binary cross-entropy, between `LOWEST` and `HIGHEST`.

    The loss is convex in 1 / T, so the root of its slope is found by halving.

    Args:
        targets: (n, L) of 0 and 1, or shares.
        probabilities: (n, L) in [0, 1].

    Raises:
        InputError: shapes that do not match, or no rows.
    """
    truth, p = np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if truth.shape != p.shape or not p.size:
        raise InputError(f"targets of shape {truth.shape} and probabilities of shape {p.shape} give no temperature")
    logits = _logit(np.clip(p, EPSILON, 1.0 - EPSILON))
    low, high = np.log(1.0 / HIGHEST), np.log(1.0 / LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = float((logits * (1.0 / (1.0 + np.exp(-logits * np.exp(middle))) - truth)).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))
