"""Scores of numbers and of labels on test: their intervals against resampled rows, their baselines by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from raymotion.learning.bootstrap import resample_counts, sampling_units
from raymotion.models.outputs.base import DataFacts, Output, Targets
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.training_set import TrainingSet
from raymotion.study.record import Metric
from raymotion.study.score import BOOTSTRAP, score_test
from raymotion.vocabulary import VALENCE_3

ROWS, SEEDS = 60, 3
NUMBERS = Dimensions(("valence", "arousal"), scale=(1.0, 9.0))
EMOTIONS = MultiLabel(VALENCE_3)
RNG = np.random.default_rng(0)


def numbers() -> tuple[Targets, np.ndarray]:
    truth = RNG.uniform(1, 9, (ROWS, 2)).astype(np.float32)
    said = (0.6 * truth + RNG.normal(2, 1, (SEEDS, ROWS, 2))).astype(np.float32)
    truth[::7, 1] = np.nan
    return Targets({"values": truth}, np.ones(ROWS, dtype=bool)), said


def labels() -> tuple[Targets, np.ndarray]:
    hard = (RNG.random((ROWS, 3)) < 0.3).astype(np.float32)
    said = np.clip(0.3 + 0.3 * hard + RNG.normal(0, 0.2, (SEEDS, ROWS, 3)), 0.01, 0.99).astype(np.float32)
    return Targets({"hard": hard, "soft": hard}, np.ones(ROWS, dtype=bool)), said


GIVEN: dict[str, tuple[Output, Targets, np.ndarray]] = {
    "numbers": (NUMBERS, *numbers()), "labels": (EMOTIONS, *labels())
}  # fmt: skip


def of_columns(measure: Any) -> Any:
    """A metric of numbers, the mean over the dimensions, of what is known."""

    def mean(output: Output, targets: Targets, rows: np.ndarray, values: np.ndarray) -> float:
        truth = targets.arrays["values"][rows]
        known = ~np.isnan(truth)
        return float(np.mean([measure(truth[known[:, j], j], values[known[:, j], j]) for j in range(2)]))

    return mean


def of_labels(measure: Any) -> Any:
    return lambda output, targets, rows, values: measure(targets.arrays["hard"][rows], values)


FIGURES: dict[str, Any] = {
    "mae": of_columns(mean_absolute_error),
    "rmse": of_columns(root_mean_squared_error),
    "r2": of_columns(r2_score),
    "pearson": of_columns(lambda y, p: stats.pearsonr(y, p).statistic),
    "ccc": of_columns(lambda y, p: ccc(y, p)),
    "bce": of_labels(lambda y, p: np.mean([log_loss(y[:, j], p[:, j], labels=[0, 1]) for j in range(3)])),
    "macro_ap": of_labels(lambda y, p: average_precision_score(y, p, average="macro")),
}


@pytest.mark.parametrize(("of", "metric"), [(of, name) for of in GIVEN for name in GIVEN[of][0].metric_names])
def test_a_weight_is_a_row_that_stands_there_as_often(of: str, metric: str) -> None:
    """Of some rows of a table, drawn by image: the metric of the repeated rows."""
    output, targets, said = GIVEN[of]
    rows = np.arange(10, 50)
    units = sampling_units([f"g{i // 2}" for i in range(40)], 40)
    weighed = output.weighed(metric, targets, rows, said[0, rows], units)
    counts = next(iter(resample_counts(20, 5, 1, 5)))
    repeated = [np.repeat(rows, own.astype(int)[units]) for own in counts]
    expected = [FIGURES[metric](output, targets, some, said[0, some]) for some in repeated]
    assert weighed(counts) == pytest.approx(expected, abs=1e-6)
    assert [output.metrics(targets, some, said[0, some])[metric] for some in repeated] == pytest.approx(
        expected, abs=1e-6
    )
    assert weighed(np.ones((1, 20)))[0] == pytest.approx(output.metrics(targets, rows, said[0, rows])[metric], abs=1e-6)


def test_what_is_constant_or_not_known_has_no_correlation_and_no_nan() -> None:
    truth = np.array([[3.3, np.nan], [3.3, np.nan], [3.3, np.nan]], dtype=np.float32)
    targets = Targets({"values": truth}, np.ones(3, dtype=bool))
    found = NUMBERS.metrics(targets, np.arange(3), np.full((3, 2), 2.3, dtype=np.float32))
    assert found == pytest.approx({"r2": 0, "mae": 1, "rmse": 1, "pearson": 0, "ccc": 0}, abs=1e-6)
    nothing = Targets({"values": truth * np.nan}, np.zeros(3, dtype=bool))
    assert set(NUMBERS.metrics(nothing, np.arange(3), np.ones((3, 2))).values()) == {0.0}
    assert np.isnan(NUMBERS.weighed("mae", targets, np.arange(3), np.ones((3, 2)), np.arange(3))(np.zeros((1, 3)))[0])


def ccc(y: np.ndarray, p: np.ndarray) -> float:
    return float(2 * np.cov(y, p, bias=True)[0, 1] / (y.var() + p.var() + (y.mean() - p.mean()) ** 2))


def data_of(output: Output, targets: Targets, said: np.ndarray) -> TrainingSet:
    """Twenty rows each to train, to validate and to test; two to an image."""
    splits = {name: np.arange(20) + 20 * i for i, name in enumerate(("train", "val", "test"))}
    groups = [f"g{i // 2}" for i in range(ROWS)]
    made: dict[str, Any] = {"inputs": {}, "targets": {output.name: targets}, "facts": DataFacts(), "counts": {}}
    return TrainingSet(sample_ids=[f"s{i}" for i in range(ROWS)], groups=groups, splits=splits, **made)


@pytest.mark.parametrize("metric", ["ccc", "mae"])
def test_the_interval_of_numbers_is_that_of_the_mean_over_seeds(metric: str) -> None:
    """Found by a reader: it was the first seed's, moved. Each resample has all seeds' scores."""
    output, targets, said = GIVEN["numbers"]
    data = data_of(output, targets, said)
    truth, test = targets.arrays["values"][40:], said[:, 40:]
    measure = ccc if metric == "ccc" else lambda y, p: float(np.abs(y - p).mean())

    def mean_of(rows: np.ndarray, seeds: np.ndarray) -> list[float]:
        """The mean over the dimensions, of what is known, for each seed."""
        known = [rows[~np.isnan(truth[rows, j])] for j in range(2)]
        return [
            float(np.mean([measure(truth[some, j], own[some, j]) for j, some in enumerate(known)])) for own in seeds
        ]

    own = Metric(name=metric, title=metric, higher_is_better=metric == "ccc")
    found = score_test("s", "k", {}, test, said[:, 20:40], data, output, own, seed=3)
    by_seed = mean_of(np.arange(20), test)
    assert found.score.seeds == pytest.approx(by_seed, abs=1e-6) and found.score.mean == pytest.approx(np.mean(by_seed))
    drawn = []
    for counts in resample_counts(10, BOOTSTRAP, 3, BOOTSTRAP):
        for times in counts.astype(int):
            drawn.append(np.mean(mean_of(np.repeat(np.arange(20), np.repeat(times, 2)), test)))
    assert (found.score.low, found.score.high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))), abs=1e-5)
    assert found.score.resamples == BOOTSTRAP and found.per_class == [] and found.interpolated is None
    mean = np.nanmean(targets.arrays["values"][:20], axis=0)
    expected = 0.0 if metric == "ccc" else mean_of(np.arange(20), np.broadcast_to(mean, (1, 20, 2)))[0]
    assert found.baseline == pytest.approx(expected, abs=1e-5)


def test_the_output_and_its_metric_may_share_a_column_with_another() -> None:
    """Of a second output the history's column has the output's name before the metric's."""
    output, targets, said = GIVEN["numbers"]
    data = data_of(output, targets, said)
    second = Metric(name="vad_pearson", title="r", higher_is_better=True)
    found = score_test("s", "k", {}, said[:1, 40:], said[:1, 20:40], data, output, second)
    truth = targets.arrays["values"][40:]
    known = ~np.isnan(truth[:, 1])
    expected = [
        stats.pearsonr(truth[:, 0], said[0, 40:, 0]).statistic,
        stats.pearsonr(truth[known, 1], said[0, 40:, 1][known]).statistic,
    ]
    assert found.score.mean == pytest.approx(np.mean(expected), abs=1e-6) and found.score.sd is None
