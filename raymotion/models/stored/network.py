"""The table of stored probabilities, as a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Probabilities of 0 and 1 have no logit.
CLOSEST = 1e-7


class Stored(nn.Module):
    """Looks probabilities up.

    Args:
        rows: number of rows of the table.
        labels: number of emotions L.
    """

    def __init__(self, rows: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("probabilities", torch.zeros(rows, labels))
        # What the device of a network is told by.
        self.register_parameter("device", nn.Parameter(torch.zeros(1), requires_grad=False))

    def forward(self, answer: Tensor) -> Tensor:
        """Returns the logits (n, L) of rows `answer` (n,) int64."""
        return self.get_buffer("probabilities")[answer].double().clamp(CLOSEST, 1 - CLOSEST).logit().float()
