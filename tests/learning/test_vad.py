from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raymotion.errors import InputError
from raymotion.learning.vad import vad_errors, vad_loss, vad_mean

NAN = math.nan


def test_loss_by_hand_leaves_out_what_is_unknown() -> None:
    # Differences 0.05, 0.5, 0: 0.05^2 / 0.2 = 0.0125, 0.5 - 0.05 = 0.45, 0. Two more are unknown.
    outputs = torch.tensor([[0.55, 1.0, 0.3], [0.2, 0.3, 0.9]], requires_grad=True)
    raw = torch.tensor([[5.0, 5.0, NAN], [2.0, NAN, NAN]])
    loss = vad_loss(outputs, raw)
    assert loss.item() == pytest.approx((0.0125 + 0.45 + 0) / 3)
    loss.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()
    assert outputs.grad[torch.isnan(raw)].tolist() == [0, 0, 0]
    weighted = vad_loss(outputs, raw, weights=torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx((0.0125 + 0.45) / 5)


def test_a_batch_without_vad_costs_nothing() -> None:
    """13.14: the public reader drops a person for a NaN; here the person stays, and only the VAD is left out."""
    outputs = torch.rand(4, 3, requires_grad=True)
    loss = vad_loss(outputs, torch.full((4, 3), NAN))
    loss.backward()
    assert loss.item() == 0.0
    assert outputs.grad is not None and not outputs.grad.any()


def test_errors_beside_the_training_mean() -> None:
    mean = vad_mean(np.array([[2.0, 5.0, NAN], [6.0, NAN, NAN]]))
    assert mean[:2].tolist() == [4.0, 5.0] and np.isnan(mean[2])
    raw = np.array([[1.0, 5.0, 7.0], [6.0, NAN, 8.0]])
    predicted = np.array([[2.0, 6.0, 7.0], [6.0, 1.0, 4.0]])
    valence, arousal, dominance, overall = vad_errors(raw, predicted, training_mean=mean)
    assert (valence.mae, valence.constant, valence.samples) == (0.5, 2.5, 2)
    assert (arousal.mae, arousal.constant, arousal.samples) == (1.0, 0.0, 1)
    assert (dominance.mae, dominance.constant) == (2.0, None)
    assert overall.mae == pytest.approx(3.5 / 3) and overall.constant == pytest.approx(1.25) and overall.samples == 2
    nothing = vad_errors(np.full((2, 3), NAN), predicted, training_mean=mean)
    assert nothing[0].mae is None and nothing[3].mae is None


def test_bad_input() -> None:
    with pytest.raises(InputError, match="do not fit VAD"):
        vad_loss(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(InputError, match="no fit"):
        vad_errors(np.zeros((2, 3)), np.zeros((3, 3)), training_mean=[5, 5, 5])
    with pytest.raises(InputError, match="no fit"):
        vad_errors(np.zeros((2, 2)), np.zeros((2, 2)), training_mean=[5, 5])
    with pytest.raises(InputError, match="not all finite"):
        vad_errors(np.zeros((2, 3)), np.full((2, 3), NAN), training_mean=[5, 5, 5])
