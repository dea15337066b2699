"""Calibration against scikit-learn, hand calculation, and samples whose true probabilities are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from raymotion.errors import InputError
from raymotion.learning.metrics.calibration import (
    calibrate,
    class_calibration_errors,
    decompose_brier,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)


def forecasts(n: int = 300, width: int = 6, skew: float = 1.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Targets and probabilities; the labels are true with probability ** skew."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 3, (n, width))
    return (rng.random(p.shape) < p**skew).astype(float), p


@pytest.mark.parametrize(("ours", "theirs"), [("width", "uniform"), ("mass", "quantile")])
def test_the_curve_is_that_of_scikit_learn(ours: str, theirs: str) -> None:
    targets, p = forecasts(skew=1.5)
    found = reliability(targets, p, strategy=ours, bins=8)  # type: ignore[arg-type]
    rate, mean = calibration_curve(targets.ravel(), p.ravel(), n_bins=8, strategy=theirs)
    np.testing.assert_allclose([b.rate for b in found], rate)
    np.testing.assert_allclose([b.mean_probability for b in found], mean)
    assert sum(b.count for b in found) == p.size
    gaps = np.abs(rate - mean)
    error = expected_calibration_error(targets, p, strategy=ours, bins=8)  # type: ignore[arg-type]
    assert error == pytest.approx(np.average(gaps, weights=[b.count for b in found]))
    assert maximum_calibration_error(targets, p, strategy=ours, bins=8) == pytest.approx(gaps.max())  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Four forecasts of 0.1, one of them true; six of 0.8, three of them true: |0.25-0.1| * 0.4 + |0.5-0.8| * 0.6."""
    p = np.array([0.1] * 4 + [0.8] * 6)
    targets = np.array([1, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert expected_calibration_error(targets, p) == pytest.approx(0.24)
    assert maximum_calibration_error(targets, p) == pytest.approx(0.3)
    # Equal mass with more bins than different values: equal values are never torn apart.
    assert [b.count for b in reliability(targets, p, strategy="mass", bins=7)] == [4, 6]
    # Miscalibration .4 * .15^2 + .6 * .3^2 = .063, resolution .4 * .15^2 + .6 * .1^2 = .015, uncertainty .4 * .6 = .24.
    parts = decompose_brier(targets, p)
    assert parts.miscalibration == pytest.approx(0.063)
    assert parts.resolution == pytest.approx(0.015)
    assert parts.uncertainty == pytest.approx(0.24)
    assert parts.within_bins == pytest.approx(0.0, abs=1e-12)
    assert parts.score == pytest.approx(brier_score_loss(targets, p)) == pytest.approx(0.063 - 0.015 + 0.24)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=40), st.integers(1, 12))
def test_bounds(rows: list[tuple[bool, int]], bins: int) -> None:
    targets, p = np.array([t for t, _ in rows], float), np.array([v / 20 for _, v in rows])
    for strategy in ("width", "mass"):
        found = reliability(targets, p, bins=bins, strategy=strategy)  # type: ignore[arg-type]
        assert sum(b.count for b in found) == len(rows)
        for b in found:
            assert b.low - 1e-12 <= b.mean_probability <= b.high + 1e-12
        ece = expected_calibration_error(targets, p, bins=bins, strategy=strategy)  # type: ignore[arg-type]
        mce = maximum_calibration_error(targets, p, bins=bins, strategy=strategy)  # type: ignore[arg-type]
        # No bin can be further off than all forecasts together are on average.
        assert abs(targets.mean() - p.mean()) - 1e-12 <= ece <= mce + 1e-12


def test_a_calibrated_model_has_the_error_that_luck_gives() -> None:
    """Over many small samples of a perfectly calibrated model; a skewed one is above it, beyond its interval."""
    found = [calibrate(*forecasts(60, seed=seed), prior=np.full(6, 0.25), bootstrap=0) for seed in range(40)]
    assert np.mean([s.error for s in found]) == pytest.approx(np.mean([s.by_luck for s in found]), rel=0.1)
    assert np.mean([s.class_error for s in found]) == pytest.approx(np.mean([s.class_by_luck for s in found]), rel=0.1)
    skewed = calibrate(*forecasts(300, skew=2.0), prior=np.full(6, 0.25), bootstrap=200)
    assert skewed.low is not None and skewed.low > 3 * skewed.by_luck
    assert skewed.class_low is not None and skewed.class_low > 2 * skewed.class_by_luck


def test_all_scores_are_those_of_the_plain_functions() -> None:
    targets, p = forecasts(200, skew=1.4)
    prior = targets.mean(axis=0)
    for strategy in ("width", "mass"):
        found = calibrate(targets, p, prior=prior, bins=7, strategy=strategy, bootstrap=150)  # type: ignore[arg-type]
        assert found.error == pytest.approx(expected_calibration_error(targets, p, bins=7, strategy=strategy))  # type: ignore[arg-type]
        own = class_calibration_errors(targets, p, bins=7, strategy=strategy)  # type: ignore[arg-type]
        assert found.class_error == pytest.approx(own.mean())
        assert own[2] == pytest.approx(
            expected_calibration_error(targets[:, 2], p[:, 2], bins=7, strategy=strategy)  # type: ignore[arg-type]
        )
        assert found.class_prior == pytest.approx(0.0, abs=1e-12), "its own rates are calibrated, and know nothing"
        # The interval by resampling rows in the plainest way, bins of the whole sample, centred.
        rng = np.random.default_rng(5)
        edges = [found.curve[0].low, *(b.high for b in found.curve)]
        place = np.clip(np.searchsorted(edges[1:-1], p), 0, len(found.curve) - 1)
        drawn = []
        for _ in range(300):
            rows = rng.integers(0, 200, 200)
            gap = (targets - p)[rows]
            drawn.append(sum(abs(gap[place[rows] == b].sum()) for b in range(len(found.curve))) / p.size)
        low, high = np.percentile(drawn - np.mean(drawn) + found.error, (2.5, 97.5))
        assert found.low == pytest.approx(max(low, 0), abs=0.006) and found.high == pytest.approx(high, abs=0.006)


def test_the_band_of_a_bin_is_that_of_its_rate() -> None:
    """One forecast a sample: the normal approximation of a share."""
    rng = np.random.default_rng(0)
    p = np.repeat([0.25, 0.75], 400)[:, None]
    targets = (rng.random(p.shape) < p).astype(float)
    for b in reliability(targets, p, bootstrap=1000):
        half = 1.96 * np.sqrt(b.rate * (1 - b.rate) / b.count)
        assert b.rate_low == pytest.approx(b.rate - half, abs=0.008)
        assert b.rate_high == pytest.approx(b.rate + half, abs=0.008)


@pytest.mark.parametrize(
    ("targets", "p", "more", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 2)), {}, r"\(2, 3\) do not fit probabilities of shape \(2, 2\)"),
        (np.ones((0, 3)), np.ones((0, 3)), {}, "have no calibration"),
        (np.ones(2), np.array([0.5, 1.5]), {}, "probabilities are not all between 0 and 1"),
        (np.ones(2), np.array([0.5, np.nan]), {}, "probabilities are not all between 0 and 1"),
        (np.ones(2), np.ones(2), {"bins": 0}, "0 bins are too few"),
        (np.ones(2), np.ones(2), {"strategy": "depth"}, "'depth' is not known|'depth' are not known"),
    ],
)
def test_bad_input(targets: np.ndarray, p: np.ndarray, more: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reliability(targets, p, **more)
