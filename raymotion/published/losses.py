"""The original losses of the public EMOTIC study, as `*_published`, for comparison.

`bce` and `focal` are not included, because the public code of these is correct. The docstrings of the others explain
their flaws. None divides by the sum of sample weights; where the public code sums, the number of rows scales the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.dimensions import NumberLoss
from raymotion.learning.losses.multilabel import Asymmetric, NamedLoss

if TYPE_CHECKING:
    import torch

# The public study's fixed weights of the 26 EMOTIC classes: 1 / ln(n_c + 1.2) of their training counts.
STATIC_WEIGHTS = (
    0.1435, 0.1870, 0.1692, 0.1165, 0.1949, 0.1204, 0.1728, 0.1372, 0.1620, 0.1540, 0.1987, 0.1057, 0.1482,
    0.1192, 0.1590, 0.1929, 0.1158, 0.1907, 0.1345, 0.1307, 0.1665, 0.1698, 0.1797, 0.1657, 0.1520, 0.1537,
)  # fmt: skip
ABSENT_WEIGHT = 1e-4
EPSILON = 1e-8


class DiscretePublished(NamedLoss):
    """Sum over samples and labels of w_c (x - y)^2 on the raw outputs x, without a sigmoid.

    Flaws: it is a sum, so each additional row makes a larger step. The `dynamic` weights are 1 / ln(n_c + 1.2) of the
    *counts* in the batch, so they depend on its size, and 0.0001 for a class missing from the batch, so its negatives
    do not count. `mean` is 1 / L, `static` the fixed vector of the 26 EMOTIC classes.
    """

    name = "discrete_published"

    class Options(Settings):
        weights: Literal["mean", "static", "dynamic"] = "dynamic"

    def class_weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns the class weights (L,) for a batch of targets (n, L)."""
        import torch

        width = targets.shape[1]
        if self.options.weights == "mean":
            return targets.new_full((width,), 1.0 / width)
        if self.options.weights == "static":
            if width != len(STATIC_WEIGHTS):
                raise InputError(
                    f"loss {self.name} with weights=static is for the 26 EMOTIC labels, not for {width}",
                    remedy="Choose weights=dynamic or mean, or the loss discrete.",
                )
            return targets.new_tensor(STATIC_WEIGHTS)
        counts = targets.sum(dim=0)
        present = 1.0 / (counts + 1.2).log()
        return torch.where(counts > 0, present, torch.full_like(present, ABSENT_WEIGHT))

    def reduce(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        terms = (logits - targets).square() * self.class_weights(targets)
        return (terms if weights is None else terms * weights[:, None]).sum()

    @classmethod
    def probabilities(cls, numbers: torch.Tensor, options: Any) -> torch.Tensor:
        """Returns the clamped outputs, as they are fitted to 0 and 1 directly."""
        return numbers.float().clamp(0.0, 1.0)


class _MeanPublished(NamedLoss):
    def reduce(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        terms = self.terms(logits, targets, epoch, weights)
        return (terms if weights is None else terms * weights[:, None]).mean()


class AsymmetricPublished(_MeanPublished, Asymmetric):
    """The study's `asl`: p' = clamp(p, clip, 1 - clip) for present and absent labels alike.

    Flaw: nothing is learned from a present label with p < clip, the worst mistake of all. The original asymmetric loss
    shifts p instead, and only for absent labels.
    """

    name = "asymmetric_published"

    class Options(Asymmetric.Options):
        clip: float = Field(default=0.05, ge=0.0, lt=0.5)

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        p = logits.sigmoid().clamp(self.options.clip, 1.0 - self.options.clip)
        present = targets * (p + EPSILON).log() * (1.0 - p) ** self.options.gamma_positive
        absent = (1.0 - targets) * (1.0 - p + EPSILON).log() * p**self.options.gamma_negative
        return -(present + absent)


class LabelCorrectionPublished(_MeanPublished):
    """The study's `mllsc`: a present label counts as absent unless p > tau, an absent one as present unless p < tau'.

    Flaw: without a warm-up every p is about 0.5 < tau at the start, so all present labels are removed and the model
    learns to predict none (17.48 mAP in the study).
    """

    name = "mllsc_published"

    class Options(Settings):
        tau_present: float = Field(default=0.55, ge=0.0, le=1.0)
        tau_absent: float = Field(default=0.6, ge=0.0, le=1.0)

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        import torch

        p = logits.sigmoid()
        log_p, log_q = (p + EPSILON).log(), (1.0 - p + EPSILON).log()
        present = torch.where(p > self.options.tau_present, log_p, log_q)
        absent = torch.where(p < self.options.tau_absent, log_q, log_p)
        return -torch.where(targets >= 0.5, present, absent)


class DicePublished(_MeanPublished):
    """1 - (2 sum(p y) + smooth) / (sum p + sum y + smooth) over all samples and labels at once.

    Flaw: the frequent labels dominate (22.60 mAP in the study).
    """

    name = "dice_published"

    class Options(Settings):
        smooth: float = Field(default=1.0, gt=0.0)

    def reduce(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        p = logits.sigmoid()
        rows = 1.0 if weights is None else weights[:, None]
        both, either = (rows * p * targets).sum(), (rows * (p + targets)).sum()
        return 1.0 - (2.0 * both + self.options.smooth) / (either + self.options.smooth)


class SmoothL1Published(NumberLoss):
    """The sum over samples and numbers of a smooth-L1 loss with a margin of 1, on ten times the network's numbers.

    The networks of the public EMOTIC code predict value / 10. Flaws: it is a sum, as `discrete_published` is, so each
    additional row makes a larger step.
    """

    sums = True

    def terms(self, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        return F.smooth_l1_loss(10.0 * values, 10.0 * targets, beta=1.0, reduction="none")
