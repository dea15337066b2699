"""FractalNet: a deep network without shortcuts, trained by dropping paths (Larsson et al. 2017, arXiv 1605.07648).

A block has C columns and 2^(C-1) rows. Column k has a convolution every 2^k rows, and after each row the columns whose
convolutions end there are joined: their mean goes on in all of them. Three columns:

    row   column 0   column 1   column 2
    1     conv       |          |
    2     conv       conv       |           joined: columns 0 and 1
    3     conv       |          |
    4     conv       conv       conv        joined: all

The value of a row is the mean over its kept columns k of a convolution of the value of row - 2^k, so it is computed
from the last row backwards, and only along paths that were kept. A path of column k alone meets rows that are multiples
of 2^k, whose joins all have column k as an input. So no join is ever computed that keeps none of its inputs; the public
network divided by their number, which was 0 in most batches with a global column, and its loss was NaN from the first
epoch on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.models.fractal.recipe import FractalConfig
from raymotion.models.picture_classifier.network import PictureClassifier, initialise

# Maps the columns that are joined to those that are kept, at least one.
Keep = Callable[[list[int]], list[int]]
MOMENTUM = 0.1  # of the statistics of batch norm, as in PyTorch


class Block(nn.Module):
    """A fractal block: maps (B, in, S, S) to (B, width, S, S)."""

    def __init__(self, inputs: int, width: int, columns: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.rows = 2 ** (columns - 1)
        self.columns = nn.ModuleList(
            nn.ModuleList(
                _unit(inputs if number == 0 else width, width, kernel, dropout) for number in range(self.rows >> column)
            )
            for column in range(columns)
        )

    def forward(self, maps: Tensor, keep: Keep) -> Tensor:
        """Computes the last join, along the kept paths."""
        values = {0: maps}

        def value(row: int) -> Tensor:
            if row not in values:
                joined = [column for column in range(len(self.columns)) if row % 2**column == 0]
                parts = [self._unit(column, row)(value(row - 2**column)) for column in keep(joined)]
                values[row] = parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)
            return values[row]

        return value(self.rows)

    def _unit(self, column: int, row: int) -> nn.Module:
        """Returns the convolution of a column that ends at a row."""
        own: Any = self.columns[column]
        unit: nn.Module = own[row // 2**column - 1]
        return unit


def _unit(inputs: int, width: int, kernel: int, dropout: float) -> nn.Module:
    """Returns convolution, dropout, batch norm and ReLU, which keep the side of the maps."""
    before, after = (kernel - 1) // 2, kernel // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)) if before != after else nn.Identity(),
        nn.Conv2d(inputs, width, kernel, padding=before if before == after else 0, bias=False),
        nn.Dropout(dropout),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class FractalNet(PictureClassifier):
    """Maps pictures to logits."""

    config: FractalConfig

    def __init__(self, config: FractalConfig, labels: int) -> None:
        super().__init__(config, config.filters[-1], labels)
        shapes = zip(
            (3, *config.filters), config.filters, config.each(config.kernels), config.each(config.dropout), strict=False
        )
        self.blocks = nn.ModuleList(
            Block(inputs, width, config.columns, int(kernel), dropout) for inputs, width, kernel, dropout in shapes
        )
        self.pool = nn.MaxPool2d(2)
        self.norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        initialise(self)

    def features(self, pixels: Tensor) -> Tensor:
        keep = self._drawn() if self.training else self._kept_in_prediction()
        for block in self.blocks:
            pixels = self.pool(block(pixels, keep))
        return pixels.mean(dim=(2, 3))

    def _kept_in_prediction(self) -> Keep:
        """Returns what joins keep outside of training."""
        if self.config.predict_with == "deepest":
            return lambda joined: joined[:1]
        return lambda joined: joined

    def _drawn(self) -> Keep:
        """Draws what joins keep in a training batch: one column of the whole network, or most inputs of each join.

        From torch's generator on the CPU, which the training loop seeds by seed, epoch and worker.
        """
        share = self.config.global_share
        one = int(torch.randint(self.config.columns, ())) if float(torch.rand(())) < share else None
        # Maps of one column vary more than a mean of several. So the statistics that batch norm predicts with are
        # measured on batches that keep about what a prediction keeps, if there are any.
        alike = one == 0 or share == 0 if self.config.predict_with == "deepest" else one is None or share == 1
        for norm in self.norms:
            norm.momentum = MOMENTUM if alike else 0.0
        return self._some if one is None else lambda joined: [one]

    def _some(self, joined: list[int]) -> list[int]:
        """Draws the inputs that one join keeps."""
        if len(joined) == 1:
            return joined
        drawn = (torch.rand(len(joined)) >= self.config.drop_path).tolist()
        kept = [column for column, keep in zip(joined, drawn, strict=True) if keep]
        return kept or [joined[int(torch.randint(len(joined), ()))]]
