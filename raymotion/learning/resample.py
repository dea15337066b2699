"""Oversampling of rare classes on cached features by ADASYN, SMOTE or random copies, within a budget.

imbalanced-learn generates the rows; this module adapts it to multi-label data with several streams:

* Each class is resampled against the rest, from the original rows only, with its own budget.
* Neighbours are searched among standardised features, each stream divided by the square root of its width, so that
  streams count equally whatever their width. A missing stream is placed at the mean.
* imbalanced-learn gets the *identity matrix* in place of the features, with a neighbour search on the real ones. Each
  synthetic row is then 1 - u at one original and u at another: its two parents. Features, labels and masks are mixed
  with these two weights, on their raw scale, so that they always agree.

So labels are those of both parents, weighted by nearness (the public study copies all labels of one). A row has a
stream only if both parents have it. Original rows are never returned. Pass only training rows, never validation or
test rows.

Both parents carry the class that a row is generated for. Their other labels are mixed too, so frequent classes that
co-occur with a rare one also gain rows: compare `before` and `after`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError

if TYPE_CHECKING:
    from scipy import sparse

# Targets of at least this count as present: half of the annotators, or half-way between two parents.
PRESENT = 0.5

# Default limits of each level, as shares: growth of a class, and total number of synthetic rows.
LEVEL_LIMITS: dict[str, tuple[float | None, float]] = {"mini": (1.0, 0.25), "full": (None, 1.0)}


class ResamplingSettings(Settings):
    """Settings of `resample`.

    Attributes:
        method: `random` copies originals; `smote` mixes a random positive with a near one of its class; `adasyn` does
            so more often where few of the neighbours carry the class; `none` generates nothing.
        level: `mini` at most doubles a class and adds at most 25 % of the rows; `full` fills each class up and adds at
            most 100 %.
        neighbours: k of both searches.
        search_width: for the neighbour search only, wider features are randomly projected to this many dimensions,
            with a relative error of distances of about sqrt(1 / (2 x width)) (Johnson and Lindenstrauss 1984): 3 % for
            512. None: no projection.
        quantile: a class is filled up to this quantile of the counts of all non-empty classes; 0.5 is the median.
            Classes above it get no rows.
        growth: maximum synthetic rows per positive of a class; None: the level's.
        total: maximum synthetic rows per original row; None: the level's. Budgets that exceed it are scaled down.
    """

    method: Literal["none", "adasyn", "smote", "random"] = "none"
    level: Literal["mini", "full"] = "mini"
    neighbours: int = Field(default=5, ge=1)
    search_width: int | None = Field(default=512, ge=1)
    quantile: float = Field(default=0.5, ge=0.0, le=1.0)
    growth: float | None = Field(default=None, ge=0.0)
    total: float | None = Field(default=None, ge=0.0)

    def budgets(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Computes the number of synthetic rows for each class, int64 (L,), from its positives among `rows`."""
        budget = np.zeros(len(counts), dtype=np.int64)
        known = counts > 0
        if self.method == "none" or not known.any():
            return budget
        growth, total = LEVEL_LIMITS[self.level]
        growth = growth if self.growth is None else self.growth
        total = total if self.total is None else self.total
        wanted = np.maximum(np.quantile(counts[known], self.quantile) - counts, 0.0) * known
        if growth is not None:
            wanted = np.minimum(wanted, growth * counts)
        limit = total * rows
        if wanted.sum() > limit:
            wanted = wanted * (limit / wanted.sum())
        budget[:] = np.floor(wanted + 1e-9)
        return budget


@dataclass(frozen=True)
class Resampled:
    """The synthetic rows, without the originals.

    Attributes:
        features: one float32 (m, D_s) per stream, on the scale of the input; 0 where the row lacks the stream. Empty
            without `mix`.
        mask: bool (m, S).
        targets: float32 (m, L) in [0, 1].
        before, after: int64 (L,), rows with each class (target >= 0.5), without and with the synthetic ones.
        per_class: int64 (L,), rows generated for each class; the sum is m.
        parents: int64 (m, 2), row numbers of the input; twice the same for a copy.
        shares: float32 (m,), weight of the first parent, for mixing further columns.
        notes: deviations from the settings, one sentence each.
    """

    features: list[np.ndarray]
    mask: np.ndarray
    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray
    per_class: np.ndarray
    parents: np.ndarray
    shares: np.ndarray
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)


def resample(
    features: Sequence[np.ndarray],
    mask: np.ndarray,
    targets: np.ndarray,
    settings: ResamplingSettings,
    *,
    seed: int,
    labels: Sequence[str] | None = None,
    mix: bool = True,
) -> Resampled:
    """Generates synthetic rows for the rare classes of a training split.

    Args:
        features: (n, D_s) per stream, on its raw scale, float16 or float32; masked rows are ignored.
        mask: bool (n, S), True where the row has the stream.
        targets: (n, L) in [0, 1].
        labels: L names, for the notes.
        mix: whether to compute the features of the rows; `parents` and `shares` determine them.

    The same input and seed give the same rows of a class, independently of the other classes. The neighbour search
    costs about 2 n D operations for each positive of a class below the quantile, with D at most `search_width`.

    Raises:
        InputError: shapes that do not match, or features that are not finite.
    """
    has, truth = np.asarray(mask, dtype=bool), np.asarray(targets, dtype=np.float32)
    _check(features, has, truth)
    n, width = truth.shape
    names = [f"class {j}" for j in range(width)] if labels is None else [str(label) for label in labels]
    positive = truth >= PRESENT
    before = positive.sum(axis=0).astype(np.int64)
    budgets = settings.budgets(before, n)
    points = (
        _search_space(features, has, settings.search_width) if budgets.any() and settings.method != "random" else None
    )
    made: list[sparse.csr_matrix] = []
    per_class = np.zeros(width, dtype=np.int64)
    notes: list[str] = []
    for j in np.flatnonzero(budgets):
        rows = _rows_of_class(
            points, positive[:, j], int(budgets[j]), settings, _seed_of(seed, int(j)), names[j], notes
        )
        if rows is None:
            continue
        shared = _shared_streams(rows, has).any(axis=1)
        if not shared.all():
            notes.append(f"{names[j]}: {int((~shared).sum())} rows dropped, whose parents have no stream in common.")
        kept = np.flatnonzero(shared)
        if len(kept) > budgets[j]:
            kept = np.sort(np.random.default_rng([seed, int(j)]).choice(kept, budgets[j], replace=False))
        made.append(rows[kept])
        per_class[j] = len(kept)
    return _mixed(made, features if mix else [], has, truth, before, per_class, tuple(notes))


def _rows_of_class(
    points: np.ndarray | None,
    positive: np.ndarray,
    budget: int,
    settings: ResamplingSettings,
    seed: int,
    name: str,
    notes: list[str],
) -> sparse.csr_matrix | None:
    """Returns at least `budget` synthetic rows as weights on the originals, (m, n); None (and a note) if impossible."""
    from imblearn.over_sampling import ADASYN, SMOTE, RandomOverSampler
    from scipy import sparse

    count = int(positive.sum())
    if count == len(positive):
        notes.append(f"{name}: every row carries it, so there is nothing to resample.")
        return None
    method = settings.method
    if method != "random" and count < 2:
        notes.append(f"{name}: left out, because its only positive has no neighbour of its class.")
        return None
    # ADASYN rounds each positive's share to whole rows, which gives none with less than one row per positive. One extra
    # row per positive is always enough, and a random subset preserves the shares.
    asked = budget + count if method == "adasyn" else budget
    common: dict[str, Any] = {"sampling_strategy": {1: count + asked}, "random_state": seed}
    if method == "random" or points is None:
        samplers = [RandomOverSampler(**common)]
    else:
        # k is limited by the search among the positives, which include the row itself.
        near = _row_neighbours(points, min(settings.neighbours, count - 1) + 1)
        samplers = [SMOTE(k_neighbors=near, **common)]
        if method == "adasyn":
            samplers.insert(0, ADASYN(n_neighbors=near, **common))
    identity = sparse.identity(len(positive), format="csr", dtype=np.float64)
    for i, sampler in enumerate(samplers):
        try:
            with warnings.catch_warnings():  # "larger than the majority class": limited by the budgets
                warnings.simplefilter("ignore", UserWarning)
                rows, _ = sampler.fit_resample(identity, positive.astype(np.int64))
            return sparse.csr_matrix(rows)[len(positive) :]
        except (RuntimeError, ValueError) as error:
            # ADASYN: no positive has a neighbour without the class, or all shares round to zero.
            rest = "SMOTE instead" if i + 1 < len(samplers) else "left out"
            notes.append(
                f"{name}: {type(sampler).__name__} found no rows to make ({str(error).split('.')[0]}); {rest}."
            )
    return None


def _row_neighbours(points: np.ndarray, neighbours: int) -> Any:
    """Returns a scikit-learn neighbour search that takes rows of the identity as indices into `points`."""
    from sklearn.neighbors import NearestNeighbors

    class RowNeighbours(NearestNeighbors):
        def __sklearn_clone__(self) -> RowNeighbours:
            return RowNeighbours(n_neighbors=self.n_neighbors, algorithm="brute")  # shares `points`

        def fit(self, X: Any, y: object = None) -> RowNeighbours:
            self.rows_ = X.indices  # ascending
            super().fit(points if len(self.rows_) == len(points) else points[self.rows_])
            return self

        def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
            near = super().kneighbors(points[X.indices], n_neighbors, return_distance=False)
            # The samplers drop the first column as the row itself. Among equal rows it may be another one, and the row
            # would become its own second parent: a copy of an original.
            own = np.searchsorted(self.rows_, X.indices)
            near = np.where(near == own[:, None], near[:, :1], near)
            near[:, 0] = own
            return near

    return RowNeighbours(n_neighbors=neighbours, algorithm="brute")


def _search_space(features: Sequence[np.ndarray], mask: np.ndarray, limit: int | None) -> np.ndarray:
    """Returns float32 (n, D or limit): each stream standardised over its rows and scaled; 0 if missing."""
    total = sum(block.shape[1] for block in features)
    project = limit is not None and total > limit
    space = np.zeros((len(mask), limit if limit is not None and project else total), dtype=np.float32)
    rng = np.random.default_rng(0)  # a fixed projection, so that neighbours do not depend on the seed
    start = 0
    for s, block in enumerate(features):
        rows, width = np.flatnonzero(mask[:, s]), block.shape[1]
        turn = rng.standard_normal((width, space.shape[1]), dtype=np.float32) if project else None
        if len(rows):
            values = np.asarray(block[rows], dtype=np.float32)
            values -= values.mean(axis=0, dtype=np.float64).astype(np.float32)
            spread = np.sqrt(np.einsum("ij,ij->j", values, values) / np.float32(len(rows)))
            # Constant columns become 0.
            values /= np.where(spread > 1e-12, spread, np.inf) * np.sqrt(np.float32(width))
            if turn is None:
                space[rows, start : start + width] = values
            else:
                space[rows] += values @ turn / np.sqrt(np.float32(space.shape[1]))
        start += width
    return space


def _shared_streams(rows: sparse.csr_matrix, mask: np.ndarray) -> np.ndarray:
    """Returns the streams that both parents of each synthetic row have, bool (m, S)."""
    parents = _parents(rows)
    return np.asarray(mask[parents[:, 0]] & mask[parents[:, 1]])


def _parents(rows: sparse.csr_matrix) -> np.ndarray:
    """Returns the columns of each row's weights, int64 (m, 2), ascending. A copy has the same parent twice."""
    first, last = rows.indptr[:-1], rows.indptr[1:] - 1
    return np.sort(np.stack([rows.indices[first], rows.indices[last]], axis=1).astype(np.int64), axis=1)


def _mixed(
    made: list[sparse.csr_matrix],
    features: Sequence[np.ndarray],
    mask: np.ndarray,
    targets: np.ndarray,
    before: np.ndarray,
    per_class: np.ndarray,
    notes: tuple[str, ...],
) -> Resampled:
    from scipy import sparse

    if made:
        rows = sparse.vstack(made, format="csr")
    else:
        rows = sparse.csr_matrix((0, len(mask)), dtype=np.float64)
    shared = _shared_streams(rows, mask)
    mixed = []
    parents = np.unique(rows.indices)
    for s, block in enumerate(features):
        # Only the parents' features are read; masked ones, which may hold any value, count as 0.
        values = np.where(mask[parents, s, None], np.asarray(block[parents], dtype=np.float32), np.float32(0))
        mixed.append((rows[:, parents].astype(np.float32) @ values) * shared[:, s, None])
    labels = np.clip(rows @ targets.astype(np.float64), 0.0, 1.0).astype(np.float32)
    after = before + (labels >= PRESENT).sum(axis=0)
    parents = _parents(rows)
    rows = rows.sorted_indices()  # the first entry of each row belongs to the first parent
    shares = rows.data[rows.indptr[:-1]].astype(np.float32)
    return Resampled(mixed, shared, labels, before, after.astype(np.int64), per_class, parents, shares, notes)


def _seed_of(seed: int, label: int) -> int:
    """Returns a separate seed for each class, so that the rows of one class do not depend on the others."""
    return int(np.random.SeedSequence([seed, label]).generate_state(1)[0])


def _check(features: Sequence[np.ndarray], mask: np.ndarray, targets: np.ndarray) -> None:
    if targets.ndim != 2 or mask.ndim != 2 or len(mask) != len(targets) or mask.shape[1] != len(features):
        raise InputError(
            f"targets of shape {targets.shape} and a mask of shape {mask.shape} do not fit {len(features)} streams"
        )
    if not np.isfinite(targets).all() or (targets.size and (targets.min() < 0 or targets.max() > 1)):
        raise InputError("targets to resample are not all between 0 and 1")
    for s, block in enumerate(features):
        if block.ndim != 2 or len(block) != len(targets):
            raise InputError(f"features of shape {block.shape} of stream {s} do not fit {len(targets)} rows")
        # A sum is finite only if all terms are (float64 avoids overflow of the sum itself).
        if not np.isfinite(np.sum(block, where=mask[:, s, None], dtype=np.float64)):
            raise InputError(f"features of stream {s} are not all finite")
