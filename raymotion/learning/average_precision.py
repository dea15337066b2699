"""Average precision: one ranking, many resamples of it at once, and what luck alone gives.

Average precision is the sum over the steps of a ranking of precision x gained recall, without interpolation; equal
scores are one step (as in scikit-learn).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of one ranking: sum over score steps of precision x gained recall; NaN without a positive.

    The same as `sklearn.metrics.average_precision_score` for (n,) inputs: no interpolation, equal scores are one step.
    """
    order, ends = ranking(np.asarray(scores, dtype=np.float64))
    return float(weighted_ap(np.asarray(targets)[order] > 0, ends, np.ones((1, len(order))))[0])


def ranking(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of (n,) scores from high to low, and the positions in it where a run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)


def weighted_ap(true: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision for each row of `weights` (B, n), all in ranking order; NaN where no positive has weight."""
    hits = np.cumsum(weights * true, axis=1)[:, ends]
    seen = np.cumsum(weights, axis=1)[:, ends]
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    return np.divide((precision * gained).sum(axis=1), total, out=np.full_like(total, np.nan), where=total > 0)


def random_order_ap(ends: np.ndarray, positives: float, n: int) -> float:
    """Expected average precision of n samples whose positives are shuffled over a ranking with ties that end at `ends`.

    For a step of s samples that ends at place k, the expected product of its hits and of all hits up to k is
    s (m/n + (k - 1) m (m - 1) / (n (n - 1))) with m positives; average precision sums these over k m.
    """
    if positives == 0:
        return math.nan
    last = ends + 1.0
    size = np.diff(last, prepend=0.0)
    return float((size / last * (1.0 + (last - 1.0) * (positives - 1.0) / max(n - 1.0, 1.0))).sum() / n)


def class_ranking_ap(rates: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Micro AP of a predictor that gives everyone `rates`, from class positives (B, L) and sample totals (B,)."""
    order, ends = ranking(rates)

    def score(positives: np.ndarray, totals: np.ndarray) -> np.ndarray:
        hits = np.cumsum(positives[:, order], axis=1)[:, ends]
        seen = totals[:, None] * (ends + 1)
        gained = np.diff(hits, axis=1, prepend=0.0)
        total = hits[:, -1]
        summed = (gained * hits / seen).sum(axis=1)
        return np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0)

    return score
