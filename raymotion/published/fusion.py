"""The ten fusions of the public EMOTIC study (tinaabishegan/EMOTIC-Multi-Label-Classification), for comparison.

They have no masks: a missing or left-out stream is a vector of zeros, which the layers' biases turn into a constant.
Features are not standardised, and tails use BatchNorm. Sizes scale with `hidden`, which is 256 in the study. One
difference: a training batch of one row, on which BatchNorm would fail, is normalised as in evaluation.

Each maps `features` (name -> (n, D), all three streams) and `present`, which it ignores, to (n, hidden).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymotion.models.fusion.config import FusionConfig

GRID = 7  # the study pools to 7 x 7 tokens


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm that normalises a batch of one row by its running statistics."""

    def forward(self, values: Tensor) -> Tensor:
        if self.training and len(values) == 1:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(values)


def _tail(inputs: int, config: FusionConfig) -> nn.Sequential:
    hidden = config.hidden
    return nn.Sequential(nn.Linear(inputs, hidden), BatchNorm(hidden), nn.ReLU(), nn.Dropout(config.dropout))


def _late_tail(inputs: int, config: FusionConfig) -> nn.Sequential:
    hidden = config.hidden
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), BatchNorm(hidden), nn.Dropout(config.dropout))


def _projections(config: FusionConfig, size: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Sequential(nn.Linear(d, size), nn.ReLU()) for name, d in config.dims.items()})


def _concat(features: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(features.values()), 1)


class Simple(nn.Module):
    """Concatenation and the tail."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.tail = _tail(sum(config.dims.values()), config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(_concat(features))


class Attention(nn.Module):
    """A gate by softmax over all T concatenated features: it sums to 1, so they are scaled by about 1/T."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        total, inner = sum(config.dims.values()), config.hidden // 2
        self.gate = nn.Sequential(nn.Linear(total, inner), nn.ReLU(), nn.Linear(inner, total), nn.Softmax(dim=1))
        self.tail = _tail(total, config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        values = _concat(features)
        return self.tail(values * self.gate(values))


class Transformation(nn.Module):
    """A layer per stream, concatenation, and the tail. The study's `bottleneck` is the same network."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        size = config.hidden // 2
        self.project = _projections(config, size)
        self.tail = _tail(size * len(config.dims), config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(torch.cat([self.project[name](values) for name, values in features.items()], 1))


class CrossModalTransformer(nn.Module):
    """Cross-attention from context to 49 copies each of body and face: a mix of two vectors. No tail."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.project = nn.ModuleDict({name: nn.Conv2d(d, hidden, 1) for name, d in config.dims.items()})
        self.attend = nn.MultiheadAttention(hidden, 8, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.feed = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))

    def tokens(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns stream -> (n, 49, hidden) with 49 equal tokens."""
        maps = {name: self.project[name](values[:, :, None, None]) for name, values in features.items()}
        pooled = {name: F.adaptive_avg_pool2d(values, GRID) for name, values in maps.items()}
        return {name: values.flatten(2).transpose(1, 2) for name, values in pooled.items()}

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        tokens = self.tokens(features)
        others = torch.cat([tokens["body"], tokens["face"]], 1)
        read, _ = self.attend(tokens["context"], others, others, need_weights=False)
        fused = self.norm(tokens["context"] + read)
        return (fused + self.feed(fused)).mean(1)


class Weighted(nn.Module):
    """One scalar per stream, divided by their sum: unconstrained, so weights may be negative or unbounded."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.project = _projections(config, config.hidden)
        self.scores = nn.ParameterDict({name: torch.tensor(1.0) for name in config.dims})
        self.tail = nn.Sequential(BatchNorm(config.hidden), nn.Dropout(config.dropout))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        parts = [self.scores[name] * self.project[name](values) for name, values in features.items()]
        total = torch.stack(list(self.scores.values())).sum() + 1e-8
        return self.tail(torch.stack(parts).sum(0) / total)


class GatedResidual(nn.Module):
    """The mean of the streams plus each stream times a gate computed from the mean."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.project = _projections(config, hidden)
        self.gates = nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in config.dims})
        self.tail = _late_tail(hidden, config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        parts = {name: self.project[name](values) for name, values in features.items()}
        mean = torch.stack(list(parts.values())).mean(0)
        gated = [torch.sigmoid(self.gates[name](mean)) * part for name, part in parts.items()]
        return self.tail(mean + torch.stack(gated).sum(0))


class Bilinear(nn.Module):
    """Products U(f) * V(f) of each stream with itself, but not of different streams."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, rank = config.hidden, config.hidden // 4
        self.project = _projections(config, hidden)
        self.left = nn.ModuleDict({name: nn.Linear(hidden, rank) for name in config.dims})
        self.right = nn.ModuleDict({name: nn.Linear(hidden, rank) for name in config.dims})
        self.tail = _late_tail(rank * len(config.dims), config)

    def products(self, features: Mapping[str, Tensor]) -> Tensor:
        """Returns the concatenated products, (n, streams * rank)."""
        parts = {name: self.project[name](values) for name, values in features.items()}
        return torch.cat([self.left[name](part) * self.right[name](part) for name, part in parts.items()], 1)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(self.products(features))


class LayerNormed(nn.Module):
    """A LayerNorm per stream, concatenation, and the tail."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(d) for name, d in config.dims.items()})
        self.tail = _tail(sum(config.dims.values()), config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(torch.cat([self.norms[name](values) for name, values in features.items()], 1))


class Hierarchical(nn.Module):
    """Body and face through Linear, ReLU and BatchNorm, then concatenated with the context for the tail."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, dims = config.hidden, config.dims
        self.person = nn.Sequential(nn.Linear(dims["body"] + dims["face"], hidden), nn.ReLU(), BatchNorm(hidden))
        self.tail = _tail(hidden + dims["context"], config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        person = self.person(torch.cat([features["body"], features["face"]], 1))
        return self.tail(torch.cat([person, features["context"]], 1))
