"""Class-prior correction: against a hand calculation, the published EM, simulations and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import InputError
from raymotion.learning.priors import correct, estimate_rates, moved_line, rate_notes
from raymotion.learning.selection import SelectionPolicy


def em(p: np.ndarray, training: float, steps: int, weight: float = 0.0) -> float:
    """Equation 2.9 of Saerens et al. (2002), for one label and its absence, as written there; and with a beta prior."""
    rate = training
    for _ in range(steps):
        yes = p * rate / training
        no = (1 - p) * (1 - rate) / (1 - training)
        rate = float(((yes / (yes + no)).mean() + weight * training) / (1 + weight))
    return rate


def simulate(rate: float, training: float, n: int, distance: float, seed: int) -> np.ndarray:
    """Posteriors of a calibrated model: two normal densities `distance` apart, learned at the rate `training`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) + distance * (rng.random(n) < rate)
    ratio = np.exp(distance * x - distance**2 / 2)
    return np.asarray(training * ratio / (training * ratio + 1 - training))


def test_a_correction_by_hand() -> None:
    # 0.6 at a training rate of 0.4, in a collection with 0.1: 0.6 * 0.25 = 0.15, and 0.4 * 1.5 = 0.6.
    found = correct(np.array([[0.6, 0.6]]), np.array([0.4, 0.4]), np.array([0.1, 0.4]))
    assert found[0].tolist() == [pytest.approx(0.15 / 0.75), 0.6]


def test_the_rates_are_those_of_the_published_em() -> None:
    columns = [simulate(0.1, 0.4, 500, 1.5, 1), simulate(0.7, 0.4, 500, 1.5, 2), simulate(0.3, 0.3, 500, 2.0, 3)]
    training = np.array([0.4, 0.4, 0.3])
    found = estimate_rates(np.stack(columns, axis=1), training)
    assert found.rates == pytest.approx([em(p, t, 20_000) for p, t in zip(columns, training, strict=True)], abs=1e-6)
    assert not found.at_edge.any() and (np.abs(found.rates - [0.1, 0.7, 0.3]) < 4 * found.errors).all()


def test_a_weight_of_the_training_rates_is_a_prior_in_each_step_of_em() -> None:
    p = simulate(0.05, 0.4, 800, 1.0, 6)
    for weight in (0.1, 1.0, 5.0):
        found = estimate_rates(p[:, None], [0.4], weight=weight)
        assert found.rates[0] == pytest.approx(em(p, 0.4, 5000, weight), abs=1e-7)
    # Probabilities that hardly vary, a little below those of training: EM runs to an end, and the weight holds it.
    weak = np.random.default_rng(0).normal(0.38, 0.01, (400, 1))
    assert estimate_rates(weak, [0.4]).at_edge[0]
    held = estimate_rates(weak, [0.4], weight=1.0)
    assert 0.3 < held.rates[0] < 0.4 and 0 < held.errors[0] < 0.05
    assert "would run to 0 without the weight" in rate_notes(["sad"], held.to_dict())[0]
    assert "sad 40.0% -> " in moved_line(["sad"], held.to_dict())


def test_a_known_shift_is_recovered_within_its_standard_error() -> None:
    distance, away = 1.2, []
    for seed in range(60):
        found = estimate_rates(simulate(0.12, 0.4, 2000, distance, seed)[:, None], [0.4])
        away.append((found.rates[0] - 0.12) / found.errors[0])
    assert abs(np.mean(away)) < 0.4 and 0.75 < np.std(away) < 1.25


def test_corrected_probabilities_are_calibrated_in_the_new_collection() -> None:
    p = simulate(0.1, 0.4, 20_000, 1.5, 5)[:, None]
    shift = estimate_rates(p, [0.4])
    assert shift.apply(p).mean() == pytest.approx(0.1, abs=4 * shift.errors[0])
    assert p.mean() > 0.18  # uncorrected, they still expect the rates of training


@pytest.mark.parametrize(("level", "end"), [(0.05, 0), (0.95, 1)])
def test_a_rate_that_runs_to_an_end_is_told_and_keeps_the_order(level: float, end: int) -> None:
    p = np.linspace(level - 0.04, level + 0.04, 50)[:, None]
    found = estimate_rates(p, [0.4])
    assert found.at_edge[0] and found.rates[0] == pytest.approx(abs(end - 0.01)) and np.isnan(found.errors[0])
    assert em(p[:, 0], 0.4, 5000) == pytest.approx(end, abs=0.02)
    assert (np.diff(found.apply(p)[:, 0]) > 0).all()
    (note,) = rate_notes(["sad"], found.to_dict())
    assert f"of sad ran to {end}" in note
    assert "none could be told" in moved_line(["sad"], found.to_dict())


def test_a_label_that_training_never_had_is_left_as_it_is() -> None:
    p = np.array([[0.2, 0.3], [0.4, 0.9]])
    found = estimate_rates(p, [0.0, 0.5])
    assert found.rates[0] == 0.0 and found.apply(p)[:, 0].tolist() == [0.2, 0.4]
    assert rate_notes(["awe", "sad"], found.to_dict())[-1].startswith("Training had awe never or always")


def test_no_rows_change_nothing() -> None:
    assert estimate_rates(np.zeros((0, 2)), [0.2, 0.3]).rates.tolist() == [0.2, 0.3]


def test_bad_input_is_refused() -> None:
    for p, rates in (([0.1], [0.1]), ([[0.1, 0.2]], [0.1]), ([[1.5]], [0.1]), ([[np.nan]], [0.1]), ([[0.5]], [1.5])):
        with pytest.raises(InputError):
            estimate_rates(np.array(p), rates)


inside = st.floats(1e-4, 1 - 1e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), inside, inside)
def test_corrections_keep_bounds_and_order_and_can_be_undone(values: list[float], training: float, rate: float) -> None:
    p = np.sort(np.array(values))[:, None]
    old, new = np.array([training]), np.array([rate])
    found = correct(p, old, new)
    assert (found >= 0).all() and (found <= 1).all() and (np.diff(found[:, 0]) >= -1e-15).all()
    assert correct(p, old, old).tolist() == p.tolist()
    assert correct(found, new, old) == pytest.approx(p, abs=1e-6)
    assert ((found - p) * (rate - training) >= -1e-12).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), inside)
def test_estimated_rates_are_the_best_of_a_grid(values: list[float], training: float) -> None:
    p = np.array(values)

    def likelihood(rate: float) -> float:
        return float(np.log(p * rate / training + (1 - p) * (1 - rate) / (1 - training)).sum())

    rate = float(estimate_rates(p[:, None], [training]).rates[0])
    half = 0.5 / len(p)
    assert half - 1e-12 <= rate <= 1 - half + 1e-12
    assert all(likelihood(rate) >= likelihood(other) - 1e-7 for other in np.linspace(half, 1 - half, 21))


def test_every_policy_chooses_from_corrected_probabilities() -> None:
    rng = np.random.default_rng(3)
    p = rng.random((200, 4)).astype(np.float32)
    ids = [str(i) for i in range(200)]
    shift = estimate_rates(p, [0.5, 0.9, 0.2, 0.6])
    fixed = shift.apply(p)
    order = np.argsort(-fixed, axis=1, kind="stable")
    mask, _ = SelectionPolicy(policy="top-per-image", count=2, adapt_rates=True).choose(p, ids, shift=shift)  # type: ignore[call-arg]
    assert (np.take_along_axis(mask, order, axis=1)[:, :2]).all() and mask.sum() == 400
    mask, _ = SelectionPolicy(policy="threshold", threshold=0.6, adapt_rates=True).choose(p, ids, shift=shift)  # type: ignore[call-arg]
    assert (mask == (fixed >= 0.6)).all()
    limits = np.array([0.2, 0.4, 0.6, 2.0])
    mask, _ = SelectionPolicy(policy="class-thresholds", adapt_rates=True).choose(p, ids, limits, shift)  # type: ignore[call-arg]
    assert (mask == (fixed >= limits)).all()
    policy = SelectionPolicy(policy="top-per-class", count=50, minimum=0.7, adapt_rates=True)  # type: ignore[call-arg]
    mask, selected = policy.choose(p, ids, shift=shift)
    best = np.argsort(np.argsort(-p, axis=0, kind="stable"), axis=0) < 50
    assert (mask == (best & (fixed >= 0.7))).all() and (selected == mask.any(axis=1)).all()
