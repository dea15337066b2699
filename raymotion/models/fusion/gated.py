"""Fusions that weight the streams: one weight per stream, or a gate per feature.

Each maps `features`, the streams kept by the ablation (name -> (n, D), zeros for a missing stream), and `present`
(n, streams) bool to the fused vector (n, hidden). Means do not include missing streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymotion.models.fusion.config import FusionConfig


class Projections(nn.ModuleDict):
    """One Linear(D -> size) and ReLU per stream."""

    def __init__(self, config: FusionConfig, size: int) -> None:
        super().__init__({name: nn.Linear(width, size) for name, width in config.dims.items()})

    def each(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns (n, size) for each stream. Not masked: a missing stream gives the ReLU of the bias."""
        return [F.relu(self[name](values)) for name, values in features.items()]


class Dropout(nn.Dropout):
    """Dropout whose mask takes a tenth of the time on the CPU, where torch's takes a tenth of a weighted head's step.

    Uses one random byte per value, so p is rounded to a multiple of 1/256; kept values are scaled accordingly.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Drops values with probability p (to 1/256) in training, and scales the others."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        drop = min(255, round(self.p * 256))
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= drop
        return values * (kept * (256 / (256 - drop)))


class Tail(nn.Sequential):
    """LayerNorm, ReLU, Dropout.

    The public study has a BatchNorm here: its statistics mix samples with and without a stream, and it cannot train on
    one row.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(nn.LayerNorm(config.hidden), nn.ReLU(), Dropout(config.dropout))


def shares(scores: Tensor, present: Tensor) -> Tensor:
    """Computes the softmax of (n, s) scores over present entries; 0 for the others, and for rows without any."""
    kept = scores.masked_fill(~present, float("-inf"))
    # A row of only -inf would give NaN: its scores are set to 0, and so is its result.
    kept = kept.masked_fill(~present.any(-1, keepdim=True), 0.0)
    return torch.softmax(kept, dim=-1).masked_fill(~present, 0.0)


class Weighted(nn.Module):
    """A weighted mean of the streams, with one learned weight each: a softmax over the present streams.

    The public study divides by the sum of unconstrained weights, which may be negative or near zero.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.project = Projections(config, config.hidden)
        self.scores = nn.Parameter(torch.zeros(len(config.dims)))
        self.order = list(config.dims)
        self.tail = nn.Sequential(nn.LayerNorm(config.hidden), Dropout(config.dropout))

    def weights(self, streams: Sequence[str], present: Tensor) -> Tensor:
        """Returns the weights of the streams, (n, streams); they sum to 1 if a sample has any stream."""
        scores = torch.stack([self.scores[self.order.index(name)] for name in streams])
        return shares(scores.expand(present.shape), present)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        weights = self.weights(list(features), present)
        # Stream by stream, because stacking would copy them in the forward and the backward pass.
        fused = torch.zeros((), device=weights.device)
        for number, part in enumerate(self.project.each(features)):
            fused = fused + part * weights[:, number : number + 1]
        return self.tail(fused)


class GatedResidual(nn.Module):
    """The mean of the streams plus each stream times a gate, computed from the mean for each feature.

    As in the public study, but with means over the present streams instead of sums over all three.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.project = Projections(config, config.hidden)
        self.gates = nn.ModuleDict({name: nn.Linear(config.hidden, config.hidden) for name in config.dims})
        self.join = nn.Linear(config.hidden, config.hidden)
        self.tail = Tail(config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        share = (present / present.sum(1, keepdim=True).clamp(min=1)).to(self.join.weight.dtype)
        parts = [part * one[:, None] for part, one in zip(self.project.each(features), share.unbind(1))]
        mean = torch.stack(parts).sum(0)
        # The part of a missing stream is zero, so an open gate has no effect.
        gated = [torch.sigmoid(self.gates[name](mean)) * part for name, part in zip(features, parts)]
        return self.tail(self.join(mean + torch.stack(gated).sum(0)))
