"""Metrics of one label of a vocabulary, with constant predictions as baselines.

With p (n, L) of which each row sums to 1, and the highest label of each row as what is said:

* `log_loss`: mean of -log p of the label, in nats.
* `accuracy`: share of rows whose highest label is right.
* `macro_f1`: mean of the labels' F1, over the labels that occur or are said (scikit-learn's default).

The two baselines are `prior`, the class rates of the *training* split for every row, and `constant`, those of the
evaluated split itself: no constant has a lower log loss, or a higher accuracy. A constant says the most frequent label
(the majority class). Equal probabilities give no advantage: where several labels are the highest, each is said by an
equal share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import make_metric, ratio, resampled, row_mean, sampling_units
from raymotion.learning.metrics.multilabel import EPSILON, Evaluation

CLASS_METRICS = ("log_loss", "accuracy", "macro_f1")


def said(probabilities: np.ndarray) -> np.ndarray:
    """Returns which label is said, (n, L): 1 at the highest, or equal shares of 1 where several are equally high."""
    highest = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray(highest / highest.sum(axis=1, keepdims=True), dtype=np.float64)


def row_log_loss(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the cross-entropy of each row (n,), of targets (n, L) that sum to 1 and probabilities (n, L)."""
    return -(targets * np.log(np.clip(probabilities.astype(np.float64), EPSILON, 1.0))).sum(axis=1)


def class_metrics(targets: np.ndarray, probabilities: np.ndarray, *, hard: np.ndarray) -> dict[str, float]:
    """Returns the metrics of `CLASS_METRICS`; NaN without rows.

    Args:
        targets: (n, L), what the log loss compares with; rows sum to 1.
        hard: (n, L) one 1 in each row, for accuracy and F1.
    """
    if not len(probabilities):
        return dict.fromkeys(CLASS_METRICS, float("nan"))
    measure = _measure(targets.astype(np.float64), hard.astype(np.float64), [probabilities])
    return dict(zip(CLASS_METRICS, measure(np.ones((1, len(probabilities))))[0].tolist(), strict=True))


def evaluate_classes(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    prior: np.ndarray | Sequence[float],
    labels: Sequence[str],
    soft_targets: np.ndarray | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Computes all metrics with 95 % intervals and baselines.

    Args:
        targets: (n, L), one 1 in each row.
        probabilities: (n, L), rows sum to 1.
        prior: (L,) class rates of the training split.
        soft_targets: (n, L) what the log loss compares with instead.
        groups: n names of the resampled units; None: each row is a unit.

    Raises:
        InputError: shapes that do not match, no rows, or predictions that are not finite.
    """
    hard, p = np.asarray(targets, np.float64), np.asarray(probabilities, np.float64)
    rates = np.asarray(prior, np.float64)
    if hard.ndim != 2 or 0 in hard.shape:
        raise InputError(f"targets of shape {hard.shape} cannot be evaluated: samples x labels, one at least")
    n, width = hard.shape
    if p.shape != hard.shape or rates.shape != (width,) or len(labels) != width:
        raise InputError(f"predictions of shape {p.shape} and a prior of {rates.shape} do not fit {hard.shape}")
    if not np.isfinite(p).all():
        raise InputError("predictions are not all finite")
    learned = hard if soft_targets is None else np.asarray(soft_targets, np.float64)
    constants = [np.broadcast_to(own, (n, width)) for own in (rates, learned.mean(axis=0))]
    measure = _measure(learned, hard, [p, *constants])
    point, drawn = resampled(
        measure,
        n,
        resamples=bootstrap,
        seed=seed,
        units=None if groups is None else sampling_units(groups, n),
        numbers=3 * (3 * width + 2),
    )
    metrics = {}
    for i, name in enumerate(CLASS_METRICS):
        at = [i + len(CLASS_METRICS) * own for own in range(3)]
        metrics[name] = make_metric(
            name, point[at], drawn[:, at], higher_is_better=name != "log_loss", samples=n
        )  # fmt: skip
    return Evaluation(samples=n, metrics=metrics, seed=seed)


def _measure(
    targets: np.ndarray, hard: np.ndarray, predictions: Sequence[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from weights (B, n) to the metrics of each of the predictions, (B, predictions x 3)."""
    columns = []
    for p in predictions:
        own = said(p)
        columns.append(np.concatenate([row_log_loss(targets, p)[:, None], own * hard, own], axis=1))

    def measure(weights: np.ndarray) -> np.ndarray:
        total, truth, width = weights.sum(axis=1), weights @ hard, hard.shape[1]
        found = []
        for own in columns:
            sums = weights @ own
            right, given = sums[:, 1 : width + 1], sums[:, width + 1 :]
            both = truth + given
            f1 = np.where(both > 0, ratio(2 * right, both), np.nan)
            found += [ratio(sums[:, 0], total), ratio(right.sum(axis=1), total), row_mean(f1)]
        return np.stack(found, axis=1)

    return measure
