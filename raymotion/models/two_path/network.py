"""Two paths: what is around a person, and the person's body; each a layer on features of a frozen backbone.

The public EMOTIC baseline calls them text and image, but reads no text: its text path is the features of a network of
places (Places365) on the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from raymotion.models.norms import normed
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.paths import PathLabels, PathNumbers
from raymotion.models.two_path.config import TwoPathConfig

EMOTIONS, VAD, SPACE = "emotions", "vad", "space"


class Path(nn.Module):
    """Linear, BatchNorm, ReLU of one stream, (n, D) to (n, hidden).

    Rows without the stream are zero, and do not count in the statistics of BatchNorm.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, features: Tensor | None, there: Tensor) -> Tensor:
        result = self.linear.weight.new_zeros(len(there), self.linear.out_features)
        rows = there.nonzero().squeeze(1)
        if features is None or not len(rows):
            # All parameters take part: a distributed run would wait for the gradient of one that did not.
            return result + 0.0 * sum(own.sum() for own in self.parameters())
        values = (features[rows].float() - self.get_buffer("mean")) * self.get_buffer("scale")
        return result.index_copy(0, rows, torch.relu(normed(self.norm, self.linear(values))))


class TwoPath(nn.Module):
    """Maps features of two streams to the numbers of the outputs.

    Args:
        config: the shape.
        outputs: `emotions`, `vad` if the config has it, and `space` of a joint model.
    """

    def __init__(self, config: TwoPathConfig, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.config = config
        self.streams = tuple(config.dims)
        self.outputs = {own.name: own for own in outputs}
        self.paths = nn.ModuleDict({name: Path(dim, config.hidden) for name, dim in config.dims.items()})
        self.drop = nn.Dropout(config.dropout)
        widths = {own.name: own.width for own in outputs if own.name != SPACE}
        if config.join == "joint":
            self.into = nn.ModuleDict({name: nn.Linear(config.hidden, config.joint) for name in self.streams})
            self.heads = nn.ModuleDict({name: nn.Linear(config.joint, width) for name, width in widths.items()})
        else:
            self.heads = nn.ModuleDict(
                {
                    name: nn.ModuleDict({stream: nn.Linear(config.hidden, width) for stream in self.streams})
                    for name, width in widths.items()
                }
            )

    def set_statistics(self, means: Mapping[str, Tensor], stds: Mapping[str, Tensor]) -> None:
        """Sets what the features of each stream are standardised by, (D,); saved with the weights."""
        for name in self.streams:
            path = cast(Path, self.paths[name])
            path.get_buffer("mean").copy_(means[name])
            path.get_buffer("scale").copy_(1.0 / stds[name])

    def head_layers(self, name: str) -> list[nn.Linear]:
        """Returns the last layers of an output: one, or one of each path."""
        head = self.heads[name]
        return [cast(nn.Linear, own) for own in (head.values() if isinstance(head, nn.ModuleDict) else [head])]

    def forward(self, features: Sequence[Tensor | None], mask: Tensor) -> dict[str, Tensor]:
        """Computes the numbers of a batch.

        Args:
            features: of the two streams, in order: (n, D); None: no sample of the batch has the stream.
            mask: (n, 2) bool, True where the sample has the stream. Other values in `features` are ignored, even NaN.

        Returns:
            by output, (n, raw_width).
        """
        hidden = [
            self.drop(self.paths[name](own, mask[:, number]))
            for number, (name, own) in enumerate(zip(self.streams, features, strict=True))
        ]
        if self.config.join == "separate":
            return {
                name: cast("PathLabels | PathNumbers", self.outputs[name]).raw_of(
                    [layer(own) for layer, own in zip(self.head_layers(name), hidden, strict=True)], mask
                )
                for name in self.heads
            }
        # A stream that is missing is no direction, and is not averaged.
        spaces = [
            self.into[name](own) * mask[:, number, None] for number, (name, own) in enumerate(zip(self.streams, hidden))
        ]
        both = torch.stack(spaces).sum(dim=0) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_scale = both.new_tensor(-math.log(self.config.temperature))
        raw = {name: head(both) for name, head in self.heads.items()}
        space = cast(Embedding, self.outputs[SPACE])
        return {**raw, SPACE: space.raw_of(spaces[0], spaces[1], log_scale, torch.zeros_like(log_scale))}
