"""Backbones and fusion head as one model, trained end to end from the three crops of a person to emotions.

Only the last blocks of each backbone are trained. On EMOTIC this scored better than training all layers (the authors of
the "TA" system, its issues 1 and 8), and it takes a fraction of the memory: no activations are kept below the first
trained block.

`models.vision.tuned_backbone` says what is trained of a backbone, and what never is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.fusion.network import FusionHead
from raymotion.models.fusion_tuned.config import TunedConfig
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.models.vision.tuned_backbone import TunedBackbone, tuned_parameters


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


def _set_checkpointing(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise InputError(
            f"{name} cannot compute its activations again", remedy="Set gradient_checkpointing to false."
        ) from error
