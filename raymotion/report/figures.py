"""Computes the numbers behind a report's charts and cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.batch.label_dataset import LabelledSet
from raymotion.learning.collapse import label_sets
from raymotion.learning.metrics.multilabel import Evaluation, averages, interval_text, metric_text, row_title
from raymotion.text_table import table_lines


@dataclass(frozen=True)
class ClassRate:
    """A label's share of the selected images, its mean probability, and its rates in training and in the collection.

    Attributes:
        estimated: the rate in the collection, by which labels were chosen (`--adapt-rates`), else that by which rows
            were (`--policy uncertain`), or None.
        error: its standard error, or None.
    """

    label: str
    chosen: float
    mean_probability: float
    prior: float | None
    estimated: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins between `low` and `high`."""

    counts: list[int]
    low: float
    high: float
    median: float
    prior: float | None


def metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns one row of texts per metric, for a table on a page or a terminal."""
    rows, averaged = [], averages(evaluation)
    for name, metric in evaluation.metrics.items():
        rows.append(
            {
                "name": row_title(name, metric) + (", mean" if name in averaged else ""),
                "value": metric_text(metric.value),
                "interval": interval_text(metric.low, metric.high),
                "constant": metric_text(metric.constant),
                "prior": metric_text(metric.prior),
                "prior_title": prior_title(evaluation),
                "samples": f"{metric.samples:,}",
                "verdict": metric.verdict,
            }
        )
    return rows


def prior_title(evaluation: Evaluation) -> str:
    """Returns the name of the baseline from the training split: of numbers it is their mean."""
    return "training mean" if "ccc" in evaluation.metrics else "class prior"


def metric_lines(evaluation: Evaluation, title: str = "metric") -> list[str]:
    """Formats all metrics with their baselines as a table for a terminal."""
    heads = (title, "value", "95 % interval", prior_title(evaluation), "constant", "samples", "against both")
    names = ("name", "value", "interval", "prior", "constant", "samples", "verdict")
    rows = [[row[name] for name in names] for row in metric_rows(evaluation)]
    return table_lines(heads, rows, left=(0, len(heads) - 1))


def class_rates(labelled: LabelledSet) -> list[ClassRate]:
    """Returns the rates of all labels, the most often chosen first."""
    chosen = labelled.mask[labelled.selected]
    shares = chosen.mean(axis=0) if len(chosen) else np.zeros(len(labelled.vocabulary))
    means = labelled.probabilities.mean(axis=0, dtype=np.float64) if len(labelled) else np.zeros_like(shares)
    order = np.lexsort((-means, -shares))
    prior = labelled.prior
    rates = "rates" if chosen_by_rates(labelled) else "uncertainty_rates"
    estimated, errors = (_numbers(labelled, "choice", rates, name) for name in ("estimated", "errors"))
    return [
        ClassRate(
            labelled.vocabulary.labels[j],
            float(shares[j]),
            float(means[j]),
            None if prior is None else float(prior[j]),
            estimated[j],
            errors[j],
        )
        for j in order.tolist()
    ]


def chosen_by_rates(labelled: LabelledSet) -> bool:
    """Returns whether the labels themselves were chosen by estimated rates (`--adapt-rates`)."""
    return labelled.recorded("choice", "rates") is not None


def _numbers(labelled: LabelledSet, *keys: str) -> list[float | None]:
    """Returns one recorded number for each label; None for those that are not recorded."""
    values = labelled.recorded(*keys)
    if not isinstance(values, list) or len(values) != len(labelled.vocabulary):
        return [None] * len(labelled.vocabulary)
    return [float(value) if isinstance(value, int | float) else None for value in values]


def entropy_histogram(labelled: LabelledSet, entropy: np.ndarray, bins: int = 24) -> Histogram | None:
    """Computes a histogram of the predictions' entropy (`LabelledSet.entropy`); None without images."""
    if len(entropy) == 0:
        return None
    prior = None
    if labelled.prior is not None:
        prior = float(labelled.entropy(labelled.prior[None])[0])
    # Rounded up to a multiple of 0.05, so that the ends of the axis are short numbers.
    high = float(np.ceil(max(entropy.max(), prior or 0.0, 0.05) * 20) / 20)
    counts, _ = np.histogram(entropy, bins=bins, range=(0.0, high))
    return Histogram(counts.tolist(), 0.0, high, float(np.median(entropy)), prior)


def common_sets(labelled: LabelledSet, shown: int = 5) -> tuple[int, list[tuple[str, int, float]]]:
    """Returns the number of distinct label sets of the selected images, and the most common: names, count, share."""
    sets, counts = label_sets(labelled.mask[labelled.selected])
    total = max(int(counts.sum()), 1)
    rows = [
        (", ".join(labelled.vocabulary.decode(np.flatnonzero(row).tolist())) or "no label", int(count), count / total)
        for row, count in zip(sets[:shown], counts[:shown], strict=True)
    ]
    return len(sets), rows


def pick_samples(entropy: np.ndarray, shown: int, seed: int) -> list[tuple[int, str]]:
    """Selects rows to show, with the reason: a third each of least and most certain predictions, the rest at random.

    Args:
        entropy: (n,) of the predictions. No row is shown twice.
    """
    third = min(shown, len(entropy)) // 3
    order = np.argsort(entropy, kind="stable").tolist()
    sure, unsure = order[:third], order[::-1][:third]
    rest = np.array(sorted(set(order) - set(sure) - set(unsure)), dtype=np.int64)
    count = min(shown - 2 * third, len(rest))
    drawn = np.random.default_rng(seed).choice(rest, size=count, replace=False).tolist() if count > 0 else []
    return (
        [(i, "picked at random") for i in sorted(drawn)]
        + [(i, "among the most certain") for i in sure]
        + [(i, "among the least certain") for i in unsure]
    )
