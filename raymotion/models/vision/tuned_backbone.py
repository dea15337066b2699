"""A backbone inside a model, whose last blocks are trained with it.

Frozen modules are always in evaluation mode. And **no BatchNorm of a backbone, tuned or not, ever updates its
statistics**: they are those of the published weights. Batches of crops are small (the study's 32, often fewer faces),
and the public study's running statistics drifted, differently on train and validation. Weights and biases of the norms
in tuned blocks are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import BackboneIdentity, check_tokens


class TunedBackbone(nn.Module):
    """A timm model whose last blocks are trained.

    Args:
        model: from `timm_models.create`.
        tuned: names of the parameters to train.
        tokens: side of the grid of spatial tokens to return; 0: the pooled feature instead.
    """

    def __init__(self, identity: BackboneIdentity, model: Any, tuned: Sequence[str], *, tokens: int = 0) -> None:
        super().__init__()
        check_tokens(identity, tokens)
        self.identity, self.tokens = identity, tokens
        self.model = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in tuned)
        self.learns = bool(tuned)
        # A tuple, so that the modules are not registered twice.
        self.in_training = tuple(_learning_modules(model))
        self.memory_format = timm_models.memory_format(model)
        self.model.to(memory_format=self.memory_format)
        # Not saved with the weights, as the identity contains them.
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(identity.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(identity.std).view(shape), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> TunedBackbone:
        """Sets training mode only for trained blocks, without their BatchNorms; all else stays in evaluation mode."""
        super().train(False)
        for module in self.in_training:
            module.training = mode
        self.training = mode
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Computes features (n, dim), or (n, tokens ** 2, token_dim), of crops (n, size, size, 3) uint8 in RGB."""
        # Pixels as they are read, uint8, never need a gradient; those of an attack on the picture do.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.learns or pixels.requires_grad)):
            values = (pixels.permute(0, 3, 1, 2).float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
            values = values.contiguous(memory_format=self.memory_format)
            features, pooled = timm_models.features_of(self.model, values, self.identity.pooled_stages)
            return timm_models.token_grid(self.model, features, self.tokens) if self.tokens else pooled


def vectors_of(
    backbone: TunedBackbone | None,
    features: Sequence[Tensor | None] | None,
    crops: Sequence[Tensor | None] | None,
) -> Tensor:
    """Returns the vectors (n, D) float32 of pictures: cached ones, or what the backbone says of them.

    Args:
        features: one entry, (n, D) cached vectors.
        crops: instead, one entry, (n, size, size, 3) uint8.

    Raises:
        InputError: there is neither.
    """
    given = (crops if features is None else features) or [None]
    if given[0] is None:
        raise InputError("no sample of the batch has a picture")
    if backbone is None or features is not None:
        return given[0].float()
    vectors: Tensor = backbone(given[0]).float()
    return vectors


def tuned_parameters(identity: BackboneIdentity, blocks: int) -> tuple[str, ...]:
    """Returns the names of the parameters in the last `blocks` blocks of a backbone.

    Raises:
        InputError: timm does not define its blocks.
    """
    if not blocks:
        return ()
    return tuple(name for block in timm_models.blocks_of(identity.name, identity.size)[-blocks:] for name in block)


def _learning_modules(model: nn.Module) -> list[nn.Module]:
    """Returns modules with only trained parameters, and their submodules (e.g. dropouts), without BatchNorms."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            found |= {id(inner): inner for inner in module.modules()}
    return [module for module in found.values() if not isinstance(module, nn.modules.batchnorm._BatchNorm)]
