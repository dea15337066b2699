"""Selection policies: from probabilities to labels, and to the images that a student is trained on.

Each policy converts probabilities (n, L) to a boolean mask of the same shape. All but `top_per_class` decide row by
row, so that a job can apply them shard by shard; `top_per_class` ranks the images of each class over the whole set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.priors import PriorShift

# Threshold of a class without positives in validation: above any probability, so that it is never chosen.
NEVER = 2.0
# Rows whose probabilities are corrected at a time.
CHUNK_ROWS = 65_536


def top_per_image(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Chooses the `count` highest labels of each image, (n, L) bool; ties go to the earlier label.

    This is the public system's policy, with 4, about the mean number of labels of a Socratis image.
    """
    p = _matrix(probabilities)
    mask = np.zeros(p.shape, dtype=bool)
    order = np.argsort(-p, axis=1, kind="stable")[:, : max(count, 0)]
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def threshold(probabilities: np.ndarray, value: float) -> np.ndarray:
    """Chooses every label with a probability of at least `value`, (n, L) bool."""
    return np.asarray(_matrix(probabilities) >= value)


def class_thresholds(probabilities: np.ndarray, thresholds: np.ndarray | Sequence[float]) -> np.ndarray:
    """Chooses every label with a probability of at least its threshold in `thresholds` (L,): (n, L) bool."""
    p, limits = _matrix(probabilities), np.asarray(thresholds, dtype=np.float64)
    if limits.shape != (p.shape[1],):
        raise InputError(f"{limits.size} thresholds do not fit {p.shape[1]} labels")
    return np.asarray(p >= limits)


def fit_class_thresholds(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the threshold of each class, (L,), that maximises its F1 on a validation split.

    The search is exact: every score that occurs is tried. Ties go to the highest threshold (fewest labels). A class
    without a positive gets `NEVER`, which no probability reaches.

    Args:
        targets: (n, L) of 0 and 1.
        probabilities: (n, L) in [0, 1].
    """
    p, truth = _matrix(probabilities), np.asarray(targets) > 0
    if truth.shape != p.shape:
        raise InputError(f"targets of shape {truth.shape} do not fit probabilities of shape {p.shape}")
    if len(p) == 0:
        raise InputError("no validation samples to fit thresholds on")
    order = np.argsort(-p, axis=0, kind="stable")
    scores = np.take_along_axis(p, order, axis=0)
    hits = np.cumsum(np.take_along_axis(truth, order, axis=0), axis=0)
    positives = truth.sum(axis=0)
    chosen = np.arange(1, len(p) + 1)[:, None]
    f1 = 2.0 * hits / (chosen + positives)
    # A threshold cannot separate equal scores.
    f1[:-1][scores[1:] == scores[:-1]] = -1.0
    best = np.argmax(f1, axis=0)
    found = np.take_along_axis(scores, best[None], axis=0)[0].astype(np.float64)
    return np.where(positives > 0, found, NEVER)


def top_per_class(probabilities: np.ndarray, count: int, minimum: float | np.ndarray = 0.0) -> np.ndarray:
    """Chooses for each class the `count` highest images of the whole set, (n, L) bool (Yalniz et al. 2019, top K).

    An image may be chosen for several classes, or for none. Images below `minimum` are never chosen, even if fewer than
    `count` remain. Ties go to the earlier row.

    Args:
        minimum: for all labels, or one for each, (L,).
    """
    p = _matrix(probabilities)
    mask = np.zeros(p.shape, dtype=bool)
    for j in range(p.shape[1]):
        mask[np.argsort(-p[:, j], kind="stable")[: max(count, 0)], j] = True
    return mask & (p >= minimum)


def sample_rows(sample_ids: Sequence[str], fraction: float, seed: int = 0) -> np.ndarray:
    """Returns which rows belong to a sample of about `fraction` of them, (n,) bool.

    Each id is decided by its hash, independently of the order of rows, of shards, and of other rows; the sample of a
    smaller fraction is a subset of that of a larger one.
    """
    if fraction >= 1.0:
        return np.ones(len(sample_ids), dtype=bool)
    limit = max(0, int(fraction * 2**64))
    key = seed.to_bytes(16, "big", signed=True)
    drawn = (hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in sample_ids)
    return np.fromiter((int.from_bytes(d, "big") < limit for d in drawn), dtype=bool, count=len(sample_ids))


class SelectionPolicy(Settings):
    """The policy for choosing labels and selecting images."""

    policy: Literal["top-per-image", "threshold", "class-thresholds", "top-per-class"] = Field(
        "top-per-image",
        description="how labels are chosen. top-per-image: the --count most probable labels of each image. threshold: "
        "all of at least --threshold. class-thresholds: each label's own threshold, fitted on the model's validation "
        "split. top-per-class: the --count images most typical of each label, over the whole set",
    )
    count: int = Field(
        4, ge=1, description="labels per image, or images per class  [default: 4; 1 of a model of one label]"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="probability from which --policy threshold takes a label")
    minimum: float = Field(0.0, ge=0, le=1, description="least probability that top-per-class takes")
    sample_fraction: float = Field(1.0, gt=0, le=1, description="share of the images to select from")
    seed: int = Field(0, description="seed of the sampled share")
    adapt_rates: bool = Field(
        False,
        description="estimate the class rates of this collection from the model's own probabilities, and choose by "
        "probabilities that are corrected from the rates of training to these; stored probabilities stay as they are",
    )
    rate_weight: float = Field(
        1.0,
        ge=0,
        description="with --adapt-rates, how much the rates of training count, in rows for each row of the collection; "
        "0: not at all (EM as published), which a weak model drives to 0 and 1",
    )

    # The settings that each policy uses, besides those that all do.
    USED: ClassVar[dict[str, set[str]]] = {
        "top-per-image": {"count"},
        "threshold": {"threshold"},
        "class-thresholds": set(),
        "top-per-class": {"count", "minimum"},
    }

    @model_validator(mode="after")
    def _only_what_is_used(self) -> Any:
        """Refuses values that the policy does not use: they were meant for another one."""
        for name in sorted(set[str]().union(*self.USED.values()) - self.USED[self.policy]):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not used by the policy {self.policy}")
        if not self.adapt_rates and self.rate_weight != type(self).model_fields["rate_weight"].default:
            raise ValueError("rate_weight is used with adapt_rates only")
        return self

    def for_one_label(self) -> Self:
        """Returns the policy for a model of which exactly one label applies: by default its highest one.

        Raises:
            InputError: the policy is for labels that apply independently.
        """
        if self.adapt_rates:
            raise InputError(
                "adapt_rates corrects labels that apply independently, and exactly one label of this model does",
                remedy="Leave --adapt-rates out.",
            )
        if self.policy != "top-per-image" or self.count == 1:
            return self
        if "count" in self.model_fields_set:
            raise InputError(
                f"--count {self.count} asks for several labels of an image, and exactly one of this model's applies",
                remedy="Leave --count out.",
            )
        return self.model_copy(update={"count": 1})

    @property
    def is_global(self) -> bool:
        """Whether the policy needs the whole set instead of single rows."""
        return self.adapt_rates or self.policy == "top-per-class"

    def choose(
        self,
        probabilities: np.ndarray,
        sample_ids: Sequence[str],
        thresholds: np.ndarray | Sequence[float] | None = None,
        shift: PriorShift | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the chosen labels, (n, L) bool, and the selected images, (n,) bool.

        A row outside the sampled fraction is not selected. With `top-per-class` it is not ranked either, and images
        that were chosen for no class are not selected. With the other policies a row keeps its labels, and rows without
        labels are selected too: that no label applies is information.

        Args:
            thresholds: (L,), for `class-thresholds` only, from `fit_class_thresholds`.
            shift: class rates to correct the probabilities to (`adapt_rates`).
        """
        p = _matrix(probabilities)
        if self.adapt_rates and shift is None:
            raise InputError("adapt_rates needs the class rates that were estimated (learning.priors)")
        if len(sample_ids) != len(p):
            raise InputError(f"{len(sample_ids)} sample ids do not fit {len(p)} rows of probabilities")
        sampled = sample_rows(sample_ids, self.sample_fraction, self.seed)
        mask = np.zeros(p.shape, dtype=bool)
        if self.policy == "top-per-class":
            # Other rates do not change the order within a label.
            minimum = self.minimum if shift is None else shift.undo(self.minimum)
            mask[sampled] = top_per_class(p[sampled], self.count, minimum)
            return mask, np.asarray(mask.any(axis=1))
        for start in range(0, len(p), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            mask[rows] = self._labels(p[rows] if shift is None else shift.apply(p[rows]), thresholds)
        return mask, sampled

    def _labels(self, p: np.ndarray, thresholds: np.ndarray | Sequence[float] | None) -> np.ndarray:
        """Returns the labels of some rows, (n, L) bool, by a policy that decides row by row."""
        if self.policy == "top-per-image":
            return top_per_image(p, self.count)
        if self.policy == "threshold":
            return threshold(p, self.threshold)
        if thresholds is None:
            raise InputError(
                "the policy class-thresholds needs thresholds, and the teacher brings none",
                remedy="Use a teacher that was validated, or another policy.",
            )
        return class_thresholds(p, thresholds)


def _matrix(probabilities: np.ndarray) -> np.ndarray:
    array = np.asarray(probabilities)
    if array.ndim != 2:
        raise InputError(f"probabilities of shape {array.shape} are not images x labels")
    return array
