"""The shape of backbones and fusion head as one model. Needs no torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raymotion.config import Settings
from raymotion.models.fusion.config import FusionConfig


class TunedConfig(Settings):
    """Shape of the whole model.

    Attributes:
        fusion: of the head.
        identities: stream -> `BackboneIdentity.to_dict()` of the weights that training began with.
        tuned_blocks: how many of each backbone's last blocks learn; 0: none; more than there are: all.
    """

    fusion: FusionConfig
    identities: dict[str, dict[str, Any]]
    tuned_blocks: int = Field(1, ge=0)
