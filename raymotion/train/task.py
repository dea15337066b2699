"""One training run: a recipe, its data, and the kind of model between them. The loop asks it, and never which kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import short_title
from raymotion.models.inputs.base import Input, Prepared
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.models.kind import Extra
from raymotion.models.outputs.base import Output, choose_metric
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.train.pictures import Portion, read_here
from raymotion.train.recipe import kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# Portions in order -> portions with their pictures: threads of this process, or Ray Data.
Source = Callable[[Sequence[Portion], Reader], Iterator[tuple[Portion, Pictures]]]
LAST = "last"


@dataclass
class Batch:
    """Some samples on the device.

    Attributes:
        inputs: what the network is called with, by name.
        targets: by output, and within it by name.
        rows: how many samples.
        weights: (n,) of the samples; None: all 1.
        epoch: counted from 0, for losses that change on the way.
    """

    inputs: dict[str, Any]
    targets: dict[str, dict[str, Tensor]]
    rows: int
    weights: Tensor | None = None
    epoch: int = 0


class Task:
    """What a run trains: see `Kind`.

    Args:
        source: where the pictures of a streamed input come from; None: decoded by `threads` threads of this process.

    Raises:
        InputError: the recipe asks for a loss, a metric or an input that there is not.
    """

    def __init__(
        self, recipe: TrainRecipe, data: TrainingSet, *, source: Source | None = None, threads: int = 1
    ) -> None:
        self.recipe, self.data, self.threads = recipe, data, threads
        self.kind = kind_of(recipe)
        training = data.splits["train"]
        self.outputs: tuple[Output, ...] = tuple(self.kind.outputs(recipe, data.facts))
        self.inputs: dict[str, Prepared] = {}
        for own in self.kind.inputs(recipe):
            if own.name not in data.inputs:
                raise InputError(f"the data were prepared without {own.name}", path=data.name)
            self.inputs[own.name] = own.bind(data.inputs[own.name], training)
        self.criteria = {own.name: own.criterion(data.targets_of(own), training) for own in self.outputs}
        chosen = None if recipe.select_by == LAST else recipe.select_by
        self.selecting, self.metric = choose_metric(chosen, self.outputs)
        self.source = source or self._read_here

    @property
    def streamed(self) -> Any:
        """The input that is read batch by batch, where any row has a picture; None: everything is in memory."""
        return next((own for own in self.inputs.values() if own.streamed and own.present.any()), None)

    @cached_property
    def extra(self) -> Extra | None:
        """Synthetic training samples; made when training asks for them: a model that only predicts does without."""
        return self.kind.extra(self.recipe, self)

    @property
    def samples_per_epoch(self) -> int:
        """Samples between two validations."""
        own = len(self.data.splits["train"]) + (self.extra.count if self.extra else 0)
        asked = getattr(self.recipe.data, "epoch_samples", None)
        return own if asked is None else min(own, asked)

    def build(self) -> nn.Module:
        """The network with its initial weights."""
        return self.kind.build(self.recipe, self)

    def restore(self, shape: Mapping[str, Any]) -> nn.Module:
        """A network of this shape, its weights yet to be loaded."""
        return self.kind.restore(shape, self.described(), self.outputs)

    def described(self) -> list[Input]:
        """The inputs as a checkpoint keeps them."""
        return [own.described(self.data.splits["train"]) for own in self.inputs.values()]

    def learning_rate(self, network: nn.Module, parameter: str) -> float:
        """Of the parameter of this name."""
        return self.kind.learning_rate(self.recipe, network, parameter)

    def loss(self, raw: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The sum of the outputs' losses, each with its weight."""
        total: Any = None
        for own in self.outputs:
            part = self.criteria[own.name](
                raw[own.name], batch.targets[own.name], epoch=batch.epoch, weights=batch.weights
            )
            part = part if own.weight == 1.0 else own.weight * part
            total = part if total is None else total + part
        loss: Tensor = total
        return loss

    def column(self, output: Output, metric: str) -> str:
        """What the history calls a metric on validation."""
        return f"val_{metric}" if output is self.outputs[0] else f"val_{output.name}_{metric}"

    @property
    def selected_column(self) -> str:
        """What the history calls the metric that epochs are chosen by."""
        return self.column(self.selecting, self.metric)

    def judged(self, line: Mapping[str, Any]) -> str:
        """The selecting metric of an epoch, for people."""
        return f"{short_title(self.metric)} {float(line[self.selected_column]):.4f}"

    def measure(self, predicted: Mapping[str, np.ndarray]) -> tuple[float, dict[str, float]]:
        """What an epoch is worth, lower is better, and its figures, of decoded values of the validation split."""
        figures: dict[str, float] = {}
        for own in self.outputs:
            found = own.metrics(self.data.targets_of(own), self.data.splits["val"], predicted[own.name])
            figures |= {self.column(own, name): value for name, value in found.items()}
        value = figures[self.selected_column]
        return value if self.metric in self.selecting.lower_is_better else -value, figures

    def reader(self) -> Reader:
        """What reads the streamed input."""
        return self.streamed.reader(self.recipe) if self.streamed is not None else _no_reader()

    def read(self, reader: Reader, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Pictures]]:
        """Some rows of the streamed input, `size` at a time and unchanged, as a reader reads them."""
        portions = [Portion("statistics", 0, rows[start : start + size]) for start in range(0, len(rows), size)]
        for portion, pictures in self._read_here(portions, reader):
            yield portion.rows, pictures

    def _read_here(self, portions: Sequence[Portion], reader: Reader) -> Iterator[tuple[Portion, Pictures]]:
        return read_here(portions, self.streamed.addresses, reader, threads=self.threads)


def _no_reader() -> Reader:
    raise AssertionError("no input of this run is streamed")
