"""Base classes of the outputs of models: an output defines columns, targets, loss, metrics, and decoding.

Its vocabulary and scale are stored in the checkpoint, and in the Parquet metadata of data sets with its values.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import ValidationError

from raymotion.data.samples import scale_of, vocabulary_of
from raymotion.errors import InputError
from raymotion.models.recipe import LossSettings
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

# What an output says of a sample. labels: probabilities of labels that apply independently. one_label: probabilities
# that sum to 1, of labels of which exactly one applies. numbers: values on a scale. vectors: unit vectors of two sides,
# such as a picture and its captions, in one space. other: anything else.
Gives = Literal["labels", "one_label", "numbers", "vectors", "other"]


@dataclass
class Targets:
    """Targets of n samples for one output.

    Attributes:
        arrays: by name, each (n, ...). known: bool (n,), which samples have a target.
    """

    arrays: dict[str, np.ndarray]
    known: np.ndarray

    def take(self, rows: np.ndarray) -> Targets:
        """Selects some of the samples."""
        return Targets({name: own[rows] for name, own in self.arrays.items()}, self.known[rows])


@dataclass(frozen=True)
class DataFacts:
    """Facts about the targets of a sample table.

    Attributes:
        vocabulary: vocabulary of the labels, or None.
        scale: lowest and highest value of valence, arousal and dominance; None if not stated.
        labelled: whether any row has labels.
        where: the table, for messages.
    """

    vocabulary: Vocabulary | None = None
    scale: tuple[float, float] | None = None
    labelled: bool = False
    where: str = ""

    @classmethod
    def of(cls, table: pa.Table, where: str) -> DataFacts:
        """Reads the facts of a sample table."""
        labelled = table.column("labels").null_count < table.num_rows
        return cls(vocabulary_of(table, where=where), scale_of(table, where=where), labelled, where)

    def to_dict(self) -> dict[str, Any]:
        """Returns the facts as JSON values."""
        return {
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "scale": self.scale,
            "labelled": self.labelled,
            "where": self.where,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DataFacts:
        """Reads the form of `to_dict`."""
        vocabulary = None if value["vocabulary"] is None else Vocabulary.from_dict(value["vocabulary"])
        scale = None if value["scale"] is None else (float(value["scale"][0]), float(value["scale"][1]))
        return cls(vocabulary, scale, value["labelled"], value["where"])


class Criterion(Protocol):
    """The loss of one output."""

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        """Returns the loss, a float32 scalar.

        Args:
            raw: (n, width) from the network.
            targets: from `Output.batch`.
            epoch: number of completed epochs.
            weights: sample weights (n,); None: all 1.
        """


class Output(ABC):
    """Base of all outputs.

    Attributes:
        name: its key in batches, in the checkpoint and in the result of a network.
        kind_of_output: `multilabel`, `dimensions`; the `type` in config.json.
        gives: how its values are chosen from, measured and shown.
        reads_labels: whether its targets, if it has a vocabulary, are the labels of the sample table.
        weight: weight of its loss in the sum.
        metric_names: metrics of `metrics`, by which an epoch or a trial may be selected.
        selects: default metric for the selection of an epoch or a trial.
        lower_is_better: metrics for which lower values are better.
        nullable: whether `columns` may hold null.
    """

    kind_of_output: ClassVar[str]
    gives: ClassVar[Gives] = "other"
    reads_labels: ClassVar[bool] = True
    selects: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    nullable: ClassVar[bool] = False
    name: str
    weight: float = 1.0

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of values per sample."""

    @property
    def raw_width(self) -> int:
        """Number of values per sample that the network returns; by default `width`, as `decode` keeps it."""
        return self.width

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The labels of its values, or None."""
        return None

    @property
    def target_noun(self) -> str:
        """What a sample table needs for it, in messages."""
        return "labels"

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Columns of the sample table that `adjust` reads; none by default."""
        return ()

    def adjust(self, values: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns decoded values (n, width) as users get them, float32; by default unchanged.

        Unlike `decode` it is no part of the network's training: it is applied to predictions of the finished model.

        Args:
            rows: n rows of the sample table, with the columns of `columns_read` where they are known.
        """
        return values

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns its entry in config.json, including `type` and `name`."""

    @classmethod
    @abstractmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Output:
        """Reads the form of `to_dict`.

        Raises:
            InputError: a value is invalid.
        """

    @abstractmethod
    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        """Reads the targets of a sample table.

        Args:
            given: (rows, width), predictions of another model to learn instead of people's annotations.

        Raises:
            InputError: the table has no targets, or a different vocabulary or scale.
        """

    def conversion(self, table: pa.Table, *, where: object = None) -> str | None:
        """Returns a notice if `read` converts the targets of a table to another scale, else None."""
        return None

    def labelled(self, table: pa.Table, *, where: object) -> pa.Table:
        """Returns a sample table whose labels and vocabulary are this output's targets; by default it is unchanged."""
        return table

    @abstractmethod
    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        """Raises an `InputError` unless training and validation have targets."""

    @abstractmethod
    def contents(self, targets: Targets) -> list[Any]:
        """Returns the JSON values that determine what is learned, for the fingerprint of the data."""

    @abstractmethod
    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        """Returns the targets of some rows on the device, by name."""

    def fit(self, targets: Targets, training: np.ndarray) -> None:
        """Learns what `decode` needs to know of the training rows; called once, before anything else of a run."""

    @abstractmethod
    def criterion(self, targets: Targets, training: np.ndarray) -> Criterion:
        """Returns the loss.

        Args:
            training: rows of the training split.

        Raises:
            InputError: the loss is unknown or unsuitable.
        """

    def correlation(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns how its values correlate in the training rows, (width, width); by default not at all."""
        return np.eye(self.width)

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """Converts the network's result to values for users, (n, width) float32."""

    @abstractmethod
    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Computes the metrics of an epoch from decoded values (rows, width) of a split."""

    @abstractmethod
    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns the constant prediction derived from the training rows, e.g. their mean, decoded, (width,)."""

    def first_numbers(self, targets: Targets, training: np.ndarray) -> Tensor | None:
        """Returns the network's numbers that `decode` converts to the baseline, (width,); None: unknown."""
        return None

    def start(self, layer: nn.Linear, targets: Targets, training: np.ndarray) -> None:
        """Sets the bias of a last layer so that a new network predicts the baseline, which it else learns first.

        For `Kind.build`, e.g. `own.start(network.head, training.data.targets_of(own), training.data.splits["train"])`.
        """
        import torch

        numbers = self.first_numbers(targets, training)
        if numbers is not None:
            with torch.no_grad():
                layer.bias.copy_(numbers)

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Prepares a metric for bootstrap intervals.

        Args:
            values: decoded, (rows, width).
            units: (rows,) group of each row (`learning.bootstrap.sampling_units`).

        Returns:
            a function that maps counts (B, groups), how often each group is drawn, to the metric of each draw, (B,).
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
        """Computes all metrics with baselines and intervals, as JSON values: `samples`, `metrics`, and more.

        Args:
            training: rows of the training split, for the baselines.
            groups: group of each row; the intervals resample whole groups.
        """

    def facts(
        self, targets: Targets, splits: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns additional facts for the checkpoint, e.g. training rates, or thresholds fitted on validation."""
        return {}

    def check_facts(self, facts: Mapping[str, Any], *, where: str) -> None:
        """Raises an `InputError` unless `facts`, read from a checkpoint, have the form of `facts`."""

    def spread_notice(self, values: np.ndarray, facts: Mapping[str, Any]) -> str | None:
        """Returns a notice if predictions (n, width) are nearly constant, else None; `facts` are the checkpoint's."""
        return None

    @abstractmethod
    def columns(self, values: np.ndarray) -> dict[str, pa.Array]:
        """Converts decoded values (n, width) to columns of a data set; null where a sample has none (`nullable`)."""

    @abstractmethod
    def values(self, table: pa.Table) -> np.ndarray:
        """Reads values (n, width) float32 from its columns in a table."""

    def metadata(self) -> dict[bytes, bytes]:
        """Returns metadata for the schema of a data set with its columns."""
        return {}

    @abstractmethod
    def named(self, values: np.ndarray) -> dict[str, float]:
        """Returns the decoded values (width,) of one sample by name."""

    def describe(self) -> list[str]:
        """Returns lines for the model card."""
        return []

    def describe_training(self) -> list[str]:
        """Returns further lines for the card of a trained model, e.g. the loss."""
        return []


def array_digest(values: np.ndarray) -> str:
    """Returns the SHA-256 of an array's values and shape; -0 equals 0."""
    plain = np.ascontiguousarray(values + np.zeros((), values.dtype), dtype=values.dtype.newbyteorder("<"))
    return sha256(str(plain.shape).encode() + plain.tobytes()).hexdigest()


def read_loss(value: Mapping[str, Any], *, where: str) -> LossSettings:
    """Reads the loss of an output from config.json.

    Raises:
        InputError: the loss is missing or invalid.
    """
    try:
        return LossSettings.model_validate(value.get("loss"))
    except ValidationError as error:
        raise InputError(
            f"the output {value.get('name')} does not say which loss it was trained with", path=where
        ) from error


def forward(
    network: nn.Module, arguments: Mapping[str, Any], outputs: Sequence[Output], rows: int
) -> dict[str, Tensor]:
    """Runs a network on the tensors of its inputs, and splits its result by output, each (n, raw_width).

    A network returns a mapping by output, or one tensor with the columns of all outputs in order; of each output there
    are `raw_width` columns.

    Args:
        rows: n, the number of samples.

    Raises:
        InputError: the network takes other arguments, or returns something else.
    """
    inner = getattr(network, "module", network)  # inside DDP
    place = f"{type(inner).__module__}:{type(inner).__qualname__}.forward"
    try:
        raw = network(**arguments)
    except TypeError as error:
        try:
            inspect.signature(inner.forward).bind(**arguments)
        except TypeError as wrong:
            raise InputError(
                f"{place}: {wrong}", remedy=f"The arguments that its inputs give are {', '.join(arguments)}."
            ) from error
        raise
    found = _by_output(raw, outputs, place)
    for name, value in found.items():
        if len(value) != rows:
            raise InputError(f"{place} returns {len(value)} rows for {name}, and there are {rows} samples")
    return found


def _by_output(raw: Any, outputs: Sequence[Output], place: str) -> dict[str, Tensor]:
    import torch

    names, widths = [own.name for own in outputs], [own.raw_width for own in outputs]
    wanted = f"a tensor (n, {sum(widths)}), or a mapping of {', '.join(names)} to tensors"
    if isinstance(raw, torch.Tensor):
        if raw.ndim != 2 or raw.shape[1] != sum(widths):
            told = " + ".join(f"{width} of {name}" for name, width in zip(names, widths, strict=True))
            raise InputError(f"{place} returns a tensor of shape {tuple(raw.shape)}, not (n, {sum(widths)}): {told}")
        return dict(zip(names, (raw,) if len(outputs) == 1 else raw.split(widths, dim=1), strict=True))
    if not isinstance(raw, Mapping):
        raise InputError(f"{place} returns a {type(raw).__name__}", remedy=f"Return {wanted}.")
    if set(raw) != set(names):
        raise InputError(f"{place} returns a mapping of {', '.join(map(str, raw))}", remedy=f"Return {wanted}.")
    for own in outputs:
        value = raw[own.name]
        if not isinstance(value, torch.Tensor) or value.ndim != 2 or value.shape[1] != own.raw_width:
            found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{place} returns for {own.name} a value of {found}, not a tensor (n, {own.raw_width})")
    return {name: raw[name] for name in names}


def choose_metric(selected: str | None, outputs: Sequence[Output]) -> tuple[Output, str]:
    """Returns the output and the metric named by `METRIC` or `OUTPUT.METRIC`; None gives the first output's default.

    Raises:
        InputError: the output or the metric is unknown.
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
