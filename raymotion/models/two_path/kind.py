"""The two-path model as a kind: the public EMOTIC baseline and its joint variant, on cached features of two streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import ValidationError

from raymotion.config import message_of
from raymotion.errors import InputError
from raymotion.learning.losses.contrastive import make_contrastive_loss
from raymotion.learning.losses.dimensions import make_dimension_loss
from raymotion.models.fusion.kind import CHUNK, stream_statistics
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.inputs.streams import BoundStreams, StreamInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.paths import PathLabels, PathNumbers
from raymotion.models.recipe import shape_of
from raymotion.models.two_path.config import TwoPathConfig
from raymotion.models.two_path.recipe import TwoPathRecipe

if TYPE_CHECKING:
    from torch import nn

    from raymotion.models.two_path.network import TwoPath


class TwoPathKind(Kind):
    """Two paths, the surroundings and the body of a person: emotions and numbers of each, or of their joint space."""

    name: ClassVar[str] = "two-path"
    recipe = TwoPathRecipe
    chunk: ClassVar[int] = CHUNK

    def inputs(self, recipe: TwoPathRecipe) -> Sequence[Input]:
        chosen = recipe.backbones.chosen()
        _config_of(recipe)
        return [
            StreamInput(
                folders=recipe.data.embeddings, chosen=chosen, level=recipe.augmentation, samples=recipe.data.samples
            )
        ]

    def outputs(self, recipe: TwoPathRecipe, facts: DataFacts) -> Sequence[Output]:
        return _outputs(recipe, facts, _config_of(recipe), vad=_config_of(recipe).vad)

    def prepared_outputs(self, recipe: TwoPathRecipe, facts: DataFacts) -> Sequence[Output]:
        config = _config_of(recipe).model_copy(update={"join": "joint"})
        return _outputs(recipe, facts, config, vad=facts.scale is not None)

    def check_recipe(self, recipe: TwoPathRecipe) -> None:
        super().check_recipe(recipe)
        make_dimension_loss(recipe.vad_loss.name, recipe.vad_loss.options)
        make_contrastive_loss(recipe.alignment.name, recipe.alignment.options)

    def build(self, recipe: TwoPathRecipe, training: Training) -> TwoPath:
        """Returns the untrained network, which initially predicts the class prior and the training means."""
        from raymotion.models.two_path.network import SPACE, TwoPath

        bound = cast(BoundStreams, training.inputs["streams"])
        config = shape_of(TwoPathConfig, recipe, dims={own.stream: own.clean.dim for own in bound.streams})
        network = TwoPath(config, training.outputs)
        if config.standardise:  # else it starts as the public one does
            found = {own.stream: stream_statistics(own, bound, training) for own in bound.streams}
            network.set_statistics(
                {name: mean for name, (mean, _) in found.items()}, {name: std for name, (_, std) in found.items()}
            )
            for own in training.outputs:
                for layer in network.head_layers(own.name) if own.name != SPACE else ():
                    own.start(layer, training.data.targets_of(own), training.data.splits["train"])
        return network

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> TwoPath:
        from raymotion.models.two_path.network import TwoPath

        config = TwoPathConfig.model_validate(model)
        require_inputs(inputs, [StreamInput])
        person = cast(StreamInput, inputs[0])
        given = {own.stream: own.shape for own in person.streams}
        if given != {name: (dim,) for name, dim in config.dims.items()}:
            raise InputError(f"the input {person.name} has other streams or sizes than the model reads ({given})")
        labels, numbers, *space = _types(config)
        wanted = [labels, *([numbers] if config.vad else []), *space]
        if [type(own) for own in outputs] != wanted:
            told = ", ".join(type(own).__name__ for own in outputs)
            raise InputError(f"the model has the outputs {told}, not {', '.join(own.__name__ for own in wanted)}")
        return TwoPath(config, outputs)

    def heads(self, network: Any, outputs: Sequence[Output]) -> Mapping[str, nn.Linear]:
        """Returns the heads of a joint model. With separate paths an output has two, of which none is the last one."""
        if network.config.join != "joint":
            raise InputError(
                "each path of a two-path model has heads of its own: there is no one last layer for `probe` to fit",
                remedy="Leave probe out.",
            )
        return {name: network.head_layers(name)[0] for name in network.heads}

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        try:
            TwoPathConfig.model_validate(model)
        except ValidationError as error:
            first = error.errors()[0]
            text = ".".join(["model", *(str(part) for part in first["loc"])])
            raise InputError(f"{text}: {message_of(first)}", path=where) from error
        except InputError as error:
            raise InputError(error.reason, path=where) from error

    def title(self) -> str:
        return "Emotions of a person in a picture: two paths"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        config = TwoPathConfig.model_validate(model)
        first, second = config.dims
        if config.join == "joint":
            told = (
                f"The paths of {first} and {second} lead into a joint space of {config.joint} numbers; the heads read "
                "the mean of the two vectors, and the vectors of a person are drawn together."
            )
        else:
            told = (
                f"The paths of {first} and {second} have heads of their own; the prediction is the mean of both, or "
                "that of the one that a person has. `--ablation` gives each by itself."
            )
        return [
            f"{told} Width {config.hidden}, {parameters:,} parameters and statistics. It reads features of frozen "
            "backbones, which are not part of it."
        ]

    def reads(self, inputs: Sequence[Input]) -> str:
        return "what there is of a person"


def _config_of(recipe: TwoPathRecipe) -> TwoPathConfig:
    """Returns the shape, with placeholders for the sizes of the features."""
    return shape_of(TwoPathConfig, recipe, dims=dict.fromkeys(recipe.backbones.chosen(), 1))


def _types(
    config: TwoPathConfig,
) -> tuple[type[MultiLabel], type[Dimensions]] | tuple[type[MultiLabel], type[Dimensions], type[Embedding]]:
    """Returns the classes of the outputs: labels, numbers, and the space of a joint model."""
    if config.join == "joint":
        return MultiLabel, Dimensions, Embedding
    return PathLabels, PathNumbers


def _outputs(recipe: TwoPathRecipe, facts: DataFacts, config: TwoPathConfig, *, vad: bool) -> list[Output]:
    labels, numbers, *space = _types(config)
    found: list[Output] = [labels.of_recipe(recipe, facts)]
    found[0].weight = recipe.label_weight
    if vad:
        found.append(numbers.of_facts(facts, weight=recipe.vad_weight, loss=recipe.vad_loss, numbers=recipe.numbers))
    for own in space:
        first, second = config.dims
        found.append(
            own(
                config.joint, sides=(first, second), name="space", loss=recipe.alignment, weight=recipe.alignment_weight
            )
        )
    return found
