"""Temperatures: against SciPy's minimiser, a known temperature, and what scaling must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import bce
from raymotion.learning.temperature import HIGHEST, LOWEST, fit_temperature, scale


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_where_scipy_finds_it(true: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(-1, 1, (1500, 6))
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    p = 1 / (1 + np.exp(-logits * true))  # too sure of itself by `true`
    found = fit_temperature(truth, p)
    best = minimize_scalar(lambda t: bce(truth, scale(p, t)), bounds=(LOWEST, HIGHEST), method="bounded")
    assert found == pytest.approx(best.x, abs=1e-3) and found == pytest.approx(true, rel=0.1)


def test_each_row_may_have_a_temperature_of_its_own() -> None:
    p = np.array([[0.2, 0.9], [0.2, 0.9], [0.0, 1.0]])
    found = scale(p, np.array([1.0, 2.0, 3.0]))
    assert found[0].tolist() == [0.2, 0.9] and found[2].tolist() == [0.0, 1.0]
    assert found[1] == pytest.approx([1 / 3, 0.75])  # odds 1/4 and 9, and their roots


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.1, 10))
def test_scaling_keeps_order_and_bounds_and_can_be_undone(values: list[float], temperature: float) -> None:
    p = np.sort(np.array(values))[:, None]
    found = scale(p, temperature)
    assert (found >= 0).all() and (found <= 1).all() and (np.diff(found[:, 0]) >= -1e-15).all()
    assert scale(scale(p, 10.0), 0.1) == pytest.approx(p, abs=1e-6)
    assert (np.abs(found - 0.5) <= np.abs(p - 0.5) + 1e-9).all() or temperature < 1


def test_ends_and_bad_input() -> None:
    right = np.array([[1.0], [0.0]])
    assert fit_temperature(right, np.array([[0.9], [0.1]])) == pytest.approx(LOWEST, rel=1e-6)
    assert fit_temperature(right, np.array([[0.1], [0.9]])) == pytest.approx(HIGHEST, rel=1e-6)
    for truth, p in ((np.zeros((2, 1)), np.zeros((1, 1))), (np.zeros((0, 1)), np.zeros((0, 1)))):
        with pytest.raises(InputError):
            fit_temperature(truth, p)
