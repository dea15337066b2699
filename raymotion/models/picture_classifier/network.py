"""What the networks of all classifiers of whole pictures share: normalisation, absent pictures, the last layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from raymotion.models.picture_classifier.recipe import PictureClassifierConfig


class PictureClassifier(nn.Module, ABC):
    """Maps pictures to logits.

    Args:
        config: the shape.
        width: number of features of a picture.
        labels: number of labels L.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: PictureClassifierConfig, width: int, labels: int) -> None:
        super().__init__()
        self.config = config
        side = config.image_size if config.normalise == "pixels" else 1
        self.register_buffer("mean", torch.zeros(3, side, side))
        self.register_buffer("scale", torch.full((3, 1, 1), 255.0))
        self.head = nn.Linear(width, labels)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Computes the features (B, width) of normalised pictures (B, 3, S, S), red first."""

    def forward(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Computes logits (B, L).

        Args:
            images: (B, S, S, 3) uint8, RGB.
            image_mask: (B,) bool, False where the picture is missing or cannot be read. Such a sample gets the bias of
                the last layer, and does not enter the statistics of batch norm.
        """
        there = image_mask.nonzero()[:, 0]
        if not len(there):
            return self.head(self.mean.new_zeros(len(images), self.head.in_features))
        pixels = (images[there].permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.scale
        if self.training and len(pixels) == 1:  # batch norm on maps of one pixel needs two pictures
            pixels = pixels.expand(2, -1, -1, -1)
        found = self.features(pixels)[: len(there)]
        if len(there) < len(images):
            found = found.new_zeros(len(images), found.shape[1]).index_copy(0, there, found)
        return self.head(found)


def initialise(network: nn.Module) -> None:
    """Draws the weights of convolutions from a normal distribution of variance 2 / inputs (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
