"""The one look at the test split, when everything has been chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.torch import load

from raymotion.config import digest_of
from raymotion.learning.bootstrap import finite, interval, resampled, row_mean, sampling_units
from raymotion.learning.metrics.average_precision import average_precision, chance_map, interpolated_by_class
from raymotion.learning.metrics.f1 import f1_scores
from raymotion.learning.paired import SparseRanking, mean_over_seeds
from raymotion.learning.selection import class_thresholds, fit_class_thresholds
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.study.record import StudyFolder
from raymotion.train.fusion_data import FusionData
from raymotion.train.loop import Run, Workers
from raymotion.train.task import task_of

BOOTSTRAP = 1000


def predict_test(
    folder: StudyFolder, key: str, recipe: FusionRecipe, seeds: Sequence[int], data: FusionData
) -> np.ndarray:
    """Test probabilities (seeds, n, L) of a trial, with the weights of each seed's best epoch."""
    answers = []
    for seed in seeds:
        run = Run(task_of(recipe.model_copy(update={"seed": seed}), data), workers=Workers())
        run.best_weights = load(folder.weights(key, seed))
        answers.append(run.predict("test")[:, : len(data.vocabulary)])
        run.close()
    return np.stack(answers)


def score_test(test: np.ndarray, validation: np.ndarray, data: FusionData, *, seed: int = 0) -> dict[str, Any]:
    """What study.json says of one configuration on test.

    Args:
        test, validation: probabilities (seeds, n, L). Thresholds are fitted on validation.

    Returns:
        `map` (over seeds, with a 95 % interval of their mean over `resamples` of the images), `interpolated` (the
        original authors' AP), `chance` (mean prevalence), `thresholded` F1 (means over seeds) and `per_class` (means
        over seeds).
    """
    rows, val_rows = data.splits["test"], data.splits["val"]
    truth, prior = data.hard[rows], data.prior(soft=False)
    groups = [data.groups[row] for row in rows]
    ap = class_scores(truth, test)
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
    return {
        "map": {**spread(maps), "low": low, "high": high, "resamples": resamples},
        "interpolated": {"mean": finite(float(row_mean(interpolated).mean())),
                         "seeds": [finite(value) for value in row_mean(interpolated)]},
        "chance": chance_map(truth.mean(axis=0)),
        "thresholded": {"micro_f1": float(np.mean(micro)), "macro_f1": float(np.mean(macro))},
        "per_class": [
            {"label": label, "ap": finite(ap_mean[j]), "interpolated": finite(interpolated_mean[j]),
             "prevalence": float(truth[:, j].mean()), "positives": int(truth[:, j].sum())}
            for j, label in enumerate(data.vocabulary.labels)
        ],
    }  # fmt: skip


def class_scores(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Average precision (seeds, L) of (seeds, n, L) probabilities; NaN for a label without a positive."""
    return np.array(
        [[average_precision(truth[:, j], own[:, j]) for j in range(truth.shape[1])] for own in probabilities]
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


def spread(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, sample standard deviation (None of one), and the values."""
    known = [float(value) for value in values]
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "seeds": known,
    }


def interpolated_map(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean over seeds of the original authors' mAP, of (seeds, n, L)."""
    return finite(float(np.mean([row_mean(interpolated_by_class(truth, own)[None])[0] for own in probabilities])))


def split_facts(data: FusionData) -> dict[str, Any]:
    """Sizes and label prevalence of the splits: test's sizes and rates are facts of the data, no choice uses them."""
    used: Mapping[str, np.ndarray] = data.splits
    return {
        "splits": {
            name: {"persons": len(rows), "images": len({data.groups[row] for row in rows})}
            for name, rows in used.items()
        },
        # Whose answers the files of predictions hold, in their order.
        "sample_ids": {name: digest_of([data.sample_ids[row] for row in rows]) for name, rows in used.items()},
        # And what is true of them, so that a table of other labels is not taken for it; a digest tells nobody what.
        "targets": {name: digest_of(data.hard[rows].astype(int).tolist()) for name, rows in used.items()},
        "labels": list(data.vocabulary.labels),
        "prevalence": {
            name: [float(rate) for rate in data.hard[rows].mean(axis=0)] for name, rows in used.items() if len(rows)
        },
        "chance_map": {
            name: chance_map(data.hard[used[name]].mean(axis=0)) for name in ("val", "test") if len(used[name])
        },
    }
