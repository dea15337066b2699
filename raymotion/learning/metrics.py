"""Multi-label metrics, each beside the baselines that it has to beat.

A number alone says little: on Socratis, answering "happy" for every image is right 67 % of the time. So `evaluate`
gives every metric with its 95 % bootstrap interval, with the same metric of two predictors that never look at an image,
and with the interval of the paired difference to each of them.

* `prior`: the class rates of the *training* split, predicted for every image.
* `constant`: a predictor of this kind that knows the evaluated split. For the BCE it predicts that split's own class
  rates: no constant has a lower one. For top-k and recall it ranks the classes by that split's own rates, as the
  published Socratis constants do: no constant has a higher top-1 or public recall. For average precision it ranks
  nothing: chance, which is the prevalence. (Micro AP has the harder baseline in `prior`, which ranks the classes.)

Ties never pay. Where labels of one image have the same probability across the k-th place, top-k and recall take the
expected value over a random order of them; average precision treats equal scores as one step, as scikit-learn does.

Nor does the luck of small samples. A random order of few positives has an average precision above the prevalence: 0.047
for 5 positives among 207, which is 0.024. So the gain of average precision is counted from the exact expectation of a
random order, and its intervals are centred on the value, because resampling repeats positives and so inflates it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.average_precision import class_ranking_ap, random_order_ap, ranking, weighted_ap

# Probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm: one certain and wrong answer costs 16.1 nats.
EPSILON = 1e-7

# Average precision is sorted sums over samples x labels x resamples: about two seconds for this many of them.
AP_BUDGET = 60_000_000
AP_MIN_RESAMPLES = 50

RECALL_K = 3

METRIC_TITLES = {
    "bce": "BCE, nats (lower is better)",
    "micro_ap": "Micro AP",
    "macro_ap": "Macro AP (mAP)",
    "recall_at_3": "Recall@3",
    "recall_at_3_public": "Recall@3, hits / 3n",
}


def metric_title(name: str) -> str:
    """A metric's name for people; `top_2` is "Top-2 accuracy"."""
    top_k = f"Top-{name.removeprefix('top_')} accuracy" if name.startswith("top_") else name
    return METRIC_TITLES.get(name, top_k)


def metric_text(value: float | None) -> str:
    """A metric's value for people."""
    return "undefined" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Metric:
    """One metric of one set of predictions.

    Attributes:
        value: None where it is not defined (average precision without a positive).
        low, high: ends of the 95 % percentile bootstrap interval over samples.
        prior, constant: the same metric of the two baselines.
        prior_gain, constant_gain: 95 % interval of the improvement over that baseline, on the same resamples; positive
            is better, whichever way the metric points. For average precision, chance is a random order of the samples.
        samples: how many samples the value is a mean over.
        resamples: how many bootstrap resamples the intervals come from.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    prior: float | None
    constant: float | None
    prior_gain: tuple[float, float] | None
    constant_gain: tuple[float, float] | None
    higher_is_better: bool
    samples: int
    resamples: int

    @property
    def verdict(self) -> str:
        """`better`: the whole interval lies above both baselines; `worse`: below one of them; `unclear`: neither."""
        gains = [gain for gain in (self.prior_gain, self.constant_gain) if gain is not None]
        if not gains:
            return "unclear"
        if all(low > 0 for low, _ in gains):
            return "better"
        return "worse" if any(high < 0 for _, high in gains) else "unclear"


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class; None where no sample of the split carries it."""

    label: str
    average_precision: float | None
    prevalence: float
    positives: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `to_dict` is JSON without NaN.

    Attributes:
        classes_left_out: classes without a positive, which `macro_ap` leaves out.
        distinct_top3: how many different sets of three highest labels were predicted; 1 is a constant answer.
    """

    samples: int
    metrics: dict[str, Metric]
    per_class: list[ClassScore]
    classes_left_out: int
    distinct_top3: int
    seed: int = 0

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        result = asdict(self)
        for metric in result["metrics"].values():
            for gain in ("prior_gain", "constant_gain"):
                metric[gain] = None if metric[gain] is None else list(metric[gain])
        return result

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: object = None) -> Evaluation:
        """Reads `to_dict`'s form; anything else is an `InputError`."""
        try:
            metrics = {name: _metric_from(entry) for name, entry in value["metrics"].items()}
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
) -> Evaluation:
    """All metrics of `probabilities` against `targets`, with intervals and baselines.

    Args:
        targets: (n, L) of 0 and 1, for everything that ranks.
        probabilities: (n, L) in [0, 1].
        prior: (L,) class rates of the training split, of the kind of target that the BCE is measured with.
        labels: the L names, in order.
        ks: for top-k accuracy, the share of images with at least one true label among the k highest.
        bootstrap: resamples of the intervals; average precision uses fewer on large splits (see `Metric.resamples`).
        soft_targets: (n, L) in [0, 1], shares of annotators; if given, the BCE is measured against these.

    Metrics: `bce` (mean over samples and labels, nats), `micro_ap`, `macro_ap` (mAP), `top_{k}`, `recall_at_3` (true
    labels among the three highest / true labels, mean over samples that have any) and `recall_at_3_public` (all hits /
    3n, as the public Socratis system counts it: its ceiling is below 1).

    Raises:
        InputError: shapes that do not fit, no samples, values that are not finite or outside [0, 1].
    """
    truth = _checked("targets", targets)
    scores = _checked("probabilities", probabilities, shape=truth.shape)
    soft = truth if soft_targets is None else _checked("soft targets", soft_targets, shape=truth.shape)
    if not np.isin(truth, (0.0, 1.0)).all():
        raise InputError("targets for ranking metrics are 0 or 1", remedy="Give shares of annotators as soft_targets.")
    n, width = truth.shape
    if len(labels) != width:
        raise InputError(f"{len(labels)} labels, but the targets have {width} columns")
    rates = _checked("prior", np.asarray(prior, dtype=np.float64).reshape(1, -1), shape=(1, width))[0]

    own_rates = truth.mean(axis=0)
    columns = _per_sample(truth, soft, scores, ks)
    of_prior = _per_sample(truth, soft, np.broadcast_to(rates, truth.shape), ks)
    of_constant = _per_sample(truth, soft, np.broadcast_to(own_rates, truth.shape), ks)
    # The lowest BCE of any constant is that of the rates of the very targets it is measured with.
    of_constant["bce"] = (_row_bce(soft, np.broadcast_to(soft.mean(axis=0), soft.shape)), np.ones(n))

    metrics = _bootstrap_means(columns, of_prior, of_constant, resamples=bootstrap, seed=seed)
    micro, macro, class_ap = _bootstrap_ap(truth, scores, rates, resamples=bootstrap, seed=seed)
    metrics = {"bce": metrics.pop("bce"), "micro_ap": micro, "macro_ap": macro, **metrics}
    positives = truth.sum(axis=0).astype(int)
    return Evaluation(
        samples=n,
        metrics=metrics,
        per_class=[
            ClassScore(str(labels[j]), _finite(class_ap[j]), float(own_rates[j]), int(positives[j]))
            for j in range(width)
        ],
        classes_left_out=int((positives == 0).sum()),
        distinct_top3=count_distinct_top(scores, RECALL_K),
        seed=seed,
    )


def bce(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Binary cross-entropy in nats, mean over the samples and labels of two (n, L) arrays."""
    return float(_row_bce(np.asarray(targets, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)).mean())


def top_k_hits(targets: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each sample the chance that a true label is among its k highest, and the expected number of them: both (n,).

    Without ties at the k-th place these are 0 or 1 and a whole number. With ties it is the expectation over a random
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
    """How many different sets of k highest labels an (n, L) matrix has; ties go to the earlier label."""
    k = min(k, scores.shape[1])
    top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)
    return len(np.unique(top, axis=0))


def _metric_from(entry: Mapping[str, Any]) -> Metric:
    gains = {name: tuple(entry[name]) if entry[name] else None for name in ("prior_gain", "constant_gain")}
    return Metric(**{**entry, **gains})


def _checked(name: str, value: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} of shape {array.shape} can not be evaluated: samples x labels, at least one of each")
    if shape is not None and array.shape != shape:
        raise InputError(f"{name} of shape {array.shape} do not fit {shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise InputError(f"{name} are not all between 0 and 1")
    return array


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _row_bce(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(probabilities, EPSILON, 1 - EPSILON)
    return np.asarray(-(targets * np.log(p) + (1 - targets) * np.log1p(-p)).mean(axis=1))


def _per_sample(
    truth: np.ndarray, soft: np.ndarray, scores: np.ndarray, ks: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every metric that is a ratio of sums over samples, as numerators and denominators of shape (n,)."""
    ones = np.ones(len(truth))
    result = {"bce": (_row_bce(soft, scores), ones)}
    for k in ks:
        result[f"top_{k}"] = (top_k_hits(truth, scores, k)[0], ones)
    hits = top_k_hits(truth, scores, RECALL_K)[1]
    relevant = truth.sum(axis=1)
    has_any = (relevant > 0).astype(np.float64)
    result[f"recall_at_{RECALL_K}"] = (hits / np.maximum(relevant, 1), has_any)
    result[f"recall_at_{RECALL_K}_public"] = (hits, RECALL_K * ones)
    return result


def _resample_counts(n: int, resamples: int, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """How often each of n samples is drawn, in blocks (up to `chunk`, n): resampling as weights, without copies."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _centred(values: np.ndarray, point: float) -> np.ndarray:
    known = values[np.isfinite(values)]
    return values if known.size == 0 else values - known.mean() + point


def _metric(
    name: str,
    values: tuple[float, float, float],
    resampled: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    higher_is_better: bool,
    samples: int,
    chance: tuple[float, float] | None = None,
) -> Metric:
    """A `Metric` from (own, prior, constant) values and their values on the same resamples.

    Args:
        chance: what the gains over both baselines are counted from, if not from the baselines themselves; the intervals
            are then centred on the values.
    """
    own, of_prior, of_constant = resampled
    sign = 1.0 if higher_is_better else -1.0
    gains = [sign * (own - of_prior), sign * (own - of_constant)]
    if chance is not None:
        own = np.clip(_centred(own, values[0]), 0.0, 1.0)
        gains = [_centred(gain, values[0] - base) for gain, base in zip(gains, chance, strict=True)]
    interval = _interval(own)
    return Metric(
        name=name,
        value=_finite(values[0]),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        prior=_finite(values[1]),
        constant=_finite(values[2]),
        prior_gain=_interval(gains[0]),
        constant_gain=_interval(gains[1]),
        higher_is_better=higher_is_better,
        samples=samples,
        resamples=len(own),
    )


def _bootstrap_means(
    columns: dict[str, tuple[np.ndarray, np.ndarray]],
    of_prior: dict[str, tuple[np.ndarray, np.ndarray]],
    of_constant: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Metric]:
    names = list(columns)
    numerators = np.stack([source[name][0] for name in names for source in (columns, of_prior, of_constant)], axis=1)
    denominators = np.stack([columns[name][1] for name in names for _ in range(3)], axis=1)

    def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)

    n = len(numerators)
    points = ratio(numerators.sum(axis=0), denominators.sum(axis=0))
    blocks = [
        ratio(counts @ numerators, counts @ denominators)
        for counts in _resample_counts(n, resamples, seed, chunk=max(1, 2_000_000 // n))
    ]
    drawn = np.concatenate(blocks) if blocks else np.empty((0, numerators.shape[1]))
    result = {}
    for i, name in enumerate(names):
        a, b, c = 3 * i, 3 * i + 1, 3 * i + 2
        result[name] = _metric(
            name,
            (points[a], points[b], points[c]),
            (drawn[:, a], drawn[:, b], drawn[:, c]),
            higher_is_better=name != "bce",
            samples=int((columns[name][1] > 0).sum()),
        )
    return result


def _row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not NaN; NaN for a row of nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _bootstrap_ap(
    truth: np.ndarray, scores: np.ndarray, prior: np.ndarray, *, resamples: int, seed: int
) -> tuple[Metric, Metric, np.ndarray]:
    n, width = truth.shape
    resamples = min(resamples, max(AP_MIN_RESAMPLES, AP_BUDGET // (n * width)))
    class_rankings = [ranking(scores[:, j]) for j in range(width)]
    class_true = [truth[order, j] > 0 for j, (order, _) in enumerate(class_rankings)]
    flat_order, flat_ends = ranking(scores.ravel())
    flat_true, flat_rows = truth.ravel()[flat_order] > 0, flat_order // width
    prior_ap = class_ranking_ap(prior)

    def measure(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of (micro, its prior, chance, macro, its two baselines), and class AP (B, L)."""
        positives, totals = weights @ truth, weights.sum(axis=1)
        by_class = np.stack(
            [
                weighted_ap(true, ends, weights[:, order])
                for true, (order, ends) in zip(class_true, class_rankings, strict=True)
            ],
            axis=1,
        )
        micro = weighted_ap(flat_true, flat_ends, weights[:, flat_rows])
        prevalence = np.where(positives > 0, positives / totals[:, None], np.nan)
        # Within one class a constant score ranks nothing: both baselines are at chance.
        chance = _row_mean(prevalence)
        overall = positives.sum(axis=1) / (totals * width)
        both = (micro, prior_ap(positives, totals), overall, _row_mean(by_class), chance, chance)
        return np.stack(both, axis=1), by_class

    point, class_ap = measure(np.ones((1, n)))
    chunk = max(1, 500_000 // (n * width))
    blocks = [measure(counts)[0] for counts in _resample_counts(n, resamples, seed, chunk)]
    drawn = np.concatenate(blocks) if blocks else np.empty((0, 6))
    positives = truth.sum(axis=0)
    by_luck = np.array([random_order_ap(ends, m, n) for (_, ends), m in zip(class_rankings, positives, strict=True)])
    macro_luck = float(_row_mean(by_luck[None])[0])
    micro_luck = random_order_ap(flat_ends, float(positives.sum()), n * width)
    micro, macro = (
        _metric(
            name,
            (point[0, i], point[0, i + 1], point[0, i + 2]),
            (drawn[:, i], drawn[:, i + 1], drawn[:, i + 2]),
            higher_is_better=True,
            samples=n,
            chance=chance,
        )
        for name, i, chance in (
            ("micro_ap", 0, (point[0, 1], micro_luck)),
            ("macro_ap", 3, (macro_luck, macro_luck)),
        )
    )
    return micro, macro, class_ap[0]
