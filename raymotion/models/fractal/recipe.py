"""The recipe and the shape of a FractalNet. Does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raymotion.models.picture_classifier.recipe import PictureClassifierConfig, PictureClassifierRecipe

MOST_CHANNELS, LARGEST_KERNEL = 2048, 11


class FractalConfig(PictureClassifierConfig):
    """Shape of a FractalNet (Larsson et al. 2017). Each block ends with a pooling that halves its maps.

    Attributes:
        columns: of each block; column k has a convolution every 2^k rows, so the longest of C columns has 2^(C-1).
        filters: channels of each block.
        kernels: side of the convolutions of each block; one number for all.
        dropout: after the convolutions of each block; one number for all.
        drop_path: probability of dropping an input of a join, in batches that keep several columns.
        global_share: share of the training batches that keep one column of the whole network.
        predict_with: mean: a join averages all of its inputs. deepest: column 0 alone.
    """

    columns: int = Field(3, ge=1, le=5)
    filters: tuple[int, ...] = Field((32, 64, 128, 256), min_length=1, max_length=8)
    kernels: tuple[int, ...] = (3,)
    dropout: tuple[float, ...] = (0.0,)
    drop_path: float = Field(0.15, ge=0, lt=1)
    global_share: float = Field(0.5, ge=0, le=1)
    predict_with: Literal["mean", "deepest"] = "mean"

    @field_validator("kernels", "dropout", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _blocks_fit(self) -> FractalConfig:
        blocks = len(self.filters)
        for name in ("kernels", "dropout"):
            values = getattr(self, name)
            if len(values) not in (1, blocks):
                raise ValueError(f"{name} has {len(values)} values, and filters has {blocks}: give one for each block")
        if not all(1 <= width <= MOST_CHANNELS for width in self.filters):
            raise ValueError(f"filters are numbers from 1 to {MOST_CHANNELS}")
        if not all(0 <= share < 1 for share in self.dropout):
            raise ValueError("dropout is a share from 0 up to, but not, 1")
        for i, kernel in enumerate(self.each(self.kernels)):
            side = self.image_size >> i
            if not 1 <= kernel <= LARGEST_KERNEL:
                raise ValueError(f"kernels are numbers from 1 to {LARGEST_KERNEL}")
            if kernel > side or side < 2:
                raise ValueError(
                    f"block {i + 1} of {blocks} gets maps of {side} x {side} pixels, too small for a kernel of "
                    f"{kernel} and a pooling of 2: take fewer blocks, a smaller kernel, or a larger image_size"
                )
        return self

    def each(self, values: tuple[int, ...] | tuple[float, ...]) -> tuple[int, ...] | tuple[float, ...]:
        """Returns a setting's value for each block."""
        return values * len(self.filters) if len(values) == 1 else values


class FractalRecipe(PictureClassifierRecipe):
    """A FractalNet.

    Attributes:
        model: fields of `models.fractal.recipe.FractalConfig`.
    """

    kind: Literal["fractal"] = "fractal"
