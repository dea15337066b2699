"""Losses for multi-label emotion targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from raymotion.errors import InputError

if TYPE_CHECKING:
    import torch

WeightKind = Literal["none", "inverse", "sqrt_inverse", "effective"]

# Lower bound on class rates: the weight of a class without training samples would be infinite.
MIN_PREVALENCE = 1e-3


def multilabel_bce(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Computes the binary cross-entropy in nats, averaged over batch and labels: a scalar.

    Args:
        logits: (n, L), before the sigmoid.
        targets: (n, L) in [0, 1]; may be shares of annotators.
        class_weights: (L,) factors on each label's loss, for positives and negatives alike, so that with a mean of 1
            the scale of the loss is unchanged and the optimum stays calibrated.
        label_smoothing: s maps a target t to t (1 - s) + s / 2 (Szegedy et al. 2016, for two outcomes).
    """
    import torch.nn.functional as F

    if logits.shape != targets.shape:
        raise InputError(f"logits of shape {tuple(logits.shape)} do not fit targets of {tuple(targets.shape)}")
    if not 0.0 <= label_smoothing < 1.0:
        raise InputError(f"label_smoothing {label_smoothing} is not in [0, 1)")
    # Always in float32: bfloat16 has only 8 bits for a logarithm near zero.
    smoothed = targets.float() * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return F.binary_cross_entropy_with_logits(logits.float(), smoothed, weight=class_weights)


def class_weights(
    prevalence: torch.Tensor | Sequence[float],
    kind: WeightKind = "none",
    *,
    samples: int | None = None,
    beta: float = 0.999,
) -> torch.Tensor:
    """Computes class weights, float32 (L,) with a mean of 1, from class rates in [0, 1].

    Args:
        kind: `none` (all 1), `inverse` (1 / rate), `sqrt_inverse` (1 / sqrt(rate)) or `effective` (Cui et al. 2019: 1
            over the effective number of samples, (1 - beta) / (1 - beta^m) for m samples of a class).
        samples: size of the training split; `effective` needs it to convert rates into counts.
        beta: for `effective`; 0 gives equal weights, values near 1 approach the inverse rate.

    Rates below 0.001 count as 0.001, so that a class without samples does not take all the weight.
    """
    import torch

    rates = torch.as_tensor(prevalence, dtype=torch.float64)
    if rates.ndim != 1 or rates.numel() == 0 or not bool(((rates >= 0) & (rates <= 1)).all()):
        raise InputError("class rates are one number in [0, 1] for each label")
    rates = rates.clamp(min=MIN_PREVALENCE)
    if kind == "none":
        weights = torch.ones_like(rates)
    elif kind == "inverse":
        weights = 1.0 / rates
    elif kind == "sqrt_inverse":
        weights = rates.rsqrt()
    elif kind == "effective":
        if samples is None or samples < 1:
            raise InputError("class weights of kind effective need the number of training samples")
        if not 0.0 <= beta < 1.0:
            raise InputError(f"beta {beta} is not in [0, 1)")
        weights = (1.0 - beta) / (1.0 - beta ** (rates * samples))
    else:
        raise InputError(
            f"class weights of kind {kind!r} do not exist", remedy="Choose none, inverse, sqrt_inverse or effective."
        )
    return (weights / weights.mean()).float()
