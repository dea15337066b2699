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
    """The place of this process among those that train one model together; by default it is the only one."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    # Recorded with each epoch in the history: the command and the process that computed it.
    attempt: str = ""
    # ray.train.torch.prepare_model, or DistributedDataParallel.
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    # Receives every step; set on rank 0 only.
    pace: Pace | None = None

    def share_buffers(self, model: nn.Module) -> None:
        """Broadcasts the normalisation statistics of rank 0, which a checkpoint stores, to every rank.

        DDP does this before each training forward pass, after which each rank updates its own.
        """
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """Returns the `value` of every rank, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Workers()
