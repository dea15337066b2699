"""Losses of predicted valence, arousal and dominance by name, on a scale normalised to -1 .. 1 or 0 .. 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.options import read_options
from raymotion.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class NumberLoss(Settings, ABC):
    """Base of all losses of numbers; the fields of a subclass are the options of the loss.

    Attributes:
        reads_sd: whether it weighs each number by the spread of its ratings (`weights`).
        sums: whether the loss of a batch is the sum over its numbers, not their mean.
    """

    reads_sd: ClassVar[bool] = False
    sums: ClassVar[bool] = False

    def weights(self, sd: Tensor) -> Tensor:
        """Returns the weight of each number (n, D) from the standard deviation of its ratings, in the loss's unit."""
        import torch

        return torch.ones_like(sd)

    @abstractmethod
    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each number, (n, D) float32; all targets are finite."""


class SmoothL1(NumberLoss):
    """d^2 / (2 b) up to b, |d| - b / 2 beyond (Girshick 2015).

    Attributes:
        beta: b, the transition from quadratic to linear; 0.1 corresponds to 1 on EMOTIC's scale of 1 to 10
            (Tandon-A/emotic).
    """

    beta: float = Field(0.1, gt=0)

    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each number."""
        import torch.nn.functional as F

        return F.smooth_l1_loss(values, targets, beta=self.beta, reduction="none")


class SquaredError(NumberLoss):
    """d^2."""

    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each number."""
        return (values - targets).square()


class AbsoluteError(NumberLoss):
    """|d|."""

    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each number."""
        return (values - targets).abs()


class Gaussian(NumberLoss):
    """d^2 / (sd^2 + floor^2): the likelihood of a Gaussian whose variance differs from number to number.

    The variance of a number is that of its ratings, as the table states it, and of all else that the model cannot know
    (weighted least squares; Aitken 1936). A number without a standard deviation gets the mean one of training.

    Attributes:
        floor: standard deviation of all else, in the unit of the loss: standard deviations of the training targets for
            a standardised output.
    """

    reads_sd: ClassVar[bool] = True

    floor: float = Field(0.5, gt=0)

    def terms(self, values: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of each number."""
        return (values - targets).square()

    def weights(self, sd: Tensor) -> Tensor:
        """See `NumberLoss`."""
        return 1 / (sd.square() + self.floor**2)


LOSSES: dict[str, str] = {
    "gaussian": f"{__name__}:Gaussian",
    "smooth_l1": f"{__name__}:SmoothL1",
    "mse": f"{__name__}:SquaredError",
    "mae": f"{__name__}:AbsoluteError",
    "smooth_l1_published": "raymotion.published.losses:SmoothL1Published",
}
# Losses of other packages are added by the entry point `raymotion.losses_of_numbers`.
_losses: Registry[NumberLoss] = Registry(
    "loss of numbers",
    NumberLoss,  # type: ignore[type-abstract]
    "raymotion.losses_of_numbers",
    lambda: LOSSES,
)


def reads_sd(name: str) -> bool:
    """Returns whether the loss called `name` weighs numbers by the spread of their ratings."""
    return _losses.get(name, may_import=False).reads_sd


def make_dimension_loss(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., Tensor]:
    """Returns the loss called `name` (see `LOSSES`): (values, targets, weights, sd) -> scalar.

    Values and targets are (n, D) on one scale; unknown targets are NaN and are ignored. The loss is the mean over the
    known targets, 0 if there are none, or their sum, of a loss that `sums`; weights (n,) are sample weights, None for
    equal weights. `sd` (n, D) are the standard deviations of the targets' ratings in the same unit, for a loss that
    reads them.

    Raises:
        InputError: the name or an option is unknown; when called, the shapes do not match.
    """
    kind = _losses.get(name, may_import=False)
    chosen = read_options(kind, name, options)

    def loss(values: Tensor, targets: Tensor, weights: Tensor | None = None, sd: Tensor | None = None) -> Tensor:
        import torch

        if values.shape != targets.shape or values.ndim != 2:
            raise InputError(f"values of shape {tuple(values.shape)} do not fit targets of {tuple(targets.shape)}")
        known = ~targets.isnan()
        filled = torch.where(known, targets.float(), torch.zeros_like(targets, dtype=torch.float32))
        terms = chosen.terms(values.float(), filled)
        if terms.shape != values.shape:
            raise InputError(
                f"the loss {name} gives a tensor of shape {tuple(terms.shape)}, not {tuple(values.shape)}",
                remedy=f"Let {kind.__module__}:{kind.__qualname__}.terms return the loss of each number.",
            )
        share = known.float() if weights is None else known.float() * weights.float()[:, None]
        if sd is not None and chosen.reads_sd:
            share = share * chosen.weights(sd.float())
        total = (terms * share).sum()
        return total if chosen.sums else total / share.sum().clamp(min=1e-12)

    return loss
