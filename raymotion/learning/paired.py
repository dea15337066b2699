"""Paired bootstrap of two configurations: the difference of their scores on the same resamples of the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import interval, ratio, resampled, row_mean, sampling_units
from raymotion.learning.metrics.average_precision import ranking

if TYPE_CHECKING:
    from scipy import sparse

# Maps the number of draws of each of G groups, (B, G), to the metric of each resample, (B,). See `Output.weighed`.
Weighed = Callable[[np.ndarray], np.ndarray]
# Rows x labels x rankings x resamples that take about ten seconds on one core.
PAIRED_BUDGET = 6_000_000_000


@dataclass(frozen=True)
class PairedGain:
    """The gain of the first of two configurations over the second.

    Attributes:
        value: score of the first minus that of the second, each averaged over seeds; None if undefined, as mAP is if no
            label has a positive.
        low, high: 95 % bootstrap interval over groups (images); None with the value.
        resamples: number of resamples.
    """

    value: float | None
    low: float | None
    high: float | None
    resamples: int

    @property
    def tied(self) -> bool:
        """Whether the interval contains 0 (or is unknown), so that the data show no difference."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def paired_map_gain(
    targets: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: Sequence[str] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedGain:
    """Paired bootstrap of the difference in mAP (scikit-learn's AP, mean over labels with a positive).

    Each resample draws all groups with replacement, the same for both sides and for all seeds, so that a difficult
    resample is difficult for both. The interval covers the sampling of images only, not the variation between seeds.

    Args:
        targets: (n, L) of 0 and 1.
        first, second: (seeds, n, L) scores, or (n, L) for one seed; the numbers of seeds may differ.
        groups: n names of the resampled units (such as the image of a person); None: each row is a unit.
        resamples: reduced if they would take more than about ten seconds.

    Raises:
        InputError: shapes that do not match, or scores that are not finite.
    """
    truth = np.asarray(targets) > 0
    if truth.ndim != 2 or 0 in truth.shape:
        raise InputError(f"targets of shape {truth.shape} cannot be compared: samples x labels, at least one of each")
    runs = [_runs(scores, truth.shape) for scores in (first, second)]
    units = sampling_units(groups, len(truth))
    rankings = [[SparseRanking.of(truth, scores, units) for scores in each] for each in runs]
    return paired_gain(
        *rankings, groups=int(units.max()) + 1, numbers=truth.size, resamples=resamples, seed=seed
    )  # fmt: skip


def paired_gain(
    first: Sequence[Weighed],
    second: Sequence[Weighed],
    *,
    groups: int,
    numbers: int,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedGain:
    """Paired bootstrap of the difference in any metric, each averaged over seeds: first minus second.

    Args:
        groups: number of groups to draw from.
        numbers: number of values behind the metric, rows x width.
        resamples: reduced if they would take more than about ten seconds.
    """

    def gain(counts: np.ndarray) -> np.ndarray:
        return mean_over_seeds(first, counts) - mean_over_seeds(second, counts)

    used = min(resamples, max(50, PAIRED_BUDGET // (numbers * (len(first) + len(second)))))
    point, drawn = resampled(gain, groups, resamples=used, seed=seed)
    if not np.isfinite(point[0]):
        return PairedGain(None, None, None, 0)
    low, high = interval(drawn[:, 0]) or (None, None)
    return PairedGain(float(point[0]), low, high, used)


def mean_over_seeds(weighed: Sequence[Weighed], counts: np.ndarray) -> np.ndarray:
    """Returns a metric of each resample, averaged over seeds: (B, 1), from the draws of each of G groups, (B, G)."""
    return np.asarray(np.mean([own(counts) for own in weighed], axis=0))[:, None]


@dataclass(frozen=True)
class SparseRanking:
    """One set of scores, prepared for fast mAP of many resamples: two sparse matrices per label.

    `seen` (P, G) counts the rows of each of G groups between one ranking step with a positive and the next, `hits` the
    positives in that step. A step is a run of equal scores. Only steps with a positive contribute to average precision,
    and they are few.
    """

    labels: list[tuple[sparse.csr_matrix, sparse.csr_matrix]]

    @classmethod
    def of(cls, truth: np.ndarray, scores: np.ndarray, units: np.ndarray) -> SparseRanking:
        """Builds it from bool targets (n, L), scores (n, L), and the group number of each row (n,), from 0."""
        from scipy import sparse

        labels = []
        groups = int(units.max()) + 1
        for j in range(truth.shape[1]):
            order, ends = ranking(scores[:, j])
            true, unit = truth[order, j], units[order]
            step = np.searchsorted(ends, np.arange(len(order)))
            steps = np.unique(step[true])
            segment = np.searchsorted(steps, step)
            inside = segment < len(steps)  # rows after the last positive do not count
            shape = (len(steps), groups)
            seen = (np.ones(int(inside.sum())), (segment[inside], unit[inside]))
            hits = (np.ones(int(true.sum())), (segment[true], unit[true]))
            labels.append((sparse.csr_matrix(seen, shape=shape), sparse.csr_matrix(hits, shape=shape)))
        return cls(labels)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Returns the mAP of each resample, (B,), from the draws of each group, (B, G); NaN without a positive."""
        by_label, counts = [], np.ascontiguousarray(counts.T)
        for seen, hits in self.labels:
            if seen.shape[0] == 0:
                by_label.append(np.full(counts.shape[1], np.nan))
                continue
            gained = hits @ counts
            so_far = np.cumsum(gained, axis=0)
            precision = ratio(so_far, np.cumsum(seen @ counts, axis=0))
            # A step without drawn rows in it or before it has no precision, and contributes nothing.
            summed = np.where(gained > 0, precision * gained, 0.0).sum(axis=0)
            by_label.append(ratio(summed, so_far[-1]))
        return row_mean(np.stack(by_label, axis=1))


def _runs(scores: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or len(values) == 0 or values.shape[1:] != shape:
        raise InputError(f"scores of shape {np.shape(scores)} do not fit targets of shape {shape}: seeds x samples x L")
    if not np.isfinite(values).all():
        raise InputError("scores to compare are not all finite")
    return values
