"""The student as a kind of model: predicts probabilities of emotions from picture and caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, load_model, read_checkpoint_info
from raymotion.models.inputs.base import Arrays, Evidence, Input, require_inputs
from raymotion.models.inputs.captions import Captions, PreparedCaptions, Tokens
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import shape_of
from raymotion.models.student.config import USUAL_SIZE, StudentConfig
from raymotion.models.student.recipe import StudentRecipe

if TYPE_CHECKING:
    from raymotion.models.student.network import Student


class StudentKind(Kind):
    """A student that reads pictures and captions, trained on people's labels or a teacher's."""

    name: ClassVar[str] = "student"
    recipe = StudentRecipe
    chunk: ClassVar[int] = 32

    def inputs(self, recipe: StudentRecipe) -> Sequence[Input]:
        if recipe.transfer is not None:
            info = self.source_of(recipe)
            shape = StudentConfig.model_validate(info.model)
            captions = Captions(shape.max_text_length, source=f"{info.folder}/tokenizer.json")
        else:
            shape = shape_of(StudentConfig, recipe)
            captions = recipe.captions(shape.max_text_length)
        return [captions, PictureInput(shape.image_size or _usual_size(shape.image))]

    def source_of(self, recipe: StudentRecipe) -> CheckpointInfo:
        """Reads the description of the student that layers are copied from.

        Raises:
            InputError: the checkpoint is another kind of model.
        """
        assert recipe.transfer is not None
        info = read_checkpoint_info(recipe.transfer.source)
        if info.kind.name != self.name:
            raise InputError(f"is a {info.kind.name}; layers are taken from a {self.name}", path=recipe.transfer.source)
        return info

    def outputs(self, recipe: StudentRecipe, facts: DataFacts) -> Sequence[Output]:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: StudentRecipe, training: Training) -> Student:
        """Returns the untrained student, which initially predicts the class prior."""
        from raymotion.models.student.start import initialise, transferred

        output, captions = cast(MultiLabel, training.outputs[0]), training.inputs["captions"]
        assert isinstance(captions, PreparedCaptions)
        if recipe.transfer is None:
            config = StudentConfig.model_validate({**recipe.model, "vocab_size": len(captions.tokenizer)})
            network = initialise(config, output.width, image_init=recipe.image_init, text_init=recipe.text_init)
        else:
            start = recipe.transfer
            donor = cast(Any, load_model(start.source, kind=self.name).network)
            network = transferred(donor, start.depth, output.width, freeze=start.freeze, source=start.source)
        data = training.data
        output.start(network.head, data.targets_of(output), data.splits["train"])
        return network

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Student:
        from raymotion.models.student.network import Student

        config = StudentConfig.model_validate(model)
        require_inputs(inputs, [Captions, PictureInput])
        cast(Captions, inputs[0]).require_fit(config.vocab_size, config.max_text_length)
        size = cast(PictureInput, inputs[1]).size
        if size != config.image_size:
            raise InputError(f"the picture has {size} pixels a side, model.image_size is {config.image_size}")
        return Student(config, outputs[0].width)

    def learning_rate(self, recipe: StudentRecipe, network: Any, parameter: str) -> float:
        """Returns `backbone_lr` for pretrained or copied parameters, `lr` for new ones."""
        # A GRU takes only the word embeddings of a BERT.
        text = "text.embedding." if recipe.model.get("text", "gru") == "gru" else "text."
        copied = [] if recipe.transfer is None else network.blocks()[: recipe.transfer.depth]
        trained = (
            any(parameter in block for block in copied)
            or (recipe.image_init is not None and parameter.startswith("image."))
            or (recipe.text_init is not None and parameter.startswith(text))
        )
        return recipe.optimiser.backbone_lr if trained else recipe.optimiser.lr

    def layers(self, network: Any) -> list[list[str]]:
        blocks: list[list[str]] = network.blocks()
        return blocks

    def predict(
        self,
        network: Any,
        evidence: Mapping[str, Evidence],
        outputs: Sequence[Output],
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> dict[str, np.ndarray]:
        from raymotion.models.student.network import predict_tokens

        captions, picture = cast(Tokens, evidence["captions"]), cast(Arrays, evidence["picture"])
        probabilities = predict_tokens(
            network,
            captions.tokens,
            captions.owners,
            len(captions.present),
            picture.values.get("images"),
            picture.values.get("image_mask"),
            decode=outputs[0].decode,
            pad_id=captions.pad_id,
            batch_size=batch_size or self.chunk,
        )
        return {outputs[0].name: probabilities}

    def title(self) -> str:
        return "Emotion student"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        return [
            f"A student ({model['image']} on pictures of {model['image_size']} pixels, {model['text']} on captions), "
            f"{parameters:,} parameters."
        ]


def _usual_size(image: str) -> int:
    """Returns the default side of an image encoder's pictures, in pixels."""
    if image == "cnn":
        return USUAL_SIZE
    from raymotion.models.student.encoders import usual_size

    return usual_size(image)
