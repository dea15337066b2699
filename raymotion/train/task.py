"""One training run: a recipe, its data and its kind of model. The loop uses only this and never looks at the kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import short_title
from raymotion.models.inputs.base import Bound, Input
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.models.kind import Extra, place_of
from raymotion.models.outputs.base import Output, choose_metric
from raymotion.models.outputs.table import read_outputs
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.train.pictures import Portion, read_here
from raymotion.train.recipe import kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# Yields the portions in order with their pictures, read by threads of this process or by Ray Data.
Source = Callable[[Sequence[Portion], Reader], Iterator[tuple[Portion, Pictures]]]
LAST = "last"


@dataclass
class Batch:
    """A batch of samples on the device.

    Attributes:
        inputs: the network's arguments, by name.
        targets: tensors by output name, then by target name.
        rows: number of samples.
        weights: (n,) sample weights; None: all 1.
        epoch: counted from 0, for losses that change during training.
    """

    inputs: dict[str, Any]
    targets: dict[str, dict[str, Tensor]]
    rows: int
    weights: Tensor | None = None
    epoch: int = 0


class Task:
    """Everything that the loop needs to train one recipe on its data; see `Kind`.

    Args:
        source: reads the pictures of a streamed input; None: `threads` threads of this process decode them.

    Raises:
        InputError: the recipe names an unknown loss or metric, or an input that the data lack.
    """

    def __init__(
        self, recipe: TrainRecipe, data: TrainingSet, *, source: Source | None = None, threads: int = 1
    ) -> None:
        self.recipe, self.data, self.threads = recipe, data, threads
        self.kind = kind_of(recipe)
        training = data.splits["train"]
        self.outputs: tuple[Output, ...] = tuple(self.kind.checked_outputs(recipe, data.facts))
        self.inputs: dict[str, Bound] = {}
        for own in self.kind.checked_inputs(recipe):
            if own.name not in data.inputs:
                raise InputError(f"the data were prepared without {own.name}", path=data.name)
            self.inputs[own.name] = own.bind(data.inputs[own.name], training)
        for output in self.outputs:
            output.fit(data.targets_of(output), training)
        self.criteria = {own.name: own.criterion(data.targets_of(own), training) for own in self.outputs}
        chosen = None if recipe.select_by == LAST else recipe.select_by
        self.selecting, self.metric = choose_metric(chosen, self.outputs)
        self.source = source or self._read_here

    @property
    def streamed(self) -> Any:
        """The input that is read batch by batch, if any row has a picture; None: everything is in memory."""
        return next((own for own in self.inputs.values() if own.streamed and own.present.any()), None)

    @cached_property
    def extra(self) -> Extra | None:
        """Synthetic training samples, created on first use because prediction does not need them."""
        return self.kind.extra(self.recipe, self)

    @property
    def samples_per_epoch(self) -> int:
        """Number of training samples between two validations."""
        own = len(self.data.splits["train"]) + (self.extra.count if self.extra else 0)
        asked = getattr(self.recipe.data, "epoch_samples", None)
        return own if asked is None else min(own, asked)

    def build(self) -> nn.Module:
        """Builds the network with its initial weights."""
        return self._module(self.kind.build(self.recipe, self), "build")

    def restore(self, shape: Mapping[str, Any]) -> nn.Module:
        """Builds a network of this shape, without loading its weights."""
        return self.kind.restore(shape, self.described(), self.outputs)

    def _module(self, network: Any, method: str) -> nn.Module:
        import torch

        if not isinstance(network, torch.nn.Module):
            raise InputError(
                f"{place_of(type(self.kind))}.{method} returns a {type(network).__name__}",
                remedy="Return a torch.nn.Module.",
            )
        return network

    def shape_of(self, network: nn.Module) -> dict[str, Any]:
        """Returns the network's shape as config.json will hold it.

        Raises:
            InputError: JSON cannot hold it.
        """
        shape = self.kind.shape(network)
        try:
            if isinstance(shape, dict):
                return dict(json.loads(json.dumps(shape, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{place_of(type(self.kind))}.shape: {error}", remedy="Return JSON values, that restore needs."
            ) from error
        raise InputError(f"{place_of(type(self.kind))}.shape returns {shape!r}", remedy="Return a dict.")

    def rehearse(self, network: nn.Module, shape: Mapping[str, Any]) -> None:
        """Restores outputs and network from their description, so that a mistake costs no training.

        Raises:
            InputError: an output is not registered, or the restored network has other weights.
        """
        kind = place_of(type(self.kind))
        outputs = read_outputs(json.loads(json.dumps([own.to_dict() for own in self.outputs])), where="config.json")
        for own, read in zip(self.outputs, outputs, strict=True):
            if (read.name, read.width) != (own.name, own.width):
                raise InputError(
                    f"{place_of(type(own))}.from_dict returns the output {read.name} of width {read.width}, not "
                    f"{own.name} of width {own.width}"
                )
        import torch

        with torch.random.fork_rng(devices=[]):
            restored = self._module(self.kind.restore(shape, self.described(), outputs), "restore")
        self.kind.check(shape, where="config.json")
        told = self.kind.describe(shape, {"settings": self.recipe.model_dump(mode="json")}, self.described(), 0)
        if not isinstance(told, list) or not told or not all(isinstance(line, str) for line in told):
            raise InputError(f"{kind}.describe returns {told!r}", remedy="Return a list of texts, one or more.")
        expected, found = (
            {name: tuple(tensor.shape) for name, tensor in each.state_dict().items()} for each in (network, restored)
        )
        for name in {**expected, **found}:
            if expected.get(name) != found.get(name):
                there = [f"has {own.get(name)}" if name in own else "lacks it" for own in (expected, found)]
                raise InputError(
                    f"the kind {kind} restores another network than it builds. Weight {name}: the built one {there[0]},"
                    f" the restored one {there[1]}",
                    remedy="Let shape return all that restore needs to build the same layers.",
                )

    def described(self) -> list[Input]:
        """Returns the inputs as a checkpoint stores them."""
        return [own.described(self.data.splits["train"]) for own in self.inputs.values()]

    def learning_rate(self, network: nn.Module, parameter: str) -> float:
        """Returns the learning rate of the named parameter."""
        rate = self.kind.learning_rate(self.recipe, network, parameter)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise InputError(
                f"{place_of(type(self.kind))}.learning_rate returns {rate!r} for {parameter}",
                remedy="Return a finite number of at least 0.",
            )
        return float(rate)

    def loss(self, raw: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Returns the weighted sum of the outputs' losses."""
        total: Any = None
        for own in self.outputs:
            part = self.criteria[own.name](
                raw[own.name], batch.targets[own.name], epoch=batch.epoch, weights=batch.weights
            )
            self._require_learnable(own, part, raw[own.name])
            part = part if own.weight == 1.0 else own.weight * part
            total = part if total is None else total + part
        loss: Tensor = total
        return loss

    def _require_learnable(self, output: Output, loss: Any, raw: Tensor) -> None:
        """Raises an `InputError` for a loss of an output that training could not follow, or would silently skip."""
        import torch

        what = f"the loss of the output {output.name}"
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise InputError(f"{what} is {found}, not a number with a gradient", remedy="Return a scalar tensor.")
        if torch.is_grad_enabled() and raw.requires_grad and not loss.requires_grad:
            raise InputError(
                f"{what} has no gradient: nothing of it would be learned",
                remedy="Compute it from the network's numbers, without detach, item or numpy.",
            )

    def column(self, output: Output, metric: str) -> str:
        """Returns the history's name for a validation metric."""
        return column_of(self.outputs, output, metric)

    @property
    def selected_column(self) -> str:
        """The history's name for the metric that selects the best epoch."""
        return self.column(self.selecting, self.metric)

    def judged(self, line: Mapping[str, Any]) -> str:
        """Formats the selecting metric of an epoch for display."""
        return f"{short_title(self.metric)} {float(line[self.selected_column]):.4f}"

    def measure(self, predicted: Mapping[str, np.ndarray]) -> tuple[float, dict[str, float]]:
        """Returns an epoch's score (lower is better) and its metrics, from decoded values of the validation split."""
        figures: dict[str, float] = {}
        for own in self.outputs:
            found = own.metrics(self.data.targets_of(own), self.data.splits["val"], predicted[own.name])
            figures |= {self.column(own, name): value for name, value in found.items()}
        return self.score(figures[self.selected_column]), figures

    def score(self, value: float) -> float:
        """Returns the selecting metric as a score, of which lower is better."""
        return value if self.metric in self.selecting.lower_is_better else -value

    def reader(self) -> Reader:
        """Returns the reader of the streamed input."""
        return self.streamed.reader(self.recipe) if self.streamed is not None else _no_reader()

    def read(self, reader: Reader, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Pictures]]:
        """Reads rows of the streamed input without augmentation, `size` at a time."""
        portions = [Portion("statistics", 0, rows[start : start + size]) for start in range(0, len(rows), size)]
        for portion, pictures in self._read_here(portions, reader):
            yield portion.rows, pictures

    def _read_here(self, portions: Sequence[Portion], reader: Reader) -> Iterator[tuple[Portion, Pictures]]:
        return read_here(portions, self.streamed.addresses, reader, threads=self.threads)


def _no_reader() -> Reader:
    raise AssertionError("no input of this run is streamed")


def column_of(outputs: Sequence[Output], output: Output, metric: str) -> str:
    """Returns the history's name for a validation metric of one of the outputs."""
    return f"val_{metric}" if output is outputs[0] else f"val_{output.name}_{metric}"


def baselines_of(recipe: TrainRecipe, data: TrainingSet) -> dict[str, float]:
    """Returns the validation metrics of the constant prediction, by the history's name with `_baseline`."""
    outputs, rows = kind_of(recipe).checked_outputs(recipe, data.facts), data.splits["val"]
    found: dict[str, float] = {}
    for own in outputs:
        targets = data.targets_of(own)
        answer = np.broadcast_to(own.baseline(targets, data.splits["train"]), (len(rows), own.width))
        for name, value in own.metrics(targets, rows, answer).items():
            found[f"{column_of(outputs, own, name)}_baseline"] = float(value)
    return found
