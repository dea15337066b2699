"""The processes that train one model together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raymotion.train.progress import Pace


@dataclass(frozen=True)
class Workers:
    """This process among those that train one model together. The default is alone."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    # Stands beside each epoch in the history: which process computed it, of which command.
    attempt: str = ""
    # ray.train.torch.prepare_model, or DistributedDataParallel.
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    # Told of every step; on rank 0 alone.
    pace: Pace | None = None

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the statistics of rank 0's norms, which are those that a checkpoint keeps.

        DDP does this before each forward pass in training, after which each rank goes on with its own.
        """
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Workers()
