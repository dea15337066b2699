"""Agreement of pseudo-labels with human labels: ranking by the probabilities and agreement of the chosen labels.

Every metric is reported with its chance level. Average precision and precision: the share of images with the emotion.
AUC: 0.5. Recall: the share of images that got the label. Cohen's kappa (1960): agreement beyond that of two annotators
with these rates by chance; 0 is chance, 1 is perfect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raymotion.learning.bootstrap import Metric, finite, interval, ratio, resampled, row_mean, sampling_units
from raymotion.learning.metrics.auc import macro_auc
from raymotion.learning.metrics.calibration import CalibrationScores, calibrate, class_calibration_errors
from raymotion.learning.metrics.multilabel import Evaluation, evaluate
from raymotion.learning.significance import FEWEST_IMAGES, Verdict, verdict_of


@dataclass(frozen=True)
class EmotionAgreement:
    """Agreement on one emotion. A metric is None if no image carries the emotion or the label was never chosen.

    Attributes:
        words: labels of the pseudo-labels' vocabulary that map to this emotion.
        positives, negatives: number of rows with and without the emotion.
        images_with, images_without: number of images of these rows, which differ if rows are persons. An image of two
            persons may be among both.
        prevalence: share of rows with the emotion, the chance level of AP and precision.
        ap, auc: of the probabilities, over all matched images, with 95 % bootstrap intervals over images.
        chosen, given: number and share of selected images that got the label; the share is the chance level of recall.
        precision, recall, kappa: of the chosen labels, over the selected images.
        calibration_error: ECE of this emotion only.
        verdict: position of the AUC's interval relative to 0.5 (`learning.significance.verdict_of`); `untested` with
            fewer than `FEWEST_IMAGES` images with, or without, the emotion.
    """

    label: str
    words: tuple[str, ...]
    positives: int
    negatives: int
    images_with: int
    images_without: int
    prevalence: float
    mean_probability: float
    ap: float | None
    ap_low: float | None
    ap_high: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    verdict: Verdict
    chosen: int
    given: float | None
    precision: float | None
    recall: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    calibration_error: float


@dataclass(frozen=True)
class Agreement:
    """Agreement on each emotion and over all emotions.

    Attributes:
        evaluation: ranking metrics of the probabilities, with their baselines.
        auc: mean AUC of the emotions that can be judged; its value is None if none can.
        judged: number of these emotions.
        choice: precision, recall and F1 of all (image, emotion) pairs pooled, macro kappa, and their chance levels.
        selected: number of images behind `choice`.
    """

    emotions: list[EmotionAgreement]
    evaluation: Evaluation
    auc: Metric
    choice: dict[str, float | None]
    selected: int
    calibration: CalibrationScores
    judged: int

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return {
            "evaluation": self.evaluation.to_dict(),
            "macro_auc": asdict(self.auc),
            "judged": self.judged,
            "choice": self.choice,
            "selected": self.selected,
            "calibration": self.calibration.to_dict(),
            "emotions": [asdict(emotion) for emotion in self.emotions],
        }


def compare(
    probabilities: np.ndarray,
    mask: np.ndarray,
    selected: np.ndarray,
    targets: np.ndarray,
    *,
    prior: np.ndarray,
    labels: Sequence[str],
    words: Sequence[Sequence[str]],
    shares: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Compares pseudo-labels with human labels of the same n images and K emotions.

    Args:
        probabilities: (n, K) in [0, 1].
        mask: (n, K) bool, the chosen labels.
        selected: (n,) bool, images selected for training; precision, recall and kappa are computed on them.
        targets: (n, K) of 0 and 1.
        prior: (K,) rates of the model's training split.
        labels, words: names of the K emotions, and the labels that map to each.
        shares: (n, K) in [0, 1], targets of the calibration; None: `targets`.
        groups: image of each of the n rows, if rows are persons: intervals then draw whole images. None: each row is
            an image.
    """
    truth = np.asarray(targets, dtype=np.float64)
    p = np.asarray(probabilities, dtype=np.float64)
    evaluation = evaluate(
        truth, p, prior=prior, labels=labels, ks=(1, 3), bootstrap=bootstrap, seed=seed, groups=groups
    )
    images = sampling_units(groups, len(truth))
    units = None if groups is None else images
    with_it = [len(np.unique(images[own > 0])) for own in truth.T]
    without = [len(np.unique(images[own == 0])) for own in truth.T]
    judged = [j for j in range(len(labels)) if min(with_it[j], without[j]) >= FEWEST_IMAGES]
    auc, class_auc, auc_ends = macro_auc(truth, p, bootstrap=bootstrap, seed=seed, units=units)
    if len(judged) < len(labels):
        auc = (
            macro_auc(truth[:, judged], p[:, judged], bootstrap=bootstrap, seed=seed, units=units)[0]
            if judged
            else replace(auc, value=None, low=None, high=None, prior_gain=None, constant_gain=None)
        )
    soft = truth if shares is None else shares
    errors = class_calibration_errors(soft, p)
    calibration = calibrate(soft, p, prior=prior, strategy="mass", bootstrap=bootstrap, seed=seed, units=units)
    given, true = mask[selected], truth[selected] > 0
    precision, recall, kappa, kappa_ends, choice = _choice(
        given, true, bootstrap, seed, None if groups is None else np.unique(images[selected], return_inverse=True)[1]
    )
    emotions = []
    for j, label in enumerate(labels):
        low, high = auc_ends[j] or (None, None)
        positives = int(truth[:, j].sum())
        verdict = verdict_of((low, high), level=0.5, fewest=min(with_it[j], without[j]))
        emotions.append(
            EmotionAgreement(
                label=label,
                words=tuple(words[j]),
                positives=positives,
                negatives=len(truth) - positives,
                images_with=with_it[j],
                images_without=without[j],
                prevalence=float(truth[:, j].mean()),
                mean_probability=float(p[:, j].mean()),
                ap=evaluation.per_class[j].average_precision,
                ap_low=evaluation.per_class[j].low,
                ap_high=evaluation.per_class[j].high,
                auc=class_auc[j],
                auc_low=low if class_auc[j] is not None else None,
                auc_high=high if class_auc[j] is not None else None,
                verdict=verdict,
                chosen=int(given[:, j].sum()),
                given=float(given[:, j].mean()) if len(given) else None,
                precision=finite(precision[j]),
                recall=finite(recall[j]),
                kappa=finite(kappa[j]),
                kappa_low=kappa_ends[j][0],
                kappa_high=kappa_ends[j][1],
                calibration_error=float(errors[j]),
            )
        )
    return Agreement(emotions, evaluation, auc, choice, int(selected.sum()), calibration, len(judged))


def cohen_kappa(both: np.ndarray, first: np.ndarray, second: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns kappa of two binary annotators from counts: yes by both, yes by each, and total; NaN if undefined."""
    agreed = ratio(total - first - second + 2 * both, total)
    by_chance = ratio(first * second + (total - first) * (total - second), total * total)
    return ratio(agreed - by_chance, 1.0 - by_chance)


def _choice(
    given: np.ndarray, true: np.ndarray, bootstrap: int, seed: int, units: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[float | None, float | None]], dict[str, float | None]]:
    """Returns precision, recall, kappa (K,), the kappas' intervals, and the metrics over all emotions."""
    n, width = given.shape
    both, first, second = ((given & true).astype(float), given.astype(float), true.astype(float))
    hits, said, real = both.sum(axis=0), first.sum(axis=0), second.sum(axis=0)

    def kappas(w: np.ndarray) -> np.ndarray:
        return cohen_kappa(w @ both, w @ first, w @ second, w.sum(axis=1, keepdims=True))

    names = ("macro_kappa", "macro_kappa_low", "macro_kappa_high")
    kappa, drawn = np.full(width, np.nan), np.empty((0, width))
    if n:
        kappa, drawn = resampled(kappas, n, resamples=bootstrap, seed=seed, units=units)
    ends: list[tuple[float | None, float | None]] = [interval(drawn[:, j]) or (None, None) for j in range(width)]
    macro = [finite(row_mean(kappa[None])[0]), *(interval(row_mean(drawn)) or (None, None))]
    precision, recall = ratio(hits, said), ratio(hits, real)
    choice: dict[str, float | None] = {
        "precision": finite(ratio(hits.sum(), said.sum())),
        "recall": finite(ratio(hits.sum(), real.sum())),
        "f1": finite(ratio(2 * hits.sum(), said.sum() + real.sum())),
        # Expected value for the same labels on shuffled images.
        "precision_by_chance": finite(ratio((said * real).sum(), said.sum() * n)),
        "recall_by_chance": finite(ratio((said * real).sum(), real.sum() * n)),
        **dict(zip(names, macro, strict=True)),
    }
    return precision, recall, kappa, ends, choice
