"""Bootstrap intervals of a metric, its baselines, and its gain over them, all on the same resamples.

Samples (images) are resampled with replacement, never single labels of an image, which are not independent. If samples
are persons, those of one image are not independent either, so `units` of several samples are drawn together. A resample
is represented by a weight per sample, the number of times it was drawn, so a metric made of sums over samples is a
matrix product. All metrics share the loop in `resampled`: they map weights (B, n) to values on each resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.significance import FEWEST_IMAGES, Verdict, verdict_of

# Metrics that are ratios of sums over samples: numerators and denominators, (n,) each.
Columns = Mapping[str, tuple[np.ndarray, np.ndarray]]
# Samples x labels x resamples of a ranking metric (average precision, AUC) that take about two seconds.
RANKING_BUDGET = 60_000_000
MIN_RESAMPLES = 50
# Numbers held for one block of resamples: 16 MB.
BLOCK = 2_000_000


@dataclass(frozen=True)
class Metric:
    """One metric of one set of predictions.

    Attributes:
        value: None if undefined (average precision without a positive).
        low, high: 95 % percentile bootstrap interval over samples.
        prior, constant: the same metric of the two baselines.
        prior_gain, constant_gain: 95 % interval of the improvement over that baseline, on the same resamples; positive
            is always better. For average precision it is measured against a random order of the samples.
        samples: number of samples behind the value.
        resamples: number of bootstrap resamples.
        labels: number of labels that a mean over the labels is of, where it leaves some out.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    prior: float | None
    constant: float | None
    prior_gain: tuple[float, float] | None
    constant_gain: tuple[float, float] | None
    higher_is_better: bool
    samples: int
    resamples: int
    labels: int | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Metric:
        """Reads the output of `dataclasses.asdict` after JSON."""
        gains = {name: tuple(value[name]) if value[name] else None for name in ("prior_gain", "constant_gain")}
        return cls(**{**value, **gains})

    @property
    def verdict(self) -> Verdict:
        """`better`: the gains over both baselines are positive; `worse`: one is negative; else `unclear`.

        Also unclear below `FEWEST_IMAGES` samples, of which the resamples hardly differ.
        """
        if self.samples < FEWEST_IMAGES:
            return "unclear"
        found = {verdict_of(gain) for gain in (self.prior_gain, self.constant_gain) if gain is not None}
        if not found:
            return "unclear"
        return "worse" if "worse" in found else "unclear" if "unclear" in found else "better"


def finite(value: SupportsFloat) -> float | None:
    """Returns `value` for JSON, with None instead of NaN or infinity."""
    return float(value) if math.isfinite(float(value)) else None


def resampled(
    metric: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    resamples: int,
    seed: int,
    units: np.ndarray | None = None,
    numbers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes a metric of n samples and of their bootstrap resamples.

    Args:
        metric: maps weights (B, n), the count of each sample, to values (B, K); NaN if undefined.
        units: see `resample_counts`.
        numbers: numbers that `metric` holds per sample and resample; determines the block size.

    Returns:
        The K values of the original samples, and those of the resamples, (resamples, K).
    """
    point = metric(np.ones((1, n)))[0]
    rows = max(1, BLOCK // (n * numbers))
    blocks = [metric(weights) for weights in resample_counts(n, resamples, seed, rows, units=units)]
    return point, np.concatenate(blocks) if blocks else np.empty((0, len(point)))


def resample_counts(
    n: int, resamples: int, seed: int, rows: int, *, units: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yields how often each of n samples is drawn, in blocks (up to `rows`, n).

    Args:
        units: (n,) unit of each sample (`sampling_units`); each resample draws as many units as there are, and a unit
            passes its count to all of its samples. None: each sample is a unit.
    """
    rng = np.random.default_rng(seed)
    drawable = n if units is None else int(units.max()) + 1
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, drawable, size=(size, drawable)) + np.arange(size)[:, None] * drawable
        counts = np.bincount(drawn.ravel(), minlength=size * drawable).reshape(size, drawable).astype(np.float64)
        yield counts if units is None else counts[:, units]


def sampling_units(groups: Sequence[str] | np.ndarray | None, n: int) -> np.ndarray:
    """Numbers the groups of n samples from 0, in order of first occurrence, (n,); None: each sample is a group."""
    if groups is None:
        return np.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise InputError(f"groups of shape {names.shape} do not fit {n} samples")
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def interval(values: np.ndarray, around: float | None = None) -> tuple[float, float] | None:
    """Returns the middle 95 % of the finite `values`; None if there are none.

    Args:
        around: shifts the values to this mean and clips them to [0, 1], for metrics that resampling inflates.
    """
    if around is not None:
        values = np.clip(centred(values, around), 0.0, 1.0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def centred(values: np.ndarray, point: float) -> np.ndarray:
    """Shifts `values` so that their mean is `point`."""
    known = values[np.isfinite(values)]
    return values if known.size == 0 else values - known.mean() + point


def make_metric(
    name: str,
    point: Sequence[float] | np.ndarray,
    drawn: np.ndarray,
    *,
    higher_is_better: bool,
    samples: int,
    chance: tuple[float, float] | None = None,
) -> Metric:
    """Builds a `Metric` from the values of the model and its baselines, on all samples and on each resample.

    Args:
        point: (3,) values of the model, the prior and the constant.
        drawn: (B, 3) the same for each resample.
        chance: reference values for the gains over both baselines, in place of the baselines themselves; the intervals
            are then centred on the values.
    """
    sign = 1.0 if higher_is_better else -1.0
    gains = [sign * (drawn[:, 0] - drawn[:, i]) for i in (1, 2)]
    if chance is not None:
        gains = [centred(gain, point[0] - base) for gain, base in zip(gains, chance, strict=True)]
    low, high = interval(drawn[:, 0], None if chance is None else point[0]) or (None, None)
    return Metric(
        name=name,
        value=finite(point[0]),
        low=low,
        high=high,
        prior=finite(point[1]),
        constant=finite(point[2]),
        prior_gain=interval(gains[0]),
        constant_gain=interval(gains[1]),
        higher_is_better=higher_is_better,
        samples=samples,
        resamples=len(drawn),
    )


def ratio_metrics(
    own: Columns,
    of_prior: Columns,
    of_constant: Columns,
    *,
    resamples: int,
    seed: int,
    lower_is_better: Collection[str] = (),
    units: np.ndarray | None = None,
) -> dict[str, Metric]:
    """Builds a `Metric` per name: sum of numerators / sum of denominators, for the model and its two baselines.

    Args:
        own, of_prior, of_constant: under the same names, a numerator and a denominator per sample.
        units: see `resample_counts`.
    """
    names = list(own)
    sources = (own, of_prior, of_constant)
    numerators = np.stack([source[name][0] for name in names for source in sources], axis=1)
    denominators = np.stack([source[name][1] for name in names for source in sources], axis=1)

    def ratios(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ numerators, weights @ denominators)

    point, drawn = resampled(ratios, len(numerators), resamples=resamples, seed=seed, units=units)
    return {
        name: make_metric(
            name,
            point[3 * i : 3 * i + 3],
            drawn[:, 3 * i : 3 * i + 3],
            higher_is_better=name not in lower_is_better,
            samples=int((own[name][1] > 0).sum()),
        )
        for i, name in enumerate(names)
    }


def ranking_resamples(wanted: int, n: int, width: int) -> int:
    """Returns the number of resamples for a ranking metric of n samples and `width` labels, at most `wanted`."""
    return min(wanted, max(MIN_RESAMPLES, RANKING_BUDGET // (n * width)))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Returns top / bottom; NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def row_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each row over its finite values; NaN for a row without any."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
