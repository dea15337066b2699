"""Fusions that weigh the streams: one weight per stream, or a gate per feature.

Each takes `features`, the streams that the ablation leaves (name -> (n, D), zeros where a sample lacks the stream), and
`present` (n, streams) bool, and gives the fused vector (n, hidden). What a sample lacks gets no share of any mean.
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
        """(n, size) of each stream. Not masked: a missing stream gives the ReLU of the bias."""
        return [F.relu(self[name](values)) for name, values in features.items()]


class Dropout(nn.Dropout):
    """Dropout whose mask costs a tenth on the CPU, where torch's is a tenth of a weighted head's whole step.

    A byte of torch's generator for each value: so p is rounded to a 256th part, and what is kept is scaled by that.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, each dropped with probability p (to 1/256) in training, the others scaled."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        drop = min(255, round(self.p * 256))
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= drop
        return values * (kept * (256 / (256 - drop)))


class Tail(nn.Sequential):
    """LayerNorm, ReLU, Dropout.

    The public study has a BatchNorm here: its statistics mix samples that have a stream with samples that lack it,
    and it cannot train on one row.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(nn.LayerNorm(config.hidden), nn.ReLU(), Dropout(config.dropout))


def shares(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax of (n, s) scores over what is present; 0 for the rest, and all 0 where nothing is."""
    kept = scores.masked_fill(~present, float("-inf"))
    # A row of -inf alone would be NaN: it is scored 0 and then set to 0.
    kept = kept.masked_fill(~present.any(-1, keepdim=True), 0.0)
    return torch.softmax(kept, dim=-1).masked_fill(~present, 0.0)


class Weighted(nn.Module):
    """A mean of the streams with one learned weight each: softmax over the streams that a sample has.

    The public one divides by the sum of unconstrained weights, which may be negative or near zero.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.project = Projections(config, config.hidden)
        self.scores = nn.Parameter(torch.zeros(len(config.dims)))
        self.order = list(config.dims)
        self.tail = nn.Sequential(nn.LayerNorm(config.hidden), Dropout(config.dropout))

    def weights(self, streams: Sequence[str], present: Tensor) -> Tensor:
        """(n, streams): the shares of each sample's streams; they sum to 1 where there is one."""
        scores = torch.stack([self.scores[self.order.index(name)] for name in streams])
        return shares(scores.expand(present.shape), present)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        weights = self.weights(list(features), present)
        # Stream by stream: stacked they would be copied, forth and back.
        fused = torch.zeros((), device=weights.device)
        for number, part in enumerate(self.project.each(features)):
            fused = fused + part * weights[:, number : number + 1]
        return self.tail(fused)


class GatedResidual(nn.Module):
    """The mean of the streams, and on top of it each stream through a gate that this mean sets, feature by feature.

    As in the public study, with means over the streams that are there where it adds up all three.
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
        # A part is zero where its stream is missing, so an open gate lets nothing through.
        gated = [torch.sigmoid(self.gates[name](mean)) * part for name, part in zip(features, parts)]
        return self.tail(self.join(mean + torch.stack(gated).sum(0)))
