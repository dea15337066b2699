"""The student's encoders of pictures, which map a picture to one vector; those of captions are in `models.text`.

`width` is the size of the vector; `levels` returns the names of the weights by layer, from the input on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raymotion.models.vision import timm_models


class CnnEncoder(nn.Module):
    """Convolutions of 3x3 with stride 2 and ReLU, and global average pooling."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = (3, *channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.width = channels[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        for layer in self.layers:
            pixels = torch.relu(layer(pixels))
        return pixels.mean(dim=(2, 3))

    def levels(self) -> list[list[str]]:
        return [[f"layers.{i}.weight", f"layers.{i}.bias"] for i in range(len(self.layers))]


class TimmEncoder(nn.Module):
    """A timm model without its classifier.

    Args:
        image_size: side of the pictures in pixels; None for the model's default.

    Raises:
        InputError: timm has no such model, or it does not accept this size.
    """

    def __init__(self, name: str, image_size: int | None = None) -> None:
        super().__init__()
        self.model = timm_models.create(name, image_size)
        self.width = timm_models.output_width(self.model, name, image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    def levels(self) -> list[list[str]]:
        """Returns names of weights and statistics, stem first, by the stages of timm's layer-wise decay."""
        names = [[f"model.{name}" for name in stage] for stage in timm_models.stages(self.model)]
        owners = {name.rpartition(".")[0]: level for level, own in enumerate(names) for name in own}
        known = {name for own in names for name in own}
        for name in self.state_dict():
            if name not in known:  # running statistics belong to the stage of their module
                names[owners.get(name.rpartition(".")[0], len(names) - 1)].append(name)
        return [own for own in names if own]


def usual_size(name: str) -> int:
    """Returns the default side of a timm model's pictures, in pixels.

    Raises:
        InputError: timm has no such model.
    """
    import timm

    known = timm.get_pretrained_cfg(name)
    return int(known.input_size[-1]) if known is not None else timm_models.made_for(timm_models.create(name))
