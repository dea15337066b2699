"""The one look at the test split, when everything has been chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymotion.learning.bootstrap import finite, interval, resampled, row_mean, sampling_units
from raymotion.learning.metrics.average_precision import average_precision, chance_map, interpolated_by_class
from raymotion.learning.metrics.f1 import f1_scores
from raymotion.learning.paired import SparseRanking, mean_over_seeds
from raymotion.learning.selection import class_thresholds, fit_class_thresholds
from raymotion.study.data import StudyData
from raymotion.study.record import ClassScore, Configuration, Estimate, Spread, WinnerOnTest

BOOTSTRAP = 1000


def score_test(
    name: str,
    key: str,
    config: Configuration,
    test: np.ndarray,
    validation: np.ndarray,
    data: StudyData,
    *,
    seed: int = 0,
) -> WinnerOnTest:
    """A winner's scores on test: means over seeds, and a 95 % interval of mAP over the images.

    Args:
        test, validation: probabilities (seeds, n, L). Thresholds are fitted on validation.
    """
    rows, val_rows = data.splits["test"], data.splits["val"]
    truth, prior = data.hard[rows], data.prior(soft=False)
    groups = [data.groups[row] for row in rows]
    ap = np.array(
        [[average_precision(truth[:, j], own[:, j]) for j in range(truth.shape[1])] for own in test]
    )  # NaN without a positive
    interpolated = np.stack([interpolated_by_class(truth, own) for own in test])
    maps = row_mean(ap)
    low, high, resamples = map_interval(truth, test, groups, float(maps.mean()), seed=seed)
    micro, macro = [], []
    for own, val in zip(test, validation, strict=True):
        thresholds = fit_class_thresholds(data.hard[val_rows], val)
        found = f1_scores(truth, class_thresholds(own, thresholds), prior=prior, bootstrap=0)
        micro.append(found.micro.value or 0.0)
        macro.append(found.macro.value or 0.0)
    ap_mean, interpolated_mean = row_mean(ap.T), row_mean(interpolated.T)
    return WinnerOnTest(
        name=name,
        key=key,
        config=config,
        score=Estimate(**Spread.of(maps).model_dump(), low=low, high=high, resamples=resamples),
        chance=chance_map(truth.mean(axis=0)),
        interpolated=finite(float(row_mean(interpolated).mean())),
        thresholded={"micro_f1": float(np.mean(micro)), "macro_f1": float(np.mean(macro))},
        per_class=[
            ClassScore(
                label=label,
                ap=finite(ap_mean[j]),
                interpolated=finite(interpolated_mean[j]),
                prevalence=float(truth[:, j].mean()),
                positives=int(truth[:, j].sum()),
            )
            for j, label in enumerate(data.vocabulary.labels)
        ],
    )


def map_interval(
    truth: np.ndarray, probabilities: np.ndarray, groups: Sequence[str], value: float, *, seed: int
) -> tuple[float | None, float | None, int]:
    """95 % interval of the mean over seeds of mAP, over resamples of the groups; centred on the value.

    Returns:
        Its ends, None where nothing can be scored, and how many resamples it rests on.
    """
    units = sampling_units(groups, len(truth))
    rankings = [SparseRanking.of(truth > 0, own, units) for own in probabilities]
    _, drawn = resampled(
        lambda counts: mean_over_seeds(rankings, counts), int(units.max()) + 1, resamples=BOOTSTRAP, seed=seed
    )
    low, high = interval(drawn[:, 0], value) or (None, None)
    return low, high, BOOTSTRAP


def interpolated_map(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean over seeds of mAP as EMOTIC's authors compute it, of (seeds, n, L)."""
    return finite(float(np.mean([row_mean(interpolated_by_class(truth, own)[None])[0] for own in probabilities])))
