"""Area under the ROC curve: the probability that a random positive ranks above a random negative; ties count half.

A random order or a constant has 0.5. Unlike average precision it does not depend on the frequency of a class, so it can
be compared between classes and data sets, and tells whether a model carries over to another. A handful of positives, or
of negatives, says little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from raymotion.learning.bootstrap import (
    Metric,
    finite,
    interval,
    make_metric,
    ranking_resamples,
    ratio,
    resampled,
    row_mean,
)
from raymotion.learning.metrics.average_precision import ranking
from raymotion.learning.significance import FEWEST_IMAGES

CHANCE = 0.5


def roc_auc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Returns the AUC of one ranking, both arguments (n,); NaN without a positive or without a negative."""
    order, ends = ranking(np.asarray(scores, dtype=np.float64))
    return float(weighted_auc(np.asarray(targets)[order] > 0, ends, np.ones((1, len(order))))[0])


def weighted_auc(true: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the AUC of each row of `weights` (B, n), in ranking order (`ranking`); NaN if a side has no weight."""
    hits = np.cumsum(weights * true, axis=1)[:, ends]
    misses = np.cumsum(weights * ~true, axis=1)[:, ends]
    gained, lost = np.diff(hits, axis=1, prepend=0.0), np.diff(misses, axis=1, prepend=0.0)
    # A negative ranks below the positives of earlier steps, and below half of those in its own step.
    won = (lost * (hits - gained / 2)).sum(axis=1)
    return ratio(won, hits[:, -1] * misses[:, -1])


def judged(targets: np.ndarray, units: np.ndarray | None = None, fewest: int = FEWEST_IMAGES) -> np.ndarray:
    """Returns which labels have positives in at least `fewest` units, and negatives too, bool (L,).

    Args:
        targets: (n, L).
        units: (n,) image of each row (`learning.bootstrap.sampling_units`), since twelve persons of one image say no
            more than one; None: each row is a unit.
    """
    truth = np.asarray(targets) > 0
    places = np.arange(len(truth)) if units is None else units
    sides = [[len(np.unique(places[own])) for own in side.T] for side in (truth, ~truth)]
    return np.asarray(np.array(sides, dtype=np.int64).min(axis=0) >= fewest)


def macro_auc(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    units: np.ndarray | None = None,
    fewest: int = 1,
) -> tuple[Metric, list[float | None], list[tuple[float, float] | None]]:
    """Returns the mean AUC of the classes that can be judged, each class's AUC (L,), and their intervals.

    Args:
        targets: (n, L) of 0 and 1.
        scores: (n, L).
        units: resampled units; see `resample_counts`.
        fewest: units with, and without, a class that it needs to be part of the mean. `Metric.labels` says how many
            have them.
    """
    truth, p = np.asarray(targets) > 0, np.asarray(scores, dtype=np.float64)
    n, width = p.shape
    rankings = [ranking(p[:, j]) for j in range(width)]

    def measure(weights: np.ndarray) -> np.ndarray:
        columns = [weighted_auc(truth[order, j], ends, weights[:, order]) for j, (order, ends) in enumerate(rankings)]
        return np.stack(columns, axis=1)

    resamples = ranking_resamples(bootstrap, n, width)
    point, drawn = resampled(measure, n, resamples=resamples, seed=seed, units=units, numbers=4 * width)
    of = judged(truth, units, fewest)
    value = row_mean(point[None, of])[0]
    base = CHANCE if np.isfinite(value) else np.nan
    rows = np.stack([row_mean(drawn[:, of]), *np.full((2, len(drawn)), CHANCE)], axis=1)
    metric = make_metric("macro_auc", (value, base, base), rows, higher_is_better=True, samples=n)
    return (
        replace(metric, labels=int(of.sum())),
        [finite(x) for x in point],
        [interval(drawn[:, j]) for j in range(width)],
    )


def weighed_auc(targets: np.ndarray, scores: np.ndarray, units: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepares the macro AUC of the labels that can be judged for a paired bootstrap (`learning.paired.Weighed`).

    Args:
        targets, scores: (n, L).
        units: (n,) group of each row (`learning.bootstrap.sampling_units`).
    """
    truth, labels = np.asarray(targets) > 0, np.flatnonzero(judged(targets, units))
    rankings = [(truth[:, j], *ranking(np.asarray(scores[:, j], dtype=np.float64))) for j in labels.tolist()]

    def measure(counts: np.ndarray) -> np.ndarray:
        weights = counts[:, units]
        own = [weighted_auc(true[order], ends, weights[:, order]) for true, order, ends in rankings]
        return row_mean(np.stack(own, axis=1)) if own else np.full(len(counts), np.nan)

    return measure
