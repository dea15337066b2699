"""The EMOTIC authors' interpolated average precision, by hand and against a plain VOCap; chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from raymotion.data.readers.emotic.report import SplitReport
from raymotion.learning.metrics.average_precision import (
    chance_map,
    interpolated_average_precision,
    interpolated_by_class,
)


def voc_ap(truth: np.ndarray, scores: np.ndarray) -> float:
    """The development kit's VOCap, line by line; for scores without ties."""
    hit = truth[np.argsort(-scores)] > 0
    recall = np.cumsum(hit) / hit.sum()
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def test_by_hand() -> None:
    # Ranked: + - - + +, precision 1, 1/2, 1/3, 2/4, 3/5; its maximum from there on 1, 3/5, 3/5, 3/5, 3/5.
    truth, scores = np.array([1, 0, 0, 1, 1]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert interpolated_average_precision(truth, scores) == pytest.approx((1 + 0.6 + 0.6) / 3)
    assert average_precision_score(truth, scores) == pytest.approx((1 + 0.5 + 0.6) / 3)
    both = interpolated_by_class(np.stack([truth, 0 * truth], axis=1), np.stack([scores, scores], axis=1))
    assert both[0] == pytest.approx(2.2 / 3) and np.isnan(both[1])


def test_ties_have_one_value_whatever_the_order_of_the_rows() -> None:
    """Section 9: the authors break ties by noise of 1e-10, so that a constant score has another AP each time."""
    rng = np.random.default_rng(0)
    truth, scores = (rng.random(60) < 0.2) * 1, rng.integers(0, 4, 60) / 4
    values = set()
    for _ in range(5):
        order = rng.permutation(60)
        values.add(round(interpolated_average_precision(truth[order], scores[order]), 12))
    assert len(values) == 1
    assert interpolated_average_precision(truth, np.ones(60)) == pytest.approx(truth.mean())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=1, max_size=25), st.booleans())
def test_against_the_development_kit_and_never_below_scikit_learn(rows: list[tuple[bool, int]], ties: bool) -> None:
    truth, scores = np.array([int(t) for t, _ in rows]), np.array([float(s) for _, s in rows])
    if not ties:
        scores = np.random.default_rng(0).permutation(len(rows)) + 0.0
    value = interpolated_average_precision(truth, scores)
    if truth.sum() == 0:
        assert np.isnan(value)
        return
    assert value >= average_precision_score(truth, scores) - 1e-12
    assert value <= 1 + 1e-12
    if not ties:
        assert value == pytest.approx(voc_ap(truth, scores))


def test_chance_is_the_map_of_one_score_for_all_and_the_same_wherever_it_is_told() -> None:
    """A label without a positive has no AP, so it does not lower chance: a report on a small split once said less."""
    truth = (np.random.default_rng(0).random((200, 26)) < np.linspace(0, 0.3, 26)) * 1
    present = np.flatnonzero(truth.sum(axis=0))
    assert 0 < len(present) < 26
    expected = np.mean([average_precision_score(truth[:, j], np.ones(200)) for j in present])
    assert chance_map(truth.mean(axis=0)) == pytest.approx(expected)
    report = SplitReport(labelled=200, positives=truth.sum(axis=0).tolist())
    assert report.chance_map == pytest.approx(expected)
    assert chance_map([0.0, 0.0]) == SplitReport().chance_map == 0.0
