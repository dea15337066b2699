"""Detection of collapsed pseudo-labels, which say nothing about the images.

The labels of one public system gave "calm" to 99.98 % of COCO's 118,287 training images and "bored" to 99.95 %, and
nobody noticed. The bounds below catch such labels but accept the effects of a skewed vocabulary: on Socratis, where two
thirds of the images are happy, a teacher may well put "happy" among the four highest labels of almost every image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.significance import Headline, headline
from raymotion.learning.uncertainty import entropy

MIN_IMAGES = 20
# With this many images, a small number of distinct label sets is no accident.
MIN_IMAGES_FOR_SETS = 100

CLASS_SHARE = 0.95
SET_SHARE = 0.90
# If two labels share nearly all first places, there are only two answers, however many distinct label sets follow.
FIRST_SHARE = 0.99
# exp(entropy) of the label sets; below 3 the labels are one of two or three answers.
EFFECTIVE_SETS = 3.0
# Standard deviation of a class's probability over images, relative to its maximum, sqrt(mean (1 - mean)). A teacher
# that explains 1 % of the variance reaches 0.1; dropout noise and float error stay far below the bound.
RELATIVE_SPREAD = 0.03
ENTROPY_SHIFT = 0.01
# Total variation distance of two distributions over the labels.
FAR_FROM_PRIOR = 0.25


@dataclass(frozen=True)
class Collapse:
    """The result of the collapse check.

    Attributes:
        collapsed: whether the labels are nearly constant, or the model is no better than the prior.
        reasons: one sentence each; empty if not collapsed.
        notes: reservations: parts that could not be checked, and weaknesses short of a collapse.
    """

    passed: ClassVar[str] = "the labels vary, and the teacher beats the class prior and the constant ranking"
    collapsed: bool
    reasons: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Headline:
        """Colour and sentence for the first line on a terminal and the banner of a report."""
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        return headline(
            {},
            {
                "bad": f"Collapse check FAILED: {self.reasons[0]}{more}" if self.reasons else "",
                "reserved": "No collapse found",
                "good": f"Collapse check passed: {self.passed}.",
            },
            failures=self.reasons,
            warnings=self.notes,
        )

    @property
    def headline(self) -> str:
        """The verdict's sentence."""
        return self.verdict.text


class OneLabelCollapse(Collapse):
    """The result of the collapse check of one label a sample."""

    passed = "the labels vary, and the model beats the class prior and the majority class"


def check_collapse(
    probabilities: np.ndarray,
    mask: np.ndarray,
    labels: Sequence[str],
    *,
    prior: np.ndarray | Sequence[float] | None = None,
    evaluation: Evaluation | None = None,
    selected: np.ndarray | None = None,
    model: str = "teacher",
    split: str = "validation",
    warnings: Sequence[str] = (),
) -> Collapse:
    """Checks for nearly constant labels, and for a teacher that is no better than its prior.

    Args:
        probabilities: (n, L) in [0, 1].
        mask: (n, L) bool, the chosen labels.
        labels: the L names.
        prior: (L,) class rates of the training split. A class that is frequent there may be frequent here.
        evaluation: of the teacher, on validation.
        selected: (n,) bool; label sets are checked on these images only, probabilities on all.
        model, split: names of the model and of its evaluation samples in the sentences.
        warnings: notices that void the labels (`significance.voids_results`); they come first in the notes.
    """
    rates = None if prior is None else np.asarray(prior, dtype=np.float64)
    reasons: list[str] = []
    notes: list[str] = list(warnings)
    if len(probabilities) < MIN_IMAGES:
        notes.append(f"{len(probabilities)} images are too few to tell whether the labels vary.")
    else:
        reasons += _constant_probabilities(np.asarray(probabilities), rates, model, one_label=False)
        chosen = np.asarray(mask, dtype=bool) if selected is None else np.asarray(mask, dtype=bool)[selected]
        if len(chosen) >= MIN_IMAGES:
            means = np.asarray(probabilities).mean(axis=0, dtype=np.float64)
            reasons += _constant_labels(chosen, labels, rates, means)
        else:
            notes.append(f"{len(chosen)} selected images are too few to tell whether their label sets vary.")
        notes += _few_first_labels(np.asarray(probabilities), labels)
    if evaluation is None:
        notes.append(f"The {model} has no {split} metrics: whether it beats the baselines is not known.")
    else:
        teacher_reasons, teacher_notes = _no_better(evaluation, model, split)
        reasons += teacher_reasons
        notes += teacher_notes
    return Collapse(bool(reasons), reasons, notes)


def check_one_label(
    probabilities: np.ndarray,
    labels: Sequence[str],
    *,
    prior: np.ndarray | Sequence[float] | None = None,
    evaluation: Evaluation | None = None,
    model: str = "model",
    split: str = "validation",
    warnings: Sequence[str] = (),
) -> Collapse:
    """Checks a model of one label a sample for nearly constant answers, and for being no better than its baselines.

    Args:
        probabilities: (n, L), of which each row sums to 1; the highest label of a row is the answer.
        labels: the L names.
        prior: (L,) class rates of the training split. A label that is as frequent there may be as frequent here.
        evaluation: of `learning.metrics.single_label.evaluate_classes`.
        model, split, warnings: see `check_collapse`.
    """
    p, n = np.asarray(probabilities), len(probabilities)
    rates = None if prior is None else np.asarray(prior, dtype=np.float64)
    reasons: list[str] = []
    notes: list[str] = list(warnings)
    if n < MIN_IMAGES:
        notes.append(f"{n} samples are too few to tell whether the answers vary.")
    else:
        answers, counts = first_labels(p)
        first, share = int(answers[0]), float(counts[0]) / n
        # Of a label that training mostly has, a good model too says little else.
        if share > SET_SHARE and (rates is None or rates[first] < share - 0.1):
            told = "" if rates is None else f", where {_percent(float(rates[first]))} of the training samples carry it"
            reasons.append(f"The {model} says {labels[first]!r} for {_percent(share)} of the samples{told}.")
        reasons += _constant_probabilities(p, rates, model, one_label=True)
        never = (
            [] if rates is None else [j for j in np.argsort(-rates).tolist() if rates[j] >= 0.1 and j not in answers]
        )
        if never:
            named = (
                ", ".join(f"{labels[j]!r} ({_percent(float(rates[j]))})" for j in never) if rates is not None else ""
            )
            notes.append(f"The {model} never says {named}, which at least a tenth of the training samples carry.")
    if evaluation is None:
        notes.append(f"The {model} has no {split} metrics: whether it beats the baselines is not known.")
        return OneLabelCollapse(bool(reasons), reasons, notes)
    loss, right = evaluation.metrics.get("log_loss"), evaluation.metrics.get("accuracy")
    if loss is not None and loss.value is not None and loss.prior is not None:
        beside = f"{split} log loss {loss.value:.4f}, class prior {loss.prior:.4f}"
        if loss.value >= loss.prior and right is not None and right.verdict == "better":
            # Classes were weighed in training, or the model is far too sure: its answers are good nevertheless.
            notes.append(f"The probabilities are no better than the class prior, only the answers are: {beside}.")
        elif loss.value >= loss.prior:
            reasons.append(f"The {model} is no better than its prior: {beside}.")
        elif loss.prior_gain is not None and loss.prior_gain[0] <= 0:
            notes.append(
                f"Whether the {model} is better than its prior is not clear: {beside}, {loss.samples:,} samples."
            )
    if right is not None and right.value is not None and right.constant is not None:
        beside = f"{split} accuracy {right.value:.3f}, majority class {right.constant:.3f}"
        if right.verdict == "worse":
            reasons.append(f"The {model} is right less often than the majority class: {beside}.")
        elif right.value <= right.constant:
            notes.append(f"The {model} is right no more often than the majority class: {beside}.")
        elif right.constant_gain is not None and right.constant_gain[0] <= 0:
            notes.append(
                f"Whether the {model} is right more often than the majority class is not clear: {beside}, "
                f"{right.samples:,} samples."
            )
    return OneLabelCollapse(bool(reasons), reasons, notes)


def label_sets(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct rows of an (n, L) bool mask, most frequent first, and their counts."""
    if len(mask) == 0:
        return np.zeros((0, mask.shape[1]), dtype=bool), np.zeros(0, dtype=np.int64)
    packed = np.packbits(mask, axis=1)
    _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    return mask[first[order]], counts[order]


def first_labels(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels that are most probable on any image, most frequent first, and their counts: from (n, L)."""
    if not len(probabilities):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    counts = np.bincount(np.asarray(probabilities).argmax(axis=1), minlength=probabilities.shape[1])
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0], counts[order][counts[order] > 0]


def _percent(share: float) -> str:
    """Formats 92.5 % or 99.98 %: two decimals near 0 and 100, and never rounded to either."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if 0.01 <= share <= 0.99:
        return f"{100 * share:.1f}".removesuffix(".0") + " %"
    return f"{min(max(100 * share, 0.01), 99.99):.2f} %"


def _constant_labels(mask: np.ndarray, labels: Sequence[str], prior: np.ndarray | None, means: np.ndarray) -> list[str]:
    n, width = mask.shape
    reasons = []
    shares = mask.mean(axis=0)
    explained = _explained(float(mask.sum(axis=1).mean()), prior, means)
    constant = [int(j) for j in np.argsort(-shares) if shares[j] > CLASS_SHARE and not explained[j]]
    if constant:
        named = [f"{labels[j]!r} ({_percent(shares[j])})" for j in constant[:3]]
        more = f" and {len(constant) - 3} more" if len(constant) > 3 else ""
        why = (
            "and no training prior is recorded that would explain it"
            if prior is None
            else "where in training they were on " + ", ".join(_percent(prior[j]) for j in constant[:3])
        )
        reasons.append(f"Nearly every image carries {', '.join(named)}{more}, {why}.")

    sets, counts = label_sets(mask)
    size = int(sets[0].sum())
    names = ", ".join(labels[j] for j in np.flatnonzero(sets[0]).tolist()) or "no label at all"
    share = counts[0] / n
    alone = size == 1 and prior is not None and prior[int(np.argmax(sets[0]))] >= share - 0.1
    if share > SET_SHARE and not alone:
        reasons.append(f"{_percent(share)} of the images have the same label set: {names}.")
    elif n >= MIN_IMAGES_FOR_SETS and math.comb(width, max(1, round(mask.sum() / n))) >= 50:
        effective = math.exp(-float((counts / n * np.log(counts / n)).sum()))
        if effective < EFFECTIVE_SETS:
            covered = _percent(counts[:3].sum() / n)
            few = min(3, len(sets))
            reasons.append(f"{few} label sets cover {covered} of {n:,} images: the labels are one of a few answers.")
    return reasons


def _few_first_labels(probabilities: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Returns a note if one or two of many labels come first on nearly every image."""
    n, width = probabilities.shape
    first, counts = first_labels(probabilities)
    if n < MIN_IMAGES_FOR_SETS or width < 8 or counts[:2].sum() / n < FIRST_SHARE:
        return []
    named = " and ".join(f"{labels[j]!r} ({_percent(c / n)})" for j, c in zip(first[:2], counts[:2], strict=True))
    return [f"On nearly every image the most probable label is {named.replace(' and ', ' or ')}: few answers, however "
            "many label sets there are."]  # fmt: skip


def _explained(mean_labels: float, prior: np.ndarray | None, means: np.ndarray) -> np.ndarray:
    """Returns the classes that a good teacher may choose for nearly every image, (L,) bool.

    These are the classes on at least half of the training images, and, for a policy that takes the m highest labels,
    those among the m most frequent with a rate of at least a quarter: an ambiguous image gets the labels of the prior.
    """
    # Without a prior the mean probabilities are used, but nearly certain classes do not explain themselves.
    rates = np.where(means < CLASS_SHARE, means, 0.0) if prior is None else prior
    among = np.zeros(len(rates), dtype=bool)
    among[np.argsort(-rates, kind="stable")[: round(mean_labels)]] = True
    return np.asarray((rates >= 0.5) | (among & (rates >= 0.25)))


def _constant_probabilities(
    probabilities: np.ndarray, prior: np.ndarray | None, model: str, *, one_label: bool
) -> list[str]:
    reasons = []
    mean = probabilities.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.maximum((probabilities.astype(np.float64) ** 2).mean(axis=0) - mean**2, 0.0))
    largest = np.sqrt(mean * (1 - mean))
    relative = np.divide(spread, largest, out=np.zeros_like(spread), where=largest > 1e-9)
    if relative.mean() < RELATIVE_SPREAD:
        reasons.append(
            "The probabilities hardly differ from image to image: their standard deviation within a class is "
            f"{spread.mean():.2g} on average."
        )
    if prior is not None:
        expected = float(entropy(prior[None], one_label=one_label)[0])
        shift = float(np.quantile(np.abs(entropy(probabilities, one_label=one_label) - expected), 0.95))
        # Sure of another label for each image is as uncertain, but no repetition.
        far = np.quantile(np.abs(probabilities - prior).sum(axis=1) / 2, 0.95) > FAR_FROM_PRIOR if one_label else False
        if shift < ENTROPY_SHIFT * expected and not far:
            reasons.append(
                f"Every image's prediction is as uncertain as the training prior: the {model} repeats the prior."
            )
    return reasons


def _no_better(evaluation: Evaluation, model: str, split: str) -> tuple[list[str], list[str]]:
    """Returns reasons and notes about the model's metrics on `split`."""
    reasons: list[str] = []
    notes: list[str] = []
    bce = evaluation.metrics.get("bce")
    if bce is not None and bce.value is not None and bce.prior is not None:
        if bce.value >= bce.prior:
            reasons.append(
                f"The {model} is no better than its prior: {split} BCE {bce.value:.4f}, class prior {bce.prior:.4f}."
            )
        elif bce.prior_gain is not None and bce.prior_gain[0] <= 0:
            reasons.append(
                f"The {model} is not clearly better than its prior: {split} BCE {bce.value:.4f}, class prior "
                f"{bce.prior:.4f}, and on {bce.samples:,} samples the difference may be chance."
            )
    top, ap = evaluation.metrics.get("top_1"), evaluation.metrics.get("macro_ap")
    if top is not None and top.value is not None and top.constant is not None and top.value <= top.constant:
        text = (
            f"The {model}'s first label is right no more often than one fixed answer: top-1 {top.value:.3f}, "
            f"constant {top.constant:.3f}."
        )
        # A class on most images is rightly the first label of nearly all of them. That is no collapse if the teacher
        # ranks images within the classes and is not significantly worse.
        tells_apart = ap is not None and ap.constant_gain is not None and ap.constant_gain[0] > 0
        worse = top.constant_gain is not None and top.constant_gain[1] < 0
        (notes if tells_apart and not worse else reasons).append(text)
    elif top is not None and top.constant_gain is not None and top.constant_gain[0] <= 0:
        notes.append(
            f"Whether the {model}'s first label is right more often than one fixed answer is not clear: top-1 "
            f"{top.value:.3f}, constant {top.constant:.3f}, {top.samples:,} samples."
        )
    return reasons, notes
