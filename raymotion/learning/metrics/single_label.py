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
    measure = weighed_class_metrics(targets, probabilities, hard=hard, units=np.zeros(len(probabilities), np.int64))
    return {name: float(own[0]) for name, own in measure(np.ones((1, 1))).items()}


def weighed_class_metrics(
    targets: np.ndarray, probabilities: np.ndarray, *, hard: np.ndarray, units: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function that computes the metrics from how often each group is drawn.

    Args:
        targets, probabilities, hard: see `class_metrics`; one row at least.
        units: (n,) the group of each row (`learning.bootstrap.sampling_units`).

    Returns:
        A function from counts (B, groups) to the metrics of `CLASS_METRICS`, (B,) each.
    """
    columns = _columns(targets.astype(np.float64), hard.astype(np.float64), probabilities, probabilities)
    sums = np.zeros((int(units.max()) + 1, columns.shape[1]))
    np.add.at(sums, units, columns)
    return lambda counts: dict(zip(CLASS_METRICS, _figures(counts @ sums), strict=True))


def evaluate_classes(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    prior: np.ndarray | Sequence[float],
    labels: Sequence[str],
    soft_targets: np.ndarray | None = None,
    soft_prior: np.ndarray | Sequence[float] | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Computes all metrics with 95 % intervals and baselines.

    Args:
        targets: (n, L), one 1 in each row.
        probabilities: (n, L), rows sum to 1.
        prior: (L,) class rates of the training split.
        soft_targets: (n, L) what the log loss compares with instead. soft_prior: their training mean, for the prior's
            log loss; None: `prior`.
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
    # Log loss and answer of the model and of the two baselines.
    loss_rates = rates if soft_prior is None else np.asarray(soft_prior, np.float64)
    predictions = [(p, p), (loss_rates, rates), (learned.mean(axis=0), hard.mean(axis=0))]
    columns = [_columns(learned, hard, *(np.broadcast_to(own, (n, width)) for own in both)) for both in predictions]
    together = np.concatenate(columns, axis=1)

    def measure(weights: np.ndarray) -> np.ndarray:
        """Returns (B, 9) from weights (B, n): the metrics of the model, the prior and the constant."""
        return np.stack([own for sums in np.split(weights @ together, 3, axis=1) for own in _figures(sums)], axis=1)

    point, drawn = resampled(
        measure,
        n,
        resamples=bootstrap,
        seed=seed,
        units=None if groups is None else sampling_units(groups, n),
        numbers=1,
    )
    metrics = {}
    for i, name in enumerate(CLASS_METRICS):
        at = [i + len(CLASS_METRICS) * own for own in range(3)]
        metrics[name] = make_metric(name, point[at], drawn[:, at], higher_is_better=name != "log_loss", samples=n)
    return Evaluation(samples=n, metrics=metrics, seed=seed)


def confusion(hard: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns how often each label (row) got each answer (column), float64 (L, L); equal answers share a count."""
    return np.asarray(hard.astype(np.float64).T @ said(probabilities))


def _columns(targets: np.ndarray, hard: np.ndarray, p: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns the numbers of each row whose sums determine the metrics, (n, 2 + 3L)."""
    own = said(answers)
    return np.concatenate([np.ones((len(p), 1)), row_log_loss(targets, p)[:, None], own * hard, own, hard], axis=1)


def _figures(sums: np.ndarray) -> list[np.ndarray]:
    """Returns the metrics of `CLASS_METRICS`, (B,) each, from sums (B, 2 + 3L) of `_columns`."""
    total, loss = sums[:, 0], sums[:, 1]
    right, given, truth = np.split(sums[:, 2:], 3, axis=1)
    both = truth + given
    f1 = np.where(both > 0, ratio(2 * right, both), np.nan)
    return [ratio(loss, total), ratio(right.sum(axis=1), total), row_mean(f1)]
