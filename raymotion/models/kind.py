"""A kind of model: a recipe, what it reads, what it says, and the network between.

    class MyKind(Kind):
        \"\"\"One line for `raymotion models`.\"\"\"

        name = "mine"
        recipe = MyRecipe                                  # a TrainRecipe with `kind: Literal["mine"]`

        def inputs(self, recipe): return [ValuesInput(["arousal"])]
        def outputs(self, recipe, facts): return [Dimensions.of_facts(facts, ["valence"])]
        def build(self, recipe, training): return MyNetwork(...)
        def restore(self, model, inputs, outputs): return MyNetwork(...)

It is known by one line of `models.registry`, by an entry point `raymotion.kinds`, or by `kind: package.module:MyKind`
in a recipe. Nothing else knows it by name: training, labelling, plain Python, evaluation and searches ask it.

The network is a `torch.nn.Module`. It is called with what its inputs give, by name, and answers with a mapping by
output, or with one tensor whose columns are the outputs' in their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from raymotion.learning.losses.multilabel import make_loss
from raymotion.models.inputs.base import Bound, Evidence, Input, batches
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.models.outputs.base import DataFacts, Output, as_outputs
from raymotion.models.recipe import MultiLabelRecipe, TrainRecipe

if TYPE_CHECKING:
    from torch import nn

    from raymotion.models.training_set import TrainingSet


class Training(Protocol):
    """What a kind is told of the run that it builds a network for."""

    @property
    def data(self) -> TrainingSet:
        """The samples, with their targets."""

    @property
    def inputs(self) -> Mapping[str, Bound]:
        """As this recipe reads them, by name."""

    @property
    def outputs(self) -> Sequence[Output]:
        """What the network is to say."""

    def read(self, reader: Reader, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Pictures]]:
        """Some rows of the streamed input, `size` at a time and unchanged, as a reader reads them."""


class Extra(Protocol):
    """Synthetic training samples, behind all others."""

    @property
    def count(self) -> int:
        """How many."""

    def targets(self, output: Output, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Of some of them, by the names of the output's targets."""

    def add(self, name: str, draft: Any, chosen: np.ndarray) -> Any:
        """A draft of the input `name` with some of them behind it."""


class Kind(ABC):
    """Base of all kinds.

    Attributes:
        name: in recipes, in checkpoints and in the documentation.
        recipe: what a YAML file of this kind may say.
        whole_shard: prediction works better on a whole shard than on batches of pictures.
        chunk: samples that prediction takes at once, where nothing else decides.
        half: it may predict in bfloat16 or float16 on a GPU; others compute as they were validated.
    """

    name: ClassVar[str]
    recipe: ClassVar[type[TrainRecipe]]
    whole_shard: ClassVar[bool] = False
    chunk: ClassVar[int] = 1024
    half: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, recipe: Any) -> Sequence[Input]:
        """What a model of the recipe reads.

        Raises:
            InputError: the recipe asks for a shape that there is not.
        """

    @abstractmethod
    def outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        """What it says, for the vocabulary and the scale of a sample table. Rows without the first one are left out."""

    def prepared_outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        """Outputs whose targets are prepared: those of every recipe that a search may make of this one."""
        return self.outputs(recipe, facts)

    def check_recipe(self, recipe: Any) -> None:
        """Raises an `InputError` for a recipe that no data can be trained with; a search asks before anything runs."""
        self.inputs(recipe)
        if isinstance(recipe, MultiLabelRecipe):
            make_loss(recipe.loss.name, rates=np.full(2, 0.1), samples=10, options=recipe.loss.options)

    @abstractmethod
    def build(self, recipe: Any, training: Training) -> nn.Module:
        """The network with its initial weights."""

    @abstractmethod
    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> nn.Module:
        """A network of the shape that `shape` gave, its weights yet to be loaded."""

    def shape(self, network: Any) -> dict[str, Any]:
        """The network's shape for config.json, from which `restore` makes it again."""
        return dict(network.config.model_dump(mode="json"))

    def learning_rate(self, recipe: Any, network: Any, parameter: str) -> float:
        """Of the parameter of this name."""
        return float(recipe.optimiser.lr)

    def layers(self, network: Any) -> list[list[str]]:
        """Names in the state dict, cut into layers from the input to the output; empty: layers cannot be copied."""
        return []

    def extra(self, recipe: Any, training: Training) -> Extra | None:
        """Synthetic training samples, where the recipe asks for them."""
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
        """What the network says of n samples: decoded values (n, width) float32, by output.

        Args:
            evidence: by input.
            batch_size: samples of a forward pass; None: `chunk`.
            precision: of autocast on a GPU, for kinds with `half`.
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
                    raw = network(**arguments)
                for output, value in zip(outputs, as_outputs(raw, outputs).values(), strict=True):
                    parts[output.name].append(output.decode(value.float()).cpu())
        network.train(was_training)
        return {name: torch.cat(own).numpy() for name, own in parts.items()}

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        """Raises an `InputError` for a shape that no network has, before one is built."""

    def title(self) -> str:
        """Of the model card."""
        return f"Emotion model: {self.name}"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        """Lines of the model card on what the network is; inputs and outputs describe themselves.

        Args:
            model, training: of config.json and training.json.
        """
        return [f"{parameters:,} parameters."]

    def reads(self, inputs: Sequence[Input]) -> str:
        """A sentence for people on what it looks at."""
        used = [own for own in inputs if own.used]
        names = [own.plural for own in used]
        if len(used) == 1:
            return f"{names[0]} alone{'; it never saw an image' if used[0].looks_at == 'none' else ''}"
        return f"{', '.join(names[:-1])} and {names[-1]}; any of them may be missing"
