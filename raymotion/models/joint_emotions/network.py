"""Emotions of pictures by their vectors in a joint space, which is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raymotion.config import Settings
from raymotion.models.joint.config import JointConfig
from raymotion.models.joint.network import PictureSide
from raymotion.models.wrapped.network import logit


class JointEmotionsConfig(Settings):
    """The shape.

    Attributes:
        joint: of the joint space. names: numbers of its class names' vectors.
        fitted: whether the last layer was fitted to labelled samples; else it compares with the texts of each label,
            and says the share of each among them, at the joint space's own temperature.
        prompts: the texts of each label.
        unknown_words: words of them that the joint space does not know. alike: labels whose texts it reads the same,
            because they differ in unknown words alone.
    """

    joint: dict[str, Any]
    names: int = Field(0, ge=0)
    fitted: bool = False
    prompts: list[list[str]] = Field(default_factory=list)
    unknown_words: list[str] = Field(default_factory=list)
    alike: list[list[str]] = Field(default_factory=list)


class JointEmotions(nn.Module):
    """Maps pictures to logits of labels.

    Args:
        labels: number of labels L.
    """

    def __init__(self, config: JointEmotionsConfig, labels: int) -> None:
        super().__init__()
        shape = JointConfig.model_validate(config.joint)
        self.config = config
        self.pictures = PictureSide(shape, config.names).requires_grad_(False)
        self.head = nn.Linear(shape.dim, labels)

    def train(self, mode: bool = True) -> JointEmotions:
        """Keeps the joint space in evaluation mode: it is frozen."""
        super().train(mode)
        self.pictures.train(False)
        return self

    def forward(
        self,
        features: Sequence[Tensor | None] | None = None,
        crops: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Computes logits (n, L); see `JointNetwork.forward`. Without a picture they are those of no direction."""
        with torch.no_grad():
            vectors = nn.functional.normalize(self.pictures(self.pictures.vectors(features, crops)), dim=1)
        if mask is not None:
            vectors = torch.where(mask[:, :1], vectors, torch.zeros_like(vectors))
        said = self.head(vectors)
        return said if self.config.fitted else logit(said.softmax(dim=1))
