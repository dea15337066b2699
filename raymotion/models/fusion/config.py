"""Names and shapes of the fusion heads, for recipes, studies and checkpoints. Does not import torch.

The fusions of the public EMOTIC study, each in a corrected version, and for comparison as that study built them
(`NAME_published`). The docstring of each network explains the differences.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from raymotion.config import Settings
from raymotion.data.streams import ABLATIONS, STREAMS
from raymotion.errors import InputError, guess


@dataclass(frozen=True)
class Fusion:
    """A network that fuses streams.

    Attributes:
        network: `module:Class`, built from a config; maps (features, present) to (n, hidden).
        reads_tokens: uses spatial tokens if they are cached.
        needs_two: reason why it needs a second stream; "" if one suffices.
        published: the public study's network, without masks and with a final BatchNorm.
    """

    network: str
    reads_tokens: bool = False
    needs_two: str = ""
    published: bool = False


_HERE, _THERE = "raymotion.models.fusion", "raymotion.published.fusion"
FUSIONS: dict[str, Fusion] = {
    "simple": Fusion(f"{_HERE}.concat:Simple"),
    "weighted": Fusion(f"{_HERE}.gated:Weighted"),
    "attention": Fusion(f"{_HERE}.attention:Attention", reads_tokens=True),
    "bilinear": Fusion(f"{_HERE}.concat:Bilinear", needs_two="multiplies streams with each other"),
    "bottleneck": Fusion(f"{_HERE}.attention:Bottleneck", reads_tokens=True),
    "cross_modal_transformer": Fusion(
        f"{_HERE}.attention:CrossModalTransformer", reads_tokens=True, needs_two="lets one stream attend to the others"
    ),
    "gated_residual": Fusion(f"{_HERE}.gated:GatedResidual"),
    "hierarchical": Fusion(f"{_HERE}.concat:Hierarchical"),
    "layer_norm": Fusion(f"{_HERE}.concat:LayerNormed"),
    "transformation": Fusion(f"{_HERE}.concat:Transformation"),
    "simple_published": Fusion(f"{_THERE}:Simple", published=True),
    "weighted_published": Fusion(f"{_THERE}:Weighted", published=True),
    "attention_published": Fusion(f"{_THERE}:Attention", published=True),
    "bilinear_published": Fusion(f"{_THERE}:Bilinear", published=True),
    "bottleneck_published": Fusion(f"{_THERE}:Transformation", published=True),
    "cross_modal_transformer_published": Fusion(f"{_THERE}:CrossModalTransformer", published=True),
    "gated_residual_published": Fusion(f"{_THERE}:GatedResidual", published=True),
    "hierarchical_published": Fusion(f"{_THERE}:Hierarchical", published=True),
    "layer_norm_published": Fusion(f"{_THERE}:LayerNormed", published=True),
    "transformation_published": Fusion(f"{_THERE}:Transformation", published=True),
}
SOUND = tuple(name for name, own in FUSIONS.items() if not own.published)
PUBLISHED = tuple(name for name, own in FUSIONS.items() if own.published)


class FusionConfig(Settings):
    """Shape of a fusion head.

    Attributes:
        fusion: one of `FUSIONS`.
        dims: stream -> size D of its pooled features, in the order of `STREAMS`.
        tokens: stream -> number T of its spatial tokens; absent or 0: one pooled vector. Only for fusions with
            `wants_tokens`.
        token_dims: stream -> channels of its tokens; absent: as in `dims`.
        ablation: key of `ABLATIONS`: the streams to keep, in training and in evaluation.
        hidden: width H of the fused vector.
        dropout: dropout before the last layer.
        vad: whether three more outputs follow the labels: valence, arousal, dominance, on the scale 0..1 (raw / 10).

    Raises:
        InputError: the shape is invalid, or the fusion needs more streams.
    """

    fusion: str = "weighted"
    dims: dict[str, int]
    tokens: dict[str, int] = {}
    token_dims: dict[str, int] = {}
    ablation: str = "all"
    hidden: int = Field(256, ge=8)
    dropout: float = Field(0.5, ge=0, lt=1)
    vad: bool = False

    @field_validator("dims", "tokens", "token_dims")
    @classmethod
    def _in_order(cls, value: dict[str, int]) -> dict[str, int]:
        unknown = [name for name in value if name not in STREAMS]
        if unknown:
            raise InputError(f"there is no stream {', '.join(unknown)} (there are: {', '.join(STREAMS)})")
        return {name: value[name] for name in STREAMS if name in value}

    @model_validator(mode="after")
    def _makes_sense(self) -> FusionConfig:
        if self.fusion not in FUSIONS:
            told = f"there is no fusion {self.fusion!r} (there are: {', '.join(FUSIONS)})"
            raise InputError(told, remedy=guess(self.fusion, FUSIONS).strip() or None)
        if self.ablation not in ABLATIONS:
            raise InputError(f"there is no ablation {self.ablation!r} (there are: {', '.join(ABLATIONS)})")
        if not self.dims or any(size < 1 for size in self.dims.values()):
            raise InputError("a fusion head needs a stream or more, each of size 1 or more")
        if any(count < 0 for count in self.tokens.values()) or any(size < 1 for size in self.token_dims.values()):
            raise InputError("tokens are 0 or more, and their size is 1 or more")
        unread = [name for name in (*self.tokens, *self.token_dims) if name not in self.dims]
        if unread:
            raise InputError(f"tokens of {unread[0]} are given, but the head has no such stream")
        self._has_the_streams_it_needs()
        return self

    def _has_the_streams_it_needs(self) -> None:
        if not streams_of(self):
            raise InputError(
                f"ablation {self.ablation} leaves no stream of {', '.join(self.dims)}",
                remedy="Take another ablation, or another backbone for the stream.",
            )
        if any(self.tokens.values()) and not wants_tokens(self.fusion):
            others = ", ".join(name for name, own in FUSIONS.items() if own.reads_tokens)
            raise InputError(
                f"fusion {self.fusion} reads pooled features, not spatial tokens",
                remedy=f"Spatial tokens are for {others}.",
            )
        if self.fusion in PUBLISHED and len(self.dims) < len(STREAMS):
            raise InputError(
                f"fusion {self.fusion} is the public study's network, of all three streams; here: "
                f"{', '.join(self.dims)}",
                remedy=f"Use {self.fusion.removesuffix('_published')}.",
            )
        if FUSIONS[self.fusion].needs_two and len(self.dims) < 2:
            raise InputError(
                f"fusion {self.fusion} {FUSIONS[self.fusion].needs_two} and there is one stream only "
                f"({', '.join(self.dims)})",
                remedy="Give a second stream, or use fusion simple.",
            )


def streams_of(config: FusionConfig) -> tuple[str, ...]:
    """Returns the streams of the head that the ablation keeps, in the order of `STREAMS`."""
    return tuple(name for name in config.dims if name in ABLATIONS[config.ablation])


def wants_tokens(fusion: str) -> bool:
    """Returns whether a fusion uses spatial tokens if they are cached."""
    return fusion in FUSIONS and FUSIONS[fusion].reads_tokens


def input_size(config: FusionConfig, stream: str) -> int:
    """Returns the size of a stream's input vectors: its tokens if the head reads them, else its pooled features."""
    if config.tokens.get(stream):
        return config.token_dims.get(stream, config.dims[stream])
    return config.dims[stream]
