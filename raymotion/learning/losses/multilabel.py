"""Multi-label losses on logits, by name, and the probabilities that belong to them.

All sound losses are means over the samples of a batch and over the labels, so that neither the number of rows (which
resampling changes) nor the number of labels acts as a hidden learning rate. They are computed in float32, have finite
gradients at every finite logit, and accept targets between 0 and 1, which mix the terms of a present and an absent
label. The public study's variants are in `published.losses` under `*_published`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.bce import WeightKind, class_weights
from raymotion.learning.losses.options import read_options
from raymotion.registry import Registry

if TYPE_CHECKING:
    import torch

_HERE, _THERE = "raymotion.learning.losses.multilabel", "raymotion.published.losses"
LOSSES: dict[str, str] = {
    "bce": f"{_HERE}:BinaryCrossEntropy",
    "discrete": f"{_HERE}:Discrete",
    "focal": f"{_HERE}:Focal",
    "asymmetric": f"{_HERE}:Asymmetric",
    "dice": f"{_HERE}:Dice",
    "mllsc": f"{_HERE}:LabelCorrection",
    "discrete_published": f"{_THERE}:DiscretePublished",
    "asymmetric_published": f"{_THERE}:AsymmetricPublished",
    "dice_published": f"{_THERE}:DicePublished",
    "mllsc_published": f"{_THERE}:LabelCorrectionPublished",
}

# c of the EMOTIC paper's class weights 1 / ln(c + p).
RATE_OFFSET = 1.2


class MultiLabelLoss(Protocol):
    """A loss made by `make_loss`."""

    @property
    def name(self) -> str: ...

    def __call__(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        *,
        epoch: int = 0,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of a batch, a float32 scalar.

        Args:
            logits: (n, L), before any activation.
            targets: (n, L) in [0, 1].
            epoch: number of finished training epochs, for losses with a warm-up.
            weights: non-negative sample weights (n,); None for equal weights. The sound losses divide by their sum.

        Raises:
            InputError: the shapes do not match.
        """
        ...

    @property
    def by_class(self) -> torch.Tensor | None:
        """The class weights (L,) of the loss, which a distillation uses too; None: all 1."""
        ...


@dataclass(frozen=True)
class Link:
    """The meaning of the numbers (n, L) of a model that was trained with a loss.

    Attributes:
        probabilities: converts them to probabilities (n, L), float32.
        numbers: converts probabilities to such numbers, so that a new model can start at the class prior; None if the
            loss does not define it.
        logits: whether they are logits.
        targets: converts targets, or class rates, to those that the loss trains the probabilities towards.
    """

    probabilities: Callable[[torch.Tensor], torch.Tensor]
    numbers: Callable[[torch.Tensor], torch.Tensor] | None
    logits: bool
    targets: Callable[[Any], Any]


def make_loss(
    name: str,
    *,
    rates: np.ndarray | None = None,
    samples: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> MultiLabelLoss:
    """Returns the loss called `name`; see `LOSSES`.

    Args:
        rates: (L,) class rates of the training split; required by `discrete` with static weights and by `bce` with
            class weights, used by `mllsc`.
        samples: rows of the training split; for class weights of kind `effective`.
        options: values of the loss's `Options`.

    Raises:
        InputError: the name or an option is unknown, or required rates are missing.
    """
    kind = _kind(name)
    return kind(read_options(kind.Options, name, options), rates=_checked_rates(rates), samples=samples)


def link_of(name: str, options: Mapping[str, Any] | None = None) -> Link:
    """Returns the meaning of the numbers of a model that was trained with this loss.

    Unlike `make_loss` it needs nothing from the training split, which may be unknown at prediction.

    Raises:
        InputError: the name or an option is unknown.
    """
    kind = _kind(name)
    chosen = read_options(kind.Options, name, options)
    logits = not _overrides(kind, "probabilities")
    return Link(
        partial(kind.probabilities, options=chosen),
        partial(kind.numbers, options=chosen) if logits or _overrides(kind, "numbers") else None,
        logits,
        partial(kind.trained_targets, options=chosen),
    )


def loss_names() -> list[str]:
    """Returns the names of all known losses: raymotion's own and those of installed packages."""
    return _losses.names()


@cache
def _kind(name: str) -> type[NamedLoss]:
    # Checkpoints name losses too, and never cause an import.
    kind = _losses.get(name, may_import=False)
    place = f"the loss {kind.__module__}:{kind.__qualname__}"
    if getattr(kind, "name", None) != name:
        raise InputError(f"{place} is listed as {name!r}", remedy=f'Give the class this name: name = "{name}"')
    for method in ("probabilities", "numbers"):
        if not isinstance(inspect.getattr_static(kind, method), classmethod):
            raise InputError(f"{place}: {method} is not a class method", remedy="Write @classmethod above it.")
    return kind


def _overrides(kind: type[NamedLoss], method: str) -> bool:
    return inspect.getattr_static(kind, method) is not inspect.getattr_static(NamedLoss, method)


class NamedLoss:
    """Base of all losses: checks the batch and averages `terms` over samples and labels.

    Subclasses define `terms`, or `reduce` for losses that are not a mean of terms. The numbers of the network are
    logits unless the class overrides `probabilities`; one that does should define `numbers` too.

    Attributes:
        name: its name in `LOSSES`, for messages.
        by_class: class weights (L,), set by `configure`, which a distillation with this loss uses too; None: all 1.
    """

    name: ClassVar[str]
    by_class: torch.Tensor | None = None

    class Options(Settings):
        """No options."""

    def __init__(self, options: Settings, *, rates: np.ndarray | None = None, samples: int | None = None) -> None:
        self.options: Any = options
        self.rates, self.samples = rates, samples
        self.configure(options)

    def configure(self, options: Any) -> None:
        """Prepares values that depend on the options, and checks that the training split provides what they need."""

    def __call__(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        *,
        epoch: int = 0,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if logits.ndim != 2 or logits.shape != targets.shape or 0 in logits.shape:
            raise InputError(f"logits of shape {tuple(logits.shape)} do not fit targets of {tuple(targets.shape)}")
        if weights is not None and weights.shape != logits.shape[:1]:
            raise InputError(f"sample weights of shape {tuple(weights.shape)} do not fit {len(logits)} samples")
        if self.rates is not None and len(self.rates) != logits.shape[1]:
            raise InputError(f"{len(self.rates)} class rates do not fit {logits.shape[1]} labels")
        rows = None if weights is None else weights.float()
        return self.reduce(logits.float(), targets.float(), epoch, rows)

    @classmethod
    def probabilities(cls, numbers: torch.Tensor, options: Any) -> torch.Tensor:
        """Converts the numbers of the network to probabilities (n, L) in [0, 1], float32."""
        return numbers.float().sigmoid()

    @classmethod
    def numbers(cls, probabilities: torch.Tensor, options: Any) -> torch.Tensor:
        """Converts probabilities to numbers of the network: the inverse of `probabilities`.

        A new model starts at the class prior by it. Of a class with its own `probabilities` but without this method, a
        model starts as its network is initialised.
        """
        return probabilities.clamp(1e-3, 1 - 1e-3).logit()

    @classmethod
    def trained_targets(cls, targets: Any, options: Any) -> Any:
        """Returns the targets, a tensor or an array in [0, 1], that the loss makes of those of the data: the same.

        A loss that changes them overrides it by a linear map, so that it also holds for class rates.
        """
        return targets

    def reduce(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the scalar loss of checked float32 inputs."""
        terms = self.terms(logits, targets, epoch, weights)
        if terms.shape != logits.shape:
            raise InputError(
                f"the loss {self.name} gives a tensor of shape {tuple(terms.shape)}, not {tuple(logits.shape)}",
                remedy=f"Let {type(self).__module__}:{type(self).__qualname__}.terms return the loss of each label.",
            )
        return terms.mean() if weights is None else sample_mean(terms, weights).mean()

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the loss of each sample and label, (n, L)."""
        raise InputError(
            f"the loss {type(self).__module__}:{type(self).__qualname__} defines neither terms nor reduce",
            remedy="Add one of them to the class.",
        )


# Losses of other packages are added by the entry point `raymotion.losses`.
_losses: Registry[NamedLoss] = Registry("loss", NamedLoss, "raymotion.losses", lambda: LOSSES)


def sample_mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Returns the weighted mean of (n, L) over the samples: (L,); 0 if all weights are 0."""
    if weights is None:
        return values.mean(dim=0)
    return weights @ values / weights.sum().clamp(min=1e-12)


def rate_weights(rates: torch.Tensor) -> torch.Tensor:
    """Returns the class weights 1 / ln(1.2 + p) of the EMOTIC paper (Kosti et al. 2017, 2019), divided by their mean.

    Before the division they are between 1.27 (p = 1) and 5.48 (p = 0): a class that a batch lacks has the highest
    weight, so that its negatives count.

    Args:
        rates: p, (L,) in [0, 1].
    """
    weights = 1.0 / (rates + RATE_OFFSET).log()
    return weights / weights.mean()


class BinaryCrossEntropy(NamedLoss):
    """Binary cross-entropy in nats, optionally with label smoothing and class weights; see `bce.multilabel_bce`."""

    name = "bce"

    class Options(Settings):
        label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
        class_weights: WeightKind = "none"

    def configure(self, options: Any) -> None:
        if options.class_weights != "none":
            rates = _rates_for(self, f"class_weights={options.class_weights}")
            self.by_class = class_weights(rates.tolist(), options.class_weights, samples=self.samples)

    @classmethod
    def trained_targets(cls, targets: Any, options: Any) -> Any:
        return targets * (1.0 - options.label_smoothing) + 0.5 * options.label_smoothing

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        import torch.nn.functional as F

        if self.options.label_smoothing:
            targets = self.trained_targets(targets, self.options)
        by_class = None if self.by_class is None else self.by_class.to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, targets, weight=by_class, reduction="none")


class Discrete(NamedLoss):
    """Class-weighted squared error of probabilities, after the discrete loss of EMOTIC (Kosti et al. 2017).

    w_c (sigmoid(x) - y)^2, with `weights`:

    * `mean`: all 1.
    * `static`: `rate_weights` of the training rates.
    * `dynamic`: `rate_weights` of the batch's own (sample-weighted) rates. These are shares, not counts as in the
      public study, so that they do not depend on the batch size.
    """

    name = "discrete"

    class Options(Settings):
        weights: Literal["mean", "static", "dynamic"] = "dynamic"

    def configure(self, options: Any) -> None:
        if options.weights == "static":
            _rates_for(self, "weights=static")

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        squared = (logits.sigmoid() - targets).square()
        if self.options.weights == "mean":
            return squared
        if self.options.weights == "dynamic":
            return squared * rate_weights(sample_mean(targets, weights))
        return squared * rate_weights(targets.new_tensor(self.rates))


class Focal(NamedLoss):
    """Focal loss, -a_t (1 - p_t)^gamma ln p_t (Lin et al. 2017), for every label.

    With `alpha`, a present label has weight alpha and an absent one 1 - alpha; without it, both have weight 1. For
    targets of 0 and 1 and without alpha this is also the public study's focal loss.
    """

    name = "focal"

    class Options(Settings):
        gamma: float = Field(default=2.0, ge=0.0)
        alpha: float | None = Field(default=None, ge=0.0, le=1.0)

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        import torch.nn.functional as F

        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
        # Powers are computed from logarithms: their gradient stays finite even if the probability underflows.
        present = -(self.options.gamma * log_q).exp() * log_p
        absent = -(self.options.gamma * log_p).exp() * log_q
        if self.options.alpha is not None:
            present, absent = self.options.alpha * present, (1.0 - self.options.alpha) * absent
        return targets * present + (1.0 - targets) * absent


class Asymmetric(NamedLoss):
    """Asymmetric loss (Ridnik et al. 2021).

    -(1 - p)^g+ ln p for a present label, -p_m^g- ln(1 - p_m) for an absent one; p_m = max(p - clip, 0) shifts the
    probability of absent labels only: those below `clip` cost nothing.
    """

    name = "asymmetric"

    class Options(Settings):
        gamma_negative: float = Field(default=4.0, ge=0.0)
        gamma_positive: float = Field(default=0.0, ge=0.0)
        clip: float = Field(default=0.05, ge=0.0, lt=1.0)

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
        present = -(self.options.gamma_positive * log_q).exp() * log_p
        shifted = logits.sigmoid() - self.options.clip
        if self.options.clip > 0:  # 1 - p_m = (1 - p) + clip
            log_q = torch.logaddexp(log_q, torch.full_like(log_q, self.options.clip).log())
        # The floor keeps the gradient of a power below 1 finite; smaller values count as 0 anyway.
        absent = torch.where(
            shifted > 0, -(shifted.clamp(min=1e-8) ** self.options.gamma_negative) * log_q, torch.zeros_like(log_q)
        )
        return targets * present + (1.0 - targets) * absent


class Dice(NamedLoss):
    """Soft Dice loss (Milletari et al. 2016) of each class over the batch, averaged over classes.

    1 - (2 m(p y) + smooth) / (m(p) + m(y) + smooth), where m is the mean over the samples. It is computed by class,
    because over all labels at once the frequent ones would dominate, and from means, so that `smooth` is a share and
    independent of the batch size. For a class that the batch lacks it still favours low probabilities.
    """

    name = "dice"

    class Options(Settings):
        smooth: float = Field(default=0.02, gt=0.0)

    def reduce(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        p = logits.sigmoid()
        both = 2.0 * sample_mean(p * targets, weights) + self.options.smooth
        either = sample_mean(p, weights) + sample_mean(targets, weights) + self.options.smooth
        return (1.0 - both / either).mean()


class LabelCorrection(NamedLoss):
    """Cross-entropy with labels that the model corrects after a warm-up (after MLLSC, Ghiassi et al. 2022).

    The first `warmup` epochs use plain cross-entropy. Afterwards a present label with a probability below the class
    rate x `drop_below` counts as absent, and an absent one above `raise_above` as present. The class rate matters: 0.7
    % of the EMOTIC persons are embarrassed, so a fixed limit such as the public 0.55 would remove all of their labels.
    Without rates, `drop_below` is a probability. The correction uses detached logits: no gradient flows through it.
    """

    name = "mllsc"

    class Options(Settings):
        warmup: int = Field(default=5, ge=0)
        drop_below: float = Field(default=0.1, ge=0.0, lt=1.0)
        raise_above: float = Field(default=0.9, gt=0.0, le=1.0)

    def corrected(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the corrected targets (n, L). A share of annotators counts as present from 0.5."""
        import torch

        p = logits.detach().float().sigmoid()
        floor = p.new_tensor(self.options.drop_below)
        if self.rates is not None:
            floor = floor * p.new_tensor(self.rates)
        present = targets >= 0.5
        dropped = torch.where(present & (p < floor), torch.zeros_like(targets), targets)
        return torch.where(~present & (p > self.options.raise_above), torch.ones_like(targets), dropped)

    def terms(
        self, logits: torch.Tensor, targets: torch.Tensor, epoch: int, weights: torch.Tensor | None
    ) -> torch.Tensor:
        import torch.nn.functional as F

        if epoch >= self.options.warmup:
            targets = self.corrected(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _checked_rates(rates: np.ndarray | None) -> np.ndarray | None:
    if rates is None:
        return None
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise InputError("class rates are one number in [0, 1] for each label")
    return values


def _rates_for(loss: NamedLoss, what: str) -> np.ndarray:
    if loss.rates is None:
        raise InputError(f"loss {loss.name} with {what} needs the class rates of the training split")
    return loss.rates
