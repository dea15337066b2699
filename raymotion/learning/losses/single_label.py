"""Losses of one label of a vocabulary by name, on logits, and the class probabilities that belong to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.options import read_options
from raymotion.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class ClassLoss(Settings, ABC):
    """Base of all losses of one label; the fields of a subclass are the options of the loss.

    Attributes:
        class_weights: balanced: each class weighs as much as any other, whatever its rate in training (King and Zeng
            2001, scikit-learn's `balanced`). none: each sample weighs the same.
    """

    class_weights: Literal["none", "balanced"] = "none"

    @abstractmethod
    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each class, (n, L) float32, whose sum is the loss of a sample.

        Args:
            logits: (n, L) float32.
            targets: (n, L), of which each row sums to 1.
        """


class CrossEntropy(ClassLoss):
    """-log p of the label.

    Attributes:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each class."""
        smooth = self.label_smoothing
        if smooth:
            targets = (1 - smooth) * targets + smooth / targets.shape[1]
        return -targets * logits.log_softmax(dim=1)


class Focal(ClassLoss):
    """-(1 - p)^gamma log p of the label (Lin et al. 2017).

    Attributes:
        gamma: 0 is the cross-entropy.
    """

    gamma: float = Field(2.0, ge=0)

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each class."""
        logs = logits.log_softmax(dim=1)
        # log(1 - p) is -inf where p rounds to 1; there the loss and its gradient are 0.
        rest = (1 - logs.exp()).clamp(min=1e-12)
        return -targets * rest**self.gamma * logs


LOSSES: dict[str, str] = {
    "cross_entropy": f"{__name__}:CrossEntropy",
    "focal": f"{__name__}:Focal",
}
# Losses of other packages are added by the entry point `raymotion.losses_of_classes`.
_losses: Registry[ClassLoss] = Registry(
    "loss of classes",
    ClassLoss,  # type: ignore[type-abstract]
    "raymotion.losses_of_classes",
    lambda: LOSSES,
)


def make_class_loss(
    name: str, options: Mapping[str, Any] | None = None, *, rates: np.ndarray | None = None
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Returns the loss called `name` (see `LOSSES`): (logits, targets, weights) -> scalar.

    Logits and targets are (n, L); each row of the targets sums to 1. Weights (n,) are sample weights, None for equal
    weights. The loss is the mean over the samples by their weights.

    Args:
        rates: (L,) class rates of the training split, for `class_weights: balanced`.

    Raises:
        InputError: the name or an option is unknown; when called, the shapes do not match.
    """
    kind = _losses.get(name, may_import=False)
    chosen = read_options(kind, name, options)
    by_class: np.ndarray | None = None
    if chosen.class_weights == "balanced" and rates is not None:
        # A class that never occurs in training has no weight of its own to balance.
        seen = rates > 0
        by_class = np.where(seen, 1.0 / (np.where(seen, rates, 1.0) * max(1, int(seen.sum()))), 1.0).astype(np.float32)

    def loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        import torch

        if logits.shape != targets.shape or logits.ndim != 2:
            raise InputError(f"logits of shape {tuple(logits.shape)} do not fit targets of {tuple(targets.shape)}")
        terms = chosen.terms(logits.float(), targets.float())
        if terms.shape != logits.shape:
            raise InputError(
                f"the loss {name} gives a tensor of shape {tuple(terms.shape)}, not {tuple(logits.shape)}",
                remedy=f"Let {kind.__module__}:{kind.__qualname__}.terms return the loss of each class.",
            )
        share = torch.ones(len(logits), device=logits.device) if weights is None else weights.float()
        if by_class is not None:
            share = share * (targets.float() @ torch.from_numpy(by_class).to(logits.device))
        return (terms.sum(dim=1) * share).sum() / share.sum().clamp(min=1e-12)

    return loss
