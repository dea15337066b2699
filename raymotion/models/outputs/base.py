"""What a model says: an output knows its columns, its targets, its losses and metrics, and what tensors mean.

Vocabulary and scale belong to an output, and travel in the checkpoint and in the Parquet metadata of whatever holds its
values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import ValidationError

from raymotion.data.samples import scale_of, vocabulary_of
from raymotion.errors import InputError
from raymotion.models.recipe import LossSettings
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


@dataclass
class Targets:
    """What is right of n samples, for one output.

    Attributes:
        arrays: by name, each (n, ...). known: bool (n,), which samples have a target.
    """

    arrays: dict[str, np.ndarray]
    known: np.ndarray

    def take(self, rows: np.ndarray) -> Targets:
        """Of some of the samples."""
        return Targets({name: own[rows] for name, own in self.arrays.items()}, self.known[rows])


@dataclass(frozen=True)
class DataFacts:
    """What a sample table says of its targets.

    Attributes:
        vocabulary: of its labels; None: it has none.
        scale: lowest and highest value of valence, arousal and dominance; None: not stated.
        labelled: whether any row has labels.
        where: the table, for messages.
    """

    vocabulary: Vocabulary | None = None
    scale: tuple[float, float] | None = None
    labelled: bool = False
    where: str = ""

    @classmethod
    def of(cls, table: pa.Table, where: str) -> DataFacts:
        """Of a sample table."""
        labelled = table.column("labels").null_count < table.num_rows
        return cls(vocabulary_of(table, where=where), scale_of(table, where=where), labelled, where)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "scale": self.scale,
            "labelled": self.labelled,
            "where": self.where,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DataFacts:
        """What `to_dict` gave."""
        vocabulary = None if value["vocabulary"] is None else Vocabulary.from_dict(value["vocabulary"])
        scale = None if value["scale"] is None else (float(value["scale"][0]), float(value["scale"][1]))
        return cls(vocabulary, scale, value["labelled"], value["where"])


class Criterion(Protocol):
    """The loss of one output, with what it needs of the training split."""

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        """A float32 scalar.

        Args:
            raw: what the network gave, (n, width).
            targets: of `Output.batch`.
            epoch: how many epochs of training are over.
            weights: (n,) of the samples; None: all 1.
        """


class Output(ABC):
    """One thing that a model says of a sample.

    Attributes:
        name: its key in batches, in the checkpoint and among a network's results.
        kind_of_output: `multilabel`, `dimensions`; the `type` in config.json.
        weight: of its loss in the sum.
        metric_names: of `metrics`: what an epoch or a trial may be chosen by.
        selects: the metric by which an epoch or a trial is chosen, unless the recipe says otherwise.
        lower_is_better: of its metrics, those of which less is better.
    """

    kind_of_output: ClassVar[str]
    selects: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    name: str
    weight: float = 1.0

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers for each sample."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The labels that its numbers are of, where they are of labels."""
        return None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """As config.json keeps it, `type` and `name` among the values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Output:
        """What `to_dict` gave.

        Raises:
            InputError: a value that it cannot have.
        """

    @abstractmethod
    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        """Targets of the rows of a sample table.

        Args:
            given: (rows, width): what another model said of the rows, to learn in place of what people did.

        Raises:
            InputError: the table has none at all, or of another vocabulary or scale.
        """

    @abstractmethod
    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        """Raises an `InputError` unless training and validation have something to learn and to choose by."""

    @abstractmethod
    def contents(self, targets: Targets) -> list[Any]:
        """What decides what is learned, as JSON values, for the fingerprint of the data."""

    @abstractmethod
    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        """Targets of some rows, by name, on the device."""

    @abstractmethod
    def criterion(self, targets: Targets, training: np.ndarray) -> Criterion:
        """Its loss.

        Args:
            training: rows of the training split.

        Raises:
            InputError: no such loss, or one that does not fit.
        """

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """(n, width) float32, as a user reads them, of what the network gave."""

    @abstractmethod
    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """The figures of an epoch, of decoded values (rows, width) of a split."""

    @abstractmethod
    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """(width,) decoded: what is said of every sample by one who knows the training rows and never looks at any."""

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """One of `metrics` of some rows, by how often each is drawn: what a bootstrap interval is made of.

        Args:
            values: decoded, (rows, width).
            units: (rows,) which group each row belongs to (`learning.bootstrap.sampling_units`).

        Returns:
            a function from counts (B, groups), how often each group is drawn, to the metric of each draw, (B,).
        """

        def measure(counts: np.ndarray) -> np.ndarray:
            drawn = [np.repeat(np.arange(len(rows)), own) for own in counts[:, units].astype(np.int64)]
            return np.array([self.metrics(targets, rows[some], values[some])[metric] for some in drawn])

        return measure

    @abstractmethod
    def evaluate(
        self,
        targets: Targets,
        rows: np.ndarray,
        values: np.ndarray,
        *,
        training: np.ndarray,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Every metric beside its baselines, with intervals, as JSON values: `samples`, `metrics`, and more.

        Args:
            training: rows of the training split, from which baselines come.
            groups: of the rows: what the intervals draw as a whole.
        """

    def facts(
        self, targets: Targets, splits: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """What a checkpoint keeps besides: rates of the training split, thresholds fitted on validation."""
        return {}

    def check_facts(self, facts: Mapping[str, Any], *, where: str) -> None:
        """Raises an `InputError` unless `facts`, read from a checkpoint, are what `facts` gives."""

    @abstractmethod
    def columns(self, values: np.ndarray) -> dict[str, pa.Array]:
        """Decoded values (n, width) as the columns of a data set."""

    @abstractmethod
    def values(self, table: pa.Table) -> np.ndarray:
        """(n, width) float32 of a table that holds its columns."""

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of a data set that holds its columns."""
        return {}

    @abstractmethod
    def named(self, values: np.ndarray) -> dict[str, float]:
        """Decoded values (width,) of one sample, for people."""

    def describe(self) -> list[str]:
        """Lines for the model card."""
        return []

    def is_better(self, metric: str, value: float, other: float) -> bool:
        """Whether `value` of the metric is better than `other`."""
        return value < other if metric in self.lower_is_better else value > other


def array_digest(values: np.ndarray) -> str:
    """SHA-256 of an array's values and shape; -0 counts as 0."""
    plain = np.ascontiguousarray(values + np.zeros((), values.dtype), dtype=values.dtype.newbyteorder("<"))
    return sha256(str(plain.shape).encode() + plain.tobytes()).hexdigest()


def read_loss(value: Mapping[str, Any], *, where: str) -> LossSettings:
    """The loss of an output that a checkpoint describes.

    Raises:
        InputError: it names none.
    """
    try:
        return LossSettings.model_validate(value.get("loss"))
    except ValidationError as error:
        raise InputError(
            f"the output {value.get('name')} does not say which loss it was trained with", path=where
        ) from error


def as_outputs(raw: Any, outputs: Sequence[Output]) -> dict[str, Tensor]:
    """What a network gave, by output.

    A network answers with a mapping by output, or with one tensor (n, sum of widths) whose columns are the outputs' in
    their order.

    Raises:
        ValueError: neither; it is the network's fault, not a user's.
    """
    if isinstance(raw, Mapping):
        missing = [own.name for own in outputs if own.name not in raw]
        if missing:
            raise ValueError(f"the network gave no {', '.join(missing)}, but {', '.join(map(str, raw))}")
        return {own.name: raw[own.name] for own in outputs}
    widths = [own.width for own in outputs]
    if raw.ndim != 2 or raw.shape[1] != sum(widths):
        raise ValueError(f"the network gave a tensor of shape {tuple(raw.shape)} for outputs of widths {widths}")
    if len(outputs) == 1:
        return {outputs[0].name: raw}
    return {own.name: part for own, part in zip(outputs, raw.split(widths, dim=1), strict=True)}


def choose_metric(selected: str | None, outputs: Sequence[Output]) -> tuple[Output, str]:
    """The output and its metric that `METRIC` or `OUTPUT.METRIC` means; None: the first output's own.

    Raises:
        InputError: there is no such output or metric, with those that there are.
    """
    first = outputs[0]
    if selected is None:
        return first, first.selects
    name, dot, metric = selected.rpartition(".")
    found = next((own for own in outputs if own.name == name), None) if dot else first
    if found is not None and metric in found.metric_names:
        return found, metric
    known = [
        *first.metric_names,
        *(f"{own.name}.{metric}" for own in outputs if own is not first for metric in own.metric_names),
    ]
    raise InputError(f"setting select_by = {selected!r}: there is no such metric", remedy=f"Choose {', '.join(known)}.")
