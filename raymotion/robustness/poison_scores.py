"""The figures of a poisoning experiment: what poisoned models lost on the test set, and what the attacker gained.

Clean and poisoned models are compared seed by seed on the same test samples (`train.runs.read_answers` refuses others).
The public analysis compared a test set with the same set and its poisons, of one model: the gallery grew from 6,071 to
10,315, and the drop of recall that it found was that factor.

Intervals are those of the house (`learning.significance.Gain`): a bootstrap over images of the mean over seeds, paired
between the two models, beside the value of each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.learning.bootstrap import ratio, sampling_units
from raymotion.learning.metrics.single_label import said
from raymotion.learning.paired import SparseRanking, Weighed, paired_gain
from raymotion.learning.significance import FEWEST_IMAGES, Gain, Verdict
from raymotion.models.outputs.base import Output, Targets

# Resamples of figures that are sums over samples, and of rankings.
RESAMPLES, RANKING_RESAMPLES = 1000, 300


@dataclass(frozen=True)
class Compared:
    """A figure of the clean and the poisoned models.

    Attributes:
        clean, poisoned: of each seed.
        difference: poisoned minus clean, or clean minus poisoned where the figure is called a drop.
        samples: behind the figure.
        groups: of these samples; only these are independent of each other.
    """

    clean: tuple[float, ...]
    poisoned: tuple[float, ...]
    difference: Gain
    samples: int
    groups: int

    @property
    def change(self) -> float:
        """The mean difference over the seeds."""
        return float(np.mean(self.difference.seeds))

    @property
    def verdict(self) -> Verdict:
        """That of the difference; `untested` with fewer than `FEWEST_IMAGES` groups, as resamples hardly differ."""
        return "untested" if self.groups < FEWEST_IMAGES else self.difference.verdict


@dataclass(frozen=True)
class TestSet:
    """The test samples that all models of an experiment are scored on.

    Attributes:
        ids, groups: of n samples. targets: of the first output. truth: bool (n, L).
    """

    output: Output
    ids: list[str]
    groups: list[str]
    targets: Targets
    truth: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All samples, by number (n,)."""
        return np.arange(len(self.ids))

    @property
    def units(self) -> np.ndarray:
        """The group of each sample, by number (n,)."""
        return sampling_units(self.groups, len(self.groups))

    @property
    def main(self) -> str:
        """The metric whose drop is shown: the first of the output of which higher is better."""
        return next(name for name in self.output.metric_names if name not in self.output.lower_is_better)

    @property
    def one_label(self) -> bool:
        """Whether exactly one label applies to a sample."""
        return self.output.gives == "one_label"

    def metric(self, values: np.ndarray) -> Weighed:
        """Returns the main metric of predictions (n, L)."""
        return self.output.weighed(self.main, self.targets, self.rows, values, self.units)

    def of_class(self, label: int, values: np.ndarray) -> Weighed:
        """Returns how well one label is predicted: the share of its samples of which it is said (recall), or its
        average precision where several labels may apply."""
        if self.one_label:
            return share(said(values)[:, label], self.truth[:, label], self.units)
        own = slice(label, label + 1)
        return SparseRanking.of(self.truth[:, own], values[:, own], self.units)

    def answered(self, values: np.ndarray, thresholds: Sequence[float] | None) -> np.ndarray:
        """Returns which labels are said of each sample, float (n, L).

        Of one label: the most probable, a share of 1 each if several are. Of several: each that reaches its threshold,
        fitted on validation.
        """
        if self.one_label:
            return said(values)
        least = np.full(values.shape[1], 0.5) if thresholds is None else np.asarray(thresholds)
        return np.asarray(values >= least, dtype=np.float64)


def share(answers: np.ndarray, of: np.ndarray, units: np.ndarray) -> Weighed:
    """Returns the mean of `answers` (n,) over the samples marked in `of` (n,), as a function of the draws of groups."""
    groups = int(units.max()) + 1
    top = np.bincount(units, np.asarray(answers, np.float64) * of, minlength=groups)
    bottom = np.bincount(units, np.asarray(of, np.float64), minlength=groups)
    return lambda counts: ratio(counts @ top, counts @ bottom)


def compare(
    clean: Sequence[Weighed],
    poisoned: Sequence[Weighed],
    *,
    units: np.ndarray,
    of: np.ndarray,
    drop: bool = False,
    numbers: int = 1,
    resamples: int = RESAMPLES,
) -> Compared:
    """Compares a figure of the clean models with that of the poisoned ones, seed by seed, on the same resamples.

    Args:
        units: (n,) the group of each sample.
        of: (n,) which samples the figure is of.
        drop: let the difference be what was lost.
        numbers: values behind the figure for each sample.
    """
    groups = int(units.max()) + 1
    first, second = (clean, poisoned) if drop else (poisoned, clean)
    found = paired_gain(first, second, groups=groups, numbers=len(units) * numbers, resamples=resamples)
    whole = np.ones((1, groups))
    values = [[float(own(whole)[0]) for own in each] for each in (clean, poisoned)]
    sign = -1.0 if drop else 1.0
    seeds = tuple(sign * (after - before) + 0.0 for before, after in zip(*values, strict=True))
    return Compared(
        tuple(values[0]), tuple(values[1]), Gain(seeds, found.low, found.high), int(of.sum()), groups_of(of, units)
    )  # fmt: skip


def groups_of(mask: np.ndarray, units: np.ndarray) -> int:
    """Returns how many groups the samples marked in `mask` (n,) are of."""
    return len(np.unique(units[np.asarray(mask, dtype=bool)]))
