"""The paired bootstrap that tells configurations apart, against plain resampling with scikit-learn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from raymotion.errors import InputError
from raymotion.learning.bootstrap import resample_counts
from raymotion.learning.paired import paired_map_gain


def runs(
    n: int = 90, width: int = 4, signal: float = 0.4, seed: int = 0, decimals: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, and two seeds each of a better and a worse model, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, width)) < np.linspace(0.5, 0.06, width)).astype(float)
    first = np.round((signal + 0.8) * truth + rng.normal(size=(2, n, width)), decimals)
    return truth, first, np.round(0.8 * truth + rng.normal(size=(2, n, width)), decimals)


def plain_map(truth: np.ndarray, scores: np.ndarray) -> float:
    known = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([average_precision_score(truth[:, j], scores[:, j]) for j in known]))


def test_against_plain_resampling_of_images() -> None:
    truth, first, second = runs()
    truth[:, 3] = 0
    truth[:2, 3] = 1  # in some resamples this label has no positive, and is left out of both
    image = np.repeat(np.arange(45), 2)[np.random.default_rng(1).permutation(90)]
    names = [f"emotic:{i}" for i in image]
    result = paired_map_gain(truth, first, second, groups=names, resamples=25, seed=5)
    expected = np.mean([plain_map(truth, a) - plain_map(truth, b) for a, b in zip(first, second, strict=True)])
    assert result.value == pytest.approx(expected)
    # The same draws, with the rows of each drawn image written out. Units are numbered as they first appear.
    order = list(dict.fromkeys(names))
    gains = []
    for counts in resample_counts(45, 25, 5, 25):
        for drawn in counts:
            rows = [
                i
                for g, times in enumerate(drawn)
                for i in np.flatnonzero(np.array(names) == order[g]).tolist() * int(times)
            ]
            gains.append(
                np.mean(
                    [
                        plain_map(truth[rows], a[rows]) - plain_map(truth[rows], b[rows])
                        for a, b in zip(first, second, strict=True)
                    ]
                )
            )
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(gains, (2.5, 97.5))))
    assert result.resamples == 25


def test_persons_of_one_image_are_not_independent() -> None:
    """Every row twice, in one group each: the interval is that of the single rows, and not narrower."""
    truth, first, second = runs()
    once = paired_map_gain(truth, first, second, resamples=400)
    twice = truth.repeat(2, axis=0), first.repeat(2, axis=1), second.repeat(2, axis=1)
    grouped = paired_map_gain(*twice, groups=np.arange(90).repeat(2), resamples=400)
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((once.value, once.low, once.high))
    ungrouped = paired_map_gain(*twice, resamples=400)
    assert ungrouped.high - ungrouped.low < 0.85 * (once.high - once.low)  # type: ignore[operator]


def test_ties_are_told_from_gains() -> None:
    """13.5: gaps of one seed were smaller than the noise, and the argmax was carried forward all the same."""
    truth, first, second = runs(400, signal=1.5)
    assert not paired_map_gain(truth, first, second).tied
    same = paired_map_gain(truth, second[0], second[1])
    assert same.tied
    itself = paired_map_gain(truth, first, first)
    assert (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0) and itself.tied
    backwards = paired_map_gain(truth, second, first)
    assert backwards.value is not None and backwards.value < 0
    # The order of the rows matters nothing to the value, the pairing does: unpaired noise is far wider.
    shifted = first + 0.05 * np.random.default_rng(0).normal(size=first.shape)
    near = paired_map_gain(truth, shifted, first)
    far = paired_map_gain(truth, first, second)
    assert near.high - near.low < 0.3 * (far.high - far.low)  # type: ignore[operator]


def test_nothing_to_compare_and_bad_input() -> None:
    truth, first, second = runs()
    nothing = paired_map_gain(0 * truth, first, second)
    assert nothing.value is None and nothing.tied
    with pytest.raises(InputError, match="do not fit targets"):
        paired_map_gain(truth, first[:, :5], second)
    with pytest.raises(InputError, match=r"groups of shape \(3,\) do not fit 90 samples"):
        paired_map_gain(truth, first, second, groups=["a", "b", "c"])
    with pytest.raises(InputError, match="not all finite"):
        paired_map_gain(truth, first * np.nan, second)


def test_the_size_of_emotics_validation_split_takes_seconds() -> None:
    truth, first, second = runs(3315, 26, decimals=6)
    three = np.concatenate([first, first[:1]]), np.concatenate([second, second[:1]])
    start = time.process_time()
    result = paired_map_gain(truth, *three, resamples=200)
    assert result.resamples == 200
    assert time.process_time() - start < 5  # a fifth of the 1,000: about 0.7 s on one core
