from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from raymotion.errors import InputError
from raymotion.learning.losses.dimensions import LOSSES, make_dimension_loss

NAN = math.nan


def test_loss_by_hand_leaves_out_what_is_unknown() -> None:
    # Differences 0.05, 0.5, 0: 0.05^2 / 0.2 = 0.0125, 0.5 - 0.05 = 0.45, 0. Two more are unknown.
    loss = make_dimension_loss("smooth_l1")
    values = torch.tensor([[0.55, 1.0, 0.3], [0.2, 0.3, 0.9]], requires_grad=True)
    targets = torch.tensor([[0.5, 0.5, NAN], [0.2, NAN, NAN]])
    found = loss(values, targets)
    assert found.item() == pytest.approx((0.0125 + 0.45 + 0) / 3)
    found.backward()
    assert values.grad is not None and torch.isfinite(values.grad).all()
    assert values.grad[torch.isnan(targets)].tolist() == [0, 0, 0]
    weighted = loss(values, targets, torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx((0.0125 + 0.45) / 5)


@pytest.mark.parametrize(("name", "torchs"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)])
def test_the_losses_of_torch_where_all_is_known(name: str, torchs: type) -> None:
    values, targets = torch.rand(6, 2), torch.rand(6, 2)
    options = {"beta": 0.3} if name == "smooth_l1" else {}
    torch.testing.assert_close(make_dimension_loss(name, options)(values, targets), torchs(values, targets, **options))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_values_costs_nothing(name: str) -> None:
    """13.14: the public reader drops a person for a NaN; here the person stays, and only the numbers are left out."""
    values = torch.rand(4, 3, requires_grad=True)
    loss = make_dimension_loss(name)(values, torch.full((4, 3), NAN))
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad is not None and not values.grad.any()


def test_bad_input() -> None:
    with pytest.raises(InputError, match="do not fit"):
        make_dimension_loss("mse")(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(InputError, match="smooth_l1"):
        make_dimension_loss("smooth")
    with pytest.raises(InputError, match="beta"):
        make_dimension_loss("smooth_l1", {"beta": 0.0})
