"""The recipe of a two-path model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymotion.models.fusion.recipe import StreamRecipe
from raymotion.models.recipe import LossSettings


class TwoPathRecipe(StreamRecipe):
    """Two paths on cached features of two streams, after the public EMOTIC baseline and its joint variant.

    Attributes:
        model: fields of `models.two_path.config.TwoPathConfig`; sizes are filled in from the features.
        loss: of the emotions. vad_loss: of valence, arousal and dominance. alignment: of the joint space.
        numbers: standardised: the network predicts standard deviations from the training mean, so that no dimension
            counts more than another. share: value / 10 on EMOTIC's scale, as in the public code.
        label_weight, vad_weight, alignment_weight: weights of the three losses in the sum; each of the paths of
            `separate` has its own losses, and they are added.
    """

    kind: Literal["two-path"] = "two-path"
    loss: LossSettings = LossSettings(name="bce")
    vad_loss: LossSettings = LossSettings(name="smooth_l1")
    alignment: LossSettings = LossSettings(name="infonce")
    numbers: Literal["standardised", "share"] = "standardised"
    label_weight: float = Field(0.5, gt=0)
    alignment_weight: float = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _no_probe(self) -> Self:
        if self.probe is not None:
            raise ValueError("a two-path model has no one last layer for a probe to fit: leave probe out")
        return self
