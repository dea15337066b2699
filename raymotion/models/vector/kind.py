"""Models that read one vector of each picture: a classifier, a regressor, and a classifier that reads both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.config import load_settings
from raymotion.errors import InputError
from raymotion.learning.losses.dimensions import make_dimension_loss
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.inputs.streams import BoundStreams, CropInput, StreamEvidence, StreamInput
from raymotion.models.inputs.values import PredictedInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.bands import Bands
from raymotion.models.outputs.base import DataFacts, Output, Targets
from raymotion.models.outputs.dimensions import VALUES, Dimensions
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.models.vector.config import VectorConfig
from raymotion.models.vector.recipe import MlpRecipe, RegressorRecipe, TwoInputRecipe, VectorRecipe
from raymotion.models.vector.source import backbone_of, picture_vectors, some_rows, vector_identity, vector_input

if TYPE_CHECKING:
    from raymotion.models.vector.network import VectorNetwork

# A constant number of the vector carries no information; avoids a division by zero.
LEAST_DEVIATION = 1e-6


class VectorKind(Kind):
    """Base of the kinds that read one vector of each picture."""

    chunk: ClassVar[int] = 256

    def inputs(self, recipe: Any) -> Sequence[Input]:
        _shape(recipe)
        return [vector_input(recipe)]

    def build(self, recipe: Any, training: Training) -> VectorNetwork:
        """Returns the network, which initially predicts the baseline."""
        from raymotion.models.vector.network import VectorNetwork

        shape = {**_shape(recipe).model_dump(), **self.filled_in(recipe, training)}
        rows = some_rows(recipe, training)
        if shape["kernel"]:
            shape["landmarks"] = min(shape["kernel"]["landmarks"], len(rows))
        network = VectorNetwork(
            VectorConfig.model_validate(shape), sum(own.width for own in training.outputs), build=backbone_of(recipe)
        )
        self._set_statistics(network, recipe, training, rows)
        if len(training.outputs) == 1:
            own = training.outputs[0]
            own.start(network.head, training.data.targets_of(own), training.data.splits["train"])
        return network

    def filled_in(self, recipe: Any, training: Training) -> dict[str, Any]:
        """Returns the fields of the config that the data or other settings give."""
        identity = vector_identity(recipe, training)
        if "streams" in training.inputs:
            return {"dim": identity.dim}
        return {"dim": identity.dim, "identity": identity.to_dict(), "tuned_blocks": recipe.tuned_blocks}

    def _set_statistics(
        self, network: VectorNetwork, recipe: VectorRecipe, training: Training, rows: np.ndarray
    ) -> None:
        import torch

        config = network.config
        if not config.standardise:
            return
        found = torch.cat([own for _, own in picture_vectors(network, recipe, training, rows)] or [torch.zeros(0, 1)])
        if not len(found):
            raise InputError("no picture of the split train could be read", path=training.data.name)
        mean, std = found.mean(dim=0), found.std(dim=0, unbiased=False)
        network.mean.copy_(mean)
        network.std.copy_(torch.where(std < LEAST_DEVIATION, torch.ones_like(std), std))
        if network.kernel is None:
            return
        count = len(network.kernel.landmarks)
        if len(found) < count:
            raise InputError(
                f"{count - len(found)} pictures of the split train could not be read", path=training.data.name,
                remedy=f"Set model.kernel.landmarks to {len(found)} or fewer.",
            )  # fmt: skip
        chosen = np.sort(np.random.default_rng([recipe.seed, 2]).permutation(len(found))[:count])
        network.kernel.fit(network.standardised(found[torch.from_numpy(chosen)]))

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> VectorNetwork:
        from raymotion.models.vector.network import VectorNetwork

        config = VectorConfig.model_validate(model)
        own = StreamInput if config.identity is None else CropInput
        require_inputs(inputs, [own], [PredictedInput] if config.values else [])
        (stream,) = cast("StreamInput | CropInput", inputs[0]).streams
        if stream.shape != (config.dim,) or config.identity not in (None, stream.identity.to_dict()):
            raise InputError(f"the model reads a vector of {config.dim} numbers, and its input is another one")
        return VectorNetwork(config, sum(output.width for output in outputs))

    def learning_rate(self, recipe: VectorRecipe, network: Any, parameter: str) -> float:
        settings = recipe.optimiser
        return settings.backbone_lr if parameter.startswith("backbone.") else settings.lr

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        config = VectorConfig.model_validate(model)
        if config.kernel is not None:
            told = f"similarities to {config.landmarks:,} training pictures, of which it keeps the vectors"
        else:
            told = " - ".join(map(str, (config.dim, *config.hidden))) + " numbers"
        where = "cached features, which are not part of it" if config.identity is None else "a backbone inside it"
        tuned = f"; its last {config.tuned_blocks} blocks learned too" if config.tuned_blocks else ""
        return [f"On one vector of each picture, from {where}{tuned}: {told}; {parameters:,} parameters."]

    def reads(self, inputs: Sequence[Input]) -> str:
        return "pictures alone"


class MlpKind(VectorKind):
    """A classifier of one label on one vector of each picture, from any backbone."""

    name: ClassVar[str] = "mlp"
    recipe = MlpRecipe

    def outputs(self, recipe: MlpRecipe, facts: DataFacts) -> Sequence[Output]:
        return [SingleLabel.of_recipe(recipe, facts)]

    def title(self) -> str:
        return "Emotion classifier on picture features"


class RegressorKind(VectorKind):
    """A regressor of valence, arousal or dominance on one vector of each picture, from any backbone."""

    name: ClassVar[str] = "regressor"
    recipe = RegressorRecipe

    def outputs(self, recipe: RegressorRecipe, facts: DataFacts) -> Sequence[Output]:
        return [Dimensions.of_facts(facts, recipe.dimensions, loss=recipe.loss, numbers=recipe.numbers)]

    def targets_settings(self, recipe: RegressorRecipe) -> list[Any]:
        return list(recipe.dimensions)

    def check_recipe(self, recipe: RegressorRecipe) -> None:
        super().check_recipe(recipe)
        make_dimension_loss(recipe.loss.name, recipe.loss.options)

    def extra(self, recipe: RegressorRecipe, training: Training) -> CopiedRows | None:
        """Returns copies of the training rows of rare values."""
        if recipe.balance is None:
            return None
        output, bound = cast(Dimensions, training.outputs[0]), cast(BoundStreams, training.inputs["streams"])
        rows = training.data.splits["train"]
        values = training.data.targets_of(output).arrays[VALUES]
        low, high = output.scale
        return CopiedRows(
            copies_of_rare(
                values[rows, 0], np.linspace(low, high, recipe.balance.bins + 1), recipe.balance.growth, recipe.seed
            ),
            rows, bound, training.data.targets_of(output),
        )  # fmt: skip

    def title(self) -> str:
        return "Regressor of ratings on picture features"


class TwoInputKind(VectorKind):
    """A classifier of bands of a rating: reads a picture's vector, and what a regressor predicts for the picture."""

    name: ClassVar[str] = "two-input"
    recipe = TwoInputRecipe

    def inputs(self, recipe: TwoInputRecipe) -> Sequence[Input]:
        own = super().inputs(recipe)
        if recipe.first is None:
            return own
        info = read_checkpoint_info(recipe.first)
        if info.kind.name != RegressorKind.name or [type(one) for one in info.inputs] != [type(one) for one in own]:
            raise InputError(
                f"is a {info.kind.name} of {', '.join(info.reads)}, and `first` is a {RegressorKind.name} on the same "
                "vectors as the recipe's",
                path=info.folder,
                remedy="Take OUT/model of `raymotion crossfit` with the same backbone.",
            )
        told = cast(Dimensions, info.outputs[0]).names
        if told != (recipe.dimension,):
            raise InputError(
                f"predicts {', '.join(told)}, and the recipe's bands are of {recipe.dimension} alone",
                path=info.folder,
                remedy=f"Make it with `raymotion crossfit ... --set dimensions={recipe.dimension}`.",
            )
        if "crossfit" not in info.training:
            raise InputError(
                "was not made by `raymotion crossfit`, so there are no predictions out of fold to learn from",
                path=info.folder,
                remedy="Take OUT/model of `raymotion crossfit`, and OUT/samples.parquet as the samples.",
            )
        marks = (info.training["crossfit"].get("marks") or {}).get(column := f"predicted_{recipe.dimension}")
        if marks is None:
            raise InputError(
                "does not record what it predicted out of fold, since an earlier version made it",
                path=info.folder,
                remedy="Make it again with `raymotion crossfit`.",
            )
        return [*own, PredictedInput([column], marks={column: marks}, model=info.folder)]

    def targets_settings(self, recipe: TwoInputRecipe) -> list[Any]:
        return [recipe.dimension, recipe.bands.model_dump(mode="json")]

    def outputs(self, recipe: TwoInputRecipe, facts: DataFacts) -> Sequence[Output]:
        bands = recipe.bands
        if bands.scale is not None and facts.scale is not None and bands.scale != facts.scale:
            mine, theirs = (f"{low:g} to {high:g}" for low, high in (bands.scale, facts.scale))
            raise InputError(
                f"has ratings from {theirs}, and bands.edges are on a scale of {mine}",
                path=facts.where,
                remedy="Set bands.edges and bands.scale for this table: --set 'bands.edges=[40, 60]' "
                "--set 'bands.scale=[0, 100]'.",
            )
        return [Bands.of_facts(facts, recipe.dimension, bands.edges, bands.labels, loss=recipe.loss)]

    def filled_in(self, recipe: TwoInputRecipe, training: Training) -> dict[str, Any]:
        found = super().filled_in(recipe, training)
        if recipe.first is None:
            return found
        first = read_checkpoint_info(recipe.first)
        return {**found, "values": 1, "first": dict(first.model)}

    def build(self, recipe: TwoInputRecipe, training: Training) -> VectorNetwork:
        """Returns the network with the regressor inside, which stands in where no prediction is given."""
        network = super().build(recipe, training)
        if network.first is None:
            return network
        import torch

        assert recipe.first is not None
        model = load_model(recipe.first, kind=RegressorKind.name)
        output, values = cast(Dimensions, model.outputs[0]), training.inputs["predicted"]
        trained = cast(Any, model.inputs[0]).streams[0].identity
        own = cast(Any, next(iter(training.inputs.values())).described(training.data.splits["train"])).streams[0]
        if trained != own.identity:
            raise InputError(
                f"predicts from {trained.name} ({trained.weights}, {trained.size} pixels, {trained.dim} numbers), and "
                f"the recipe reads {own.identity.name} ({own.identity.weights}, {own.identity.size} pixels, "
                f"{own.identity.dim} numbers)",
                path=recipe.first,
                remedy="Name the same backbone, weights, size and pooled_stages.",
            )
        scale, training_rows = training.data.facts.scale, training.data.splits["train"]
        if scale != output.scale:
            raise InputError(
                f"predicts on a scale of {output.scale}, and the samples are on {scale}", path=recipe.first,
                remedy="Take the table that `raymotion crossfit` wrote beside this model.",
            )  # fmt: skip
        if without := int((~values.present[training_rows]).sum()):
            # The model inside has seen them, and predicts them better than any other picture.
            raise InputError(
                f"{without} of the {len(training_rows)} training samples have no predicted_{recipe.dimension}",
                path=training.data.name,
                remedy="Take OUT/samples.parquet of `raymotion crossfit`, which has those out of fold.",
            )
        network.first.load_state_dict(cast(Any, model.network).state_dict())
        source = cast(PredictedInput, values.described(training_rows))
        assert source.mean is not None and source.std is not None
        # The regressor's numbers are standardised by its training split, the values by this one's predictions.
        numbers = {
            "mean": (source.mean - output.centre) / output.unit, "std": source.std / output.unit,
            "low": (output.scale[0] - output.centre) / output.unit,
            "high": (output.scale[1] - output.centre) / output.unit,
        }  # fmt: skip
        for name, number in numbers.items():
            network.get_buffer(f"value_{name}").copy_(torch.from_numpy(number))
        return network

    def title(self) -> str:
        return "Classifier of bands of a rating"


def _shape(recipe: VectorRecipe) -> VectorConfig:
    """Returns the shape as the recipe states it; raises an `InputError` for a setting that is not the recipe's."""
    fixed = ("dim", "values", "landmarks", "identity", "first")
    if named := [name for name in fixed if name in recipe.model]:
        raise InputError(f"setting model.{named[0]}: it is filled in from the data", remedy="Leave it out.")
    if "tuned_blocks" in recipe.model:
        raise InputError("setting model.tuned_blocks: it is a setting of the recipe", remedy="Set tuned_blocks.")
    try:
        return load_settings(VectorConfig, options={**recipe.model, "tuned_blocks": recipe.tuned_blocks})
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error


def copies_of_rare(values: np.ndarray, edges: np.ndarray, growth: int, seed: int) -> np.ndarray:
    """Returns positions of values, each to be copied as often as it is named, so that all bins are equally full.

    Args:
        values: (n,); NaN are never copied.
        edges: of the bins, ascending; the last bin includes its upper edge.
        growth: largest number of copies of a value.
    """
    known = np.flatnonzero(np.isfinite(values))
    bins = np.clip(np.digitize(values[known], edges[1:-1]), 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    rng, found = np.random.default_rng([seed, 3]), []
    for number in np.flatnonzero(counts).tolist():
        own = known[bins == number]
        wanted = min(int(counts.max() - counts[number]), growth * len(own))
        # Each row as often as the others, and the rest at random.
        found.append(np.concatenate([np.tile(own, wanted // len(own)), rng.permutation(own)[: wanted % len(own)]]))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


@dataclass(frozen=True)
class CopiedRows:
    """`Extra`: training rows once more, each with a view of its own where the features have any.

    Attributes:
        copies: (m,) positions in `training`.
        training: rows of the split train.
        of: the targets of all rows.
    """

    copies: np.ndarray
    training: np.ndarray
    bound: BoundStreams
    of: Targets

    @cached_property
    def number(self) -> np.ndarray:
        """Which copy of its row each one is, from 0, (m,)."""
        order = np.argsort(self.copies, kind="stable")
        _, first, counts = np.unique(self.copies[order], return_index=True, return_counts=True)
        found = np.empty(len(order), dtype=np.int64)
        found[order] = np.arange(len(order)) - np.repeat(first, counts)
        return found

    @property
    def count(self) -> int:
        """The number of copies."""
        return len(self.copies)

    def targets(self, output: Output, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """See `Extra`."""
        rows = self.training[self.copies[chosen]]
        return {name: own[rows] for name, own in self.of.arrays.items()}

    def add(self, name: str, draft: StreamEvidence, chosen: np.ndarray) -> StreamEvidence:
        """See `Extra`."""
        rows = self.training[self.copies[chosen]]
        # Another view than the row itself has in this epoch, and than its other copies, as far as there are as many.
        numbers = self.bound.numbers[rows] + 1 + self.number[chosen]
        (own,) = self.bound.streams
        made = own.take(self.bound.rows[rows], numbers)
        return StreamEvidence(
            draft.argument, draft.order,
            {own.stream: np.concatenate([draft.values[own.stream], made])},
            {own.stream: np.concatenate([draft.there[own.stream], self.bound.mask[rows, 0]])},
            draft.n + len(chosen),
        )  # fmt: skip
