"""Confident learning: finds labels that the predictions contradict (Northcutt et al. 2021, with cleanlab).

Where labels apply independently, each emotion is a binary problem (one against the rest, as in
`cleanlab.multilabel_classification`). From the labels and probabilities of an emotion, confident learning estimates how
many labels are wrong in each direction, and flags that many: those that the probabilities contradict most. Where
exactly one label applies to a sample, all labels are one problem (`cleanlab.filter.find_label_issues`), and a sample is
flagged once at most: one against the rest would count the label that it has and the one that it lacks.

The method is sound if the probabilities are out of sample (the model was not trained on these labels) and the model
has skill for the emotion. The second condition is checked here: an emotion that the probabilities do not rank better
than chance is not judged, since its flags would be random.

A weak model contradicts many correct labels. So the flags are reported with the expected number "by luck": the number
found in labels drawn from the probabilities themselves, none of which is wrong. Only flags beyond that are evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import sampling_units
from raymotion.learning.metrics.auc import macro_auc
from raymotion.learning.significance import FEWEST_IMAGES, verdict_of

if TYPE_CHECKING:
    import pandas as pd

# Draws of labels that are correct by construction.
LUCK_DRAWS = 10
# Weight of the worst label in an image's quality, as in cleanlab.
QUALITY_ALPHA = 0.8
# How far the sum of float32 probabilities may be from 1.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EmotionIssues:
    """Label issues of one emotion.

    Attributes:
        given, share: number and share of images with the label.
        mean_given, mean_absent: mean probability of images with and without it.
        auc, auc_low, auc_high: of the probabilities against the labels, with the 95 % bootstrap interval.
        judged: whether the emotion was checked.
        reason: why it was not.
        doubtful: number of given labels that the probabilities contradict.
        missing: number of absent labels that the probabilities suggest. Of one label a sample: of flagged samples with
            another label for which they suggest this one.
        by_luck: expected flags if the probabilities are calibrated and no label is wrong; None if not judged. Of one
            label a sample: of samples with this label.
    """

    label: str
    given: int
    share: float
    mean_given: float | None
    mean_absent: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    judged: bool
    reason: str
    doubtful: int
    missing: int
    by_luck: float | None


@dataclass(frozen=True)
class LabelIssues:
    """Results of confident learning for n images and L labels.

    Attributes:
        flags: (n, L) bool, labels (given or absent) that are probably wrong; of one label a sample, given ones alone.
        quality: (n,) in [0, 1], low for images with doubtful labels (cleanlab's multi-label score; of one label a
            sample, the probability of that label).
        scores: (n, L), the probability of the label as given: p if it is present, 1 - p if it is absent.
        given: (n, L) bool, the labels that were checked.
        suggested: (n,) the position of the most probable label, where one applies to a sample; else None.
    """

    flags: np.ndarray
    quality: np.ndarray
    scores: np.ndarray
    emotions: list[EmotionIssues]
    given: np.ndarray
    suggested: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts and each emotion, for JSON."""
        return {
            "images_flagged": int(self.flags.any(axis=1).sum()),
            "labels_flagged": int(self.flags.sum()),
            "labels_flagged_by_luck": sum(emotion.by_luck or 0.0 for emotion in self.emotions),
            "judged": sum(emotion.judged for emotion in self.emotions),
            "mean_quality": float(self.quality.mean()),
            **({} if self.suggested is None else {"one_label": True}),
            "emotions": [asdict(emotion) for emotion in self.emotions],
        }

    def frame(self) -> pd.DataFrame:
        """Returns a row for each flagged label, the strongest contradiction first.

        Columns: row (of the arrays), label, kind (`doubtful`: given; `missing`: absent), probability, contradiction
        (see `rank_contradictions`), quality (of the image's labels); of one label a sample, suggested too.
        """
        import pandas as pd

        p = np.where(self.given, self.scores, 1.0 - self.scores)
        rows, emotions, contradiction = rank_contradictions(self.flags, p, self.given)
        kinds = np.where(self.given[rows, emotions], "doubtful", "missing")
        names = np.array([own.label for own in self.emotions], dtype=object)
        return pd.DataFrame(
            {
                "row": rows,
                "label": names[emotions],
                **({} if self.suggested is None else {"suggested": names[self.suggested[rows]]}),
                "kind": kinds,
                "probability": p[rows, emotions],
                "contradiction": contradiction,
                "quality": self.quality[rows],
            }
        )

    def emotion_frame(self) -> pd.DataFrame:
        """Returns a row for each emotion: the fields of `EmotionIssues`."""
        import pandas as pd

        return pd.DataFrame([asdict(own) for own in self.emotions]).set_index("label")

    def _shown(self) -> tuple[str, pd.DataFrame]:
        found = self.to_dict()
        line = (
            f"{count_flags(found, len(self.flags))} are doubtful; {found['labels_flagged_by_luck']:.0f} would be by "
            f"luck. Emotions judged: {found['judged']}"
        )
        return line, self.emotion_frame()[["given", "auc", "doubtful", "missing", "by_luck", "reason"]]

    def __repr__(self) -> str:
        line, table = self._shown()
        return f"{line}\n{table.to_string(float_format='{:.3g}'.format)}"

    def _repr_html_(self) -> str:
        line, table = self._shown()
        return line + table.to_html(float_format="{:.3g}".format)


def count_flags(found: Mapping[str, Any], images: int) -> str:
    """Returns in words how many labels are flagged, from `LabelIssues.to_dict`."""
    if found.get("one_label"):
        return f"{found['labels_flagged']:,} of {images:,} labels (one a sample)"
    return f"{found['labels_flagged']:,} labels of {found['images_flagged']:,} of {images:,} images"


def rank_contradictions(
    wrong: np.ndarray, probabilities: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts the k pairs of an image and an emotion that are marked in `wrong`, the strongest contradiction first.

    The contradiction is a rank within the emotion: the share of images to which the predictions would sooner give (or
    deny) the label. Ranking by probability would put every rare emotion first.

    Args:
        wrong, given: (n, L) bool.
        probabilities: (n, L).

    Returns:
        Image, emotion and contradiction in [0, 1]; (k,) each.
    """
    places, emotions = np.nonzero(wrong)
    own = given[places, emotions]
    contradiction = np.empty(len(places))
    for j in range(probabilities.shape[1]):
        here = emotions == j
        ordered, said = np.sort(probabilities[:, j]), probabilities[places[here], j]
        lower = np.searchsorted(ordered, said, side="left")
        higher = len(probabilities) - np.searchsorted(ordered, said, side="right")
        contradiction[here] = np.where(own[here], higher, lower) / max(len(probabilities), 1)
    order = np.lexsort((emotions, places, -contradiction))
    return places[order], emotions[order], contradiction[order]


def find_issues(
    given: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    *,
    one_label: bool = False,
    need_skill: bool = True,
    groups: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> LabelIssues:
    """Finds labels that the probabilities contradict.

    Args:
        given: (n, L) bool, the labels to check.
        probabilities: (n, L) in [0, 1], from a model that was not trained on them.
        labels: the L names.
        one_label: whether exactly one label applies to a sample, and its probabilities sum to 1. A flag then says that
            another label does, so both have to be judged.
        need_skill: judge only emotions whose AUC interval lies above 0.5.
        groups: image of each of the n rows, if rows are persons: intervals then draw whole images.

    Raises:
        InputError: no images, or shapes that do not match; with `one_label`, a row that has none or several, or whose
            probabilities do not sum to 1.
    """
    mask, p = np.asarray(given, dtype=bool), np.asarray(probabilities, dtype=np.float64)
    if mask.shape != p.shape or mask.ndim != 2 or mask.shape[1] != len(labels) or not len(mask):
        raise InputError(f"labels of shape {mask.shape} and probabilities of shape {p.shape} cannot be audited")
    if one_label:
        _require_one_label(mask, p)
    images = sampling_units(groups, len(mask))
    units = None if groups is None else images
    _, aucs, ends = macro_auc(mask, p, bootstrap=bootstrap, seed=seed, units=units)
    intervals = [ends[j] or (None, None) if aucs[j] is not None else (None, None) for j in range(len(labels))]
    reasons = [_not_judged(mask[:, j], images, intervals[j][0], need_skill) for j in range(len(labels))]
    judged = np.array([not reason for reason in reasons])
    suggested = p.argmax(axis=1) if one_label else None
    flags, luck = (_flag_samples if one_label else _flag_labels)(mask, p, judged, seed)
    emotions = []
    for j, label in enumerate(labels):
        own, column = mask[:, j], p[:, j]
        low, high = intervals[j]
        absent = flags[:, j] & ~own if suggested is None else flags.any(axis=1) & (suggested == j)
        emotions.append(
            EmotionIssues(
                label=label,
                given=int(own.sum()),
                share=float(own.mean()),
                mean_given=float(column[own].mean()) if own.any() else None,
                mean_absent=float(column[~own].mean()) if not own.all() else None,
                auc=aucs[j],
                auc_low=low,
                auc_high=high,
                judged=bool(judged[j]),
                reason=reasons[j],
                doubtful=int((flags[:, j] & own).sum()),
                missing=int(absent.sum()),
                by_luck=float(luck[j]) if judged[j] else None,
            )
        )
    scores = np.where(mask, p, 1.0 - p)
    return LabelIssues(flags, p[mask] if one_label else _quality(scores), scores, emotions, mask, suggested)


def flag_one_label(given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns which samples have a label that their probabilities contradict, bool (n,), of one label a sample.

    Args:
        given: (n,) the position of each sample's label.
        probabilities: (n, L), which sum to 1.
    """
    if len(np.unique(given)) < 2:  # cleanlab refuses labels of one class
        return np.zeros(len(given), dtype=bool)
    return _cleanlab_flags(given, probabilities)


def _require_one_label(mask: np.ndarray, p: np.ndarray) -> None:
    counts, sums = mask.sum(axis=1), p.sum(axis=1)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise InputError(f"has {counts[row]} labels, and exactly one applies to a sample here", row=row)
    if (np.abs(sums - 1.0) > SUM_TOLERANCE).any():
        row = int(np.flatnonzero(np.abs(sums - 1.0) > SUM_TOLERANCE)[0])
        raise InputError(f"has probabilities that sum to {sums[row]:.3g}; of one label a sample they sum to 1", row=row)


def _not_judged(own: np.ndarray, images: np.ndarray, auc_low: float | None, need_skill: bool) -> str:
    # With fewer images, noise rates would be estimated from a handful of them.
    if len(np.unique(images[own])) < FEWEST_IMAGES:
        return f"fewer than {FEWEST_IMAGES} images carry it"
    if len(np.unique(images[~own])) < FEWEST_IMAGES:
        return f"fewer than {FEWEST_IMAGES} images do without it"
    if need_skill and verdict_of((auc_low, 1.0), level=0.5) != "better":
        return "the predictions do not rank it better than chance"
    return ""


def _flag_labels(mask: np.ndarray, p: np.ndarray, judged: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flags (n, L) of labels that apply independently, and how many each has by luck (L,)."""
    flags, luck = np.zeros(mask.shape, dtype=bool), np.zeros(mask.shape[1])
    for j in np.flatnonzero(judged).tolist():
        flags[:, j], luck[j] = _flag(mask[:, j], p[:, j]), _flags_by_luck(p[:, j], seed + j)
    return flags, luck


def _flag_samples(mask: np.ndarray, p: np.ndarray, judged: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flags (n, L) of given labels of which each sample has one, and how many each has by luck (L,)."""
    suggested = p.argmax(axis=1)
    rng, ends = np.random.default_rng(seed), p.cumsum(axis=1)

    def flag(given: np.ndarray) -> np.ndarray:
        return flag_one_label(given, p) & judged[given] & judged[suggested]

    luck = np.zeros(mask.shape[1])
    for _ in range(LUCK_DRAWS):
        drawn = (rng.random(len(p))[:, None] * ends[:, -1:] >= ends).sum(axis=1)
        luck += np.bincount(drawn[flag(drawn)], minlength=len(luck)) / LUCK_DRAWS
    return mask & flag(mask.argmax(axis=1))[:, None], luck


def _flag(own: np.ndarray, column: np.ndarray) -> np.ndarray:
    return _cleanlab_flags(own.astype(np.int64), np.stack([1.0 - column, column], axis=1))


def _cleanlab_flags(given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few examples, which `_not_judged` handles
        found = find_label_issues(given, probabilities, n_jobs=1)
    return np.asarray(found, dtype=bool)


def _flags_by_luck(column: np.ndarray, seed: int) -> float:
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(LUCK_DRAWS):
        drawn = rng.random(len(column)) < column
        counts.append(_flag(drawn, column).sum() if 0 < drawn.sum() < len(drawn) else 0)
    return float(np.mean(counts))


def _quality(scores: np.ndarray) -> np.ndarray:
    """Returns cleanlab's multi-label quality of n images: the moving average of their (n, L) scores, best to worst.

    `cleanlab.multilabel_classification.get_label_quality_scores` gives the same numbers, but rejects labels that occur
    in real data: a single class, no label on any image, or every label on all.
    """
    ordered = -np.sort(-scores, axis=1)
    quality = ordered[:, 0].copy()
    for column in ordered.T[1:]:
        quality = QUALITY_ALPHA * column + (1.0 - QUALITY_ALPHA) * quality
    return quality
