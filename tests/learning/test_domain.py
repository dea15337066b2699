"""The domain check against distributions whose AUC is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raymotion.errors import InputError
from raymotion.learning.domain import DomainSample, check_domain, domain_gap


def normal(n: int, seed: int, shift: float = 0.0, dim: int = 12) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(n, dim))
    values[:, 0] += shift
    return values


def sample(features: np.ndarray, **statistics: list[float]) -> DomainSample:
    own = {name: np.array(values, np.float32) for name, values in statistics.items()}
    return DomainSample(features.astype(np.float16), np.arange(len(features), dtype=np.int32), own)


@pytest.mark.parametrize("seed", range(3))
def test_two_samples_of_one_distribution_are_near(seed: int) -> None:
    gap = domain_gap(normal(500, 2 * seed), normal(300, 2 * seed + 1), seed=seed)
    assert gap.grade == "near" and gap.low <= 0.5 <= gap.high
    assert (gap.training_rows, gap.rows) == (500, 300)
    assert gap == domain_gap(normal(500, 2 * seed), normal(300, 2 * seed + 1), seed=seed), "not the same twice"


@pytest.mark.parametrize(("shift", "grade"), [(0.5, "near"), (1.5, "different"), (3.0, "far")])
def test_a_shift_has_the_auc_of_two_normal_distributions(shift: float, grade: str) -> None:
    gap = domain_gap(normal(500, 0), normal(500, 1, shift))
    known = 0.5 * (1 + math.erf(shift / 2))  # Phi(shift / sqrt 2)
    assert gap.grade == grade and gap.low - 0.02 < known < gap.high + 0.02


def test_the_limits_say_how_much_of_the_training_data_is_like_the_collection() -> None:
    far = normal(2000, 0, 12.0)
    for share in (0.2, 0.5):
        mixed = np.concatenate([normal(int(500 * share), 1), far[: int(500 * (1 - share))]])
        assert domain_gap(mixed, normal(500, 2)).auc == pytest.approx(1 - share / 2, abs=0.04)


def test_copies_in_one_group_are_not_held_out_from_each_other() -> None:
    training, alike = normal(60, 0, dim=40), np.repeat(normal(30, 1, dim=40), 8, axis=0)
    groups = np.concatenate([np.arange(60), 100 + np.repeat(np.arange(30), 8)])
    apart, together = domain_gap(training, alike), domain_gap(training, alike, groups)
    assert apart.low > 0.6 > together.auc and together.low < 0.5 < together.high
    assert together.high - together.low > apart.high - apart.low


def test_few_and_unequal_groups_still_make_folds() -> None:
    groups = np.concatenate([np.arange(60), np.repeat([100, 101], [1, 59])])
    gap = domain_gap(normal(60, 0), normal(60, 1, 9.0), groups)
    assert gap.grade == "far"
    assert domain_gap(normal(60, 0), normal(60, 1, 9.0), np.repeat([0, 1], 60)).grade == "far", "one group of each"


def test_features_that_never_vary_and_those_that_cannot_be_compared() -> None:
    assert domain_gap(np.ones((30, 4)), np.ones((30, 4))).auc == 0.5
    with pytest.raises(InputError, match="19 of the collection are too few"):
        domain_gap(normal(40, 0), normal(19, 1))
    with pytest.raises(InputError, match="cannot be compared"):
        domain_gap(normal(40, 0), normal(40, 1, dim=3))
    with pytest.raises(InputError, match="groups of shape"):
        domain_gap(normal(40, 0), normal(40, 1), np.arange(3))
    with pytest.raises(InputError, match="NaN"):
        domain_gap(normal(40, 0), np.full((40, 12), np.nan))


def test_the_line_and_the_statistics() -> None:
    training = sample(normal(100, 0), words=[10, 12, 14], unknown_words=[0, 0, 0.3], captions=[1, 1, math.nan])
    here = sample(normal(100, 1, 9.0), words=[5, 7], unknown_words=[0.5, 0.5])
    carryover = {"column": "source", "domains": {"a": {"auc": 0.6}, "b": {"auc": 0.7}}, "in_domain": {"auc": 0.71}}
    check = check_domain(training, here, carryover=carryover)
    assert check.headline == (
        "This collection is far from what the model learned from: a classifier tells them apart with AUC 1.00 (0.50: "
        "alike). Held out one domain at a time, the model ranked with AUC 0.65 (in its own domain 0.71; chance 0.50)."
    )
    assert [own[0] for own in check.statistics] == ["words of a caption", "share of unknown words (mean)"]
    assert [own[1:] for own in check.statistics] == [(12, 6), (pytest.approx(0.1), 0.5)]
    few = check_domain(training, sample(normal(7, 1), words=[5]), carryover={"domains": "none"})
    assert few.grade == "unknown" and "7 of the collection are too few" in few.headline and few.statistics


def test_a_collection_of_training_rows_is_told_in_words() -> None:
    rows = normal(100, 0, dim=60)
    check = check_domain(sample(rows), sample(rows))
    assert check.gap is not None and check.gap.auc < 0.45
    assert check.headline == (
        "This collection is like what the model learned from: a classifier tells them apart with AUC "
        f"{check.gap.auc:.2f} (below 0.50: as alike as rows of the training data themselves)."
    )
