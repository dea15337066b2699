"""The pre-activation ResNet as a kind of model: predicts one label from the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from raymotion.models.inputs.base import Input
from raymotion.models.picture_classifier.kind import PictureClassifierKind
from raymotion.models.preact_resnet.recipe import PreactResNetConfig, PreactResNetRecipe

if TYPE_CHECKING:
    from raymotion.models.preact_resnet.network import PreactResNet


class PreactResNetKind(PictureClassifierKind):
    """A ResNet with pre-activation, 18, 34 or 50 layers deep, on whole pictures."""

    name: ClassVar[str] = "preact-resnet"
    recipe = PreactResNetRecipe
    config = PreactResNetConfig

    def network(self, config: PreactResNetConfig, labels: int) -> PreactResNet:
        from raymotion.models.preact_resnet.network import PreactResNet

        return PreactResNet(config, labels)

    def title(self) -> str:
        return "Emotion of pictures, by a ResNet"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        config = PreactResNetConfig.model_validate(model)
        side, made = config.first_side(), "large" if config.chosen_stem() == "imagenet" else "small"
        return [
            f"A ResNet-{config.depth} with pre-activation, {config.width} channels in its first stage, on pictures of "
            f"{config.image_size} pixels; {parameters:,} parameters and statistics. Its stem is the one for "
            f"{made} pictures, and leaves maps of {side} x {side}."
        ]
