"""Fusions that lay the streams side by side, or multiply them.

Each takes `features`, the streams that the ablation leaves (name -> (n, D), zeros where a sample lacks the stream), and
`present` (n, streams) bool, and gives the fused vector (n, hidden). A layer on concatenated streams is written as the
sum of a layer without bias per stream: what a sample lacks adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raymotion.models.fusion_config import FusionConfig
from raymotion.models.fusion_gated import Tail


class Concatenated(nn.Module):
    """Linear(concatenation of vectors -> size) with one bias, as a sum over the named parts."""

    def __init__(self, widths: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(width, size, bias=False) for name, width in widths.items()})
        self.bias = nn.Parameter(torch.zeros(size))
        # As torch would start the one wide layer.
        bound = sum(widths.values()) ** -0.5
        for part in self.parts.values():
            nn.init.uniform_(part.weight, -bound, bound)  # type: ignore[arg-type]

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        result = self.bias
        for name, values in vectors.items():
            result = result + self.parts[name](values)
        return result


class Simple(nn.Module):
    """One layer on the concatenated streams."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.join = Concatenated(config.dims, config.hidden)
        self.tail = Tail(config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(self.join(features))
