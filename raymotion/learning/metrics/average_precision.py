"""Average precision of a ranking, of many resamples at once, and its expectation by chance.

Average precision is the sum over the steps of a ranking of precision x gained recall, without interpolation; equal
scores are one step (as in scikit-learn). The interpolated variant of the EMOTIC authors is available too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from raymotion.learning.bootstrap import Metric, interval, make_metric, ranking_resamples, resampled, row_mean


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Returns the average precision of one ranking; NaN without a positive.

    Equals `sklearn.metrics.average_precision_score` for (n,) inputs.
    """
    order, ends = ranking(np.asarray(scores, dtype=np.float64))
    return float(weighted_ap(np.asarray(targets)[order] > 0, ends, np.ones((1, len(order))))[0])


def interpolated_average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the running maximum of precision, as in the EMOTIC authors' evaluation; NaN without a
    positive.

    The precision at each recall is the maximum over all recalls from there on (PASCAL VOC 2010 and later, all points).
    So it is never below `average_precision`, and the two cannot be compared. The authors add noise of 1e-10 to the
    scores, which breaks ties at random; here equal scores are one step, so that the result is deterministic.

    Args:
        targets: (n,) of 0 and 1.
        scores: (n,).
    """
    order, ends = ranking(np.asarray(scores, dtype=np.float64))
    hits = np.cumsum(np.asarray(targets)[order] > 0)[ends]
    if hits[-1] == 0:
        return math.nan
    envelope = np.maximum.accumulate((hits / (ends + 1))[::-1])[::-1]
    return float((envelope * np.diff(hits, prepend=0)).sum() / hits[-1])


def interpolated_by_class(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns `interpolated_average_precision` of each column of two (n, L) arrays: (L,), NaN without a positive."""
    truth, p = np.asarray(targets), np.asarray(scores)
    return np.array([interpolated_average_precision(truth[:, j], p[:, j]) for j in range(truth.shape[1])])


def ranking(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of (n,) scores from high to low, and the positions in it where a run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)


def weighted_ap(true: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the AP of each row of `weights` (B, n), in ranking order (`ranking`); NaN if no positive has weight."""
    hits = np.cumsum(weights * true, axis=1)[:, ends]
    seen = np.cumsum(weights, axis=1)[:, ends]
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    return np.divide((precision * gained).sum(axis=1), total, out=np.full_like(total, np.nan), where=total > 0)


def random_order_ap(ends: np.ndarray, positives: float, n: int) -> float:
    """Returns the expected average precision if positives are shuffled over n samples, with ties that end at `ends`.

    For a step of s samples that ends at place k, the expected product of its hits and of all hits up to k is
    s (m/n + (k - 1) m (m - 1) / (n (n - 1))) with m positives; average precision sums these, each divided by k m.
    """
    if positives == 0:
        return math.nan
    last = ends + 1.0
    size = np.diff(last, prepend=0.0)
    return float((size / last * (1.0 + (last - 1.0) * (positives - 1.0) / max(n - 1.0, 1.0))).sum() / n)


def chance_map(prevalence: np.ndarray | Sequence[float]) -> float:
    """Returns the mAP of a random ranking of many samples: the mean prevalence of the labels with a positive.

    Args:
        prevalence: (L,) share of samples with each label. If no label has a positive, the result is 0.
    """
    rates = np.asarray(prevalence, dtype=np.float64)
    return float(rates[rates > 0].mean()) if (rates > 0).any() else 0.0


def class_ranking_ap(rates: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns the micro AP of a constant predictor of `rates`, as a function of positives (B, L) and totals (B,)."""
    order, ends = ranking(rates)

    def score(positives: np.ndarray, totals: np.ndarray) -> np.ndarray:
        hits = np.cumsum(positives[:, order], axis=1)[:, ends]
        seen = totals[:, None] * (ends + 1)
        gained = np.diff(hits, axis=1, prepend=0.0)
        total = hits[:, -1]
        summed = (gained * hits / seen).sum(axis=1)
        return np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0)

    return score


def bootstrap_ap(
    truth: np.ndarray,
    scores: np.ndarray,
    prior: np.ndarray,
    *,
    resamples: int,
    seed: int,
    units: np.ndarray | None = None,
) -> tuple[Metric, Metric, np.ndarray, list[tuple[float, float] | None]]:
    """Computes micro AP, macro AP, and the AP of each class, (L,), with intervals.

    Args:
        truth, scores: (n, L).
        prior: (L,) class rates of the training split.
        units: see `resample_counts`.
    """
    n, width = truth.shape
    class_rankings = [ranking(scores[:, j]) for j in range(width)]
    class_true = [truth[order, j] > 0 for j, (order, _) in enumerate(class_rankings)]
    flat_order, flat_ends = ranking(scores.ravel())
    flat_true, flat_rows = truth.ravel()[flat_order] > 0, flat_order // width
    prior_ap = class_ranking_ap(prior)

    def measure(weights: np.ndarray) -> np.ndarray:
        """Returns (B, 6 + L): micro, its prior, chance, macro, its two baselines, and the AP of each class."""
        positives, totals = weights @ truth, weights.sum(axis=1)
        by_class = np.stack(
            [
                weighted_ap(true, ends, weights[:, order])
                for true, (order, ends) in zip(class_true, class_rankings, strict=True)
            ],
            axis=1,
        )
        micro = weighted_ap(flat_true, flat_ends, weights[:, flat_rows])
        prevalence = np.where(positives > 0, positives / totals[:, None], np.nan)
        # Within one class a constant score does not rank, so both baselines are at chance.
        chance = row_mean(prevalence)
        overall = positives.sum(axis=1) / (totals * width)
        both = (micro, prior_ap(positives, totals), overall, row_mean(by_class), chance, chance)
        return np.concatenate([np.stack(both, axis=1), by_class], axis=1)

    point, drawn = resampled(
        measure,
        n,
        resamples=ranking_resamples(resamples, n, width),
        seed=seed,
        units=units,
        numbers=4 * width,
    )
    class_ap = point[6:]
    positives = truth.sum(axis=0)
    by_luck = np.array([random_order_ap(ends, m, n) for (_, ends), m in zip(class_rankings, positives, strict=True)])
    macro_luck = float(row_mean(by_luck[None])[0])
    micro_luck = random_order_ap(flat_ends, float(positives.sum()), n * width)
    micro, macro = (
        make_metric(name, point[i : i + 3], drawn[:, i : i + 3], higher_is_better=True, samples=n, chance=chance)
        for name, i, chance in (
            ("micro_ap", 0, (point[1], micro_luck)),
            ("macro_ap", 3, (macro_luck, macro_luck)),
        )
    )
    return micro, macro, class_ap, [interval(drawn[:, 6 + j], class_ap[j]) for j in range(width)]
