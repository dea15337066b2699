"""All metrics of one set of predictions in one object, computed from arrays."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.learning.bootstrap import Metric, ratio_metrics, sampling_units
from raymotion.learning.collapse import CLASS_SHARE, MIN_IMAGES, Collapse, check_collapse, label_sets
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

if TYPE_CHECKING:
    import pandas as pd

# Used for checkpoints without thresholds. Most emotions never reach it, and their F1 is low accordingly.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassResult:
    """Metrics of one label: frequency, ranking, choice and calibration.

    `ap`, `auc` and `f1` are None if undefined; `_low` and `_high` are 95 % bootstrap intervals. Chance is the
    prevalence for AP and 0.5 for AUC; `f1_constant` is the F1 of choosing the label for every sample.
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
    """Numbers of distinct predictions; a constant prediction has 1 of each.

    Attributes:
        top_1, top_2, top_3: distinct sets of the 1, 2 and 3 highest labels.
        chosen_sets: distinct sets of labels above the thresholds.
        commonest_share: share of samples with the most common of these sets.
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
    """The result of `measure`.

    Attributes:
        evaluation: the metrics of `learning.metrics.multilabel.evaluate`, with brier, micro_f1 and macro_f1.
        calibration: with bins of equal width, and of equal mass.
        collapse: check of the m highest labels, m being the mean number of labels per sample. Labels above thresholds
            are unsuitable: the best F1 of a poorly recognised label comes from giving it to nearly every sample.
        notes: reservations beyond those of the collapse check.
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

    def __getitem__(self, name: str) -> Metric:
        return self.evaluation[name]

    def frame(self) -> pd.DataFrame:
        """Returns a row for each metric, with its interval and its baselines."""
        return self.evaluation.frame()

    def class_frame(self) -> pd.DataFrame:
        """Returns a row for each label: the fields of `ClassResult`."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.classes]).set_index("label")

    def __repr__(self) -> str:
        table = self.frame().to_string(float_format="{:.4f}".format)
        return "\n".join([self.collapse.headline, *self.notes, table])

    def _repr_html_(self) -> str:
        lines = [self.collapse.headline, *self.notes]
        return "<br>".join(map(html.escape, lines)) + self.frame().to_html(float_format="{:.4f}".format)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but `chosen`, for JSON without NaN."""
        evaluation = self.evaluation.to_dict()
        del evaluation["per_class"]  # `classes` holds more
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
    """Measures predictions against labels, with baselines for each metric.

    Args:
        targets: (n, L) of 0 and 1.
        probabilities: (n, L) in [0, 1].
        prior: (L,) class rates of the training split.
        thresholds: (L,) fitted on validation; None: 0.5 for each.
        soft_targets: (n, L) shares of annotators, for the BCE.
        soft_prior: (L,) mean shares of the training split, for the prior's BCE; None: `prior`.
        split: name of these samples in the sentences of the collapse check.
        groups: n names of the units that the bootstrap resamples, such as images shared by several samples.

    Raises:
        InputError: as in `learning.metrics.multilabel.evaluate`.
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
    metrics = {**evaluation.metrics, "micro_f1": f1.micro, "macro_f1": f1.macro, **brier}
    evaluation = replace(evaluation, metrics=metrics)
    errors = class_calibration_errors(truth, p, bins=bins)
    classes = []
    for j, score in enumerate(evaluation.per_class):
        own = f1.classes[j]
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
                auc=score.auc,
                auc_low=score.auc_low,
                auc_high=score.auc_high,
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
    """Returns notes on weaknesses of the thresholded labels that F1 hides."""
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
