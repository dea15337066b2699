"""The public EMOTIC study's `evaluation_metrics.txt`, for comparison of its files with ours.

The public study (tinaabishegan/EMOTIC-Multi-Label-Classification) has one text file for each of its 38 runs: mAP and
the average precision of 26 emotions by number, then accuracy, precision, recall and F1 of an argmax. The average
precisions and their mean are correct. The last four numbers compare a person's highest score with the *first* of the
true emotions in alphabetical order: for a person who is afraid and happy, the prediction happy counts as wrong. The
weighted recall equals the accuracy by definition, near 0.08 in every run. These four are never used for selection here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.metrics.average_precision import average_precision

TITLE, MAP, CLASSES = "Evaluation Metrics:", "Mean Average Precision (mAP)", "Per-Emotion AP:"
ARGMAX = ("Accuracy", "Precision", "Recall", "F1 Score")
_NUMBER = r"(nan|[01]\.\d{4})"


@dataclass(frozen=True)
class PublishedMetrics:
    """The numbers of one `evaluation_metrics.txt`, as shares (not x 100).

    Attributes:
        mean_ap: unweighted mean of the defined average precisions.
        per_class: average precision of each emotion, in the vocabulary's order; NaN without a positive.
        accuracy, precision, recall, f1: of the argmax against the first positive; the last three weighted
            by class size.
    """

    mean_ap: float
    per_class: tuple[float, ...]
    accuracy: float
    precision: float
    recall: float
    f1: float


def published_metrics(targets: np.ndarray, scores: np.ndarray) -> PublishedMetrics:
    """Computes the metrics of the public study's test script.

    Args:
        targets: (n, L) of 0 and 1.
        scores: (n, L), higher for more likely, on any scale.

    Raises:
        InputError: there are no rows, or the shapes differ.
    """
    truth, scores = np.asarray(targets) > 0, np.asarray(scores, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape or not truth.size:
        raise InputError(f"targets {truth.shape} and scores {scores.shape} must be (n, L), alike, and not empty")
    per_class = [average_precision(truth[:, j], scores[:, j]) for j in range(truth.shape[1])]
    # As in the study: the argmax of booleans is the first True, and 0 for a person without an emotion.
    accuracy, precision, recall, f1 = _weighted(truth.argmax(axis=1), scores.argmax(axis=1), truth.shape[1])
    return PublishedMetrics(_mean(per_class), tuple(per_class), accuracy, precision, recall, f1)


def _weighted(true: np.ndarray, said: np.ndarray, classes: int) -> tuple[float, float, float, float]:
    """Returns accuracy, and precision, recall and F1 weighted by the frequency of the true class; 0 / 0 is 0."""
    hits = np.bincount(true[true == said], minlength=classes).astype(np.float64)
    support, given = np.bincount(true, minlength=classes), np.bincount(said, minlength=classes)
    weights = support / len(true)
    precision = hits / np.maximum(given, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(given + support, 1)
    return (
        float(hits.sum() / len(true)),
        float(weights @ precision),
        float(weights @ recall),
        float(weights @ f1),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def mean_over_seeds(runs: Sequence[PublishedMetrics]) -> PublishedMetrics:
    """Averages each number over runs of one configuration with different seeds.

    Raises:
        InputError: there are no runs, or their numbers of classes differ.
    """
    if not runs or len({len(run.per_class) for run in runs}) != 1:
        raise InputError("the mean over seeds needs at least one run, and the same classes in all")
    per_class = tuple(_mean(values) for values in zip(*(run.per_class for run in runs), strict=True))
    four = (_mean([getattr(run, name) for run in runs]) for name in ("accuracy", "precision", "recall", "f1"))
    return PublishedMetrics(_mean([run.mean_ap for run in runs]), per_class, *four)


def to_text(metrics: PublishedMetrics) -> str:
    """Returns the text of the file, exactly as the public study writes it. Emotions are numbered from 0."""
    four = zip(ARGMAX, (metrics.accuracy, metrics.precision, metrics.recall, metrics.f1), strict=True)
    lines = [
        TITLE,
        f"{MAP}: {metrics.mean_ap:.4f}",
        CLASSES,
        *(f"  Emotion_{i}: {value:.4f}" for i, value in enumerate(metrics.per_class)),
        *(f"{name}: {value:.4f}" for name, value in four),
    ]
    return "\n".join(lines) + "\n"


def from_text(text: str, *, path: object = None) -> PublishedMetrics:
    """Parses such a text, the study's or ours, with four decimals per number.

    Raises:
        InputError: the layout differs; the message names the line.
    """
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    wanted = [re.escape(TITLE), rf"{re.escape(MAP)}: {_NUMBER}", re.escape(CLASSES)]
    classes = max(len(lines) - len(wanted) - len(ARGMAX), 1)
    wanted += [rf"  Emotion_{i}: {_NUMBER}" for i in range(classes)] + [rf"{name}: {_NUMBER}" for name in ARGMAX]
    numbers = []
    for row, pattern in enumerate(wanted):
        found = re.fullmatch(pattern, lines[row]) if row < len(lines) else None
        if found is None:
            raise InputError(
                f"is {lines[row][:60]!r}, which no evaluation_metrics.txt has there"
                if row < len(lines)
                else "is missing",
                path=path,
                row=row + 1,
                remedy="Give the file as the study wrote it.",
            )
        numbers += [float(found[1])] if found.groups() else []
    return PublishedMetrics(numbers[0], tuple(numbers[1:-4]), *numbers[-4:])
