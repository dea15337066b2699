"""Calibration: whether what is called 30 % happens in 30 % of the cases.

Each label of each image is one yes-or-no forecast. A forecast can be calibrated and empty: the class rates, given to
every image, have an expected calibration error near zero. So it is read together with the Brier score, whose
decomposition (Murphy 1973) tells how much the forecasts tell images apart.

Two kinds of bins: `width` cuts [0, 1] into equal parts (Guo et al. 2017, Naeini et al. 2015), `mass` cuts at quantiles
of the probabilities, so that each bin holds about as many. Rare labels put nearly everything into the first bins of
equal width; equal mass looks closer there. Equal probabilities always share a bin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raymotion.errors import InputError

Strategy = Literal["width", "mass"]
BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Forecasts in (low, high], the first bin with its lower end.

    Attributes:
        mean_probability: what was forecast, on average.
        rate: how often it was so.
        count: forecasts in the bin; bins without any are left out.
        rate_low, rate_high: ends of the 95 % bootstrap interval of the rate, over samples; None if not asked for.
    """

    low: float
    high: float
    mean_probability: float
    rate: float
    count: int
    rate_low: float | None = None
    rate_high: float | None = None

    @property
    def gap(self) -> float:
        """How far the forecasts of this bin are from what happened."""
        return abs(self.mean_probability - self.rate)


def reliability(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    bins: int = BINS,
    strategy: Strategy = "width",
    bootstrap: int = 0,
    seed: int = 0,
) -> list[CalibrationBin]:
    """The reliability diagram of all forecasts together: bins that hold any, from low to high.

    Args:
        targets: (n, L) or (n,) in [0, 1]; 0 and 1, or shares of annotators.
        probabilities: of the same shape, in [0, 1].
        strategy: `width` or `mass`.
        bootstrap: resamples of the samples (rows) for the interval of each rate; 0 for none.

    Raises:
        InputError: shapes that do not fit, nothing to look at, values outside [0, 1], no bins.
    """
    truth, p = _checked(targets, probabilities)
    edges = bin_edges(p, bins, strategy)
    count, hits, said = _binned(truth, p, edges)
    totals, rates = count.sum(axis=0), _ratio(hits.sum(axis=0), count.sum(axis=0))
    means = _ratio(said.sum(axis=0), totals)
    band = np.full((2, bins), np.nan)
    if bootstrap > 0:
        drawn = np.concatenate([_ratio(w @ hits, w @ count) for w in _resamples(len(p), bootstrap, seed)])
        known = np.isfinite(drawn).any(axis=0)
        band[:, known] = np.nanpercentile(drawn[:, known], (2.5, 97.5), axis=0)
    return [
        CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            mean_probability=float(means[i]),
            rate=float(rates[i]),
            count=int(totals[i]),
            rate_low=float(band[0, i]) if bootstrap > 0 else None,
            rate_high=float(band[1, i]) if bootstrap > 0 else None,
        )
        for i in range(bins)
        if totals[i] > 0
    ]


def expected_calibration_error(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> float:
    """ECE: mean over all forecasts of the gap of their bin, labels pooled. 0 is perfect; arguments as `reliability`."""
    found = reliability(targets, probabilities, bins=bins, strategy=strategy)
    return sum(item.count * item.gap for item in found) / sum(item.count for item in found)


def maximum_calibration_error(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> float:
    """MCE: the largest gap of any bin, however few forecasts it holds."""
    return max(item.gap for item in reliability(targets, probabilities, bins=bins, strategy=strategy))


def class_calibration_errors(
    targets: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS, strategy: Strategy = "width"
) -> np.ndarray:
    """ECE of each label on its own, (L,). Their mean is the class-wise ECE (Kull et al. 2019)."""
    truth, p = _checked(targets, probabilities)
    return np.array(
        [expected_calibration_error(truth[:, j], p[:, j], bins=bins, strategy=strategy) for j in range(p.shape[1])]
    )


def bin_edges(probabilities: np.ndarray, bins: int, strategy: Strategy) -> np.ndarray:
    """Ends of the bins, (bins + 1,): equal parts of [0, 1], or quantiles (which may coincide)."""
    if bins < 1:
        raise InputError(f"{bins} bins are too few")
    if strategy == "width":
        return np.linspace(0.0, 1.0, bins + 1)
    if strategy == "mass":
        return np.asarray(np.quantile(probabilities, np.linspace(0.0, 1.0, bins + 1)))
    raise InputError(f"bins of equal {strategy!r} are not known", remedy="Use width or mass.")


def _binned(truth: np.ndarray, p: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each sample and bin: forecasts, positives, sum of probabilities; each (n, bins)."""
    n, bins = len(p), len(edges) - 1
    place = np.searchsorted(edges[1:-1], p, side="left") + np.arange(n)[:, None] * bins

    def add(weights: np.ndarray | None) -> np.ndarray:
        flat = None if weights is None else weights.ravel()
        return np.bincount(place.ravel(), flat, minlength=n * bins).reshape(n, bins).astype(np.float64)

    return add(None), add(truth), add(p)


def _checked(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 of shape (n, L)."""
    truth, p = np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if truth.shape != p.shape:
        raise InputError(f"targets of shape {truth.shape} do not fit probabilities of shape {p.shape}")
    if p.ndim not in (1, 2) or p.size == 0:
        raise InputError(
            f"probabilities of shape {p.shape} have no calibration: samples x labels, at least one of each"
        )
    for name, values in (("targets", truth), ("probabilities", p)):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(f"{name} are not all between 0 and 1")
    return truth.reshape(len(p), -1), p.reshape(len(p), -1)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    from raymotion.learning.metrics import _resample_counts

    return _resample_counts(n, resamples, seed, chunk=max(1, 2_000_000 // n))
