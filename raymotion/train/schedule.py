"""The schedule of a training run: rows and steps of each epoch, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymotion.models.recipe import Plateau, TrainRecipe


def steps_per_epoch(recipe: TrainRecipe, samples: int, world: int) -> int:
    """Returns the number of batches that each of `world` workers sees in an epoch of `samples`."""
    return math.ceil(math.ceil(samples / world) / batch_rows(recipe, world))


def batch_rows(recipe: TrainRecipe, world: int) -> int:
    """Returns one worker's share of the recipe's batch size."""
    return max(1, recipe.optimiser.batch_size // world)


def schedule(
    step: int, total: int, warmup: float, kind: str = "cosine", step_at: Sequence[float] = (0.35, 0.7)
) -> float:
    """Returns the learning rate factor: linear from 0 over the share `warmup` of the steps, then a half cosine to 0.

    `constant` and `plateau` (see `lowered`): 1 in place of the cosine. `step`: a tenth after each share `step_at` of
    the steps.
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if kind in ("constant", "plateau"):
        return 1.0
    if kind == "step":
        return float(0.1 ** sum(step >= share * total for share in step_at))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def epochs_without_gain(scores: Sequence[float], min_delta: float) -> int:
    """Returns the number of epochs since the last whose score (lower is better) was better by `min_delta`."""
    best, waited = math.inf, 0
    for score in scores:
        best, waited = _waited(best, waited, score, min_delta)
    return waited


def _waited(best: float, waited: int, score: float, min_delta: float) -> tuple[float, int]:
    """Returns the best score and the epochs since it, after another epoch."""
    return (score, 0) if score < best - min_delta else (best, waited + 1)


def lowered(rate: float, scores: Sequence[float], settings: Plateau) -> float:
    """Returns the learning rate after the epochs with these scores (lower is better): Keras' `ReduceLROnPlateau`.

    A function of the history alone, so that a resumed run goes on with the same rate.
    """
    best, waited = math.inf, 0
    for score in scores:
        best, waited = _waited(best, waited, score, settings.min_delta)
        if waited >= settings.patience:
            rate, waited = max(rate * settings.factor, min(rate, settings.lowest)), 0
    return rate


def epoch_rows(
    rows: np.ndarray, *, seed: int, epoch: int, rank: int, world: int, samples: int | None = None
) -> np.ndarray:
    """Returns this worker's rows in this epoch: every `world`-th row of one shuffle that all workers share.

    All workers get the same number of rows, because one that stopped early would leave the others waiting; so up to
    `world - 1` rows are seen twice.

    Args:
        samples: per epoch, if not all rows; epochs are then consecutive slices of a sequence of shuffles.
    """
    samples = len(rows) if samples is None else samples
    first, last = epoch * samples // len(rows), ((epoch + 1) * samples - 1) // len(rows)
    shuffles = [np.random.default_rng([seed, number]).permutation(rows) for number in range(first, last + 1)]
    start = epoch * samples - first * len(rows)
    order = np.concatenate(shuffles)[start : start + samples]
    share = math.ceil(len(order) / world)
    return np.resize(order, share * world)[rank::world]
