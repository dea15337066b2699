"""Fusions that concatenate or multiply the streams.

Each maps `features`, the streams kept by the ablation (name -> (n, D), zeros for a missing stream), and `present`
(n, streams) bool to the fused vector (n, hidden). A layer on concatenated streams is implemented as a sum of layers
without bias, one per stream, so that missing streams add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from raymotion.models.fusion.config import FusionConfig
from raymotion.models.fusion.gated import Projections, Tail


class Concatenated(nn.Module):
    """A linear layer on concatenated vectors with one bias, computed as a sum over the named parts."""

    def __init__(self, widths: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(width, size, bias=False) for name, width in widths.items()})
        self.bias = nn.Parameter(torch.zeros(size))
        # As torch initialises one wide layer.
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


class LayerNormed(nn.Module):
    """`Simple` with a LayerNorm on each stream, so that no stream dominates by its scale."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in config.dims.items()})
        self.join = Concatenated(config.dims, config.hidden)
        self.tail = Tail(config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        normed = [self.norms[name](values) for name, values in features.items()]
        # Masked, because the norm of a missing stream is its bias.
        return self.tail(self.join(dict(zip(features, masked(normed, present)))))


class Transformation(nn.Module):
    """One layer per stream (D -> H/2, ReLU), then one layer on all streams."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        size = config.hidden // 2
        self.project = Projections(config, size)
        self.join = Concatenated(dict.fromkeys(config.dims, size), config.hidden)
        self.tail = Tail(config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return self.tail(self.join(dict(zip(features, masked(self.project.each(features), present)))))


class Hierarchical(nn.Module):
    """Fuses body and face to a person vector, then person and context to the fused vector."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        dims = dict(config.dims)
        context = {name: dims.pop(name) for name in ("context",) if name in dims}
        self.of_person = tuple(dims)
        self.person: nn.Module | None = None
        if dims:
            self.person = Concatenated(dims, config.hidden)
            self.person_norm = nn.LayerNorm(config.hidden)
            context["person"] = config.hidden
        self.join = Concatenated(context, config.hidden)
        self.tail = Tail(config)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        parts = {name: values for name, values in features.items() if name not in self.of_person}
        if self.person is not None:
            person = torch.relu(
                self.person_norm(self.person({name: features[name] for name in features if name in self.of_person}))
            )
            there = [present[:, number] for number, name in enumerate(features) if name in self.of_person]
            # Without body and face the person is zero, instead of a function of biases.
            seen = torch.stack(there).any(0) if there else present.new_zeros(len(present))
            parts["person"] = person * seen[:, None]
        return self.tail(self.join(parts))


class Bilinear(nn.Module):
    """Low-rank products of each pair of streams, in addition to the streams themselves.

    The product of streams s and t is (U f_s) * (V f_t), of rank H/4 (Kim et al. 2017, Hadamard Product for Low-rank
    Bilinear Pooling, arXiv 1610.04325). The public study multiplies each stream only with itself, and drops the
    first-order terms; here they are kept, so that a person with one stream still has evidence.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, rank = config.hidden, config.hidden // 4
        self.project = Projections(config, hidden)
        self.pairs = {f"{first}_x_{second}": (first, second) for first, second in combinations(config.dims, 2)}
        self.left = nn.ModuleDict({pair: nn.Linear(hidden, rank, bias=False) for pair in self.pairs})
        self.right = nn.ModuleDict({pair: nn.Linear(hidden, rank, bias=False) for pair in self.pairs})
        self.join = Concatenated(dict.fromkeys(config.dims, hidden) | dict.fromkeys(self.pairs, rank), hidden)
        self.tail = Tail(config)

    def products(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns pair -> (n, rank) products of the projected streams (n, H); zero if either stream is zero."""
        return {
            pair: self.left[pair](parts[first]) * self.right[pair](parts[second])
            for pair, (first, second) in self.pairs.items()
            if first in parts and second in parts
        }

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        parts = dict(zip(features, masked(self.project.each(features), present)))
        return self.tail(self.join(parts | self.products(parts)))


def masked(parts: list[Tensor], present: Tensor) -> list[Tensor]:
    """Sets the values (n, ...) of each stream to zero where it is not `present` (n, streams)."""
    return [part * there[:, None] for part, there in zip(parts, present.unbind(1))]
