from __future__ import annotations

import math

import pytest
import torch

from raymotion.errors import InputError
from raymotion.learning.losses.bce import class_weights, multilabel_bce

LOG3 = math.log(3)


def test_bce_by_hand() -> None:
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4
    logits, targets = torch.tensor([[0.0, LOG3]]), torch.tensor([[1.0, 0.0]])
    assert multilabel_bce(logits, targets).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    weighted = multilabel_bce(logits, targets, class_weights=torch.tensor([0.5, 1.5]))
    assert weighted.item() == pytest.approx((0.5 * math.log(2) + 1.5 * math.log(4)) / 2)


def test_soft_targets_and_smoothing_by_hand() -> None:
    logits = torch.tensor([[LOG3]])
    soft = multilabel_bce(logits, torch.tensor([[0.25]]))
    assert soft.item() == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)))
    # a positive with smoothing 0.2 is a target of 0.9
    smooth = multilabel_bce(logits, torch.tensor([[1.0]]), label_smoothing=0.2)
    assert smooth.item() == pytest.approx(-(0.9 * math.log(0.75) + 0.1 * math.log(0.25)))


def test_bfloat16_logits_are_measured_in_float32() -> None:
    logits = torch.tensor([[-5.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = multilabel_bce(logits, torch.tensor([[0.0]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-4)
    loss.backward()
    assert logits.grad is not None


def test_class_weights_by_hand() -> None:
    rates = [0.5, 0.125]
    assert class_weights(rates, "none").tolist() == [1.0, 1.0]
    assert class_weights(rates, "inverse").tolist() == pytest.approx([2 / 5, 8 / 5])
    assert class_weights(rates, "sqrt_inverse").tolist() == pytest.approx([2 / 3, 4 / 3])
    # 8 samples: 4 and 1 of a class; effective numbers at beta 0.5 are 1.875 and 1
    expected = [(1 / 1.875), 1.0]
    mean = sum(expected) / 2
    weights = class_weights(rates, "effective", samples=8, beta=0.5)
    assert weights.tolist() == pytest.approx([w / mean for w in expected])


def test_effective_number_runs_from_equal_to_inverse() -> None:
    rates = [0.6, 0.05, 0.01]
    assert class_weights(rates, "effective", samples=1000, beta=0.0).tolist() == pytest.approx([1, 1, 1])
    nearly = class_weights(rates, "effective", samples=1000, beta=1 - 1e-9)
    assert nearly.tolist() == pytest.approx(class_weights(rates, "inverse").tolist(), rel=1e-3)


def test_a_class_never_seen_stays_bounded() -> None:
    weights = class_weights([0.5, 0.0], "inverse")
    assert torch.isfinite(weights).all()
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.tolist() == class_weights([0.5, 0.001], "inverse").tolist()


def test_bad_input() -> None:
    with pytest.raises(InputError, match="do not fit"):
        multilabel_bce(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(InputError, match="label_smoothing"):
        multilabel_bce(torch.zeros(1, 1), torch.zeros(1, 1), label_smoothing=1.0)
    with pytest.raises(InputError, match="number of training samples"):
        class_weights([0.5], "effective")
    with pytest.raises(InputError, match=r"sqrt_inverse or effective"):
        class_weights([0.5], "other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        class_weights([float("nan")], "inverse")
