"""Scores from the final configuration's predictions: the published study's metrics, and co-occurrence of emotions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.metrics.cooccurrence import cooccurrence
from raymotion.learning.selection import class_thresholds, fit_class_thresholds
from raymotion.report.study_findings import UNSCORED, UNSCORED_COMPLETE
from raymotion.report.study_inputs import targets
from raymotion.study.record import StudyFolder, StudyRecord


@dataclass(frozen=True)
class FinalScores:
    """Scores of the final configuration on test.

    Attributes:
        published: the published study's metrics, means over the seeds; None if the study repeats no published one.
        files: name -> text, in the format of the published study.
        true: (L, L), share of the samples with emotion i that also have j; NaN rows for emotions without samples.
        predicted: (L, L), share of the samples with emotion i for which j was predicted, mean over seeds.
    """

    published: Any
    files: dict[str, str]
    true: np.ndarray
    predicted: np.ndarray


def final_scores(folder: StudyFolder, study: StudyRecord) -> tuple[FinalScores | None, str]:
    """Scores the final configuration's predictions; returns None and the reason if this is impossible.

    For studies of numbers it returns None without a reason.

    Thresholds maximise each class's F1 on validation; nothing is chosen on test.

    Raises:
        InputError: a file of predictions is damaged, or its samples differ from those of the other seeds.
    """
    final = study.final
    if not study.data.ranked:
        return None, ""
    if final is None:
        return None, f"{UNSCORED_COMPLETE if study.complete else UNSCORED}.".capitalize()
    trial = folder.read_trial(final.key)
    if trial is None or not final.files:
        return None, "The study's folder keeps no predictions on test."
    truth, predictions = {}, {}
    for split, files in (("val", trial.files), ("test", final.files)):
        found = [folder.predictions(final.key, split, seed, files) for seed in study.seeds]
        ids = found[0].sample_ids
        known, reason = targets(study, split, ids)
        if known is None:
            return None, reason
        aligned = [values for own in found if (values := own.of(ids)) is not None and values.shape == known.shape]
        if len(aligned) != len(found):
            raise InputError(f"the predictions on {split} differ in their samples or labels", path=folder.path)
        truth[split], predictions[split] = known, aligned
    chosen = [
        class_thresholds(test, fit_class_thresholds(truth["val"], val))
        for test, val in zip(predictions["test"], predictions["val"], strict=True)
    ]
    predicted = np.mean([cooccurrence(truth["test"], given).chosen_share for given in chosen], axis=0)
    published, figures, files = study.published_study, None, {}
    if published is not None:
        figures, *runs = published.measure(truth["test"], predictions["test"])
        files["evaluation_metrics.txt"] = published.as_text(figures)
        for seed, run in zip(study.seeds, runs, strict=True):
            files[f"evaluation_metrics-seed-{seed}.txt"] = published.as_text(run)
    true = cooccurrence(truth["test"], truth["test"] > 0).true_share
    return FinalScores(figures, files, true, predicted), ""
