"""Co-occurrence of true and predicted labels, the multi-label counterpart of a confusion matrix.

The public EMOTIC study builds a confusion matrix from the argmax of a sample's labels, which is the first of them in
alphabetical order. Here each sample counts in the row of each of its true labels, and in the column of each label that
was chosen for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.errors import InputError


@dataclass(frozen=True)
class Cooccurrence:
    """Pairs of a true label (row) and a chosen or true label (column).

    Attributes:
        labels: the L names.
        true: int64 (L,), number of samples with a label.
        chosen: int64 (L,), number of samples for which it was chosen.
        chosen_counts: int64 (L, L), number of samples with label i that got j; correct choices on the diagonal.
        true_counts: int64 (L, L), number of samples with i and j: `chosen_counts` of a perfect model.
        samples: n.
    """

    labels: tuple[str, ...]
    true: np.ndarray
    chosen: np.ndarray
    chosen_counts: np.ndarray
    true_counts: np.ndarray
    samples: int

    @property
    def chosen_share(self) -> np.ndarray:
        """(L, L) share of the samples with i that got j; the diagonal is recall; NaN in rows without samples."""
        return _shares(self.chosen_counts, self.true)

    @property
    def true_share(self) -> np.ndarray:
        """(L, L) share of the samples with i that also have j, the reference for `chosen_share`."""
        return _shares(self.true_counts, self.true)

    def to_dict(self) -> dict[str, Any]:
        """Returns names, counts and samples, for JSON."""
        return {
            "labels": list(self.labels),
            "true": self.true.tolist(),
            "chosen": self.chosen.tolist(),
            "chosen_counts": self.chosen_counts.tolist(),
            "true_counts": self.true_counts.tolist(),
            "samples": self.samples,
        }


def cooccurrence(targets: np.ndarray, predicted: np.ndarray, labels: Sequence[str] | None = None) -> Cooccurrence:
    """Counts every pair of a true and a chosen label.

    Args:
        targets: (n, L), above 0 where a sample has a label.
        predicted: bool (n, L), the chosen labels (`selection.class_thresholds`, with thresholds from validation).
        labels: L names; None: their numbers.

    Raises:
        InputError: shapes that do not match, or probabilities in place of choices.
    """
    truth, chosen = np.asarray(targets) > 0, np.asarray(predicted)
    if truth.ndim != 2 or truth.shape != chosen.shape:
        raise InputError(f"targets of shape {truth.shape} and chosen labels of shape {chosen.shape} do not fit")
    if chosen.dtype != bool and not np.isin(chosen, (0, 1)).all():
        raise InputError("chosen labels are 0 or 1", remedy="Choose labels by thresholds fitted on validation.")
    names = tuple(map(str, range(truth.shape[1]) if labels is None else labels))
    if len(names) != truth.shape[1]:
        raise InputError(f"{len(names)} labels do not fit {truth.shape[1]} columns")
    t, c = truth.astype(np.int64), chosen.astype(np.int64)
    return Cooccurrence(names, t.sum(axis=0), c.sum(axis=0), t.T @ c, t.T @ t, len(t))


def _shares(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    out = np.full(counts.shape, np.nan)
    return np.asarray(np.divide(counts, totals[:, None], out=out, where=totals[:, None] > 0))
