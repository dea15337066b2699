"""Valence, arousal, dominance: the loss of a head that predicts them, and its error beside that of a constant.

EMOTIC gives each on a scale from 1 to 10, and leaves some out (NaN). Heads work on raw / 10, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError

if TYPE_CHECKING:
    import torch

DIMENSIONS = ("valence", "arousal", "dominance")
SCALE = 10.0
# Where smooth L1 turns from a square to a line: 1 on the raw scale, as in Tandon-A/emotic.
MARGIN = 1.0


def vad_loss(outputs: torch.Tensor, raw: torch.Tensor, *, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Smooth L1 in units of raw / 10, mean over what is known: a float32 scalar. Where nothing is known it is 0.

    With d the difference on the scale 0..1 and b = 0.1: d^2 / (2 b) up to b, |d| - b / 2 beyond (Girshick 2015).

    Args:
        outputs: (n, 3) on the scale 0..1.
        raw: (n, 3) on the scale 1..10, NaN where it is not known.
        weights: (n,) of the samples, not negative; None: all 1.

    Raises:
        InputError: shapes that do not fit.
    """
    import torch
    import torch.nn.functional as F

    if outputs.shape != raw.shape or outputs.ndim != 2:
        raise InputError(f"outputs of shape {tuple(outputs.shape)} do not fit VAD of shape {tuple(raw.shape)}")
    known = ~raw.isnan()
    targets = torch.where(known, raw.float() / SCALE, torch.zeros_like(raw, dtype=torch.float32))
    terms = F.smooth_l1_loss(outputs.float(), targets, beta=MARGIN / SCALE, reduction="none")
    share = known.float() if weights is None else known.float() * weights.float()[:, None]
    return (terms * share).sum() / share.sum().clamp(min=1e-12)


@dataclass(frozen=True)
class VadError:
    """Mean absolute error of one dimension, raw scale (1..10); None where no sample has it.

    Attributes:
        constant: the error of the training mean for every sample, which a head has to beat.
        samples: how many have the dimension.
    """

    name: str
    mae: float | None
    constant: float | None
    samples: int


def vad_errors(
    raw: np.ndarray, predicted: np.ndarray, *, training_mean: np.ndarray | Sequence[float]
) -> list[VadError]:
    """The error of each dimension, and of all together (`vad`, mean of the three).

    Args:
        raw: (n, 3) on the scale 1..10, NaN where it is not known.
        predicted: (n, 3) on that scale: outputs x `SCALE`.
        training_mean: (3,) on that scale (`vad_mean` of the training split).

    Raises:
        InputError: shapes that do not fit, or predictions that are not finite.
    """
    truth, guess = np.asarray(raw, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    constant = np.asarray(training_mean, dtype=np.float64)
    width = len(DIMENSIONS)
    if truth.shape != (len(truth), width) or guess.shape != truth.shape or constant.shape != (width,):
        raise InputError(
            f"VAD of shape {truth.shape}, predictions of {guess.shape}, a mean of {constant.shape}: no fit"
        )
    if not np.isfinite(guess).all():
        raise InputError("VAD predictions are not all finite")
    rows = []
    for j, name in enumerate(DIMENSIONS):
        known = ~np.isnan(truth[:, j])
        true = truth[known, j]
        if not known.any():
            rows.append(VadError(name, None, None, 0))
            continue
        mae = float(np.abs(guess[known, j] - true).mean())
        # A dimension that training never had has no mean to compare with.
        base = float(np.abs(constant[j] - true).mean()) if np.isfinite(constant[j]) else None
        rows.append(VadError(name, mae, base, int(known.sum())))
    overall = _mean([row.mae for row in rows]), _mean([row.constant for row in rows])
    return [*rows, VadError("vad", *overall, samples=int((~np.isnan(truth)).any(axis=1).sum()))]


def vad_mean(raw: np.ndarray) -> np.ndarray:
    """(3,) means of (n, 3) over what is known; NaN where nothing is."""
    values = np.asarray(raw, dtype=np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
