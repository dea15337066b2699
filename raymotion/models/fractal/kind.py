"""FractalNet as a kind of model: predicts one label from the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from raymotion.models.fractal.recipe import FractalConfig, FractalRecipe
from raymotion.models.inputs.base import Input
from raymotion.models.picture_classifier.kind import PictureClassifierKind

if TYPE_CHECKING:
    from raymotion.models.fractal.network import FractalNet


class FractalKind(PictureClassifierKind):
    """A FractalNet with drop-path, on whole pictures."""

    name: ClassVar[str] = "fractal"
    recipe = FractalRecipe
    config = FractalConfig

    def network(self, config: FractalConfig, labels: int) -> FractalNet:
        from raymotion.models.fractal.network import FractalNet

        return FractalNet(config, labels)

    def title(self) -> str:
        return "Emotion of pictures, by a FractalNet"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        rows = 2 ** (model["columns"] - 1)
        used = "the mean of its columns" if model["predict_with"] == "mean" else "its deepest column"
        return [
            f"A FractalNet of {len(model['filters'])} blocks with {model['columns']} columns "
            f"({rows * len(model['filters'])} convolutions on the longest path), on pictures of "
            f"{model['image_size']} pixels; {parameters:,} parameters and statistics. It predicts with {used}."
        ]
