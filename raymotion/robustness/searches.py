"""Searches for the pixels to change: differential evolution, random pixels, and a reference that knows the gradients.

All send their pictures through one `Oracle`, which counts them, keeps to the budget, and ends the search at the first
picture that succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.robustness.goals import Goal
from raymotion.robustness.pixels import (
    apply_change,
    bounds,
    differing_pixels,
    draw_as_published,
    draw_candidates,
    png_bytes,
    read_png,
    to_changes,
)
from raymotion.robustness.prediction import PictureModel
from raymotion.robustness.white_box import InputGradients

# Strategies of SciPy's differential evolution: scale factor (or its range, of which each generation draws one), the
# share of the numbers that come from the mutant, and the draw of the first generation. rand1bin is that of Su et al.
# 2019, who use no crossover. Of best1bin the share is small, because pixels add up: one of them may improve alone.
STRATEGIES: Mapping[str, tuple[float | tuple[float, float], float, Callable[..., np.ndarray]]] = {
    "best1bin": ((0.3, 0.9), 0.3, draw_candidates), "rand1bin": (0.5, 1.0, draw_as_published)
}  # fmt: skip
# Of the reference: steps from each start, their length in colour levels, and starts from random colours.
PGD_STEPS, PGD_LENGTH, PGD_STARTS = 20, 32.0, 3


@dataclass(frozen=True)
class Found:
    """The result of one search on one picture.

    Attributes:
        changed: the pixels that differ from the original, int (m, 5), m at most K.
        after: values (width,) that the model says of the changed picture, as read from its PNG.
        success: whether they reach the goal.
        queries: pictures sent until the first success; without one, all.
        sent: pictures sent: a whole batch at a time.
        gradients: gradients computed, by the reference only.
        png: the changed picture.
    """

    changed: np.ndarray
    after: np.ndarray
    success: bool
    queries: int
    sent: int
    gradients: int
    png: bytes


class Oracle:
    """The model as a search on one picture sees it.

    The prediction by which a picture is finally judged, alone and from its PNG, is a measurement and not counted.

    Args:
        row: the sample. picture: its original pixels, uint8 (height, width, 3).
        searched: the sample as it is sent during the search, if that is less than what is judged; see
            `Objective.reads_captions`.
        budget: most pictures to send.
        batch_size: pictures of a forward pass.

    Attributes:
        sent: number of pictures sent.
        gradients: number of gradients computed.
    """

    def __init__(
        self,
        model: PictureModel,
        row: Mapping[str, Any],
        picture: np.ndarray,
        goal: Goal,
        budget: int,
        batch_size: int,
        *,
        searched: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.row, self.picture, self.goal = model, row, picture, goal
        self.searched = row if searched is None else searched
        self.budget, self.batch_size = budget, batch_size
        self.sent = self.gradients = 0
        self._best: tuple[float, int, np.ndarray] | None = None
        self._found: Found | None = None

    @property
    def done(self) -> bool:
        """Whether a picture has succeeded, or the budget is spent."""
        return self._found is not None or self.sent >= self.budget

    def losses(self, changes: np.ndarray) -> np.ndarray:
        """Returns the losses (n,) of changes (n, K, 5); infinite for those that are not sent, or not predicted."""
        losses = np.full(len(changes), np.inf)
        start = 0
        while start < len(changes) and not self.done:
            some = changes[start : start + min(self.batch_size, self.budget - self.sent)]
            losses[start : start + len(some)] = self._send(some)
            start += len(some)
        return losses

    def _send(self, changes: np.ndarray) -> np.ndarray:
        import torch

        values, _ = self.model.predict(self.searched, [apply_change(self.picture, change) for change in changes])
        before, self.sent = self.sent, self.sent + len(changes)
        good = np.isfinite(values).all(axis=1)
        with torch.no_grad():
            losses = self.goal.loss(torch.from_numpy(values)).numpy()
        losses = np.where(good & np.isfinite(losses), losses, np.inf)
        for place in np.flatnonzero(good & self.goal.reached(values)).tolist():
            found = self._judge(changes[place], before + place + 1)
            if found.success:  # sums of a batch may differ from those of a picture alone, in the last digit
                self._found = found
                break
        lowest = int(losses.argmin())
        if self._best is None or losses[lowest] < self._best[0]:
            self._best = float(losses[lowest]), before + lowest + 1, changes[lowest].copy()
        return losses

    def _judge(self, change: np.ndarray, queries: int) -> Found:
        png = png_bytes(apply_change(self.picture, change))
        read = read_png(png)
        after, _ = self.model.predict(self.row, [read])
        success = bool(np.isfinite(after).all() and self.goal.reached(after)[0])
        changed = differing_pixels(self.picture, read)
        return Found(changed, after[0], success, queries, self.sent, self.gradients, png)

    def result(self) -> Found:
        """Returns the first success, or the picture that came nearest."""
        if self._found is None:
            assert self._best is not None, "no picture was sent"
            self._found = self._judge(self._best[2], self._best[1])
        found = self._found
        queries = found.queries if found.success else self.sent
        return Found(found.changed, found.after, found.success, queries, self.sent, self.gradients, found.png)


def evolve(oracle: Oracle, pixels: int, population: int, seed: list[int], strategy: str = "best1bin") -> Found:
    """Searches by differential evolution (Su et al. 2019), with SciPy, which hands over a generation at a time."""
    from scipy.optimize import differential_evolution

    height, width = oracle.picture.shape[:2]
    rng = np.random.default_rng(seed)
    mutation, recombination, draw = STRATEGIES[strategy]

    def energies(candidates: np.ndarray) -> np.ndarray:  # (5 * K, n)
        return oracle.losses(to_changes(candidates.T, width, height))

    differential_evolution(
        energies,
        bounds(width, height, pixels),
        init=draw(rng, population, pixels, width, height),
        strategy=strategy,
        mutation=mutation,
        recombination=recombination,
        # The last generation may be a part of one.
        maxiter=max(1, math.ceil(oracle.budget / population) - 1),
        callback=lambda intermediate_result: oracle.done,
        tol=0.0,
        atol=-1.0,  # a population of equals is no reason to stop
        polish=False,
        updating="deferred",
        vectorized=True,
        rng=rng,
    )
    return oracle.result()


def draw_at_random(oracle: Oracle, pixels: int, population: int, seed: list[int]) -> Found:
    """Draws pixels at random, each colour channel 0 or 255, until one succeeds or the budget is spent."""
    height, width = oracle.picture.shape[:2]
    rng = np.random.default_rng(seed)
    while not oracle.done:
        oracle.losses(to_changes(draw_candidates(rng, population, pixels, width, height), width, height))
    return oracle.result()


def follow_gradients(
    oracle: Oracle, pixels: int, seed: list[int], gradients: InputGradients, original: np.ndarray
) -> Found:
    """Searches by projected gradient descent (Madry et al. 2018) on the `pixels` pixels of the largest gradient.

    The pixels are chosen once, by the sum over colours of the absolute gradient. Each step moves every colour of them
    by `PGD_LENGTH` levels against the sign of its gradient, within 0 to 255, and sends the real, rounded picture.
    `PGD_STEPS` steps begin at the original colours, then at `PGD_STARTS` random ones.

    Args:
        original: the gradient at the unchanged picture (height, width, 3).
    """
    rng = np.random.default_rng(seed)
    strength = np.abs(original).sum(axis=2)
    chosen = np.argsort(-strength, axis=None, kind="stable")[:pixels]
    rows, columns = np.unravel_index(chosen, strength.shape)
    for start in range(1 + PGD_STARTS):
        colours, slope = oracle.picture[rows, columns].astype(np.float64), original[rows, columns]
        if start:
            colours = rng.integers(0, 256, colours.shape).astype(np.float64)
        for step in range(PGD_STEPS):
            if start or step:
                picture = apply_change(oracle.picture, _change(rows, columns, colours))
                slope = gradients(oracle.searched, picture, oracle.goal)[rows, columns]
                oracle.gradients += 1
            if not slope.any():
                break
            colours = np.clip(colours - PGD_LENGTH * np.sign(slope), 0.0, 255.0)
            oracle.losses(_change(rows, columns, colours)[None])
            if oracle.done:
                return oracle.result()
    if not oracle.sent:  # flat everywhere
        oracle.losses(_change(rows, columns, oracle.picture[rows, columns])[None])
    return oracle.result()


def _change(rows: np.ndarray, columns: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return np.column_stack([columns, rows, np.round(colours)]).astype(np.int64)


EVOLUTION, RANDOM, GRADIENTS = METHODS = "evolution", "random", "gradients"
