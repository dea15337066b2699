"""Measures predictions of one label a sample: metrics, confusion, each label, calibration, and whether they vary."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raymotion.learning.bootstrap import finite, interval, ratio, resampled, sampling_units
from raymotion.learning.collapse import Collapse, check_one_label, first_labels
from raymotion.learning.metrics.calibration import BINS, CalibrationScores, calibrate, expected_calibration_error
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.metrics.single_label import confusion, evaluate_classes, said


@dataclass(frozen=True)
class LabelResult:
    """One label of which each sample has one.

    Attributes:
        support: samples that carry it. share: their share. prior: the share in training.
        said: how often it is the answer; where several labels are equally high, each has a part of the count.
        precision: None if it is never said. recall: None if no sample carries it. f1: None if neither.
        f1_low, f1_high: 95 % bootstrap interval.
        f1_constant: the F1 of saying it of every sample.
    """

    label: str
    support: int
    share: float
    prior: float
    said: float
    mean_probability: float
    precision: float | None
    recall: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    f1_constant: float


@dataclass(frozen=True)
class MeasuredClasses:
    """The result of `measure_classes`.

    Attributes:
        evaluation: the metrics of `learning.metrics.single_label.evaluate_classes`.
        confusion: (L, L), how often each true label (row) got each answer (column).
        calibration: of the highest probability of each row, against whether that label is true; with bins of equal
            width, and of equal mass. Its `prior` is the error of always saying the majority of the training split.
        answers: how often each label is said first, the most frequent first; labels that never are, are left out.
        majority: the most frequent label here.
    """

    evaluation: Evaluation
    confusion: np.ndarray
    classes: list[LabelResult]
    calibration: list[CalibrationScores]
    answers: list[tuple[str, int]]
    majority: str
    collapse: Collapse

    def to_dict(self) -> dict[str, Any]:
        """Returns everything, for JSON without NaN."""
        evaluation = self.evaluation.to_dict()
        del evaluation["per_class"], evaluation["classes_left_out"], evaluation["distinct_top3"]  # of many labels
        return {
            **evaluation,
            "classes": [asdict(row) for row in self.classes],
            "confusion": {"labels": [row.label for row in self.classes], "counts": self.confusion.tolist()},
            "calibration": {own.strategy: own.to_dict() for own in self.calibration},
            "answers": dict(self.answers),
            "majority": self.majority,
            "collapse": asdict(self.collapse),
        }


def measure_classes(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    labels: Sequence[str],
    prior: np.ndarray | Sequence[float],
    soft_targets: np.ndarray | None = None,
    soft_prior: np.ndarray | Sequence[float] | None = None,
    split: str = "test",
    bootstrap: int = 1000,
    bins: int = BINS,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> MeasuredClasses:
    """Measures predictions of one label a sample, with the majority class and the class prior beside them.

    Args:
        targets: (n, L), one 1 in each row.
        probabilities: (n, L), rows sum to 1.
        labels: the L names.
        prior: (L,) class rates of the training split.
        soft_targets: (n, L) distributions of what annotators said, for the log loss. soft_prior: their training mean.
        split: name of these samples in sentences.
        groups: n names of the units that the bootstrap resamples.

    Raises:
        InputError: as in `evaluate_classes`.
    """
    evaluation = evaluate_classes(
        targets, probabilities, prior=prior, labels=labels, soft_targets=soft_targets, soft_prior=soft_prior,
        groups=groups, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    hard, p, rates = (np.asarray(own, np.float64) for own in (targets, probabilities, prior))
    n = len(p)
    units = None if groups is None else sampling_units(groups, n)
    # A float32 softmax may round a little above 1.
    top, right = np.minimum(p.max(axis=1), 1.0), (said(p) * hard).sum(axis=1)
    majority = rates == rates.max()
    always = np.full(n, rates.max())
    always_right = hard[:, majority].sum(axis=1) / majority.sum()
    calibration = []
    for strategy in ("width", "mass"):
        own = calibrate(
            right, top, prior=[rates.max()], bins=bins, strategy=strategy, bootstrap=bootstrap, seed=seed, units=units
        )  # fmt: skip
        error = expected_calibration_error(always_right, always, bins=bins, strategy=strategy)
        calibration.append(replace(own, prior=error, class_prior=error))
    first, counts = first_labels(p)
    return MeasuredClasses(
        evaluation=evaluation,
        confusion=confusion(hard, p),
        classes=_label_results(hard, p, rates, labels, bootstrap, seed, units),
        calibration=calibration,
        answers=[(str(labels[j]), int(count)) for j, count in zip(first.tolist(), counts.tolist(), strict=True)],
        majority=str(labels[int(hard.sum(axis=0).argmax())]),
        collapse=check_one_label(p, labels, prior=rates, evaluation=evaluation, split=split),
    )


def _label_results(
    hard: np.ndarray,
    p: np.ndarray,
    rates: np.ndarray,
    labels: Sequence[str],
    bootstrap: int,
    seed: int,
    units: np.ndarray | None,
) -> list[LabelResult]:
    own = said(p)
    n, width = hard.shape
    columns = np.concatenate([own * hard, own, hard], axis=1)

    def measure(weights: np.ndarray) -> np.ndarray:
        right, given, truth = np.split(weights @ columns, 3, axis=1)
        return ratio(2 * right, given + truth)

    point, drawn = resampled(measure, n, resamples=bootstrap, seed=seed, units=units)
    right, given, truth = np.split(columns.sum(axis=0), 3)
    precision, recall = ratio(right, given), ratio(right, truth)
    results = []
    for j in range(width):
        low, high = interval(drawn[:, j]) or (None, None)
        share = float(truth[j] / n)
        results.append(
            LabelResult(
                label=str(labels[j]), support=int(truth[j]), share=share, prior=float(rates[j]), said=float(given[j]),
                mean_probability=float(p[:, j].mean()), precision=finite(precision[j]), recall=finite(recall[j]),
                f1=finite(point[j]), f1_low=low, f1_high=high, f1_constant=2 * share / (1 + share),
            )
        )  # fmt: skip
    return results


def confusion_csv(measured: MeasuredClasses) -> str:
    """Returns the confusion matrix as csv: a row for each true label, a column for each answer."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    labels = [row.label for row in measured.classes]
    writer.writerow(["true label", *labels])
    writer.writerows([label, *map("{:g}".format, row)] for label, row in zip(labels, measured.confusion, strict=True))
    return buffer.getvalue()
