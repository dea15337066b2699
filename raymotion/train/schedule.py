"""What is learned when: the rows of an epoch, how many steps it has, and how fast each of them learns."""

from __future__ import annotations

import math

import numpy as np

from raymotion.models.recipe import TrainRecipe


def steps_per_epoch(recipe: TrainRecipe, samples: int, world: int) -> int:
    """Batches that each of `world` workers sees in an epoch of `samples`."""
    return math.ceil(math.ceil(samples / world) / batch_rows(recipe, world))


def batch_rows(recipe: TrainRecipe, world: int) -> int:
    """One worker's share of the recipe's batch."""
    return max(1, recipe.optimiser.batch_size // world)


def schedule(step: int, total: int, warmup: float, kind: str = "cosine") -> float:
    """Factor on the learning rate: linear from 0 over the share `warmup` of the steps, then half a cosine down to 0.

    `constant`: 1 in place of the cosine. `step`: a tenth after 35 % of the steps, a hundredth after 70 % (the public
    EMOTIC study: each seven of twenty epochs).
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if kind == "constant":
        return 1.0
    if kind == "step":
        return 1.0 if step < 0.35 * total else 0.1 if step < 0.7 * total else 0.01
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def epoch_rows(
    rows: np.ndarray, *, seed: int, epoch: int, rank: int, world: int, samples: int | None = None
) -> np.ndarray:
    """This worker's rows in this epoch: one shuffle for all, dealt out in turn.

    All get equally many, since a worker that stops early would leave the others waiting; so up to `world - 1` rows are
    seen twice.

    Args:
        samples: of an epoch, if that is not all rows: then epochs are cut from one shuffle after the other.
    """
    samples = len(rows) if samples is None else samples
    first, last = epoch * samples // len(rows), ((epoch + 1) * samples - 1) // len(rows)
    shuffles = [np.random.default_rng([seed, number]).permutation(rows) for number in range(first, last + 1)]
    start = epoch * samples - first * len(rows)
    order = np.concatenate(shuffles)[start : start + samples]
    share = math.ceil(len(order) / world)
    return np.resize(order, share * world)[rank::world]
