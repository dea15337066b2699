"""Multi-label metrics with the baselines that they have to beat.

A number alone means little: on Socratis, predicting "happy" for every image is right 67 % of the time. So `evaluate`
reports every metric with its 95 % bootstrap interval, the same metric of two predictors that ignore the image, and the
interval of the paired difference to each of them.

* `prior`: the class rates of the *training* split, predicted for every image.
* `constant`: a constant predictor that knows the evaluated split. For the BCE it predicts that split's own class rates:
  no constant has a lower one. For top-k and recall it ranks the classes by that split's own rates, like the published
  Socratis constants: no constant has a higher top-1 or public recall. For average precision it is chance, which is the
  prevalence, and for AUC 0.5. (For micro AP, `prior` is the harder baseline, because it ranks the classes.)

Ties give no advantage. If labels of one image are tied across the k-th place, top-k and recall take the expected value
over a random order of them; average precision treats equal scores as one step, as scikit-learn does.

Small samples give no advantage either. A random order of few positives has an average precision above the prevalence:
0.047 for 5 positives among 207, a prevalence of 0.024. So the gain in average precision is measured against the exact
expectation of a random order. Its intervals are centred on the value, because resampling repeats positives and so
inflates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import Metric, finite, ratio_metrics, sampling_units
from raymotion.learning.metrics.auc import macro_auc
from raymotion.learning.metrics.average_precision import bootstrap_ap
from raymotion.learning.significance import FEWEST_IMAGES

if TYPE_CHECKING:
    import pandas as pd

# Probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm: a certain but wrong label costs 16.1 nats.
EPSILON = 1e-7

RECALL_K = 3
DIMENSION_METRICS = ("r2", "mae", "rmse", "pearson", "spearman", "ccc")
LOWER_IS_BETTER = ("bce", "log_loss", "brier", "mae", "rmse")
# Of retrieval (`learning.metrics.retrieval`), where a direction such as `text_to_image` may stand before them.
RETRIEVAL_TITLES = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "mrr": "MRR (mean of 1 / rank)",
    "median_rank": "Median rank (lower is better)",
    "mean_rank": "Mean rank (lower is better)",
}

METRIC_TITLES = {
    "bce": "BCE, nats (lower is better)",
    "log_loss": "Log loss, nats (lower is better)",
    "accuracy": "Accuracy",
    "micro_ap": "Micro AP",
    "macro_ap": "Macro AP (mAP)",
    "recall_at_3": "Recall@3",
    "recall_at_3_public": "Recall@3, hits / 3n",
    "macro_auc": "Macro AUC",
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1",
    "brier": "Brier score (lower is better)",
    "r2": "R²",
    "mae": "MAE (lower is better)",
    "rmse": "RMSE (lower is better)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "ccc": "CCC",
    **RETRIEVAL_TITLES,
}


def metric_title(name: str) -> str:
    """Returns the display name of a metric: `top_2` is "Top-2 accuracy", `valence_ccc` is "valence: CCC".

    `text_to_image_mrr` is "text to image MRR (mean of 1 / rank)".
    """
    if name in METRIC_TITLES:
        return METRIC_TITLES[name]
    first, _, last = name.rpartition("_")
    if first and last in DIMENSION_METRICS:
        return f"{first}: {METRIC_TITLES[last]}"
    for metric, title in RETRIEVAL_TITLES.items():
        if "_to_" in name and name.endswith(f"_{metric}"):
            return f"{name.removesuffix(metric).replace('_', ' ')}{title}"
    return f"Top-{last} accuracy" if first == "top" else name


def row_title(name: str, metric: Metric) -> str:
    """Returns the name of a metric in a table, with the number of labels where some may be left out."""
    count = "" if metric.labels is None else f", {metric.labels} label{'' if metric.labels == 1 else 's'}"
    return metric_title(name) + count


def averages(evaluation: Evaluation) -> frozenset[str]:
    """Returns the metrics that are means over several dimensions, each of which has its own metric too."""
    of_one = {name.rpartition("_")[2] for name in evaluation.metrics if name not in METRIC_TITLES}
    return frozenset(name for name in DIMENSION_METRICS if name in evaluation.metrics and name in of_one)


def short_title(name: str) -> str:
    """Returns a short display name of a metric: `bce` is "BCE", `macro_ap` is "mAP"."""
    return "mAP" if name == "macro_ap" else metric_title(name).partition(" (")[0].partition(",")[0]


def metric_text(value: float | None) -> str:
    """Formats a metric's value for display."""
    return "undefined" if value is None else f"{round(value, 4) + 0.0:.4f}"  # never -0.0000


def interval_text(low: float | None, high: float | None) -> str:
    """Formats a metric's interval for display."""
    return "not known" if low is None or high is None else f"{metric_text(low)} to {metric_text(high)}"


@dataclass(frozen=True)
class ClassScore:
    """Average precision and AUC of one class, with their 95 % intervals; None if no sample of the split has it."""

    label: str
    average_precision: float | None
    prevalence: float
    positives: int
    low: float | None = None
    high: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate` or `evaluate_dimensions`.

    Attributes:
        per_class: one entry per label; empty for numbers.
        classes_left_out: number of classes without a positive, which `macro_ap` leaves out.
        distinct_top3: number of distinct sets of three highest labels; 1 is a constant prediction, 0 means no labels.
    """

    samples: int
    metrics: dict[str, Metric]
    per_class: list[ClassScore] = field(default_factory=list)
    classes_left_out: int = 0
    distinct_top3: int = 0
    seed: int = 0

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def frame(self) -> pd.DataFrame:
        """Returns a row for each metric: value, interval, the two baselines, and the verdict against both."""
        import pandas as pd

        rows = {
            name: [metric_title(name), own.value, own.low, own.high, own.prior, own.constant, own.samples, own.verdict]
            for name, own in self.metrics.items()
        }
        columns = ["metric", "value", "low", "high", "prior", "constant", "samples", "against both"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def _repr_html_(self) -> str:
        return self.frame().to_html(float_format="{:.4f}".format)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, without NaN; `from_dict` reads it."""
        result = asdict(self)
        for metric in result["metrics"].values():
            for gain in ("prior_gain", "constant_gain"):
                metric[gain] = None if metric[gain] is None else list(metric[gain])
        return result

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: object = None) -> Evaluation:
        """Reads the output of `to_dict`; raises `InputError` for anything else."""
        try:
            metrics = {name: Metric.from_dict(entry) for name, entry in value["metrics"].items()}
            return cls(
                samples=int(value["samples"]),
                metrics=metrics,
                per_class=[ClassScore(**entry) for entry in value["per_class"]],
                classes_left_out=int(value["classes_left_out"]),
                distinct_top3=int(value["distinct_top3"]),
                seed=int(value.get("seed", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"holds no readable evaluation ({error!r})", path=where, remedy="Evaluate again."
            ) from error


def evaluate(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    prior: np.ndarray | Sequence[float],
    labels: Sequence[str],
    ks: Sequence[int] = (1, 2, 3),
    bootstrap: int = 1000,
    seed: int = 0,
    soft_targets: np.ndarray | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
) -> Evaluation:
    """Computes all metrics of `probabilities` against `targets`, with intervals and baselines.

    Args:
        targets: (n, L) of 0 and 1, for the ranking metrics.
        probabilities: (n, L) in [0, 1].
        prior: (L,) class rates of the training split, for the same kind of target as the BCE.
        labels: the L names, in order.
        ks: for top-k accuracy, the share of images with at least one true label among the k highest.
        bootstrap: number of resamples; average precision uses fewer on large splits (see `Metric.resamples`).
        soft_targets: (n, L) in [0, 1], shares of annotators; if given, the BCE is measured against these.
        groups: n names of the resampled units, such as the image, since persons in one image are not independent.
            None: each sample is a unit.

    Metrics: `bce` (mean over samples and labels, nats), `micro_ap`, `macro_ap` (mAP), `macro_auc`
    (mean over the labels of at least `FEWEST_IMAGES` groups, and of as many without), `top_{k}`, `recall_at_3` (true
    labels among the three highest / true labels, mean over samples that have any) and `recall_at_3_public` (all hits /
    3n, as the public Socratis system counts it: its ceiling is below 1).

    Raises:
        InputError: shapes that do not match, no samples, values that are not finite or outside [0, 1].
    """
    truth = checked("targets", targets)
    scores = checked("probabilities", probabilities, shape=truth.shape)
    soft = truth if soft_targets is None else checked("soft targets", soft_targets, shape=truth.shape)
    if not np.isin(truth, (0.0, 1.0)).all():
        raise InputError("targets for ranking metrics are 0 or 1", remedy="Give shares of annotators as soft_targets.")
    n, width = truth.shape
    if len(labels) != width:
        raise InputError(f"{len(labels)} labels, but the targets have {width} columns")
    rates = checked("prior", np.asarray(prior, dtype=np.float64).reshape(1, -1), shape=(1, width))[0]

    units = None if groups is None else sampling_units(groups, n)

    own_rates = truth.mean(axis=0)
    columns = _per_sample(truth, soft, scores, ks)
    of_prior = _per_sample(truth, soft, np.broadcast_to(rates, truth.shape), ks)
    of_constant = _per_sample(truth, soft, np.broadcast_to(own_rates, truth.shape), ks)
    # The constant with the lowest BCE predicts the rates of the targets that it is measured against.
    of_constant["bce"] = (row_bce(soft, np.broadcast_to(soft.mean(axis=0), soft.shape)), np.ones(n))

    metrics = ratio_metrics(
        columns,
        of_prior,
        of_constant,
        resamples=bootstrap,
        seed=seed,
        lower_is_better=LOWER_IS_BETTER,
        units=units,
    )
    micro, macro, class_ap, intervals = bootstrap_ap(truth, scores, rates, resamples=bootstrap, seed=seed, units=units)
    auc, class_auc, auc_intervals = macro_auc(
        truth, scores, bootstrap=bootstrap, seed=seed, units=units, fewest=FEWEST_IMAGES
    )
    metrics = {"bce": metrics.pop("bce"), "micro_ap": micro, "macro_ap": macro, "macro_auc": auc, **metrics}
    positives = truth.sum(axis=0).astype(int)
    return Evaluation(
        samples=n,
        metrics=metrics,
        per_class=[
            ClassScore(
                str(labels[j]),
                finite(class_ap[j]),
                float(own_rates[j]),
                int(positives[j]),
                low=None if (own := intervals[j]) is None else own[0],
                high=None if own is None else own[1],
                auc=class_auc[j],
                auc_low=None if (ends := auc_intervals[j]) is None else ends[0],
                auc_high=None if ends is None else ends[1],
            )
            for j in range(width)
        ],
        classes_left_out=int((positives == 0).sum()),
        distinct_top3=count_distinct_top(scores, RECALL_K),
        seed=seed,
    )


def bce(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the binary cross-entropy in nats, averaged over the samples and labels of two (n, L) arrays."""
    return float(row_bce(np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)).mean())


def top_k_hits(targets: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of a true label among the k highest, and the expected number of them; both (n,).

    Without ties at the k-th place these are 0 or 1, and a whole number. With ties they are expectations over a random
    order of the tied labels (hypergeometric), so that a constant score gains nothing from the order of the columns.
    """
    width = scores.shape[1]
    k = min(k, width)
    kth = np.partition(scores, width - k, axis=1)[:, width - k, None]
    above, tied = scores > kth, scores == kth
    true = targets > 0
    slots = k - above.sum(axis=1)
    tied_count, tied_true = tied.sum(axis=1), (tied & true).sum(axis=1)
    sure = (above & true).sum(axis=1)
    miss = np.where(sure > 0, 0.0, 1.0)
    for i in range(k):
        step = np.clip((tied_count - tied_true - i) / np.maximum(tied_count - i, 1), 0.0, 1.0)
        miss = np.where(i < slots, miss * step, miss)
    return 1.0 - miss, sure + slots * tied_true / tied_count


def count_distinct_top(scores: np.ndarray, k: int) -> int:
    """Counts the distinct sets of k highest labels of an (n, L) matrix; ties go to the earlier label."""
    k = min(k, scores.shape[1])
    top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)
    return len(np.unique(top, axis=0))


def checked(name: str, value: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns `value` as a float64 matrix of samples x labels with entries in [0, 1]; else raises `InputError`."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} of shape {array.shape} cannot be evaluated: samples x labels, at least one of each")
    if shape is not None and array.shape != shape:
        raise InputError(f"{name} of shape {array.shape} do not fit {shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise InputError(f"{name} are not all between 0 and 1")
    return array


def row_bce(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the binary cross-entropy in nats of each sample, the mean over labels: (n,), from (n, L) in [0, 1]."""
    p = np.clip(probabilities, EPSILON, 1 - EPSILON)
    return np.asarray(-(targets * np.log(p) + (1 - targets) * np.log1p(-p)).mean(axis=1))


def _per_sample(
    truth: np.ndarray, soft: np.ndarray, scores: np.ndarray, ks: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the metrics that are ratios of sums over samples, as numerators and denominators of shape (n,)."""
    ones = np.ones(len(truth))
    result = {"bce": (row_bce(soft, scores), ones)}
    for k in ks:
        result[f"top_{k}"] = (top_k_hits(truth, scores, k)[0], ones)
    hits = top_k_hits(truth, scores, RECALL_K)[1]
    relevant = truth.sum(axis=1)
    has_any = (relevant > 0).astype(np.float64)
    result[f"recall_at_{RECALL_K}"] = (hits / np.maximum(relevant, 1), has_any)
    result[f"recall_at_{RECALL_K}_public"] = (hits, RECALL_K * ones)
    return result
