"""What needs the final configuration's predictions: the published file's numbers, and co-occurrence of emotions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raymotion.learning.metrics.cooccurrence import cooccurrence
from raymotion.learning.selection import class_thresholds, fit_class_thresholds
from raymotion.published.metrics import PublishedMetrics, mean_over_seeds, published_metrics
from raymotion.report.study_findings import UNSCORED, UNSCORED_COMPLETE
from raymotion.report.study_folder import StudyFolder
from raymotion.report.study_inputs import CHANGED, predictions, targets

# Predictions and targets belong together if they give the mAP that the study wrote down, to this many.
SAME_MAP = 1e-3


@dataclass(frozen=True)
class FinalScores:
    """Of the final configuration on test.

    Attributes:
        mean: the published file's numbers, mean over seeds; runs: of each seed.
        true: share of the persons with emotion i who truly have j, (L, L); NaN in the rows of emotions nobody has.
        said: share of the persons with emotion i who were given j, mean over seeds; None without predictions on
            validation to fit thresholds on.
    """

    mean: PublishedMetrics
    runs: Mapping[int, PublishedMetrics]
    true: np.ndarray
    said: np.ndarray | None


def final_scores(study: StudyFolder) -> tuple[FinalScores | None, str]:
    """The final configuration's predictions, measured; or None and the reason why there is nothing to measure.

    Thresholds are each class's best F1 on validation; test chooses nothing.

    Raises:
        InputError: a file of predictions is damaged.
    """
    final = study.final
    if final is None:
        return None, f"{UNSCORED_COMPLETE if study.complete else UNSCORED}.".capitalize()
    answers = predictions(study, "test", final.name, final.key)
    if not answers:
        return None, "The study's folder keeps no predictions on test."
    known, reason = targets(study)
    if reason:
        return None, reason
    truth = known["test"]
    if any(values.shape != truth.shape for values in answers):
        return None, f"{CHANGED}."
    runs = [published_metrics(truth, values) for values in answers]
    mean = mean_over_seeds(runs)
    if len(runs) == len(study.seeds) and abs(mean.mean_ap - final.mean) > SAME_MAP:
        return None, f"{CHANGED}: its labels give another mAP."
    said = None
    validation = predictions(study, "val", final.name, final.key)
    if len(validation) == len(answers) and validation[0].shape == known["val"].shape:
        chosen = [
            class_thresholds(test, fit_class_thresholds(known["val"], val))
            for test, val in zip(answers, validation, strict=True)
        ]
        said = np.mean([cooccurrence(truth, given).chosen_share for given in chosen], axis=0)
    seeds = study.seeds if len(study.seeds) == len(runs) else range(len(runs))
    return FinalScores(mean, dict(zip(seeds, runs, strict=True)), cooccurrence(truth, truth > 0).true_share, said), ""
