"""Base of the kinds that read whole pictures, predict one label, and are trained from scratch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.models.picture_classifier.recipe import PictureClassifierConfig
from raymotion.models.recipe import shape_of

if TYPE_CHECKING:
    from raymotion.models.picture_classifier.network import PictureClassifier

# Training pictures that the normalisation is measured on; more change nothing.
SAMPLES = 1024


class PictureClassifierKind(Kind):
    """Base of classifiers of whole pictures. A subclass names the class of its shape and builds the network.

    Attributes:
        config: class of the shape.
    """

    config: ClassVar[type[PictureClassifierConfig]]
    chunk: ClassVar[int] = 64
    half = True

    @abstractmethod
    def network(self, config: Any, labels: int) -> PictureClassifier:
        """Returns a network of this shape with random weights."""

    def inputs(self, recipe: Any) -> Sequence[Input]:
        return [PictureInput(shape_of(self.config, recipe).image_size)]

    def outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        return [SingleLabel.of_recipe(recipe, facts)]

    def build(self, recipe: Any, training: Training) -> PictureClassifier:
        """Returns the untrained network, which initially predicts about the class prior."""
        import torch

        config, output, data = shape_of(self.config, recipe), training.outputs[0], training.data
        network = self.network(config, output.width)
        if config.normalise != "unit":
            mean, std = _statistics(recipe, training, config.image_size)
            by_pixel = config.normalise == "pixels"
            own = mean if by_pixel else mean.mean(axis=(1, 2), keepdims=True)
            network.mean.copy_(torch.from_numpy(own))
            network.scale.copy_(torch.full((3, 1, 1), 128.0) if by_pixel else torch.from_numpy(std))
        output.start(network.head, data.targets_of(output), data.splits["train"])
        return network

    def restore(
        self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]
    ) -> PictureClassifier:
        config = self.config.model_validate(model)
        require_inputs(inputs, [PictureInput])
        size = cast(PictureInput, inputs[0]).size
        if size != config.image_size:
            raise InputError(f"the picture has {size} pixels a side, model.image_size is {config.image_size}")
        return self.network(config, outputs[0].width)


def _statistics(recipe: Any, training: Training, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean picture (3, S, S) and the deviation of each colour (3, 1, 1), float32, of training pictures.

    Raises:
        InputError: none of them can be read.
    """
    data, bound = training.data, cast(Any, training.inputs["picture"])
    key = ("picture statistics", size, recipe.data.damaged)
    if key not in data.memory:
        rows = data.splits["train"]
        rows = np.sort(np.random.default_rng(0).permutation(rows[bound.present[rows]])[:SAMPLES])
        total, squares, count = np.zeros((3, size, size)), np.zeros((3, 1, 1)), 0
        for _, read in training.read(bound.reader(recipe), rows, 64):
            pixels = np.array(read.pixels[read.readable]).transpose(0, 3, 1, 2).astype(np.float64)
            total += pixels.sum(axis=0)
            squares += (pixels**2).sum(axis=(0, 2, 3)).reshape(3, 1, 1)
            count += len(pixels)
        if not count:
            raise InputError("no training picture can be read", path=data.name, remedy="Check the image folder.")
        mean = total / count
        variance = squares / (count * size**2) - mean.mean(axis=(1, 2), keepdims=True) ** 2
        # Pictures of one brightness have no deviation.
        data.memory[key] = mean.astype(np.float32), np.sqrt(np.maximum(variance, 1.0)).astype(np.float32)
    found: tuple[np.ndarray, np.ndarray] = data.memory[key]
    return found
