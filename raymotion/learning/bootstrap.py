"""Bootstrap intervals of a metric, its baselines, and its gain over them, all on the same resamples.

Samples (images) are resampled with replacement, never single labels of one image, which depend on each other. Where
samples are persons, those of one image depend on each other too: `units` of several samples are drawn as a whole. A
resample is a weight for each sample: how often it was drawn. So a metric made of sums over samples is a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.significance import Verdict, verdict_of

# What is a ratio of sums over samples: numerators and denominators, (n,) each.
Columns = Mapping[str, tuple[np.ndarray, np.ndarray]]
# Rankings (average precision, AUC) are sums over samples x labels x resamples: about two seconds for this many of them.
RANKING_BUDGET = 60_000_000
MIN_RESAMPLES = 50


@dataclass(frozen=True)
class Metric:
    """One metric of one set of predictions.

    Attributes:
        value: None where it is not defined (average precision without a positive).
        low, high: ends of the 95 % percentile bootstrap interval over samples.
        prior, constant: the same metric of the two baselines.
        prior_gain, constant_gain: 95 % interval of the improvement over that baseline, on the same resamples; positive
            is better, whichever way the metric points. For average precision, chance is a random order of the samples.
        samples: how many samples the value is a mean over.
        resamples: how many bootstrap resamples the intervals come from.
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

    @property
    def verdict(self) -> Verdict:
        """`better`: the whole interval lies above both baselines; `worse`: below one of them; `unclear`: neither."""
        found = {verdict_of(gain) for gain in (self.prior_gain, self.constant_gain) if gain is not None}
        if not found:
            return "unclear"
        return "worse" if "worse" in found else "unclear" if "unclear" in found else "better"


def finite(value: float) -> float | None:
    """`value` for JSON: None instead of NaN or infinity."""
    return float(value) if math.isfinite(value) else None


def resample_counts(
    n: int, resamples: int, seed: int, chunk: int, *, units: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, in blocks (up to `chunk`, n): resampling as weights, without copies.

    Args:
        units: (n,) which unit each sample belongs to (`sampling_units`); as many units as there are are drawn, and each
            gives its count to all of its samples. None: each sample is a unit.
    """
    rng = np.random.default_rng(seed)
    drawable = n if units is None else int(units.max()) + 1
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, drawable, size=(rows, drawable)) + np.arange(rows)[:, None] * drawable
        counts = np.bincount(drawn.ravel(), minlength=rows * drawable).reshape(rows, drawable).astype(np.float64)
        yield counts if units is None else counts[:, units]


def sampling_units(groups: Sequence[str] | np.ndarray | None, n: int) -> np.ndarray:
    """(n,) numbers from 0 of the groups of n samples, in order of their first sample; None: each is its own."""
    if groups is None:
        return np.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise InputError(f"groups of shape {names.shape} do not fit {n} samples")
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of what is finite; None if nothing is."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def centred(values: np.ndarray, point: float) -> np.ndarray:
    """`values` moved so that their mean is `point`: for metrics that resampling itself inflates."""
    known = values[np.isfinite(values)]
    return values if known.size == 0 else values - known.mean() + point


def make_metric(
    name: str,
    values: tuple[float, float, float],
    resampled: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    higher_is_better: bool,
    samples: int,
    chance: tuple[float, float] | None = None,
) -> Metric:
    """A `Metric` from (own, prior, constant) values and their values on the same resamples.

    Args:
        chance: what the gains over both baselines are counted from, if not from the baselines themselves; the intervals
            are then centred on the values.
    """
    own, of_prior, of_constant = resampled
    sign = 1.0 if higher_is_better else -1.0
    gains = [sign * (own - of_prior), sign * (own - of_constant)]
    if chance is not None:
        own = np.clip(centred(own, values[0]), 0.0, 1.0)
        gains = [centred(gain, values[0] - base) for gain, base in zip(gains, chance, strict=True)]
    ends = interval(own)
    return Metric(
        name=name,
        value=finite(values[0]),
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        prior=finite(values[1]),
        constant=finite(values[2]),
        prior_gain=interval(gains[0]),
        constant_gain=interval(gains[1]),
        higher_is_better=higher_is_better,
        samples=samples,
        resamples=len(own),
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
    """A `Metric` for each name: sum of numerators / sum of denominators, for the model and its two baselines.

    Args:
        own, of_prior, of_constant: the same names; a numerator and a denominator for each sample.
        units: see `resample_counts`.
    """
    names = list(own)
    sources = (own, of_prior, of_constant)
    numerators = np.stack([source[name][0] for name in names for source in sources], axis=1)
    denominators = np.stack([source[name][1] for name in names for source in sources], axis=1)
    n = len(numerators)
    points = ratio(numerators.sum(axis=0), denominators.sum(axis=0))
    blocks = [
        ratio(counts @ numerators, counts @ denominators)
        for counts in resample_counts(n, resamples, seed, chunk(n), units=units)
    ]
    drawn = np.concatenate(blocks) if blocks else np.empty((0, numerators.shape[1]))
    result = {}
    for i, name in enumerate(names):
        a, b, c = 3 * i, 3 * i + 1, 3 * i + 2
        result[name] = make_metric(
            name,
            (points[a], points[b], points[c]),
            (drawn[:, a], drawn[:, b], drawn[:, c]),
            higher_is_better=name not in lower_is_better,
            samples=int((own[name][1] > 0).sum()),
        )
    return result


def chunk(n: int) -> int:
    """How many resamples of n samples are worked on at a time: 16 MB of weights."""
    return max(1, 2_000_000 // n)


def ranking_resamples(wanted: int, n: int, width: int) -> int:
    """How many resamples a ranking metric of n samples and `width` labels gets, of those wanted."""
    return min(wanted, max(MIN_RESAMPLES, RANKING_BUDGET // (n * width)))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where the bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not NaN; NaN for a row of nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
