"""Outputs of a model of several paths, each with a head of its own: losses are added, predictions averaged.

A path is what a model makes of one stream, such as the surroundings or the body of a person. A path without evidence (a
person without a body's box) is neither trained nor averaged. A sample without any gets the mean of all paths, which
then say what they say of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.models.outputs.base import Criterion, Output, Targets
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel

if TYPE_CHECKING:
    from torch import Tensor

PATHS = 2
MOST_PATHS = 64


class _Paths:
    """What both outputs share: how a network's numbers of several paths stand in one tensor.

    Attributes:
        paths: number of paths P.
    """

    paths: int = PATHS

    @property
    def raw_width(self) -> int:
        """The numbers of all paths, and for each path whether it has evidence."""
        return self.paths * (cast(Output, self).width + 1)

    def raw_of(self, values: Sequence[Tensor], present: Tensor) -> Tensor:
        """Returns what a network returns for this output, (n, raw_width).

        Args:
            values: (n, width) of each path. present: (n, P) bool, which paths have evidence.
        """
        import torch

        return torch.cat([*(own.float() for own in values), present.float()], dim=1)

    def parts(self, raw: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the numbers (n, width) of each path, and which have evidence, (n, P) of 0 and 1."""
        width = cast(Output, self).width
        *values, present = raw.split([width] * self.paths + [self.paths], dim=1)
        return values, present

    def _mean(self, raw: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        import torch

        values, present = self.parts(raw)
        present = torch.where(present.sum(dim=1, keepdim=True) > 0, present, torch.ones_like(present))
        shares = present / present.sum(dim=1, keepdim=True)
        return torch.stack([decode(own) for own in values], dim=2).mul(shares[:, None, :]).sum(dim=2)

    def _read_paths(self, value: Mapping[str, Any], where: str) -> None:
        paths = value.get("paths")
        if type(paths) is not int or not 1 <= paths <= MOST_PATHS:
            raise InputError(f"the output {value.get('name')} has {paths!r} paths", path=where)
        self.paths = paths


class PathLabels(_Paths, MultiLabel):
    """Probabilities (n, L) over a vocabulary: the mean over the paths."""

    kind_of_output: ClassVar[str] = "multilabel_paths"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "paths": self.paths}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> PathLabels:
        found = cast(PathLabels, super().from_dict(value, where=where))
        found._read_paths(value, where)
        return found

    def decode(self, raw: Tensor) -> Tensor:
        return self._mean(raw, super().decode)

    def criterion(self, targets: Targets, training: np.ndarray) -> Any:
        return PathCriterion(super().criterion(targets, training), self)


class PathNumbers(_Paths, Dimensions):
    """Numbers (n, D) on a scale: the mean over the paths."""

    kind_of_output: ClassVar[str] = "dimensions_paths"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "paths": self.paths}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> PathNumbers:
        found = cast(PathNumbers, super().from_dict(value, where=where))
        found._read_paths(value, where)
        return found

    def decode(self, raw: Tensor) -> Tensor:
        return self._mean(raw, super().decode)

    def criterion(self, targets: Targets, training: np.ndarray) -> Any:
        return PathCriterion(super().criterion(targets, training), self)


class PathCriterion:
    """The sum over the paths of a loss, to which samples without evidence of a path do not count."""

    def __init__(self, loss: Criterion, output: PathLabels | PathNumbers) -> None:
        self.loss, self.output = loss, output

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        values, present = self.output.parts(raw)
        total: Any = 0.0
        for number, own in enumerate(values):
            there = present[:, number]
            total = total + self.loss(
                own, targets, epoch=epoch, weights=there if weights is None else there * weights.to(there.dtype)
            )
        return cast("Tensor", total)
