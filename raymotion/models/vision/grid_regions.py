"""Grid features: the last feature map of an image classifier as regions (Jiang et al. 2020, "In Defense of Grid
Features for Visual Question Answering").

A picture is resized to the square that the backbone reads, its last feature map averaged to G x G places, and each
place becomes a region: its feature, and the cell of the picture that it stands for as its box. Every timm backbone with
a square grid can be such an extractor. There is no detection: all scores are 1, all masks True, and no object is named.
One forward pass of a small classifier takes the place of a detector's proposals, which makes it many times faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raymotion.errors import InputError
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import Backbone, describe, full_name, identify
from raymotion.models.vision.regions import GRID, Architecture, Found


def architecture_of(name: str) -> Architecture:
    """Returns the entry of the extractor `grid:BACKBONE`; nothing is computed and no weights are read.

    Raises:
        InputError: timm has no such model, or its features have no grid.
    """
    found = describe(full_name(name.removeprefix(GRID)), None)
    if not found.grid:
        raise InputError(f"{found.name} has no square grid of features", remedy="Choose another backbone.")
    counts = tuple(side * side for side in range(1, found.grid + 1))
    place = f"{GridDetector.__module__}:{GridDetector.__name__}"
    return Architecture(place, None, found.weights, found.token_dim, found.size, counts)


class GridDetector:
    """A timm backbone as a `Detector`."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.model = backbone, backbone.model

    @classmethod
    def build(cls, name: str, weights: str, entry: Architecture) -> GridDetector:
        """See `Detector.build`."""
        return cls(Backbone(identify(name.removeprefix(GRID), weights), weights))

    def prepare(self, pictures: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
        """Pictures as one batch (B, 3, size, size), each resized as a whole; see `Detector.prepare`."""
        batch = np.stack([self.backbone.prepare(picture) for picture in pictures])
        size = self.backbone.identity.size
        return torch.from_numpy(batch).to(device, non_blocking=True), [(size, size)] * len(pictures)

    def find(self, images: Tensor, sizes: Sequence[tuple[int, int]], count: int, dtype: torch.dtype) -> list[Found]:
        """All cells of each picture's grid, row by row; see `Detector.find`."""
        side = round(count**0.5)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            features = self.model.forward_features(images.contiguous(memory_format=self.backbone.memory_format))
            grid = timm_models.token_grid(self.model, features, side)
        edges = torch.linspace(0, self.backbone.identity.size, side + 1, device=images.device)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        low, high = edges[:-1], edges[1:]
        y, x = rows.flatten().to(images.device), columns.flatten().to(images.device)
        boxes = torch.stack((low[x], low[y], high[x], high[y]), dim=1)
        ones, objects = torch.ones(count, device=images.device), torch.full((count,), -1, device=images.device)
        return [Found(own, boxes, ones, objects) for own in grid.float()]
