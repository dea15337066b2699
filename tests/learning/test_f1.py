"""F1 against scikit-learn, and its baselines against trying every fixed answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from raymotion.errors import InputError
from raymotion.learning.metrics.f1 import best_constant_set, f1_scores

RATES = np.array([0.6, 0.4, 0.3, 0.15, 0.1, 0.05])


def sample(n: int = 150, skill: float = 0.5, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, len(RATES))) < RATES).astype(float)
    return targets, np.round(np.clip(skill * targets + (1 - skill) * rng.random(targets.shape), 0, 1), 2)


def test_f1_against_scikit_learn() -> None:
    targets, p = sample()
    chosen = p >= 0.5
    found = f1_scores(targets, chosen, prior=RATES, bootstrap=50)
    assert found.micro.value == pytest.approx(f1_score(targets, chosen, average="micro"))
    assert found.macro.value == pytest.approx(f1_score(targets, chosen, average="macro"))
    for j, own in enumerate(found.classes):
        assert own.f1 == pytest.approx(f1_score(targets[:, j], chosen[:, j]))
        assert own.precision == pytest.approx(precision_score(targets[:, j], chosen[:, j]))
        assert own.recall == pytest.approx(recall_score(targets[:, j], chosen[:, j]))
        assert own.constant == pytest.approx(f1_score(targets[:, j], np.ones(len(targets))))
        assert own.chosen == chosen[:, j].sum()


def test_the_baselines_against_scikit_learn_and_all_fixed_answers() -> None:
    targets, p = sample()
    prior = RATES[::-1].copy()  # a training split in which other labels are frequent
    found = f1_scores(targets, p >= 0.5, prior=prior, bootstrap=20)

    def fixed(labels: tuple[int, ...], average: str) -> float:
        chosen = np.zeros(targets.shape)
        chosen[:, list(labels)] = 1
        return float(f1_score(targets, chosen, average=average, zero_division=0))

    every = [labels for size in range(1, 7) for labels in itertools.combinations(range(6), size)]
    assert found.micro.constant == pytest.approx(max(fixed(labels, "micro") for labels in every))
    assert found.macro.constant == pytest.approx(max(fixed(labels, "macro") for labels in every))
    assert found.micro.constant == pytest.approx(fixed(tuple(found.constant_set), "micro"))
    assert found.micro.prior == pytest.approx(fixed(tuple(found.prior_set), "micro"))
    assert found.macro.prior == pytest.approx(fixed(tuple(found.prior_set), "macro"))
    assert set(found.prior_set) == {5 - j for j in np.flatnonzero(best_constant_set(RATES))}


@pytest.mark.slow
def test_the_interval_by_plain_resampling() -> None:
    targets, p = sample(80)
    chosen = p >= 0.5
    found = f1_scores(targets, chosen, prior=RATES, bootstrap=1500)
    rng, drawn, gains = np.random.default_rng(9), [], []
    fixed = np.broadcast_to(best_constant_set(targets.mean(axis=0)), targets.shape)
    for _ in range(300):
        rows = rng.integers(0, 80, 80)
        drawn.append(f1_score(targets[rows], chosen[rows], average="micro"))
        gains.append(drawn[-1] - f1_score(targets[rows], fixed[rows], average="micro"))
    assert (found.micro.low, found.micro.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.02)
    assert found.micro.constant_gain == pytest.approx(np.percentile(gains, (2.5, 97.5)), abs=0.02)


def test_choosing_at_random_is_not_called_better() -> None:
    verdicts = set()
    for seed in range(5):
        targets, p = sample(skill=0.0, seed=seed)
        verdicts.add(f1_scores(targets, p >= 0.5, prior=RATES, bootstrap=200).micro.verdict)
    assert "better" not in verdicts
    targets, p = sample(skill=0.8)
    assert f1_scores(targets, p >= 0.5, prior=RATES, bootstrap=200).micro.verdict == "better"


def test_a_label_that_nobody_carries_is_undefined_and_left_out() -> None:
    targets, p = sample()
    targets[:, 2] = 0
    found = f1_scores(targets, p >= 0.5, prior=RATES, bootstrap=10)
    assert found.classes[2].f1 is None and found.classes[2].recall is None and found.classes[2].constant is None
    others = [j for j in range(6) if j != 2]
    assert found.macro.value == pytest.approx(f1_score(targets[:, others], p[:, others] >= 0.5, average="macro"))
    nothing = f1_scores(np.zeros((3, 2)), np.zeros((3, 2), bool), prior=[0.5, 0.5], bootstrap=10)
    assert nothing.micro.value is None and nothing.macro.value is None
    with pytest.raises(InputError, match="have no F1"):
        f1_scores(np.zeros((3, 2)), np.zeros((3, 3), bool), prior=[0.5, 0.5])
