"""The shape of a two-path model, for recipes and checkpoints. Does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raymotion.config import Settings
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError


class TwoPathConfig(Settings):
    """Shape of a two-path model.

    Attributes:
        join: separate: each path has heads of its own. joint: both paths lead into one space, where their mean is what
            the heads read, and the two vectors of a person are drawn together.
        dims: stream -> size of its pooled features, of two streams, in the order of `STREAMS`.
        hidden: width of a path.
        joint: width of the joint space.
        dropout: before the heads; of `joint`, before the joint space.
        standardise: whether features are standardised by the training split; the public code reads them raw.
        vad: whether valence, arousal and dominance are predicted too.
        temperature: of the alignment in the joint space; fixed.
    """

    join: Literal["separate", "joint"] = "separate"
    dims: dict[str, int]
    hidden: int = Field(256, ge=1)
    joint: int = Field(128, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    standardise: bool = True
    vad: bool = True
    temperature: float = Field(0.07, gt=0)

    @field_validator("dims")
    @classmethod
    def _two_streams(cls, value: dict[str, int]) -> dict[str, int]:
        if len(value) != 2 or any(name not in STREAMS for name in value) or any(size < 1 for size in value.values()):
            raise InputError(
                f"a two-path model reads two streams of {', '.join(STREAMS)}, not {', '.join(value) or 'none'}",
                remedy="Set a backbone of two of them: backbones.context and backbones.body.",
            )
        return {name: value[name] for name in STREAMS if name in value}
