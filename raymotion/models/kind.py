"""The base class of all kinds of models: a recipe, inputs, outputs, and the network between them.

    class MyKind(Kind):
        \"\"\"One line for `raymotion kinds`.\"\"\"

        name = "mine"
        recipe = MyRecipe                                  # a TrainRecipe with `kind: Literal["mine"]`

        def inputs(self, recipe): return [ValuesInput(["arousal"])]
        def outputs(self, recipe, facts): return [Dimensions.of_facts(facts, ["valence"])]
        def build(self, recipe, training): return MyNetwork(...)
        def shape(self, network): return {"width": network.width}   # default: network.config.model_dump()
        def restore(self, model, inputs, outputs): return MyNetwork(model["width"])

A kind is registered by a line of `models.registry`, by an entry point `raymotion.kinds`, or by
`kind: package.module:MyKind` in a recipe. Training, labelling, evaluation and searches use it through this class only.

`build` lets the last layer predict the baseline from the start (else it is the first thing that is learned):

    own = training.outputs[0]
    own.start(network.head, training.data.targets_of(own), training.data.splits["train"])

The network is a `torch.nn.Module`. It takes the tensors of its inputs as keyword arguments and returns a mapping by
output, or one tensor with the columns of all outputs in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.learning.losses.multilabel import make_loss
from raymotion.learning.losses.single_label import make_class_loss
from raymotion.models.inputs.answers import Service
from raymotion.models.inputs.base import Bound, Evidence, Input, batches, require_data_settings
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.models.outputs.base import DataFacts, Output, forward
from raymotion.models.recipe import MultiLabelRecipe, SingleLabelRecipe, TrainRecipe

if TYPE_CHECKING:
    from torch import nn

    from raymotion.models.training_set import TrainingSet


T = TypeVar("T", Input, Output)


@dataclass(frozen=True)
class Wrap:
    """How `raymotion wrap` makes a model of a kind.

    Attributes:
        settings: the fields of the recipe that become its options.
        example: the rest of a command line, for the help text.
        arguments: the fields that become arguments instead.
        names: option names that differ from the field's.
    """

    settings: type[Settings]
    example: str
    arguments: tuple[str, ...] = ("source",)
    names: Mapping[str, str] = field(default_factory=dict)


class Training(Protocol):
    """The training run that a kind builds a network for."""

    @property
    def data(self) -> TrainingSet:
        """The samples, with their targets."""

    @property
    def inputs(self) -> Mapping[str, Bound]:
        """The inputs as this recipe reads them, by name."""

    @property
    def outputs(self) -> Sequence[Output]:
        """The outputs that the network must produce."""

    def read(self, reader: Reader, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Pictures]]:
        """Reads rows of the streamed input without augmentation, `size` at a time."""


class Extra(Protocol):
    """Synthetic training samples, numbered after all others."""

    @property
    def count(self) -> int:
        """The number of samples."""

    def targets(self, output: Output, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the targets of chosen samples, by the names of the output's targets."""

    def add(self, name: str, draft: Any, chosen: np.ndarray) -> Any:
        """Returns a draft of the input `name` with chosen samples appended."""


class Kind(ABC):
    """Base of all kinds.

    Attributes:
        name: used in recipes, checkpoints and the documentation.
        recipe: class of the recipes.
        whole_shard: whether to predict on whole shards instead of batches of pictures.
        chunk: default batch size of predictions.
        wraps: for kinds around models of somebody else's, which need no training (`raymotion wrap NAME`).
        half: whether predictions may use bfloat16 or float16 on a GPU; other kinds keep the precision of validation.
    """

    name: ClassVar[str]
    recipe: ClassVar[type[TrainRecipe]]
    whole_shard: ClassVar[bool] = False
    chunk: ClassVar[int] = 1024
    half: ClassVar[bool] = False
    wraps: ClassVar[Wrap | None] = None

    @abstractmethod
    def inputs(self, recipe: Any) -> Sequence[Input]:
        """Returns the inputs that a model of the recipe reads.

        Raises:
            InputError: the recipe describes an invalid shape.
        """

    @abstractmethod
    def outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        """Returns the outputs for the vocabulary and scale of a sample table.

        Rows without a target for the first output are left out.
        """

    def prepared_outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        """Returns the outputs to prepare targets for: those of every recipe that a search may derive from this one."""
        return self.outputs(recipe, facts)

    def targets_settings(self, recipe: Any) -> list[Any]:
        """Returns the settings that targets are read by, as JSON values; a search cannot vary them."""
        return []

    def checked_inputs(self, recipe: Any) -> list[Input]:
        """Returns `inputs`, by which alone others read them; raises an `InputError` if these are no inputs."""
        return _parts(self.inputs(recipe), Input, f"{place_of(type(self))}.inputs")  # type: ignore[type-abstract]

    def checked_outputs(self, recipe: Any, facts: DataFacts, *, prepared: bool = False) -> list[Output]:
        """Returns `outputs`, or `prepared_outputs`, as `checked_inputs` does."""
        own = prepared and type(self).prepared_outputs is not Kind.prepared_outputs
        name, method = ("prepared_outputs", self.prepared_outputs) if own else ("outputs", self.outputs)
        place = f"{place_of(type(self))}.{name}"
        return _parts(method(recipe, facts), Output, place)  # type: ignore[type-abstract]

    def check_recipe(self, recipe: Any) -> None:
        """Raises an `InputError` for a recipe that is invalid for any data; searches check it before any trial."""
        require_data_settings(self.checked_inputs(recipe), recipe)
        if isinstance(recipe, MultiLabelRecipe):
            make_loss(recipe.loss.name, rates=np.full(2, 0.1), samples=10, options=recipe.loss.options)
        if isinstance(recipe, SingleLabelRecipe):
            make_class_loss(recipe.loss.name, recipe.loss.options)

    @abstractmethod
    def build(self, recipe: Any, training: Training) -> nn.Module:
        """Returns the network with its initial weights."""

    @abstractmethod
    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> nn.Module:
        """Returns a network of the shape returned by `shape`; its weights are loaded afterwards."""

    def shape(self, network: Any) -> dict[str, Any]:
        """Returns the network's shape as stored in config.json, for `restore`."""
        config = getattr(network, "config", None)
        if not isinstance(config, BaseModel):
            raise InputError(
                f"the kind {place_of(type(self))} does not define shape, and its network has no `config` of pydantic's",
                remedy="Return from shape what restore needs, as JSON values.",
            )
        return dict(config.model_dump(mode="json"))

    def learning_rate(self, recipe: Any, network: Any, parameter: str) -> float:
        """Returns the learning rate of a parameter, given by its name."""
        return float(recipe.optimiser.lr)

    def pretrained(self, recipe: Any, network: Any, parameter: str) -> bool:
        """Returns whether a parameter, given by its name, starts from trained weights (`optimiser.l2_sp`).

        By default, whether `learning_rate` derives its rate from `optimiser.backbone_lr`.
        """
        settings = recipe.optimiser
        other = settings.model_copy(update={"backbone_lr": 2 * settings.backbone_lr})
        rates = [
            self.learning_rate(own, network, parameter)
            for own in (recipe, recipe.model_copy(update={"optimiser": other}))
        ]
        return rates[0] != rates[1]

    def heads(self, network: Any, outputs: Sequence[Output]) -> Mapping[str, nn.Linear]:
        """Returns the last layer of each output, by name, whose inputs are the features that `probe` is fitted to.

        By default, `network.head` of a network with one output.

        Raises:
            InputError: there are none.
        """
        from torch import nn

        head = getattr(network, "head", None)
        if len(outputs) == 1 and isinstance(head, nn.Linear) and head.out_features == outputs[0].width:
            return {outputs[0].name: head}
        raise InputError(
            f"the kind {place_of(type(self))} does not define heads: there is no last layer for `probe` to fit",
            remedy="Leave probe out, or return each output's last torch.nn.Linear from heads.",
        )

    def layers(self, network: Any) -> list[list[str]]:
        """Returns the names in the state dict by layer, from input to output; empty if layers cannot be copied."""
        return []

    def wrap(self, recipe: Any) -> tuple[Any, Sequence[Input], Sequence[Output]]:
        """Returns network, inputs and outputs of a model that is used as it comes; for kinds with `wraps`.

        Raises:
            InputError: the model or its vocabulary is missing.
        """
        raise InputError(f"the kind {place_of(type(self))} has `wraps` and does not define wrap", remedy="Add it.")

    def service(
        self, model: Mapping[str, Any], training: Mapping[str, Any], outputs: Sequence[Output]
    ) -> Service | None:
        """Returns the service that answers for a model which runs somewhere else and reads `AnswersInput`.

        Args:
            model, training: contents of config.json (`model`) and of training.json.
        """
        return None

    def extra(self, recipe: Any, training: Training) -> Extra | None:
        """Returns synthetic training samples if the recipe asks for them."""
        return None

    def predict(
        self,
        network: nn.Module,
        evidence: Mapping[str, Evidence],
        outputs: Sequence[Output],
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> dict[str, np.ndarray]:
        """Predicts n samples; returns decoded values (n, width) float32, by output.

        Args:
            evidence: by input.
            batch_size: samples per forward pass; None uses `chunk`.
            precision: autocast type on a GPU, for kinds with `half`.
        """
        import torch

        device = next(network.parameters()).device
        n = len(next(iter(evidence.values())).present)
        half = self.half and device.type == "cuda" and precision != "float32"
        parts: dict[str, list[Any]] = {own.name: [torch.zeros(0, own.width)] for own in outputs}
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for rows in batches(n, batch_size or self.chunk):
                arguments: dict[str, Any] = {}
                for own in evidence.values():
                    arguments.update((own if len(rows) == n else own.take(rows)).tensors(str(device)))
                with torch.autocast(device.type, getattr(torch, precision), enabled=half):
                    found = forward(network, arguments, outputs, len(rows))
                for output, value in zip(outputs, found.values(), strict=True):
                    parts[output.name].append(output.decode(value.float()).cpu())
        network.train(was_training)
        return {name: torch.cat(own).numpy() for name, own in parts.items()}

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        """Raises an `InputError` for an invalid shape, before a network is built."""

    def title(self) -> str:
        """Returns the title of the model card."""
        return f"Emotion model: {self.name}"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        """Returns lines of the model card about the network; inputs and outputs describe themselves.

        Args:
            model, training: contents of config.json (`model`) and of training.json.
        """
        return [f"{parameters:,} parameters."]

    def cautions(self, model: Mapping[str, Any]) -> list[str]:
        """Returns sentences on what a model that was not trained cannot tell; `raymotion wrap` shows them.

        Args:
            model: contents of config.json (`model`).
        """
        return []

    def reads(self, inputs: Sequence[Input]) -> str:
        """Returns a readable phrase that lists the inputs."""
        used = [own for own in inputs if own.used]
        names = [own.plural for own in used]
        if len(used) == 1:
            return f"{names[0]} alone{'; it never saw an image' if used[0].looks_at == 'none' else ''}"
        return f"{', '.join(names[:-1])} and {names[-1]}; any of them may be missing"


def place_of(own: type) -> str:
    """Returns `module:Class`, for messages."""
    return f"{own.__module__}:{own.__qualname__}"


def _parts(values: object, base: type[T], place: str) -> list[T]:
    """Returns the inputs or outputs that a method of a kind has returned, after checking them."""
    what = base.__name__.lower()
    if not isinstance(values, Sequence) or not values or not all(isinstance(own, base) for own in values):
        told = ", ".join(type(own).__name__ for own in values) if isinstance(values, Sequence) else repr(values)
        raise InputError(f"{place} returns {f'[{told}]' if isinstance(values, Sequence) else told}",
                         remedy=f"Return a list of {what}s, one or more.")  # fmt: skip
    names = [getattr(own, "name", None) for own in values]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise InputError(f"{place} returns {what}s called {names}", remedy=f"Give each {what} a name of its own.")
    return list(values)
