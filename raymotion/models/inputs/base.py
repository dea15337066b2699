"""Base classes of the inputs of models: each input converts columns of the sample table to tensors for a network.

The labelling job, plain Python and evaluation use `collect`, on items filled by the pipeline's stages; training uses
`prepare`, on a sample table. Both lead to `Evidence`: the data of some samples. Missing inputs are always masked, never
passed as zeros that a network could take for evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from raymotion.errors import InputError
from raymotion.models.recipe import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe


class Evidence(Protocol):
    """The data of n samples for one input."""

    @property
    def present(self) -> np.ndarray:
        """Bool (n,): which samples have the input, at least in part."""

    def take(self, rows: np.ndarray) -> Evidence:
        """Selects some of the samples, by position."""

    def tensors(self, device: str) -> dict[str, Any]:
        """Returns the keyword arguments for the network."""

    def parts(self) -> Mapping[str, np.ndarray]:
        """Returns bool (n,) by part of the input, for counts. Parts are a person's streams, or the input itself."""


@dataclass
class Arrays:
    """`Evidence` as arrays (n, ...), passed to the network by name. Sufficient for most inputs."""

    name: str
    present: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def shown(self) -> bool:
        """See `Draft`."""
        return bool(self.values)

    @property
    def weights(self) -> np.ndarray | None:
        """See `Draft`."""
        return None

    def take(self, rows: np.ndarray) -> Arrays:
        """See `Evidence`."""
        return Arrays(self.name, self.present[rows], {name: own[rows] for name, own in self.values.items()})

    def tensors(self, device: str) -> dict[str, Any]:
        """See `Evidence`."""
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(own)).to(device) for name, own in self.values.items()}

    def parts(self) -> Mapping[str, np.ndarray]:
        """See `Evidence`."""
        return {self.name: self.present}


class Draft(Protocol):
    """One input of a training batch: drawn anew in every epoch, and possibly withheld from some samples."""

    @property
    def present(self) -> np.ndarray:
        """Bool (n,): which samples have the input."""

    @property
    def shown(self) -> bool:
        """Whether the network gets the input in this batch."""

    @property
    def weights(self) -> np.ndarray | None:
        """Sample weights, float32 (n,), 0 to exclude a sample; None for equal weights."""

    def hide(self, rows: np.ndarray) -> None:
        """Withholds the input from the samples where `rows` (n,) is True."""

    def tensors(self, device: str) -> dict[str, Any]:
        """See `Evidence.tensors`."""


class Prepared(ABC):
    """One input of a training set, prepared once from a sample table for every recipe that reads it.

    Attributes:
        present: bool (n,).
        counts: numbers of rows or captions that preparation left out or changed, for the record.
        streamed: whether it is read batch by batch, by threads or by Ray Data (`train.pictures.Reader`).
    """

    present: np.ndarray
    counts: Mapping[str, int] = {}
    streamed: ClassVar[bool] = False

    @abstractmethod
    def take(self, rows: np.ndarray) -> Prepared:
        """Selects some of the rows."""

    @abstractmethod
    def contents(self) -> list[Any]:
        """Returns the JSON values that determine what a model learns from it, for the fingerprint of the data."""

    @abstractmethod
    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns JSON values and arrays for `Input.load`; writes other files to `folder`."""


class Bound(ABC):
    """A prepared input as one recipe reads it. Most inputs have a single class for this and `Prepared`.

    Attributes:
        present: bool (n,).
        streamed: see `Prepared`.
    """

    present: np.ndarray
    streamed: ClassVar[bool] = False

    @abstractmethod
    def described(self, training: np.ndarray) -> Input:
        """Returns the input as a checkpoint stores it, for a model trained on the rows `training`."""

    @abstractmethod
    def evidence(self, rows: np.ndarray, read: Any = None) -> Evidence:
        """Returns the data of some rows, without augmentation or dropout, for validation and test.

        Args:
            read: for a streamed input, what was read for these rows (`train.pictures.Pictures`).
        """

    @abstractmethod
    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        """Returns the data of some rows for a training batch."""

    def texts(self, texts: Sequence[str], device: str) -> dict[str, Any] | None:
        """Returns the network's arguments for n texts in place of samples; None: the input reads no texts."""
        return None

    def begin_epoch(self, recipe: TrainRecipe, epoch: int, training: np.ndarray) -> None:
        """Prepares an epoch, e.g. draws values once for all training rows; called before its drafts."""

    def arrange(self, rows: np.ndarray, size: int, recipe: TrainRecipe, epoch: int, rank: int) -> np.ndarray:
        """Returns the rows of an epoch in the order in which batches of `size` are cut from them."""
        return rows


class Input(ABC):
    """Base of all inputs.

    Attributes:
        name: its key in evidence and in batches.
        used: False if the network was trained without it; it is then masked.
        data_settings: class that `data` of a recipe must inherit, with the settings for reading the input.
        columns: columns that it reads from the sample table, besides sample_id, image_uri and captions.
        looks_at: pixels that its stages need: none, some (decoding at a reduced size suffices), or all (the full
            picture, e.g. because boxes refer to its pixels).
        min_side: for `some`, the shorter side in pixels that the model resizes pictures to.
        noun: singular name for messages, of what a sample needs.
        plural: plural name for messages.
    """

    name: ClassVar[str]
    used: bool = True
    data_settings: ClassVar[type[DataSettings]] = DataSettings
    columns: tuple[str, ...] = ()
    looks_at: ClassVar[str] = "none"
    min_side: int | None = None
    noun: str = "something"
    plural: str = "samples"

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of its parts, as in `Evidence.parts`."""
        return (self.name,)

    def files(self) -> dict[str, bytes]:
        """Returns name -> contents of additional files for the checkpoint."""
        return {}

    def open(self, folder: str, *, shown: str) -> None:
        """Reads its files in `folder`, a checkpoint or a copy of one.

        Args:
            shown: name of the folder in messages.

        Raises:
            InputError: a file is damaged.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns its entry in config.json, including `type`."""

    @classmethod
    @abstractmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> Input:
        """Reads the form of `to_dict`.

        Args:
            where: the file, for messages.
            folder: the checkpoint, with other files of the input.

        Raises:
            InputError: a value is invalid.
        """

    @abstractmethod
    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> Prepared:
        """Prepares the rows of a labelled sample table with splits for training.

        Raises:
            InputError: required data are missing, or belong to other samples.
        """

    def preparation(self) -> list[Any]:
        """Returns the settings that `prepare` uses, as JSON values; a search prepares once and cannot vary them."""
        return []

    def bind(self, prepared: Prepared, training: np.ndarray) -> Bound:
        """Selects what one recipe reads from data prepared for several recipes; by default everything.

        Args:
            training: rows of the training split.

        Raises:
            InputError: the recipe needs data that were not prepared.
        """
        if not isinstance(prepared, Bound):
            raise TypeError(f"{type(self).__name__} needs `bind`: its prepared data are not {Bound.__name__}")
        return prepared

    @abstractmethod
    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Prepared:
        """Restores the data written by `Prepared.save`."""

    @abstractmethod
    def collect(self, items: Sequence[Any]) -> Evidence:
        """Returns the evidence that earlier stages have stored on `pipeline.stages.Item`s."""

    def statistics(self, evidence: Any) -> Mapping[str, np.ndarray]:
        """Returns numbers (n,) of n samples that a user understands, by names of `learning.domain.STATISTICS`.

        NaN where a sample has none.
        """
        return {}

    def note(self, items: Sequence[Any]) -> None:
        """Stores values about this input on predicted items, for the output columns."""

    def release(self, item: Any) -> None:
        """Frees data that an item no longer needs after prediction."""

    def describe(self) -> list[str]:
        """Returns lines for the model card."""
        return []

    def notices(self) -> list[str]:
        """Returns warnings for users of the predictions, e.g. about untrained weights."""
        return []


def require_inputs(
    inputs: Sequence[Input], needed: Sequence[type[Input]], optional: Sequence[type[Input]] = ()
) -> None:
    """Raises an `InputError` unless a checkpoint's inputs are those of a kind of model, in order."""
    given, n = [type(own) for own in inputs], len(needed)
    if given[:n] != [*needed] or any(own not in optional for own in given[n:]):
        read = " and ".join(own.name for own in (*needed, *optional))
        raise InputError(f"the model reads {read}, and the inputs are {', '.join(own.name for own in inputs)}")


def require_data_settings(inputs: Sequence[Input], recipe: TrainRecipe) -> None:
    """Raises an `InputError` unless the recipe has the settings that its inputs are read by."""
    for own in inputs:
        wanted = own.data_settings
        if not isinstance(recipe.data, wanted):
            raise InputError(
                f"the recipe of {recipe.kind} lacks the settings of its input {own.name}",
                remedy=f"In {type(recipe).__name__}, declare `data: {wanted.__name__} = {wanted.__name__}()` "
                f"({wanted.__module__}), or a class that inherits it.",
            )


def batches(n: int, size: int) -> Iterator[np.ndarray]:
    """Yields the positions of n samples, `size` at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))
