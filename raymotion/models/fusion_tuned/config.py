"""The shape of backbones and fusion head as one model. Does not import torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raymotion.config import Settings
from raymotion.models.fusion.config import FusionConfig


class TunedConfig(Settings):
    """Shape of the whole model.

    Attributes:
        fusion: shape of the head.
        identities: stream -> `BackboneIdentity.to_dict()` of the initial weights.
        tuned_blocks: number of last blocks to train in each backbone; 0: none; more than it has: all.
    """

    fusion: FusionConfig
    identities: dict[str, dict[str, Any]]
    tuned_blocks: int = Field(1, ge=0)
