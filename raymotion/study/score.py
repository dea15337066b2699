"""Scoring on the test split, done once after everything has been chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from raymotion.learning.bootstrap import finite, interval, resampled, row_mean
from raymotion.learning.metrics.average_precision import average_precision, interpolated_by_class
from raymotion.learning.metrics.f1 import f1_scores
from raymotion.learning.paired import Weighed, mean_over_seeds
from raymotion.learning.selection import class_thresholds, fit_class_thresholds
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.training_set import TrainingSet
from raymotion.study.data import baseline_of, figure_of, truth_of, units_of
from raymotion.study.record import MACRO_AP, ClassScore, Configuration, Estimate, Metric, Spread, WinnerOnTest

BOOTSTRAP = 1000


def score_test(
    name: str,
    key: str,
    config: Configuration,
    test: np.ndarray,
    validation: np.ndarray,
    data: TrainingSet,
    output: Output,
    metric: Metric,
    *,
    seed: int = 0,
) -> WinnerOnTest:
    """Returns a winner's test scores: means over seeds with a 95 % interval over images, and the baseline.

    Args:
        test, validation: its predictions, (seeds, n, width). Thresholds are fitted on validation.
    """
    rows, targets = data.splits["test"], data.targets_of(output)
    units, figure = units_of(data, "test"), figure_of(metric, output)
    seeds = [output.metrics(targets, rows, own)[figure] for own in test]
    low, high = score_interval(
        [output.weighed(figure, targets, rows, own, units) for own in test],
        int(units.max()) + 1,
        # Repeated positives inflate average precision.
        around=float(np.mean(seeds)) if metric == MACRO_AP else None,
        seed=seed,
    )
    return WinnerOnTest(
        name=name,
        key=key,
        config=config,
        score=Estimate(**Spread.of(seeds).model_dump(), low=low, high=high, resamples=BOOTSTRAP),
        baseline=baseline_of(metric, output, data, "test"),
        **(_label_scores(test, validation, data, cast(MultiLabel, output)) if output.gives == "labels" else {}),
        **(_class_scores(test, data, output) if output.gives == "one_label" else {}),
    )


def _class_scores(test: np.ndarray, data: TrainingSet, output: Output) -> dict[str, Any]:
    """Returns the fields of `WinnerOnTest` that only outputs of one label have."""
    found = [output.metrics(data.targets_of(output), data.splits["test"], own) for own in test]
    return {"thresholded": {name: float(np.mean([own[name] for own in found])) for name in ("accuracy", "macro_f1")}}


def _label_scores(test: np.ndarray, validation: np.ndarray, data: TrainingSet, output: MultiLabel) -> dict[str, Any]:
    """Returns the fields of `WinnerOnTest` that only label outputs have."""
    truth, validated = truth_of(data, output, "test"), truth_of(data, output, "val")
    prior = output.rates(data.targets_of(output), data.splits["train"], soft=False)
    ap = np.array(
        [[average_precision(truth[:, j], own[:, j]) for j in range(truth.shape[1])] for own in test]
    )  # NaN without a positive
    interpolated = np.stack([interpolated_by_class(truth, own) for own in test])
    f1: dict[str, list[float]] = {"micro_f1": [], "macro_f1": []}
    for own, val in zip(test, validation, strict=True):
        thresholds = fit_class_thresholds(validated, val)
        found = f1_scores(truth, class_thresholds(own, thresholds), prior=prior, bootstrap=0)
        f1["micro_f1"].append(found.micro.value or 0.0)
        f1["macro_f1"].append(found.macro.value or 0.0)
    ap_mean, interpolated_mean = row_mean(ap.T), row_mean(interpolated.T)
    return {
        "mean_ap": finite(float(row_mean(ap).mean())),
        "interpolated": finite(float(row_mean(interpolated).mean())),
        "thresholded": {title: float(np.mean(values)) for title, values in f1.items()},
        "per_class": [
            ClassScore(
                label=label,
                ap=finite(ap_mean[j]),
                interpolated=finite(interpolated_mean[j]),
                prevalence=float(truth[:, j].mean()),
                positives=int(truth[:, j].sum()),
            )
            for j, label in enumerate(output.vocabulary.labels)
        ],
    }


def score_interval(
    weighed: Sequence[Weighed], groups: int, *, seed: int, around: float | None = None
) -> tuple[float | None, float | None]:
    """Returns the 95 % bootstrap interval, over groups, of a metric's mean over seeds; None if it is undefined.

    Args:
        weighed: the metric of each seed (`Output.weighed`).
        around: see `interval`.
    """
    _, drawn = resampled(lambda counts: mean_over_seeds(weighed, counts), groups, resamples=BOOTSTRAP, seed=seed)
    return interval(drawn[:, 0], around) or (None, None)


def interpolated_map(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Returns the mAP as EMOTIC's authors compute it, averaged over seeds; `probabilities` are (seeds, n, L)."""
    return finite(float(np.mean([row_mean(interpolated_by_class(truth, own)[None])[0] for own in probabilities])))
