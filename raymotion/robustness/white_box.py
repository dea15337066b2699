"""Gradients of a goal in the pixels of an original picture, for the reference attack that knows the network.

Networks are differentiable from the pixels that they get, and what comes before (decoding aside: cropping, resizing by
Pillow) is not. So the gradient is computed at the network's input, and each of its pixels is carried back to the
original pixel at its centre. Where that is, a probe tells: a picture whose red is the column and whose green is the row
goes through the same inputs. In pictures of up to 256 pixels a side that is exact to the rounding of the resize; in
larger ones, to side / 512 pixels. It chooses pixels and directions; whether a changed picture succeeds, only the real
prediction says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raymotion.errors import InputError
from raymotion.models.outputs.base import forward
from raymotion.robustness.goals import Goal
from raymotion.robustness.prediction import PictureModel

OUTSIDE = "the network reads features that were computed before it, so it has no gradient in the pixels"
NO_PIXELS = "the network gets no pixels, so it has no gradient in them"
FROZEN = "the network computes no gradient in its pixels: what reads them is frozen"


class InputGradients:
    """Gradients of a model that is loaded.

    Attributes:
        why_not: why there are none; None if there are.
    """

    def __init__(self, model: PictureModel) -> None:
        self.model = model
        self.why_not: str | None = OUTSIDE if len(model.stages) > 1 else None
        self._places: tuple[int, list[tuple[np.ndarray, np.ndarray]]] | None = None

    def try_on(self, row: Mapping[str, Any], picture: np.ndarray, goal: Goal) -> np.ndarray | None:
        """Returns the gradient (height, width, 3) at a picture; None, and `why_not`, if the network has none."""
        self._places = None
        if self.why_not is not None:
            return None
        try:
            return self(row, picture, goal)
        except _NoGradient as error:
            self.why_not = str(error)
        except (InputError, RuntimeError, TypeError) as error:  # a network that takes its pixels as bytes only
            self.why_not = f"the network cannot be differentiated ({str(error).splitlines()[0][:200]})"
        return None

    def __call__(self, row: Mapping[str, Any], picture: np.ndarray, goal: Goal) -> np.ndarray:
        """Returns the gradient of the goal's loss, float64 (height, width, 3), at a picture of the same sample."""
        import torch

        own = self.model.model
        arguments, leaves = self._arguments(row, picture)
        for leaf in leaves:
            leaf.requires_grad_(True)
        owners = arguments.pop("owners", None) if _takes_no_owners(own.network) else None
        rows = 1
        if owners is not None:  # of several captions the predictions are averaged
            rows = len(owners)
            arguments = {name: _for_each(value, rows) for name, value in arguments.items()}
        with torch.enable_grad():
            found = forward(own.network, arguments, own.outputs, rows)
            output = next(one for one in own.outputs if one.name == self.model.output)
            values = output.decode(found[output.name].float()).mean(dim=0, keepdim=True)
            loss = self._loss(goal, values)
            if not loss.requires_grad:
                raise _NoGradient(FROZEN)
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
        if all(slope is None for slope in slopes):
            raise _NoGradient(FROZEN)
        result = np.zeros(picture.shape, np.float64)
        for slope, (y, x) in zip(slopes, self._carried_back(row, picture), strict=True):
            if slope is not None:
                np.add.at(result, (y, x), np.nan_to_num(slope[0].double().cpu().numpy()))
        return result

    @staticmethod
    def _loss(goal: Goal, values: Any) -> Any:
        return goal.loss(values.cpu()).sum()

    def _arguments(self, row: Mapping[str, Any], picture: np.ndarray) -> tuple[dict[str, Any], list[Any]]:
        """Returns the network's arguments for one picture, and those of them that are its pixels, as float."""
        own = self.model
        (item,) = own.items(row, [picture])
        device = str(next(own.model.network.parameters()).device)
        arguments: dict[str, Any] = {}
        for one in own.last.inputs:
            arguments.update(one.collect([item]).tensors(device))
        leaves: list[Any] = []

        def as_float(value: Any) -> Any:
            if _is_pixels(value):
                leaves.append(value := value.float())
            return value

        arguments = {
            name: [as_float(part) for part in value] if isinstance(value, list) else as_float(value)
            for name, value in arguments.items()
        }
        if not leaves:
            raise _NoGradient(NO_PIXELS)
        return arguments, leaves

    def _carried_back(self, row: Mapping[str, Any], picture: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns, for each tensor of pixels, the rows and columns (S, S) of the original that its pixels come from."""
        if self._places is None or self._places[0] != id(row):
            height, width = picture.shape[:2]
            probe = np.zeros_like(picture)
            probe[..., 0] = np.round(np.linspace(0, 255, width))
            probe[..., 1] = np.round(np.linspace(0, 255, height))[:, None]
            _, leaves = self._arguments(row, probe)
            found = []
            for leaf in leaves:
                shares = leaf[0].cpu().numpy() / 255
                x = np.round(shares[..., 0] * (width - 1)).astype(np.int64)
                found.append((np.round(shares[..., 1] * (height - 1)).astype(np.int64), x))
            self._places = id(row), found
        return self._places[1]


class _NoGradient(Exception):
    """Says why a network has no gradient in its pixels."""


def _is_pixels(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 4 and value.shape[-1] == 3


def _takes_no_owners(network: Any) -> bool:
    taken: Callable[..., Any] = network.forward
    return "owners" not in inspect.signature(taken).parameters


def _for_each(value: Any, rows: int) -> Any:
    """Repeats a tensor of one sample for each of its captions."""
    if isinstance(value, list):
        return [_for_each(part, rows) for part in value]
    return value.expand(rows, *value.shape[1:]) if hasattr(value, "expand") and len(value) == 1 else value
