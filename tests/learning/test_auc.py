"""AUC against scikit-learn and plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from raymotion.learning.metrics.auc import judged, macro_auc, roc_auc, weighed_auc

RATES = np.array([0.6, 0.4, 0.3, 0.15, 0.1, 0.05])


def sample(n: int = 150, skill: float = 0.5, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, len(RATES))) < RATES).astype(float)
    return targets, np.round(np.clip(skill * targets + (1 - skill) * rng.random(targets.shape), 0, 1), 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30))
def test_auc_with_ties_against_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    targets, scores = np.array([t for t, _ in rows]), np.array([s for _, s in rows], float)
    if targets.all() or not targets.any():
        assert np.isnan(roc_auc(targets, scores))
    else:
        assert roc_auc(targets, scores) == pytest.approx(roc_auc_score(targets, scores))


def test_macro_auc_and_its_interval() -> None:
    targets, p = sample(100, skill=0.3)
    metric, classes, intervals = macro_auc(targets, p, bootstrap=800)
    assert metric.value == pytest.approx(roc_auc_score(targets, p, average="macro"))
    assert metric.prior == metric.constant == 0.5 and metric.verdict == "better"
    rng, drawn = np.random.default_rng(9), []
    for _ in range(300):
        rows = rng.integers(0, 100, 100)
        drawn.append([roc_auc(targets[rows, j], p[rows, j]) for j in range(6)])
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    for j in range(5):  # the sixth has 4 positives: its ends are too rough to compare
        assert classes[j] == pytest.approx(roc_auc_score(targets[:, j], p[:, j]))
        assert intervals[j] == pytest.approx((low[j], high[j]), abs=0.03)
    ends = np.percentile(np.nanmean(drawn, axis=1), (2.5, 97.5))
    assert (metric.low, metric.high) == pytest.approx(ends, abs=0.015)


def test_a_constant_has_an_auc_of_one_half() -> None:
    targets, _ = sample()
    metric, classes, _ = macro_auc(targets, np.broadcast_to(RATES, targets.shape), bootstrap=20)
    assert metric.value == 0.5 and classes == [0.5] * 6 and metric.verdict == "unclear"
    none, _, _ = macro_auc(np.zeros((4, 2)), np.zeros((4, 2)), bootstrap=5)
    assert none.value is None and none.low is None


def test_labels_with_few_positives_or_negatives_are_not_judged() -> None:
    rng = np.random.default_rng(4)
    targets = np.zeros((40, 4))
    for column, positives in enumerate((9, 10, 30, 31)):
        targets[:positives, column] = 1
    p = rng.random((40, 4))
    assert judged(targets).tolist() == [False, True, True, False]
    metric, classes, _ = macro_auc(targets, p, bootstrap=200, fewest=10)
    assert metric.labels == 2 and metric.value == pytest.approx(roc_auc_score(targets[:, 1:3], p[:, 1:3]))
    assert metric.low is not None and metric.high is not None and metric.low < metric.value < metric.high
    assert classes[0] == pytest.approx(roc_auc_score(targets[:, 0], p[:, 0]))  # its own is told all the same
    none, _, _ = macro_auc(targets[:, :1], p[:, :1], bootstrap=20, fewest=10)
    assert (none.labels, none.value, none.low, none.prior, none.verdict) == (0, None, None, None, "unclear")


def test_persons_of_one_image_count_once() -> None:
    rng = np.random.default_rng(5)
    units = np.repeat(np.arange(20), 3)  # persons of images
    targets = np.zeros((60, 4))
    targets[:12, 0] = 1  # twelve persons of four images
    targets[::3, 1] = 1  # one of each image: others of the same image do not carry it
    targets[:30, 2] = 1
    targets[:48, 3] = 1  # twelve persons of four images do not carry it
    p = rng.random((60, 4))
    assert judged(targets).all()
    assert judged(targets, units).tolist() == [False, True, True, False]
    metric, _, _ = macro_auc(targets, p, bootstrap=20, units=units, fewest=10)
    expected = roc_auc_score(targets[:, 1:3], p[:, 1:3])
    assert metric.labels == 2 and metric.value == pytest.approx(expected)
    assert weighed_auc(targets, p, units)(np.ones((1, 20)))[0] == pytest.approx(expected)
