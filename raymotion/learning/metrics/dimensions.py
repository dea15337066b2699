"""Metrics of predicted numbers (valence, arousal, a score), with constant predictions as baselines.

With y the true and p the predicted values of a dimension, over the samples where y is known:

* `r2`: 1 - sum (y - p)^2 / sum (y - mean y)^2.
* `mae`, `rmse`: mean of |y - p|, and root of the mean of (y - p)^2, both in the unit of the values.
* `pearson`, `spearman`: correlation of the values, and of their ranks (equal values share their mean rank).
* `ccc`: 2 cov(y, p) / (var y + var p + (mean y - mean p)^2), which a wrong scale or offset lowers (Lin 1989).

Variances divide by n, not n - 1. The two baselines are `prior`, the mean of the *training* split for every sample, and
`constant`, the mean of the evaluated split itself: no constant has a lower RMSE or a higher R2. A constant has no
correlation, which counts as 0 here, and its CCC is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import (
    finite,
    make_metric,
    ranking_resamples,
    ratio,
    resampled,
    row_mean,
    sampling_units,
)
from raymotion.learning.metrics.average_precision import ranking
from raymotion.learning.metrics.multilabel import DIMENSION_METRICS, LOWER_IS_BETTER, Evaluation

# Predictions with a smaller standard deviation than this share of the true values' count as constant.
LEAST_SPREAD = 0.1


def evaluate_dimensions(
    truth: np.ndarray,
    values: np.ndarray,
    *,
    training_mean: np.ndarray | Sequence[float],
    names: Sequence[str],
    groups: Sequence[str] | np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Computes all metrics of predicted numbers, with 95 % intervals and baselines.

    Args:
        truth: (n, D) true values; NaN marks unknown values, which are left out.
        values: (n, D) predictions, in the same unit.
        training_mean: (D,) means of the training split; NaN where it has none.
        names: the D dimensions.
        groups: n names of the resampled units, such as the image of a person; None: each sample is a unit.
        bootstrap: number of resamples; reduced if n x D is large.

    Returns:
        An evaluation with the metrics `r2`, `mae`, `rmse`, `pearson`, `spearman` and `ccc`, each averaged over the
        dimensions where it is defined. With several dimensions, those of each follow, as in `valence_ccc`. A metric is
        None if undefined: without known values, or for R2 and correlations of constant true values.

    Raises:
        InputError: shapes that do not match, no samples, or predictions that are not finite.
    """
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(values, dtype=np.float64)
    prior = np.asarray(training_mean, dtype=np.float64)
    if y.ndim != 2 or 0 in y.shape:
        raise InputError(f"true values of shape {y.shape} cannot be evaluated: samples x dimensions, one at least")
    n, width = y.shape
    if p.shape != y.shape or prior.shape != (width,) or len(names) != width:
        raise InputError(
            f"predictions of shape {p.shape}, a training mean of {prior.shape} and {len(names)} names do not fit true "
            f"values of shape {y.shape}"
        )
    if not np.isfinite(p).all() or np.isinf(y).any():
        raise InputError("predictions or true values are not all finite")
    known = ~np.isnan(y)
    columns = [_Column(y[known[:, j], j], p[known[:, j], j], float(prior[j])) for j in range(width)]

    def measure(weights: np.ndarray) -> np.ndarray:
        """Returns (B, (1 + D) x 6 x 3): every metric and its two baselines, for the mean and each dimension."""
        each = [column.measure(weights[:, known[:, j]]) for j, column in enumerate(columns)]
        of_all = np.stack(each, axis=2)
        mean = row_mean(of_all.reshape(-1, width)).reshape(len(weights), -1, 3)
        # A baseline that is missing for one dimension has no comparable mean.
        known_of = np.isfinite(of_all).reshape(len(weights), -1, 3, width)
        mean[(known_of[:, :, :1] & ~known_of).any(axis=3)] = np.nan
        return np.concatenate([mean.reshape(len(weights), -1), *each], axis=1)

    point, drawn = resampled(
        measure,
        n,
        resamples=ranking_resamples(bootstrap, n, width),
        seed=seed,
        units=None if groups is None else sampling_units(groups, n),
        numbers=4 * width,
    )
    prefixes = ["", *(f"{name}_" for name in names)] if width > 1 else [""]
    counts = [int(known.any(axis=1).sum()), *known.sum(axis=0).tolist()]
    metrics = {}
    for place, (prefix, count) in enumerate(zip(prefixes, counts, strict=False)):
        for i, name in enumerate(DIMENSION_METRICS):
            at = 3 * (place * len(DIMENSION_METRICS) + i)
            metrics[prefix + name] = make_metric(
                prefix + name,
                point[at : at + 3],
                drawn[:, at : at + 3],
                higher_is_better=name not in LOWER_IS_BETTER,
                samples=count,
            )
    return Evaluation(samples=n, metrics=metrics, seed=seed)


@dataclass(frozen=True)
class ErrorBin:
    """The errors of the samples whose true value is in [low, high); the last bin includes `high`.

    Attributes:
        count: number of samples. Of none, the others are None.
        mae: mean absolute error. baseline_mae: that of the training mean; None if that is unknown.
        bias: mean of predicted minus true. Of a flat predictor it falls from bin to bin.
    """

    low: float
    high: float
    count: int
    mae: float | None
    bias: float | None
    baseline_mae: float | None


def error_by_bin(
    truth: np.ndarray, values: np.ndarray, *, scale: tuple[float, float], training_mean: float
) -> list[ErrorBin]:
    """Computes the errors by the true value, which a mean over all samples hides where most values are in the middle.

    The bins have equal width: 1 on a scale of 3 to 12 whole steps, such as 1 to 7, else a tenth of the scale.

    Args:
        truth: (n,) true values; NaN marks unknown ones, which are left out. values: (n,) predictions.
        scale: lowest and highest possible value.
        training_mean: NaN if unknown.
    """
    low, high = scale
    steps = high - low
    edges = np.linspace(low, high, (int(steps) if 3 <= steps <= 12 and steps == int(steps) else 10) + 1)
    known = ~np.isnan(truth)
    y, p = truth[known].astype(np.float64), values[known].astype(np.float64)
    # In float32, in which tables hold numbers; a value beyond the ends counts with the nearest.
    place = np.digitize(truth[known].astype(np.float32), edges[1:-1].astype(np.float32))
    bins = []
    for i in range(len(edges) - 1):
        a, b = y[place == i], p[place == i]
        errors = (np.abs(b - a), b - a, np.abs(training_mean - a))
        told = [finite(own.mean()) if len(a) else None for own in errors]
        bins.append(ErrorBin(float(edges[i]), float(edges[i + 1]), len(a), *told))
    return bins


def flat_notice(truth: np.ndarray, values: np.ndarray, names: Sequence[str]) -> str | None:
    """Returns a sentence if predictions hardly vary, whatever the sample; None if they do, or if the truth does not.

    Args:
        truth, values: (n, D); NaN marks unknown true values.
    """
    told = []
    for j, name in enumerate(names):
        known = ~np.isnan(truth[:, j])
        y, p = truth[known, j].astype(np.float64), values[known, j].astype(np.float64)
        if len(y) > 1 and p.std() < LEAST_SPREAD * y.std():
            told.append(f"{name} {p.mean():.3g} on average, sd {p.std():.2g} (true sd {y.std():.2g})")
    return f"The model says nearly the same for every sample: {'; '.join(told)}." if told else None


class _Column:
    """The known values of one dimension, prepared for many weighted evaluations."""

    def __init__(self, y: np.ndarray, p: np.ndarray, prior: float) -> None:
        mean, p_mean = (float(y.mean()), float(p.mean())) if len(y) else (np.nan, np.nan)
        self.offset, self.has_prior = p_mean - mean, np.isfinite(prior)
        self.rankings = [ranking(of) for of in (y, p)] if len(y) else []
        # Centred, so that sums of squares lose no digits to a large offset.
        a, b = y - mean, p - p_mean
        errors = [y - p, y - prior, y - mean]
        self.moments = np.stack([a, b, a * a, b * b, a * b], axis=1)
        self.errors = np.stack([*map(np.abs, errors), *map(np.square, errors)], axis=1)

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """Returns (B, 18) from weights (B, known): model, prior and constant for each of `DIMENSION_METRICS`."""
        total = weights.sum(axis=1, keepdims=True)
        mean_y, mean_p, yy, pp, yp = ratio(weights @ self.moments, np.broadcast_to(total, (len(total), 5))).T
        of_y, of_p, both = _variance(yy, mean_y), _variance(pp, mean_p), yp - mean_y * mean_p
        errors = ratio(weights @ self.errors, np.broadcast_to(total, (len(total), 6)))
        absolute, squared = errors[:, :3], errors[:, 3:]
        r2 = 1.0 - ratio(squared, np.broadcast_to(of_y[:, None], squared.shape))
        ccc = ratio(2 * both, of_y + of_p + (mean_p - mean_y + self.offset) ** 2)
        found = [r2, absolute, np.sqrt(squared)]
        for own in (_correlation(both, of_y, of_p), self._spearman(weights, total), ccc):
            base = np.where(np.isfinite(own), 0.0, np.nan)
            found.append(np.stack([own, base if self.has_prior else base * np.nan, base], axis=1))
        return np.concatenate(found, axis=1)

    def _spearman(self, weights: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Returns the rank correlation (B,), where a sample of weight w occurs w times in the ranking."""
        if not self.rankings:
            return np.full(len(weights), np.nan)
        ranks = []
        for order, ends in self.rankings:
            after = np.cumsum(weights[:, order], axis=1)[:, ends]
            middle = (after + np.concatenate([np.zeros((len(after), 1)), after[:, :-1]], axis=1) - total) / 2
            step = np.empty(len(order), dtype=np.int64)
            step[order] = np.searchsorted(ends, np.arange(len(order)))
            ranks.append(middle[:, step])  # centred on the mean rank, up to sign and a factor
        a, b = ranks
        means = [(weights * product).sum(axis=1) for product in (a * b, a * a, b * b)]
        return _correlation(*means)


def weighed_figures(
    truth: np.ndarray, values: np.ndarray, units: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function that computes the cheap metrics, averaged over dimensions, from the draws of each group.

    Args:
        truth: (n, D); NaN marks unknown values.
        values: (n, D) predictions.
        units: (n,) the group of each sample (`learning.bootstrap.sampling_units`).

    Returns:
        A function from counts (B, groups) to `r2`, `mae`, `rmse`, `pearson` and `ccc`, (B,) each. A metric that is
        undefined because values are constant counts as 0; it is NaN if no value is known.
    """
    groups = int(units.max()) + 1 if len(units) else 1
    sums, offsets = [], []
    for own, said in zip(np.asarray(truth, np.float64).T, np.asarray(values, np.float64).T, strict=True):
        known = ~np.isnan(own)
        y, p = own[known], said[known]
        means = (y.mean(), p.mean()) if len(y) else (0.0, 0.0)
        a, b, error = y - means[0], p - means[1], y - p
        of_each = (np.ones(len(y)), a, b, a * a, b * b, a * b, np.abs(error), error * error)
        sums.append(np.stack([np.bincount(units[known], of, minlength=groups) for of in of_each], axis=1))
        offsets.append(means[1] - means[0])

    def figures(counts: np.ndarray) -> dict[str, np.ndarray]:
        each: dict[str, list[np.ndarray]] = {}
        for own, offset in zip(sums, offsets, strict=True):
            total = counts @ own
            some = total[:, 0] > 0
            mean_y, mean_p, yy, pp, yp, absolute, squared = ratio(total[:, 1:], total[:, :1].repeat(7, axis=1)).T
            of_y, of_p, both = _variance(yy, mean_y), _variance(pp, mean_p), yp - mean_y * mean_p
            found = {
                "r2": 1.0 - ratio(squared, of_y), "mae": absolute, "rmse": np.sqrt(squared),
                "pearson": _correlation(both, of_y, of_p),
                "ccc": ratio(2 * both, of_y + of_p + (mean_p - mean_y + offset) ** 2),
            }  # fmt: skip
            for name, value in found.items():
                each.setdefault(name, []).append(np.where(some, np.nan_to_num(value), np.nan))
        return {name: row_mean(np.stack(own, axis=1)) for name, own in each.items()}

    return figures


def _variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns the variance from a mean square and a mean; rounding errors of a constant count as 0."""
    found = square - mean**2
    return np.where(found > 1e-12 * square, found, np.where(np.isnan(square), np.nan, 0.0))


def _correlation(both: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns covariance / sqrt(product of variances), in [-1, 1]; NaN if a variance is 0."""
    return np.asarray(np.clip(ratio(both, np.sqrt(first * second)), -1.0, 1.0))
