"""The recipe and the shape of a pre-activation ResNet. Does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raymotion.models.picture_classifier.recipe import PictureClassifierConfig, PictureClassifierRecipe

# Blocks of each stage.
STAGES: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
# Largest side of pictures whose maps a stem for large ones would leave too small.
SMALL = 64


class PreactResNetConfig(PictureClassifierConfig):
    """Shape of a ResNet with pre-activation (He et al. 2016, "Identity mappings in deep residual networks").

    Attributes:
        depth: 18 and 34 have blocks of two 3x3 convolutions, 50 has bottlenecks.
        stem: imagenet: a 7x7 convolution and a pooling, which divide the side of the maps by 4. small: a 3x3
            convolution, which keeps it. None: small up to 64 pixels.
        width: channels of the first stage; each further stage has twice as many.
        dropout: between the two convolutions of a block, of depth 18 and 34.
    """

    depth: Literal[18, 34, 50] = 18
    stem: Literal["imagenet", "small"] | None = None
    width: int = Field(64, ge=1, le=256)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _only_what_is_used(self) -> PreactResNetConfig:
        if self.dropout and self.depth == 50:
            raise ValueError("dropout is between the two convolutions of a block, and those of depth 50 have three")
        return self

    def first_side(self) -> int:
        """Returns the side of the first stage's maps, in pixels; each further stage halves it."""
        return -(-self.image_size // 4) if self.chosen_stem() == "imagenet" else self.image_size

    def chosen_stem(self) -> str:
        """Returns the stem, chosen by the size of the pictures where none is named."""
        return self.stem or ("small" if self.image_size <= SMALL else "imagenet")


class PreactResNetRecipe(PictureClassifierRecipe):
    """A pre-activation ResNet.

    Attributes:
        model: fields of `models.preact_resnet.recipe.PreactResNetConfig`.
    """

    kind: Literal["preact-resnet"] = "preact-resnet"
