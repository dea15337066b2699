"""Losses of a joint space by name, on the unit vectors of two sides of the same samples.

With n samples whose two sides have unit vectors u_i and v_i, the similarity of i and j is their cosine u_i . v_j. Two
samples of one group (captions of the same picture, say) are no negatives of each other: they are left out of what a
sample is compared with. All losses treat both directions alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.options import read_options
from raymotion.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class ContrastiveLoss(Settings, ABC):
    """Base of all losses of a joint space; the fields of a subclass are the options of the loss."""

    @abstractmethod
    def terms(self, cosines: Tensor, negatives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Computes the loss of each sample, (n,) float32.

        Args:
            cosines: (n, n) float32, the first side in rows and the second in columns; the pairs are on the diagonal.
            negatives: (n, n) bool, True for two samples that do not belong together; False on the diagonal.
            scale: the inverse of the temperature, a scalar. bias: a scalar. Both may be learned by the network.
        """


class InfoNce(ContrastiveLoss):
    """-log p of the own partner among all in the batch, mean of both directions (van den Oord et al. 2018, CLIP).

    The softmax is of scale x cosine, over the own partner and the negatives.
    """

    def terms(self, cosines: Tensor, negatives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Computes the loss of each sample."""
        import torch

        own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        logits = (scale * cosines).masked_fill(~(negatives | own), -torch.inf)
        return -(logits.log_softmax(dim=1).diagonal() + logits.log_softmax(dim=0).diagonal()) / 2


class HardNegatives(ContrastiveLoss):
    """The hinge on the hardest negative of each direction (VSE++, Faghri et al. 2018): max(0, margin + s- - s+).

    Attributes:
        margin: how much more similar the own partner has to be, as a cosine.
        all_negatives: sum the hinge over all negatives instead (the paper's sum of hinges), which it begins from where
            the hardest one collapses a new model.
    """

    margin: float = Field(0.2, gt=0, le=2)
    all_negatives: bool = False

    def terms(self, cosines: Tensor, negatives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Computes the loss of each sample."""
        import torch

        own, nothing = cosines.diagonal(), torch.zeros_like(cosines)
        # From the first side to the second, and back: in each, one sample's hinges are in its row.
        total = torch.zeros_like(own)
        for one, mask in ((cosines, negatives), (cosines.T, negatives.T)):
            hinges = torch.where(mask, (self.margin + one - own[:, None]).clamp(min=0), nothing)
            total = total + (hinges.sum(dim=1) if self.all_negatives else hinges.amax(dim=1))
        return total


class SigLip(ContrastiveLoss):
    """The binary cross-entropy of each pair on its own (SigLIP, Zhai et al. 2023): scale x cosine + bias is its logit.

    The loss of a sample is the sum over its pairs, as in the paper.
    """

    def terms(self, cosines: Tensor, negatives: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Computes the loss of each sample."""
        import torch

        logits = scale * cosines + bias
        own = torch.nn.functional.logsigmoid(logits.diagonal())
        others = torch.where(negatives, torch.nn.functional.logsigmoid(-logits), torch.zeros_like(logits))
        return -own - (others.sum(dim=1) + others.sum(dim=0)) / 2


LOSSES: dict[str, str] = {
    "infonce": f"{__name__}:InfoNce",
    "vse++": f"{__name__}:HardNegatives",
    "siglip": f"{__name__}:SigLip",
}
# Losses of other packages are added by the entry point `raymotion.losses_of_vectors`.
_losses: Registry[ContrastiveLoss] = Registry(
    "loss of a joint space",
    ContrastiveLoss,  # type: ignore[type-abstract]
    "raymotion.losses_of_vectors",
    lambda: LOSSES,
)


def make_contrastive_loss(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., Tensor]:
    """Returns the loss called `name` (see `LOSSES`): (first, second, groups, scale, bias, weights) -> scalar.

    `first` and `second` are unit vectors (n, D), a row of zeros for a side that is absent; such samples are left out.
    `groups` (n,) int64 are equal for samples that belong together. Weights (n,) are sample weights, None for equal
    weights; a sample of weight 0 is left out of the negatives too. The loss is the mean over the samples by their
    weights, and 0 where fewer than two samples are left, of which nothing can be learned.

    Raises:
        InputError: the name or an option is unknown; when called, the shapes do not match.
    """
    kind = _losses.get(name, may_import=False)
    chosen = read_options(kind, name, options)

    def loss(
        first: Tensor, second: Tensor, groups: Tensor, scale: Tensor, bias: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        if first.shape != second.shape or first.ndim != 2 or groups.shape != first.shape[:1]:
            raise InputError(
                f"vectors of shape {tuple(first.shape)} and {tuple(second.shape)} do not fit groups of shape "
                f"{tuple(groups.shape)}"
            )
        there = (first != 0).any(dim=1) & (second != 0).any(dim=1)
        if weights is not None:
            there = there & (weights > 0)
        rows = there.nonzero()[:, 0]
        if len(rows) < 2:
            return (first.float().sum() + second.float().sum() + scale + bias) * 0.0
        first, second, groups = first[rows].float(), second[rows].float(), groups[rows]
        terms = chosen.terms(first @ second.T, groups[:, None] != groups[None, :], scale.float(), bias.float())
        if terms.shape != groups.shape:
            raise InputError(
                f"the loss {name} gives a tensor of shape {tuple(terms.shape)}, not {tuple(groups.shape)}",
                remedy=f"Let {kind.__module__}:{kind.__qualname__}.terms return the loss of each sample.",
            )
        if weights is None:
            return terms.mean()
        share = weights[rows].float()
        return (terms * share).sum() / share.sum()

    return loss
