"""Distillation for independent labels, against PyTorch's cross-entropy, a calculation by hand, and its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raymotion.errors import InputError
from raymotion.learning.losses.distillation import distillation_loss

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-6, 6, width=32))


@given(LOGITS, LOGITS)
def test_at_temperature_one_it_is_the_cross_entropy_with_the_teachers_probabilities(
    a: np.ndarray, b: np.ndarray
) -> None:
    student, teacher = torch.from_numpy(a), torch.sigmoid(torch.from_numpy(b))
    expected = torch.nn.functional.binary_cross_entropy(
        torch.sigmoid(student.double()), teacher.double(), reduction="none"
    )
    torch.testing.assert_close(distillation_loss(student, teacher).double(), expected, atol=1e-5, rtol=1e-4)


def test_at_temperature_two_as_by_hand() -> None:
    # Teacher 0.8: logit ln 4; halved: ln 2; softened: 2/3. Student's logit 0: 1/2 at any temperature.
    expected = 2**2 * -(2 / 3 * math.log(0.5) + 1 / 3 * math.log(0.5))
    assert expected == pytest.approx(4 * math.log(2))
    got = distillation_loss(torch.zeros(1, 1), torch.tensor([[0.8]]), temperature=2.0)
    assert float(got) == pytest.approx(expected, abs=1e-5)
    # Student's logit 2 ln 3: halved ln 3, softened 3/4.
    expected = 4 * -(2 / 3 * math.log(3 / 4) + 1 / 3 * math.log(1 / 4))
    got = distillation_loss(torch.full((1, 1), 2 * math.log(3)), torch.tensor([[0.8]]), temperature=2.0)
    assert float(got) == pytest.approx(expected, abs=1e-5)


@given(LOGITS, LOGITS, st.floats(1, 20))
def test_its_gradient_keeps_its_scale(a: np.ndarray, b: np.ndarray, temperature: float) -> None:
    """d/dz = T (sigmoid(z/T) - sigmoid(t/T)): for small logits that is (z - t) / 4 at any T (Hinton et al., eq. 4)."""
    student = torch.from_numpy(a).requires_grad_()
    teacher = torch.from_numpy(b)
    distillation_loss(student, torch.sigmoid(teacher), temperature=temperature).sum().backward()
    exact = temperature * (torch.sigmoid(student / temperature) - torch.sigmoid(teacher / temperature)).detach()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, exact, atol=2e-3, rtol=1e-3)
    small = torch.from_numpy(a / 20).requires_grad_()
    distillation_loss(small, torch.sigmoid(teacher / 20), temperature=temperature).sum().backward()
    assert small.grad is not None
    torch.testing.assert_close(small.grad, (small.detach() - teacher / 20) / 4, atol=4e-3, rtol=0)


@given(LOGITS, st.floats(0.5, 20))
def test_its_minimum_is_at_the_teachers_own_logits(b: np.ndarray, temperature: float) -> None:
    teacher = torch.from_numpy(b)
    there = teacher.clone().requires_grad_()
    loss = distillation_loss(there, torch.sigmoid(teacher), temperature=temperature)
    loss.sum().backward()
    assert there.grad is not None and there.grad.abs().max() < 5e-4 * max(1.0, temperature)
    for step in (-0.5, 0.5):
        assert (
            distillation_loss(teacher + step, torch.sigmoid(teacher), temperature=temperature) > loss.detach()
        ).all()


def test_certain_teachers_and_half_precision_stay_finite() -> None:
    teacher = torch.tensor([[0.0, 1.0, 0.5]])
    for temperature in (0.5, 1.0, 3.0):
        logits = torch.tensor([[-40.0, 40.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
        loss = distillation_loss(logits, teacher, temperature=temperature)
        assert loss.dtype == torch.float32 and torch.isfinite(loss).all()
        loss.sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="temperature 0 is not positive"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0)
    with pytest.raises(InputError, match=r"\(2, 3\) do not fit targets of \(3,\)"):  # which would broadcast
        distillation_loss(torch.zeros(2, 3), torch.zeros(3))
