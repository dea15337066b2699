"""What the recipes and shapes of all classifiers of whole pictures share. Does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymotion.config import Settings
from raymotion.models.recipe import SingleLabelRecipe, WholePictureSettings


class PictureClassifierConfig(Settings):
    """Settings that the shapes of all classifiers share.

    Attributes:
        image_size: side of the resized pictures, in pixels.
        normalise: channels: each colour minus its mean over the training split, divided by its standard deviation.
            pixels: each pixel minus its mean, divided by 128. unit: divided by 255. The numbers are stored with the
            weights.
    """

    image_size: int = Field(64, ge=8, le=1024)
    normalise: Literal["channels", "pixels", "unit"] = "channels"


class PictureClassifierRecipe(SingleLabelRecipe):
    """A network that reads whole pictures and predicts one label, trained from scratch."""

    data: WholePictureSettings = WholePictureSettings()
