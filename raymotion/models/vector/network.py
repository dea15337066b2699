"""A network on one vector of each picture: from a frozen backbone's cached features, or a backbone inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.models.vector.config import VectorConfig
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.models.vision.tuned_backbone import TunedBackbone, tuned_parameters, vectors_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
# Eigenvalues of the landmarks' similarities below this share of the largest are noise of the arithmetic.
LEAST_EIGENVALUE = 1e-6


class Similarities(nn.Module):
    """The layer of `models.vector.config.Kernel`.

    Args:
        landmarks: number of training pictures.
        dim: numbers in a vector.
    """

    landmarks: Tensor
    whitening: Tensor

    def __init__(self, landmarks: int, dim: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("landmarks", torch.zeros(landmarks, dim))
        self.register_buffer("whitening", torch.eye(landmarks))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Takes standardised vectors (landmarks, dim) of training pictures as landmarks."""
        self.landmarks.copy_(vectors)
        values, basis = torch.linalg.eigh(self._kernel(vectors).double())
        kept = values.clamp(min=LEAST_EIGENVALUE * float(values[-1]))
        inverse = torch.where(values > LEAST_EIGENVALUE * values[-1], kept.rsqrt(), torch.zeros_like(values))
        self.whitening.copy_(((basis * inverse) @ basis.T).float())

    def _kernel(self, x: Tensor) -> Tensor:
        squared = torch.cdist(x, self.landmarks, compute_mode="use_mm_for_euclid_dist_if_necessary").square()
        return torch.exp(-self.gamma / x.shape[1] * squared)

    def forward(self, x: Tensor) -> Tensor:
        # Whitening adds large numbers that cancel: of 8 bits nothing would be left.
        with torch.autocast(x.device.type, enabled=False):
            return self._kernel(x.float()) @ self.whitening


class VectorNetwork(nn.Module):
    """Maps a picture's vector, and optionally numbers, to the outputs.

    Args:
        config: the shape.
        width: numbers of all outputs.
        build: returns the timm model of an identity; None: untrained, to load weights later.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: VectorConfig, width: int, *, build: Callable[[BackboneIdentity], Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone: TunedBackbone | None = None
        if config.identity is not None:
            identity = BackboneIdentity.from_dict(config.identity)
            model = timm_models.create(identity.name, identity.size) if build is None else build(identity)
            self.backbone = TunedBackbone(identity, model, tuned_parameters(identity, config.tuned_blocks))
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("std", torch.ones(config.dim))
        self.kernel = None if config.kernel is None else Similarities(
            config.landmarks, config.dim, config.kernel.gamma
        )  # fmt: skip
        read = (config.dim if self.kernel is None else config.landmarks) + 2 * config.values
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers.append(nn.Linear(read, hidden))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            read = hidden
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(read, width)
        # The model that predicts the values, where the sample table has none: see the kind `two-input`.
        self.first: VectorNetwork | None = None
        if config.first is not None:
            self.first = VectorNetwork(VectorConfig.model_validate(config.first), config.values, build=build)
            self.first.requires_grad_(False)
            for name in ("value_mean", "value_std", "value_low", "value_high"):
                self.register_buffer(name, torch.ones(config.values))

    def train(self, mode: bool = True) -> VectorNetwork:
        """Keeps the model inside in evaluation mode: it is frozen."""
        super().train(mode)
        if self.first is not None:
            self.first.train(False)
        return self

    def vectors(
        self, features: Sequence[Tensor | None] | None = None, crops: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Returns the pictures' vectors (n, D) float32, as the backbone says them; zeros where there is no picture."""
        return vectors_of(self.backbone, features, crops)

    def standardised(self, vectors: Tensor) -> Tensor:
        """Returns the vectors as the first layer reads them."""
        return (vectors - self.mean) / self.std if self.config.standardise else vectors

    def forward(
        self,
        features: Sequence[Tensor | None] | None = None,
        crops: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
        values: Tensor | None = None,
        value_mask: Tensor | None = None,
    ) -> Tensor:
        """Computes the outputs' numbers (n, width).

        Args:
            features: one entry, (n, D) cached vectors of the pictures.
            crops: instead, one entry, (n, size, size, 3) uint8, the pictures.
            mask: (n, 1) bool, True where there is a picture.
            values, value_mask: (n, V) standardised numbers, and which are known.
        """
        x = self.standardised(self.vectors(features, crops))
        if mask is not None:  # a missing picture is the mean one
            x = torch.where(mask[:, :1], x, torch.zeros_like(x))
        if self.kernel is not None:
            x = self.kernel(x)
        if self.config.values:
            assert values is not None and value_mask is not None
            if self.first is not None and not bool(value_mask.all()):
                low, high, mean, std = (
                    self.get_buffer(f"value_{name}") for name in ("low", "high", "mean", "std")
                )  # fmt: skip
                with torch.no_grad():
                    said = self.first(features, crops, mask).clamp(low, high)
                there = torch.ones_like(value_mask) if mask is None else mask[:, :1].expand_as(value_mask)
                values = torch.where(value_mask | ~there, values, (said - mean) / std)
                value_mask = value_mask | there
            x = torch.cat([x, values, value_mask.float()], dim=1)
        if self.config.batch_norm and self.training and len(x) == 1:  # batch norm needs at least two
            return self.head(self.hidden(x.expand(2, -1)))[:1]
        return self.head(self.hidden(x))
