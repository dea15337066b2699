"""The fusion head as a kind of model: predicts emotions (and numbers) from cached features of a person's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from pydantic import ValidationError

from raymotion.config import load_settings, message_of
from raymotion.errors import InputError
from raymotion.models.fusion.config import FusionConfig, input_size, wants_tokens
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.inputs.streams import BoundStreams, PersonInput, StreamEvidence, StreamFeatures, StreamInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.dimensions import SD, VALUES, Dimensions
from raymotion.models.outputs.multilabel import HARD, SOFT, MultiLabel

if TYPE_CHECKING:
    from torch import Tensor

    from raymotion.learning.resample import Resampled
    from raymotion.models.fusion.network import FusionHead

CHUNK = 1024


class FusionKind(Kind):
    """A fusion head on features of frozen backbones: the picture, the body and the face of a person."""

    name: ClassVar[str] = "fusion"
    recipe = FusionRecipe
    chunk: ClassVar[int] = CHUNK

    def inputs(self, recipe: FusionRecipe) -> Sequence[Input]:
        config = head_config(recipe.model, recipe.backbones.chosen())
        return [
            StreamInput(
                folders=recipe.data.embeddings, chosen=recipe.backbones.chosen(), tokens=wants_tokens(config.fusion),
                level=recipe.augmentation, samples=recipe.data.samples, ablation=config.ablation,
            )
        ]  # fmt: skip

    def outputs(self, recipe: FusionRecipe, facts: DataFacts) -> Sequence[Output]:
        config = head_config(recipe.model, recipe.backbones.chosen())
        return head_outputs(recipe, facts, vad=config.vad)

    def prepared_outputs(self, recipe: FusionRecipe, facts: DataFacts) -> Sequence[Output]:
        return head_outputs(recipe, facts, vad=facts.scale is not None)

    def build(self, recipe: FusionRecipe, training: Training) -> FusionHead:
        """Returns the untrained head. If its outputs are logits, it initially predicts the class prior."""
        from raymotion.models.fusion.network import FusionHead

        bound = cast(BoundStreams, training.inputs["streams"])
        dims = {own.stream: own.clean.dim for own in bound.streams}
        tokens = {own.stream: own.clean.tokens for own in bound.streams if own.clean.tokens}
        config = FusionConfig.model_validate(
            {**recipe.model, "dims": dims, "tokens": tokens, "token_dims": {name: dims[name] for name in tokens}}
        )
        head = FusionHead(config, training.outputs[0].width)
        if not head.published:
            statistics = {own.stream: stream_statistics(own, bound, training) for own in bound.streams}
            head.set_statistics(
                {name: mean for name, (mean, _) in statistics.items()},
                {name: std for name, (_, std) in statistics.items()},
            )
            set_first_answers(head, training)
        return head

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> FusionHead:
        from raymotion.models.fusion.network import FusionHead

        config = FusionConfig.model_validate(model)
        require_inputs(inputs, [StreamInput])
        require_streams(config, cast(StreamInput, inputs[0]))
        return FusionHead(config, outputs[0].width)

    def extra(self, recipe: FusionRecipe, training: Training) -> SyntheticPersons | None:
        """Returns synthetic persons made from clean features of the training split; the same for every head.

        Their features are mixed batch by batch instead of stored, because a search caches the persons of many settings
        and seeds.
        """
        from raymotion.learning.resample import resample

        settings = recipe.resampling
        if settings.method == "none":
            return None
        bound, data = cast(BoundStreams, training.inputs["streams"]), training.data
        output = cast(MultiLabel, training.outputs[0])
        soft = recipe.data.soft_targets
        key = ("resampled", settings.model_dump_json(), tuple(bound.source.chosen.items()), recipe.seed, soft)
        rows = data.splits["train"]
        if key not in data.memory:
            # Neighbours are searched among pooled features, even if the head reads tokens.
            embeddings = bound.prepared.embeddings
            pooled = [embeddings.block(stream, name) for stream, name in bound.source.chosen.items()]
            data.memory[key] = resample(
                [StreamFeatures("", block, None).take(bound.rows[rows]) for block in pooled],
                bound.mask[rows],
                output.learned(data.targets_of(output))[rows],
                settings,
                seed=recipe.seed,
                labels=output.vocabulary.labels,
                mix=False,
            )
        return SyntheticPersons(cast("Resampled", data.memory[key]), bound, rows)

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        check_head(model, "model", where=where)

    def title(self) -> str:
        return "Emotions of a person in a picture: fusion head"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        settings = training.get("settings") or {}
        resampling = settings.get("resampling") or {}
        made = resampling.get("method", "none")
        level = "" if made == "none" else f" {resampling.get('level')}"
        return [
            f"Fusion `{model['fusion']}`, width {model['hidden']}, {parameters:,} parameters and statistics. It reads "
            "features of frozen backbones, which are not part of it.",
            f"Augmentation {settings.get('augmentation', 'none')}; resampling {made}{level}.",
        ]

    def reads(self, inputs: Sequence[Input]) -> str:
        return "what there is of a person"


def head_config(model: Mapping[str, Any], streams: Mapping[str, Any]) -> FusionConfig:
    """Returns a head's shape from the recipe, with placeholders for the sizes of the features.

    Raises:
        InputError: a setting is invalid; the message names it with the prefix `model.`.
    """
    try:
        return load_settings(FusionConfig, options={**model, "dims": dict.fromkeys(streams, 1)})
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error


def head_outputs(recipe: Any, facts: DataFacts, *, vad: bool) -> list[Output]:
    """Returns the output of emotions, followed by valence, arousal and dominance if `vad`."""
    numbers = [Dimensions.of_facts(facts, weight=recipe.vad_weight)] if vad else []
    return [MultiLabel.of_recipe(recipe, facts), *numbers]


def set_first_answers(head: FusionHead, training: Training) -> None:
    """Initialises the head to predict the class prior and the training means."""
    data, heads = training.data, (head.head, head.vad_head)
    for own, layer in zip(training.outputs, heads, strict=False):
        if layer is not None:
            own.start(layer, data.targets_of(own), data.splits["train"])


def check_head(model: object, name: str, *, where: str) -> None:
    """Raises an `InputError` for an invalid shape of a head, read from a file."""
    try:
        FusionConfig.model_validate(model)
    except ValidationError as error:
        first = error.errors()[0]
        text = ".".join([name, *(str(part) for part in first["loc"])])
        raise InputError(f"{text}: {message_of(first)}", path=where) from error
    except InputError as error:
        raise InputError(error.reason, path=where) from error


def require_streams(config: FusionConfig, person: PersonInput) -> None:
    """Raises an `InputError` unless a checkpoint's input has the streams of its head, with the same sizes."""
    wanted = {name: (config.tokens.get(name, 0), input_size(config, name)) for name in config.dims}
    given = {own.stream: (own.grid**2, own.shape[-1]) for own in person.streams}
    if list(given.items()) != list(wanted.items()) or person.ablation != config.ablation:
        raise InputError(f"the input {person.name} has other streams or sizes than the model reads ({given}, {wanted})")


@dataclass(frozen=True)
class SyntheticPersons:
    """`Extra`: persons interpolated between two others of the training split."""

    made: Resampled
    bound: BoundStreams
    training: np.ndarray

    @property
    def count(self) -> int:
        """The number of persons."""
        return len(self.made.targets)

    def targets(self, output: Output, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """See `Extra`."""
        if isinstance(output, MultiLabel):
            own = self.made.targets[chosen].astype(np.float32)
            return {HARD: own, SOFT: own}
        nothing = np.full((len(chosen), output.width), np.nan, dtype=np.float32)
        return {VALUES: nothing, SD: nothing}

    def add(self, name: str, draft: StreamEvidence, chosen: np.ndarray) -> StreamEvidence:
        """See `Extra`. Features are 0 if one of the parents lacks the stream."""
        rows = self.bound.rows[self.training]
        parents = rows[self.made.parents[chosen]]
        return self.bound.with_mixed(draft, parents, self.made.shares[chosen], self.made.mask[chosen])


def stream_statistics(own: StreamFeatures, bound: BoundStreams, training: Training) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each feature, (D,) float32, over training samples with the stream."""
    import torch

    key = ("statistics", own.stream, bound.source.chosen[own.stream], own.clean.array.ndim)
    data = training.data
    if key not in data.memory:
        rows = bound.rows[data.splits["train"]]
        rows = rows[own.clean.row_of[rows] >= 0]
        total, squares, count = np.zeros(own.clean.dim), np.zeros(own.clean.dim), 0
        for start in range(0, len(rows), CHUNK):
            some = torch.from_numpy(own.take(rows[start : start + CHUNK])).float().reshape(-1, own.clean.dim)
            # Chunks are summed in float32, which suffices for float16 features, and the total in float64.
            total += some.sum(dim=0).double().numpy()
            squares += some.square_().sum(dim=0).double().numpy()
            count += len(some)
        mean = total / max(1, count)
        std = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
        # Constant features carry no information; avoids a division by zero.
        std[std < 1e-6] = 1.0
        data.memory[key] = (torch.from_numpy(mean).float(), torch.from_numpy(std).float())
    return cast("tuple[Tensor, Tensor]", data.memory[key])
