"""The domain check: how far a collection is from what a model was trained on.

A classifier is trained to tell the two apart by the features that the model's last layer reads (a classifier
two-sample test, Lopez-Paz and Oquab 2017). Its AUC on rows that it was not fitted to is 0.5 if they are alike, and 1 if
no row of one looks like a row of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raymotion.errors import InputError

Grade = Literal["near", "different", "far", "unknown"]

# If a share s of the training data is like the collection and the rest is unlike it, the AUC is 1 - s / 2: below 0.75
# it is more than half of what the model learned from, from 0.9 on at most a fifth. docs/audit.md has what was measured.
DIFFERENT, FAR = 0.75, 0.90
# Rows of each side that are compared at most, and at least.
ROWS, FEWEST = 500, 20
FOLDS = 5
# Directions of the largest variance that the classifier sees: more of them add noise to 500 rows of 1,500 numbers.
DIRECTIONS = 64
# Title of each statistic. Of most the median is told; the share of unknown words is 0 for most captions: its mean.
STATISTICS = {
    "captions": "captions of a sample",
    "words": "words of a caption",
    "unknown_words": "share of unknown words (mean)",
    "brightness": "brightness of a picture (0 to 1)",
    "contrast": "contrast of a picture (0 to 0.5)",
    "aspect": "width of a picture / height",
    "kilobytes": "size of a picture's file, kB",
}


@dataclass(frozen=True)
class DomainGap:
    """How well a classifier tells a collection from training data.

    Attributes:
        auc: 0.5 if they are alike.
        low, high: 95 % interval, over groups of rows.
        training_rows, rows: that were compared.
    """

    auc: float
    low: float
    high: float
    training_rows: int
    rows: int

    @property
    def grade(self) -> Grade:
        """`near` below `DIFFERENT`, `far` from `FAR` on, else `different`."""
        return "near" if self.auc < DIFFERENT else "different" if self.auc < FAR else "far"


@dataclass(frozen=True)
class DomainSample:
    """A random sample of what a model has read.

    Attributes:
        features: (n, D) float16, the inputs of the last layer of the model's first output.
        groups: (n,) int32; rows of one group may be of one sample, or of one picture.
        statistics: numbers of the samples that a user understands, by the names of `STATISTICS`, float32 (m,) with NaN
            where a sample has none. They are not in the order of the features.
    """

    features: np.ndarray
    groups: np.ndarray
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[DomainSample]) -> DomainSample:
        """Returns several samples of one model as one; there is at least one."""
        names = [name for name in STATISTICS if any(name in own.statistics for own in parts)]
        return cls(
            np.concatenate([own.features for own in parts]),
            np.concatenate([own.groups for own in parts]),
            {name: np.concatenate([own.statistics[name] for own in parts if name in own.statistics]) for name in names},
        )


@dataclass(frozen=True)
class DomainCheck:
    """The result of the domain check.

    Attributes:
        headline: one line.
        gap: None if it is not known.
        statistics: title, value in training, value in the collection.
    """

    headline: str
    gap: DomainGap | None = None
    statistics: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def grade(self) -> Grade:
        """See `DomainGap.grade`."""
        return "unknown" if self.gap is None else self.gap.grade

    def to_dict(self) -> dict[str, Any]:
        """Returns the check for a job's record."""
        gap = {} if self.gap is None else {name: round(value, 4) for name, value in asdict(self.gap).items()}
        rows = [{"name": name, "training": round(a, 4), "collection": round(b, 4)} for name, a, b in self.statistics]
        return {"headline": self.headline, "grade": self.grade, **gap, "statistics": rows}


def domain_gap(
    training_features: np.ndarray, features: np.ndarray, groups: Sequence[Any] | np.ndarray | None = None, seed: int = 0
) -> DomainGap:
    """Tells how well logistic regression tells the features of a collection from those of training data.

    Features are standardised and reduced to `DIRECTIONS` principal components of both sides together, without their
    labels. The AUC is the mean over five folds (fewer if there are fewer groups), each scored by a classifier that was
    fitted to the others. The interval is that of DeLong et al. (1988) for groups (Obuchowski 1997), widened because the
    classifiers of the folds share most of their rows (Nadeau and Bengio 2003).

    Args:
        training_features, features: (n, D) and (m, D). Of more than `ROWS` rows of a side, as many are drawn.
        groups: the group of each row, (n + m,), training first; rows of a group stay in one fold. None: each row is a
            group.
        seed: of the draw, the components and the folds.

    Raises:
        InputError: the shapes do not fit, or a side has fewer than `FEWEST` rows or numbers that are not finite.
    """
    sides = [np.asarray(own, dtype=np.float64) for own in (training_features, features)]
    if any(own.ndim != 2 for own in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(f"features of shapes {sides[0].shape} and {sides[1].shape} cannot be compared")
    if min(map(len, sides)) < FEWEST:
        raise InputError(
            f"{len(sides[0]):,} rows of training and {len(sides[1]):,} of the collection are too few to compare",
            remedy=f"Give at least {FEWEST} of each.",
        )
    if not all(np.isfinite(own).all() for own in sides):
        raise InputError("features hold NaN or infinity")
    names = np.arange(sum(map(len, sides))) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if names.shape != (sum(map(len, sides)),):
        raise InputError(f"groups of shape {names.shape} do not fit {sum(map(len, sides))} rows")
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    drawn = [np.sort(rng.permutation(len(own))[:ROWS]) for own in sides]
    x = np.concatenate([own[rows] for own, rows in zip(sides, drawn, strict=True)])
    own_groups = _whole_groups(names[: len(sides[0])][drawn[0]]), _whole_groups(names[len(sides[0]) :][drawn[1]])
    folds = min(FOLDS, *(int(numbers.max()) + 1 for numbers in own_groups))
    y = np.repeat([False, True], [len(rows) for rows in drawn])
    with threadpool_limits(1):  # the same sums on any machine, and faster for matrices as small as these
        above, below = _placements(
            x, y, np.concatenate([own_groups[0], own_groups[0].max() + 1 + own_groups[1]]), folds, seed
        )
    auc = float(np.nanmean(above))
    error = np.sqrt((1 + folds / (folds - 1)) * (_variance(above, own_groups[1]) + _variance(below, own_groups[0])))
    low, high = np.clip((auc - 1.96 * error, auc + 1.96 * error), 0.0, 1.0)
    return DomainGap(auc, float(low), float(high), *(len(rows) for rows in drawn))


def _whole_groups(names: np.ndarray) -> np.ndarray:
    """Numbers the groups of one side; a single one could not be held out, so its rows are groups."""
    numbers = np.unique(names, return_inverse=True)[1]
    return numbers if numbers.max() > 0 else np.arange(len(names))


def _placements(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each row of the collection, the share of training rows of its fold below it, and the reverse."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    spread = x.std(axis=0)
    x = (x - x.mean(axis=0))[:, spread > 1e-6] / spread[spread > 1e-6]
    if not x.shape[1]:  # the model says the same of every row of both
        return np.full(int(y.sum()), 0.5), np.full(int((~y).sum()), 0.5)
    x = PCA(min(DIRECTIONS, *x.shape), svd_solver="randomized", iterated_power=2, random_state=seed).fit_transform(x)
    x /= np.sqrt((x**2).sum(axis=1).mean())
    placed = np.full(len(y), np.nan)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fitted, held in split.split(x, y, groups):
        if len(np.unique(y[fitted])) < 2:
            continue
        model = LogisticRegression(class_weight="balanced", solver="newton-cholesky").fit(x[fitted], y[fitted])
        scores = model.decision_function(x[held])
        wins = (scores[y[held]][:, None] > scores[~y[held]]) + 0.5 * (scores[y[held]][:, None] == scores[~y[held]])
        if wins.size:
            placed[held[y[held]]], placed[held[~y[held]]] = wins.mean(axis=1), 1 - wins.mean(axis=0)
    return placed[y], placed[~y]


def _variance(placed: np.ndarray, groups: np.ndarray) -> float:
    """Returns the variance of the mean of one side's placements, whose groups are independent."""
    known = np.isfinite(placed)
    sums = np.bincount(groups[known], weights=placed[known] - placed[known].mean())
    count = len(np.unique(groups[known]))
    return float((sums**2).sum()) / int(known.sum()) ** 2 * count / max(1, count - 1)


def check_domain(
    training: DomainSample,
    collection: DomainSample,
    *,
    carryover: Mapping[str, Any] | None = None,
    of: str = "the model",
    seed: int = 0,
) -> DomainCheck:
    """Compares a collection with what a model was trained on.

    Args:
        carryover: figures of leave-one-domain-out, as training.json has them; see `carried_over`.
        of: name of the model in the sentence.
    """
    statistics = _compared(training.statistics, collection.statistics)
    rows = len(training.features), len(collection.features)
    if min(rows) < FEWEST:
        reason = f"{rows[0]:,} rows of training and {rows[1]:,} of the collection are too few to compare"
        return DomainCheck(unknown(reason, of), None, statistics)
    groups = np.concatenate([training.groups.astype(np.int64), collection.groups + 1 + int(training.groups.max())])
    gap = domain_gap(training.features, collection.features, groups, seed)
    words = {"near": "is like", "different": "differs from", "far": "is far from"}[gap.grade]
    # Below 0.5 where rows of training are in the collection, or splits were balanced.
    level = "below 0.50: as alike as rows of the training data themselves" if round(gap.auc, 2) < 0.5 else "0.50: alike"
    text = (
        f"This collection {words} what {of} learned from: a classifier tells them apart with AUC {gap.auc:.2f} "
        f"({level})."
    )
    return DomainCheck(" ".join([text, *carried_over(carryover)]), gap, statistics)


def unknown(reason: str, of: str = "the model") -> str:
    """Returns the line of a check that could not be made."""
    return f"How far this collection is from what {of} learned from is not known: {reason}."


def carried_over(carryover: Any) -> list[str]:
    """Returns a sentence on what the model ranks where it was not trained; none if that was never measured.

    Args:
        carryover: {"column", "domains": {value: {"auc", ...}}, "in_domain": {"auc", ...}}.
    """
    if not isinstance(carryover, Mapping):
        return []
    domains, home = carryover.get("domains"), carryover.get("in_domain")
    found = (
        [own.get("auc") for own in domains.values() if isinstance(own, Mapping)] if isinstance(domains, Mapping) else []
    )
    known = [float(auc) for auc in found if isinstance(auc, int | float)]
    if not known:
        return []
    own = home.get("auc") if isinstance(home, Mapping) else None
    at_home = f"in its own domain {own:.2f}; " if isinstance(own, int | float) else ""
    return [f"Held out one domain at a time, the model ranked with AUC {np.mean(known):.2f} ({at_home}chance 0.50)."]


def _compared(
    training: Mapping[str, np.ndarray], collection: Mapping[str, np.ndarray]
) -> list[tuple[str, float, float]]:
    rows = []
    for name, title in STATISTICS.items():
        sides = [own[name][np.isfinite(own[name])] for own in (training, collection) if name in own]
        if len(sides) == 2 and all(map(len, sides)):
            of: Callable[[np.ndarray], Any] = np.mean if name == "unknown_words" else np.median
            rows.append((title, float(of(sides[0])), float(of(sides[1]))))
    return rows
