"""VisualBERT as a kind of model: predicts probabilities of emotions from captions and region features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.models.inputs.base import Arrays, Evidence, Input, require_inputs
from raymotion.models.inputs.captions import Captions, PreparedCaptions, Tokens
from raymotion.models.inputs.regions import PreparedRegions, RegionInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import shape_of
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.recipe import TeacherRecipe

if TYPE_CHECKING:
    from raymotion.models.visualbert.network import VisualBertTeacher


class VisualBertKind(Kind):
    """A VisualBERT teacher that reads captions and, with a folder of features, regions of the pictures."""

    name: ClassVar[str] = "teacher-visualbert"
    recipe = TeacherRecipe
    # Captions are short texts: those of a whole shard fill the network's batches better than those of a few images.
    whole_shard = True
    chunk: ClassVar[int] = 256

    def inputs(self, recipe: TeacherRecipe) -> Sequence[Input]:
        longest = shape_of(TeacherConfig, recipe).max_text_length
        regions = [RegionInput(None, folder=recipe.data.features)] if recipe.data.features else []
        return [recipe.captions(longest), *regions]

    def outputs(self, recipe: TeacherRecipe, facts: DataFacts) -> Sequence[Output]:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: TeacherRecipe, training: Training) -> VisualBertTeacher:
        """Returns the untrained teacher, which initially predicts the class prior."""
        from raymotion.models.visualbert.network import VisualBertTeacher

        captions, regions = training.inputs["captions"], training.inputs.get("regions")
        assert isinstance(captions, PreparedCaptions)
        sizes: dict[str, Any] = {"vocab_size": len(captions.tokenizer)}
        if isinstance(regions, PreparedRegions):
            sizes["visual_dim"] = regions.features.dim
        config = TeacherConfig.model_validate({"visual_dim": 1, **recipe.model, **sizes})
        output = cast(MultiLabel, training.outputs[0])
        if recipe.probe is not None and recipe.optimiser.epochs == 1 and regions is not None and not recipe.init:
            raise InputError(
                "a probe alone leaves the projection of the regions random",
                remedy="Give more epochs, as teacher-minilm-finetuned does, or train on captions alone.",
            )
        if recipe.init:
            network = VisualBertTeacher.from_pretrained(recipe.init, config, output.width)
        elif recipe.text_init:
            network = VisualBertTeacher.from_text(recipe.text_init, config, output.width)
        else:
            network = VisualBertTeacher(config, output.width)
        data = training.data
        output.start(network.head, data.targets_of(output), data.splits["train"])
        return network

    def restore(
        self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]
    ) -> VisualBertTeacher:
        from raymotion.models.visualbert.network import VisualBertTeacher

        config = TeacherConfig.model_validate(model)
        require_inputs(inputs, [Captions], [RegionInput])
        cast(Captions, inputs[0]).require_fit(config.vocab_size, config.max_text_length)
        for regions in cast("Sequence[RegionInput]", inputs[1:]):
            dim = regions.identity.dim
            if dim != config.visual_dim:
                raise InputError(f"regions have {dim} numbers, model.visual_dim is {config.visual_dim}")
        return VisualBertTeacher(config, outputs[0].width)

    def learning_rate(self, recipe: TeacherRecipe, network: Any, parameter: str) -> float:
        settings, config = recipe.optimiser, network.config
        if not parameter.startswith("backbone.") or (config.new_projection and "visual_projection" in parameter):
            return settings.lr  # newly initialised
        above = config.layers if parameter.startswith("backbone.embeddings.") else 0
        if parameter.startswith("backbone.encoder.layer."):
            above = config.layers - 1 - int(parameter.split(".")[3])
        return settings.backbone_lr * settings.layer_decay**above

    def pretrained(self, recipe: TeacherRecipe, network: Any, parameter: str) -> bool:
        return recipe.pretrained_text() is not None and super().pretrained(recipe, network, parameter)

    def predict(
        self,
        network: Any,
        evidence: Mapping[str, Evidence],
        outputs: Sequence[Output],
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> dict[str, np.ndarray]:
        from raymotion.models.visualbert.network import predict_tokens

        captions, regions = cast(Tokens, evidence["captions"]), cast(Arrays | None, evidence.get("regions"))
        probabilities = predict_tokens(
            network,
            captions.tokens,
            captions.owners,
            len(captions.present),
            None if regions is None else regions.values["regions"],
            None if regions is None else regions.values["region_mask"],
            decode=outputs[0].decode,
            pad_id=captions.pad_id,
            batch_size=batch_size or 32,
        )
        return {outputs[0].name: probabilities}

    def title(self) -> str:
        return "Emotion teacher"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        return [f"A VisualBERT with a multi-label head, {parameters:,} parameters."]
