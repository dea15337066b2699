"""Backbones and fusion head as one model, trained end to end from the three crops of a person to emotions.

Only the last blocks of each backbone are trained. On EMOTIC this scored better than training all layers (the authors of
the "TA" system, its issues 1 and 8), and it takes a fraction of the memory: no activations are kept below the first
trained block.

Frozen modules are always in evaluation mode. And **no BatchNorm of a backbone, tuned or not, ever updates its
statistics**: they are those of the published weights. Batches of crops are small (the study's 32, often fewer faces),
and the public study's running statistics drifted, differently on train and validation. Weights and biases of the norms
in tuned blocks are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.fusion.network import FusionHead
from raymotion.models.fusion_tuned.config import TunedConfig
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
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            values = (pixels.permute(0, 3, 1, 2).float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
            features = self.model.forward_features(values.contiguous(memory_format=self.memory_format))
            if self.tokens:
                return timm_models.token_grid(self.model, features, self.tokens)
            return timm_models.pool(self.model, features)


class TunedStreams(nn.Module):
    """Maps crops of the streams to logits.

    Args:
        config: the shape.
        labels: number of emotions L.
        build: returns the timm model for a stream and its identity; None: untrained models, to load weights later.
        checkpointing: recompute activations of the backbones in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        config: TunedConfig,
        labels: int,
        *,
        build: Callable[[str, BackboneIdentity], Any] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.head = FusionHead(config.fusion, labels)
        backbones: dict[str, nn.Module] = {}
        for stream in self.head.streams:
            if stream not in self.head.kept:  # left out by an ablation, so never computed
                continue
            identity = BackboneIdentity.from_dict(config.identities[stream])
            model = timm_models.create(identity.name, identity.size) if build is None else build(stream, identity)
            if checkpointing:
                _set_checkpointing(model, identity.name)
            tuned = tuned_parameters(identity, config.tuned_blocks)
            tokens = round(config.fusion.tokens.get(stream, 0) ** 0.5)
            backbones[stream] = TunedBackbone(identity, model, tuned, tokens=tokens)
        self.backbones = nn.ModuleDict(backbones)

    def features(self, crops: Sequence[Tensor | None], mask: Tensor) -> list[Tensor | None]:
        """Computes features of each stream, float32 (n, ...); zeros for samples without it, None if all lack it.

        Missing crops are skipped, whereas the public study feeds its backbones black squares for missing faces.
        """
        found: list[Tensor | None] = []
        for number, (stream, pixels) in enumerate(zip(self.head.streams, crops, strict=True)):
            if stream not in self.backbones or pixels is None:
                found.append(None)
                continue
            rows = mask[:, number].nonzero().squeeze(1)
            if not len(rows):
                found.append(None)
                continue
            own = self.backbones[stream](pixels if len(rows) == len(mask) else pixels[rows]).float()
            found.append(
                own if len(rows) == len(mask) else own.new_zeros(len(mask), *own.shape[1:]).index_copy(0, rows, own)
            )
        return found

    def forward(self, crops: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Computes the logits of a batch.

        Args:
            crops: (n, size, size, 3) uint8 for each stream of `config.fusion.dims`, in order, or None.
            mask: (n, streams) bool, True where the sample has the stream.

        Returns:
            (n, L), or (n, L + 3) with VAD, as from `FusionHead`.
        """
        return self.head(self.features(crops, mask), mask)


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


def _set_checkpointing(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise InputError(
            f"{name} cannot compute its activations again", remedy="Set gradient_checkpointing to false."
        ) from error
