"""Clean-label feature collision (Shafahi et al. 2018, "Poison Frogs!", arXiv 1804.00792).

A base picture x0, whose label stays true, is changed so that the features f(x) that a model's last layer reads come
near those of an attacked picture t, while x stays near x0:

    minimise  |f(x) - f(t)|^2 / |f(x0) - f(t)|^2  +  closeness |x - x0|^2 / (N max_change^2)

N is the number of values of the picture, so both terms are 1 where nothing was gained and where the whole budget is
spent. As in the paper's algorithm 1 this is done by forward-backward splitting: a step against the gradient of the
first term, then the proximal step of the second, x <- (x + s x0) / (1 + s). Beyond the paper, each value has a rate of
its own (in the plain gradient a few steep values keep all others from moving), the steps grow shorter, the best picture
of all steps is kept, and each step is projected to the budget: at most `max_change` levels for each colour value
(L-infinity), and only the pixels that changed the most, up to the pixel budget (L0), in the range 0 to 255.

x are the pixels of the picture as decoded. The model reads its resized picture r(x0) as it always does, plus the
resized change r(x - x0) by torch's antialiased bilinear interpolation, which is linear; what the written picture gives
is measured afterwards, through the model's own reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError
from raymotion.robustness.poison_model import OpenedModel, pixels_of

if TYPE_CHECKING:
    from torch import Tensor

# A value's first step is below this share of the largest change; later ones fall to 0 in a line.
FIRST_STEP = 0.25
TINY = 1e-30


@dataclass(frozen=True)
class Budget:
    """What may change.

    Attributes:
        max_change: largest change of a value, in levels of 0 to 255. max_pixels: share of the pixels.
    """

    max_change: int
    max_pixels: float


@dataclass(frozen=True)
class Collision:
    """A poison: uint8 (height, width, 3), and the least sum of both terms so far, at the start and after each step."""

    pixels: np.ndarray
    trace: list[float]


def collide(
    model: OpenedModel,
    rows: np.ndarray,
    bases: Sequence[np.ndarray],
    towards: np.ndarray,
    *,
    budget: Budget,
    iterations: int,
    closeness: float,
) -> list[Collision]:
    """Changes base pictures so that their features come near others.

    Args:
        rows: of the training set, the n samples of the bases.
        bases: their pictures as decoded, uint8 (height, width, 3) of any size.
        towards: features (n, D) to come near.

    Raises:
        InputError: the model does not read exactly one picture of a sample, or its features do not depend on it.
    """
    found: list[Collision] = []
    for arguments in model.arguments(rows):
        first = len(found)
        last = first + len(pixels_of(arguments))
        found += _collide(
            model, arguments, bases[first:last], towards[first:last],
            budget=budget, iterations=iterations, closeness=closeness,
        )  # fmt: skip
    return found


def _collide(
    model: OpenedModel,
    arguments: dict[str, object],
    bases: Sequence[np.ndarray],
    towards: np.ndarray,
    *,
    budget: Budget,
    iterations: int,
    closeness: float,
) -> list[Collision]:
    import torch

    device = model.device
    shown = pixels_of(arguments).float()
    target = torch.from_numpy(np.array(towards)).to(device).float()
    x0 = [torch.from_numpy(np.array(base)).to(device).float() for base in bases]
    with torch.no_grad():
        start = (model.features_of(arguments, shown) - target).square().sum(dim=1).clamp(min=1e-12)

    def measure(x: Sequence[Tensor]) -> tuple[np.ndarray, list[Tensor]]:
        """Returns the sum of both terms of each picture, and the gradient of the first."""
        given = [own.detach().requires_grad_(True) for own in x]
        changes = torch.stack([_resized(own - base, shown.shape[1]) for own, base in zip(given, x0, strict=True)])
        distance = (model.features_of(arguments, shown + changes) - target).square().sum(dim=1) / start
        if not distance.requires_grad:
            raise _blind(model)
        gradients = torch.autograd.grad(distance.sum(), given)
        close = torch.stack([(own - base).square().mean() for own, base in zip(x, x0, strict=True)])
        total = distance.detach() + closeness * close / budget.max_change**2
        return total.cpu().numpy().astype(np.float64), list(gradients)

    x = list(x0)
    sums, gradients = measure(x)
    if not any(bool(own.any()) for own in gradients):
        raise _blind(model)
    best, lowest = list(x0), sums
    traces = [[own] for own in sums.tolist()]
    for step in range(iterations):
        reach = FIRST_STEP * budget.max_change * (1 - step / iterations)
        for i, (own, base, gradient) in enumerate(zip(x, x0, gradients, strict=True)):
            # A rate of each value, so that a few steep ones do not keep all others from moving: a value's step is below
            # `reach`, and half of it where the gradient is the mean one.
            rate = reach / (gradient.abs() + gradient.abs().mean() + TINY)
            pull = 2 * rate * closeness / (base.numel() * budget.max_change**2)
            x[i] = project((own - rate * gradient + pull * base) / (1 + pull), base, budget)
        sums, gradients = measure(x)
        for i in np.flatnonzero(sums < lowest).tolist():
            best[i] = x[i]
        lowest = np.minimum(lowest, sums)
        for trace, own in zip(traces, lowest.tolist(), strict=True):
            trace.append(own)
    return [
        Collision(project(own, base, budget).round().cpu().numpy().astype(np.uint8), trace)
        for own, base, trace in zip(best, x0, traces, strict=True)
    ]


def project(x: Tensor, base: Tensor, budget: Budget) -> Tensor:
    """Returns the picture (height, width, 3) within the budget of `base` that keeps the largest changes of `x`."""
    import torch

    change = (x - base).clamp(-budget.max_change, budget.max_change)
    kept = max(1, int(budget.max_pixels * base.shape[0] * base.shape[1]))
    size = change.abs().sum(dim=2).flatten()
    if kept < len(size):
        mask = torch.zeros_like(size)
        mask[size.topk(kept).indices] = 1.0
        change = change * mask.view(*change.shape[:2], 1)
    return (base + change).clamp(0.0, 255.0)


def _resized(change: Tensor, side: int) -> Tensor:
    """Returns a change (height, width, 3) as a model that reads squares of `side` pixels sees it."""
    from torch.nn import functional

    if change.shape[:2] == (side, side):
        return change
    own = change.permute(2, 0, 1)[None]
    return functional.interpolate(own, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _blind(model: OpenedModel) -> InputError:
    return InputError(
        f"the features that the last layer of {model.output.name} reads do not depend on the picture: nothing can be "
        "gained by changing it",
        remedy="Take a recipe that reads pictures, or another attack.",
    )
