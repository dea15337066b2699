"""Everything that is measured of one set of predictions, in one object: arrays in, plain numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raymotion.learning.bootstrap import Metric, ratio_metrics, sampling_units
from raymotion.learning.collapse import CLASS_SHARE, MIN_IMAGES, Collapse, check_collapse, label_sets
from raymotion.learning.metrics.auc import macro_auc
from raymotion.learning.metrics.calibration import (
    BINS,
    BrierParts,
    CalibrationScores,
    calibrate,
    class_calibration_errors,
    decompose_brier,
)
from raymotion.learning.metrics.f1 import f1_scores
from raymotion.learning.metrics.multilabel import (
    LOWER_IS_BETTER,
    Evaluation,
    checked,
    count_distinct_top,
    evaluate,
    metric_text,
)
from raymotion.learning.selection import class_thresholds, top_per_image

# Where a checkpoint brings no thresholds. Most emotions never reach it: that F1 is low says so.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassResult:
    """One label: how frequent it is, and how well it is ranked, chosen and calibrated.

    `ap`, `auc`, `f1` are None where they are not defined; `_low` and `_high` are 95 % bootstrap intervals. Chance is
    the prevalence for AP, 0.5 for AUC; `f1_constant` is the F1 of choosing the label for every sample.
    """

    label: str
    positives: int
    prevalence: float
    prior: float
    mean_probability: float
    ap: float | None
    ap_low: float | None
    ap_high: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None
    f1_constant: float | None
    precision: float | None
    recall: float | None
    threshold: float
    chosen: int
    brier: float
    brier_constant: float
    calibration_error: float


@dataclass(frozen=True)
class Diversity:
    """How many different answers there are; a constant answer has 1 of each.

    Attributes:
        top_1, top_2, top_3: different sets of so many highest labels.
        chosen_sets: different sets of labels above the thresholds.
        commonest_share: share of samples with the commonest of these.
        commonest: its labels.
    """

    top_1: int
    top_2: int
    top_3: int
    chosen_sets: int
    commonest_share: float
    commonest: list[str]


@dataclass(frozen=True)
class Measured:
    """What `measure` found. `to_dict` is JSON without NaN.

    Attributes:
        evaluation: its metrics are those of `learning.metrics.evaluate` and brier, macro_auc, micro_f1, macro_f1.
        calibration: with bins of equal width, and of equal mass.
        collapse: of as many highest labels as the samples carry on average. Labels above thresholds would not do: for
            a label that is hardly recognised the best F1 comes from giving it to nearly every sample.
        notes: reservations beyond the collapse check's.
        chosen: (n, L) bool, labels above their thresholds.
        always_prior, always_constant: the labels that the two baselines of micro F1 give to every image.
    """

    evaluation: Evaluation
    classes: list[ClassResult]
    calibration: list[CalibrationScores]
    brier: BrierParts
    diversity: Diversity
    collapse: Collapse
    notes: list[str]
    chosen: np.ndarray
    always_prior: list[str]
    always_constant: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but `chosen`."""
        evaluation = self.evaluation.to_dict()
        del evaluation["per_class"]  # `classes` says more
        return {
            **evaluation,
            "classes": [asdict(row) for row in self.classes],
            "calibration": {item.strategy: item.to_dict() for item in self.calibration},
            "brier_parts": asdict(self.brier),
            "f1_baselines": {"prior": self.always_prior, "constant": self.always_constant},
            "distinct": asdict(self.diversity),
            "collapse": asdict(self.collapse),
            "notes": self.notes,
        }


def measure(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    labels: Sequence[str],
    prior: np.ndarray | Sequence[float],
    thresholds: np.ndarray | Sequence[float] | None = None,
    soft_targets: np.ndarray | None = None,
    soft_prior: np.ndarray | Sequence[float] | None = None,
    split: str = "test",
    bootstrap: int = 1000,
    bins: int = BINS,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Measured:
    """Measures predictions against labels, each number beside its baselines.

    Args:
        targets: (n, L) of 0 and 1.
        probabilities: (n, L) in [0, 1].
        prior: (L,) class rates of the training split.
        thresholds: (L,) fitted on validation; None takes 0.5 for each.
        soft_targets: (n, L) shares of annotators, for the BCE.
        soft_prior: (L,) mean shares of the training split, the prior's BCE then; None takes `prior`.
        split: what the collapse check's sentences call these samples.
        groups: n names of what the intervals draw as a whole: the image, where several samples share one.

    Raises:
        InputError: as `learning.metrics.evaluate`.
    """
    truth = checked("targets", targets)
    p = checked("probabilities", probabilities, shape=truth.shape)
    rates = np.asarray(prior, dtype=np.float64)
    n, width = truth.shape
    units = None if groups is None else sampling_units(groups, n)
    evaluation = evaluate(
        truth,
        p,
        prior=rates if soft_targets is None or soft_prior is None else soft_prior,
        labels=labels,
        bootstrap=bootstrap,
        seed=seed,
        soft_targets=soft_targets,
        groups=groups,
    )
    limits = np.full(width, DEFAULT_THRESHOLD) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    chosen = class_thresholds(p, limits)
    f1 = f1_scores(truth, chosen, prior=rates, bootstrap=bootstrap, seed=seed, units=units)
    auc, class_auc, auc_ends = macro_auc(truth, p, bootstrap=bootstrap, seed=seed, units=units)
    own_rates = truth.mean(axis=0)

    def squared_error(of: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {"brier": (((of - truth) ** 2).mean(axis=1), np.ones(n))}

    brier = ratio_metrics(
        squared_error(p),
        squared_error(rates),
        squared_error(own_rates),
        resamples=bootstrap,
        seed=seed,
        lower_is_better=LOWER_IS_BETTER,
        units=units,
    )
    metrics = {**evaluation.metrics, "macro_auc": auc, "micro_f1": f1.micro, "macro_f1": f1.macro, **brier}
    evaluation = replace(evaluation, metrics=metrics)
    errors = class_calibration_errors(truth, p, bins=bins)
    classes = []
    for j, score in enumerate(evaluation.per_class):
        own = f1.classes[j]
        ends = auc_ends[j] or (None, None)
        classes.append(
            ClassResult(
                label=score.label,
                positives=score.positives,
                prevalence=score.prevalence,
                prior=float(rates[j]),
                mean_probability=float(p[:, j].mean()),
                ap=score.average_precision,
                ap_low=score.low,
                ap_high=score.high,
                auc=class_auc[j],
                auc_low=ends[0],
                auc_high=ends[1],
                f1=own.f1,
                f1_low=own.low,
                f1_high=own.high,
                f1_constant=own.constant,
                precision=own.precision,
                recall=own.recall,
                threshold=float(limits[j]),
                chosen=own.chosen,
                brier=float(((p[:, j] - truth[:, j]) ** 2).mean()),
                brier_constant=float(own_rates[j] * (1.0 - own_rates[j])),
                calibration_error=float(errors[j]),
            )
        )
    sets, counts = label_sets(chosen)
    highest = top_per_image(p, max(1, round(float(truth.sum()) / n)))
    return Measured(
        evaluation=evaluation,
        classes=classes,
        calibration=[
            calibrate(truth, p, prior=rates, bins=bins, strategy=strategy, bootstrap=bootstrap, seed=seed, units=units)
            for strategy in ("width", "mass")
        ],
        brier=decompose_brier(truth, p, bins=bins),
        diversity=Diversity(
            top_1=count_distinct_top(p, 1),
            top_2=count_distinct_top(p, 2),
            top_3=count_distinct_top(p, 3),
            chosen_sets=len(sets),
            commonest_share=float(counts[0] / n),
            commonest=[str(labels[j]) for j in np.flatnonzero(sets[0]).tolist()],
        ),
        collapse=check_collapse(
            p, highest, list(labels), prior=rates, evaluation=evaluation, model="model", split=split
        ),
        notes=_notes(classes, n, f1.micro),
        chosen=chosen,
        always_prior=[str(labels[j]) for j in f1.prior_set],
        always_constant=[str(labels[j]) for j in f1.constant_set],
    )


def _notes(classes: Sequence[ClassResult], n: int, micro_f1: Metric) -> list[str]:
    """What the choice by thresholds hides behind its F1."""
    notes = []
    everywhere = [row for row in classes if n >= MIN_IMAGES and row.chosen > CLASS_SHARE * n and row.prevalence < 0.5]
    if everywhere:
        named = ", ".join(
            f"{row.label} ({100 * row.chosen / n:.0f} % of the samples, {100 * row.prevalence:.0f} % carry it)"
            for row in everywhere
        )
        notes.append(f"At its thresholds the model gives nearly every sample {named}: it hardly recognises them.")
    if micro_f1.verdict == "worse":
        notes.append(
            "At its thresholds the model chooses labels worse than a fixed answer does: micro F1 "
            f"{metric_text(micro_f1.value)}, always the same labels {metric_text(micro_f1.constant)}."
        )
    return notes
