"""The losses of one label against torch, torchvision and scikit-learn, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, one_hot
from torchvision.ops import sigmoid_focal_loss

from raymotion.errors import InputError
from raymotion.learning.losses.single_label import LOSSES, ClassLoss, make_class_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(0, 3, (40, 5)), dtype=torch.float32), torch.tensor(rng.integers(0, 5, 40))


def hard(labels: torch.Tensor) -> torch.Tensor:
    return one_hot(labels, 5).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(batch: tuple[torch.Tensor, torch.Tensor], smoothing: float) -> None:
    logits, labels = batch
    ours = make_class_loss("cross_entropy", {"label_smoothing": smoothing})(logits, hard(labels), None)
    assert ours.item() == pytest.approx(cross_entropy(logits, labels, label_smoothing=smoothing).item(), rel=1e-6)


def test_soft_targets_are_torchs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, _ = batch
    soft = torch.tensor(np.random.default_rng(1).dirichlet(np.ones(5), 40), dtype=torch.float32)
    ours = make_class_loss("cross_entropy")(logits, soft, None)
    assert ours.item() == pytest.approx(cross_entropy(logits, soft).item(), rel=1e-6)


def test_balanced_weights_are_scikit_learns_and_torchs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    training = np.repeat(np.arange(5), [50, 30, 10, 7, 3])
    weights = compute_class_weight("balanced", classes=np.arange(5), y=training)
    rates = np.bincount(training) / len(training)
    ours = make_class_loss("cross_entropy", {"class_weights": "balanced"}, rates=rates)(logits, hard(labels), None)
    expected = cross_entropy(logits, labels, weight=torch.tensor(weights, dtype=torch.float32))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sample_weights_are_repetitions(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    loss = make_class_loss("cross_entropy", {"label_smoothing": 0.2})
    counts = torch.arange(40) % 3
    often = torch.repeat_interleave(torch.arange(40), counts)
    weighted = loss(logits, hard(labels), counts.float())
    assert weighted.item() == pytest.approx(loss(logits[often], hard(labels)[often], None).item(), rel=1e-6)


def test_focal_of_two_classes_is_torchvisions() -> None:
    rng = np.random.default_rng(2)
    logits, labels = torch.tensor(rng.normal(0, 2, (30, 2)), dtype=torch.float32), torch.tensor(rng.integers(0, 2, 30))
    difference = logits[:, 1] - logits[:, 0]
    expected = sigmoid_focal_loss(difference, labels.float(), alpha=-1, gamma=1.5, reduction="mean")
    ours = make_class_loss("focal", {"gamma": 1.5})(logits, one_hot(labels, 2).float(), None)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_extreme_logits_give_finite_losses_and_gradients(name: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [60.0, 0.0, -60.0], [0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    loss = make_class_loss(name)(logits, targets, None)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_a_class_that_training_lacks_does_not_divide_by_zero(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    rates = np.array([0.5, 0.5, 0.0, 0.0, 0.0])
    loss = make_class_loss("cross_entropy", {"class_weights": "balanced"}, rates=rates)
    assert loss(logits, hard(labels), None).isfinite()
    assert loss(logits, hard(labels), torch.zeros(40)).item() == 0.0


def test_wrong_shapes_and_options_are_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    with pytest.raises(InputError, match="do not fit"):
        make_class_loss("cross_entropy")(logits[:, :3], hard(labels), None)
    with pytest.raises(InputError, match=r"loss focal.*smoothness.*gamma"):
        make_class_loss("focal", {"smoothness": 1})
    with pytest.raises(InputError, match="cross_entropy"):
        make_class_loss("cross_entrpy")


def test_a_loss_of_the_wrong_shape_is_refused(
    batch: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mean would be a number like any other."""
    monkeypatch.setitem(LOSSES, "per_sample", f"{__name__}:PerSample")
    with pytest.raises(InputError, match=r"per_sample gives .* \(40,\), not \(40, 5\).*PerSample.terms"):
        make_class_loss("per_sample")(batch[0], hard(batch[1]), None)


class PerSample(ClassLoss):
    """Returns one number for each sample."""

    def terms(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (logits - targets).square().sum(dim=1)
