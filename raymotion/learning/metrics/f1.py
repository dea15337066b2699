"""F1 of chosen labels, with baselines that always choose the same labels.

On Socratis, giving every image the few most frequent labels has a micro F1 of about 0.5, so an F1 means little without
its baselines:

* `prior`: the most frequent labels of the *training* split for every image, as many as give the best micro F1 there.
* `constant`: a fixed answer that knows the evaluated split. For micro F1 the best set of labels; for macro F1 every
  label for every image, which no other fixed answer beats (a label that is never chosen has an F1 of 0).

Thresholds are fitted on validation, never on the scored split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import Metric, finite, interval, make_metric, ratio, resampled, row_mean


@dataclass(frozen=True)
class ClassF1:
    """Scores of one class. `constant` is the F1 of choosing it for every sample.

    Attributes:
        f1, recall: None if no sample has the class.
        precision: None if the class was never chosen.
        chosen: number of samples that got the class.
    """

    f1: float | None
    low: float | None
    high: float | None
    constant: float | None
    precision: float | None
    recall: float | None
    chosen: int


@dataclass(frozen=True)
class F1Scores:
    """The result of `f1_scores`.

    Attributes:
        micro, macro: with baselines and intervals; macro is the mean over classes with a positive.
        classes: one per label.
        prior_set, constant_set: positions of the labels that the two baselines of micro F1 always choose.
    """

    micro: Metric
    macro: Metric
    classes: list[ClassF1]
    prior_set: list[int]
    constant_set: list[int]


def best_constant_set(rates: np.ndarray | Sequence[float]) -> np.ndarray:
    """Returns the fixed label set, (L,) bool, with the highest micro F1 given class rates.

    The best m labels are the m most frequent, with F1 = 2 x sum of their rates / (m + sum of all rates). Every m is
    tried; among equally good ones the smallest wins.
    """
    values = np.asarray(rates, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    f1 = 2 * np.cumsum(values[order]) / (np.arange(1, len(values) + 1) + values.sum())
    chosen = np.zeros(len(values), dtype=bool)
    chosen[order[: int(np.argmax(f1)) + 1]] = True
    return chosen


def f1_scores(
    targets: np.ndarray,
    chosen: np.ndarray,
    *,
    prior: np.ndarray | Sequence[float],
    bootstrap: int = 1000,
    seed: int = 0,
    units: np.ndarray | None = None,
) -> F1Scores:
    """Computes micro, macro and per-class F1 of chosen labels.

    Args:
        targets: (n, L) of 0 and 1.
        chosen: (n, L) bool.
        prior: (L,) class rates of the training split.
        units: resampled units; see `resample_counts`.

    Raises:
        InputError: shapes that do not match.
    """
    truth, mask = np.asarray(targets) > 0, np.asarray(chosen, dtype=bool)
    if truth.ndim != 2 or truth.shape != mask.shape or 0 in truth.shape:
        raise InputError(f"targets of shape {truth.shape} and chosen labels of shape {mask.shape} have no F1")
    n, width = truth.shape
    rates = np.asarray(prior, dtype=np.float64)
    if rates.shape != (width,):
        raise InputError(f"a prior of shape {rates.shape} does not fit {width} labels")
    of_prior, of_constant = best_constant_set(rates), best_constant_set(truth.mean(axis=0))
    sums = np.concatenate([truth & mask, mask, truth], axis=1).astype(np.float64)

    def measure(weights: np.ndarray) -> np.ndarray:
        """Returns (B, 6 + L): micro, its prior, constant, macro, its prior, constant, and the F1 of each class."""
        hits, picked, positives = np.split(weights @ sums, 3, axis=1)
        total = weights.sum(axis=1, keepdims=True)

        def micro(tp: np.ndarray, given: np.ndarray) -> np.ndarray:
            return ratio(2 * tp.sum(axis=1), (given + positives).sum(axis=1))

        def by_class(tp: np.ndarray, given: np.ndarray) -> np.ndarray:
            return np.where(positives > 0, ratio(2 * tp, given + positives), np.nan)

        def always(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return positives * which, total * which

        classes = by_class(hits, picked)
        every = np.ones(width, dtype=bool)
        both = (
            micro(hits, picked),
            micro(*always(of_prior)),
            micro(*always(of_constant)),
            row_mean(classes),
            row_mean(by_class(*always(of_prior))),
            row_mean(by_class(*always(every))),
        )
        return np.concatenate([np.stack(both, axis=1), classes], axis=1)

    point, drawn = resampled(measure, n, resamples=bootstrap, seed=seed, units=units)
    micro, macro = (
        make_metric(name, point[i : i + 3], drawn[:, i : i + 3], higher_is_better=True, samples=n)
        for name, i in (("micro_f1", 0), ("macro_f1", 3))
    )
    hits, picked, positives = (block.sum(axis=0) for block in np.split(sums, 3, axis=1))
    every = ratio(2 * positives, positives + n)
    precision, recall = ratio(hits, picked), ratio(hits, positives)
    rows = []
    for j in range(width):
        low, high = interval(drawn[:, 6 + j]) or (None, None)
        rows.append(
            ClassF1(
                f1=finite(point[6 + j]),
                low=low,
                high=high,
                constant=float(every[j]) if positives[j] else None,
                precision=finite(precision[j]),
                recall=finite(recall[j]),
                chosen=int(picked[j]),
            )
        )
    return F1Scores(micro, macro, rows, np.flatnonzero(of_prior).tolist(), np.flatnonzero(of_constant).tolist())
