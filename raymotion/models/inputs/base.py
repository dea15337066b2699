"""What a model reads: an input knows which columns it is made from, and how rows become what a network takes.

The same input serves the labelling job, plain Python and evaluation (`collect`, from items that the pipeline's stages
have filled), and training (`prepare`, from a sample table). Both give `Evidence`: what some samples hold of the input.
A missing input is masked, never a row of zeros that a network could take for evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from raymotion.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe


class Evidence(Protocol):
    """What n samples hold of one input."""

    @property
    def present(self) -> np.ndarray:
        """Bool (n,): which of them hold anything of it."""

    def take(self, rows: np.ndarray) -> Evidence:
        """Of some of the samples, by position."""

    def tensors(self, device: str) -> dict[str, Any]:
        """What the network is called with, by the names of its arguments."""

    def parts(self) -> Mapping[str, np.ndarray]:
        """Bool (n,) of each part of the input by name, for counts: of a person the streams; mostly the input itself."""


@dataclass
class Arrays:
    """`Evidence` that is arrays (n, ...), which the network takes by their names. Most inputs need no more."""

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
    """A training batch's view of one input: drawn anew in every epoch, and perhaps withheld from some samples."""

    @property
    def present(self) -> np.ndarray:
        """Bool (n,): which samples hold the input."""

    @property
    def shown(self) -> bool:
        """Whether the network is given the input at all in this batch."""

    @property
    def weights(self) -> np.ndarray | None:
        """Float32 (n,) of the samples, where some of them are to teach nothing; None: all count."""

    def hide(self, rows: np.ndarray) -> None:
        """Withholds the input from the samples where `rows` (n,) is True."""

    def tensors(self, device: str) -> dict[str, Any]:
        """As `Evidence.tensors`."""


class Prepared(ABC):
    """One input of a training set, prepared once from a sample table for every recipe that reads it.

    Attributes:
        present: bool (n,).
        counts: what was left out or changed during preparation, for the record.
        streamed: whether it is read a batch at a time by threads or by Ray Data (`train.pictures.Reader`).
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
        """Returns JSON values and arrays for `Input.load`; files of its own are written to `folder`."""


class Bound(ABC):
    """A prepared input as one recipe reads it. Most inputs have one class that is both this and `Prepared`.

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
        """Returns everything that some rows hold, unchanged, for validation and test.

        Args:
            read: for a streamed input, what was read for these rows (`train.pictures.Pictures`).
        """

    @abstractmethod
    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        """Returns what a training batch shows of some rows."""

    def begin_epoch(self, recipe: TrainRecipe, epoch: int, training: np.ndarray) -> None:
        """Called before the drafts of an epoch, for anything drawn once for all training rows."""

    def arrange(self, rows: np.ndarray, size: int, recipe: TrainRecipe, epoch: int, rank: int) -> np.ndarray:
        """Returns the rows of an epoch in the order in which batches of `size` are cut from them."""
        return rows


class Input(ABC):
    """One thing that a model reads.

    Attributes:
        name: its key in evidence and in batches.
        used: False: the network has a place for it, but was trained without: it is masked.
        columns: of the sample table that it reads, besides sample_id, image_uri and captions.
        looks_at: which pixels of a picture its stages need: none, some (decoding at a fraction of the size may do), or
            all, where boxes are pixels of the full picture.
        min_side: of `some`: the shorter side in pixels that the model resizes pictures to.
        noun: what a sample has to have, in words.
    """

    name: ClassVar[str]
    used: bool = True
    columns: tuple[str, ...] = ()
    looks_at: ClassVar[str] = "none"
    min_side: int | None = None
    noun: str = "something"
    plural: str = "samples"

    @property
    def part_names(self) -> tuple[str, ...]:
        """What it consists of, by the names that `Evidence.parts` uses."""
        return (self.name,)

    def files(self) -> dict[str, bytes]:
        """Other files that a checkpoint needs for it, by name."""
        return {}

    def open(self, folder: str, *, shown: str) -> None:
        """Reads its files in `folder`, a checkpoint or a copy of one.

        Args:
            shown: how messages call the folder.

        Raises:
            InputError: one is damaged.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """As config.json keeps it, `type` among the values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> Input:
        """What `to_dict` gave.

        Args:
            where: the file, for messages.
            folder: of the checkpoint, where other files of the input lie.

        Raises:
            InputError: a value that it cannot have.
        """

    @abstractmethod
    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> Prepared:
        """The rows of a labelled sample table with splits, for training.

        Raises:
            InputError: what the input needs is missing, or is of other samples.
        """

    def preparation(self) -> list[Any]:
        """What `prepare` goes by besides the table, as JSON values: a search prepares once, and cannot vary it."""
        return []

    def bind(self, prepared: Prepared, training: np.ndarray) -> Bound:
        """Chooses what one recipe reads from data that were prepared for several; by default all of it.

        Args:
            training: rows of the training split.

        Raises:
            InputError: the recipe asks for data that were not prepared.
        """
        if not isinstance(prepared, Bound):
            raise TypeError(f"{type(self).__name__} needs `bind`: its prepared data are not {Bound.__name__}")
        return prepared

    @abstractmethod
    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Prepared:
        """What `Prepared.save` left."""

    @abstractmethod
    def collect(self, items: Sequence[Any]) -> Evidence:
        """What the stages before prediction left on some `pipeline.item.Item`s."""

    def note(self, items: Sequence[Any]) -> None:
        """Leaves on items that were predicted what the output says of this input."""

    def release(self, item: Any) -> None:
        """Drops what an item no longer needs once it is predicted."""

    def describe(self) -> list[str]:
        """Lines for the model card."""
        return []

    def notices(self) -> list[str]:
        """What a user of the predictions must know: weights that were never trained, say."""
        return []


def require_inputs(
    inputs: Sequence[Input], needed: Sequence[type[Input]], optional: Sequence[type[Input]] = ()
) -> None:
    """Raises an `InputError` unless a checkpoint's inputs are those that a kind of model reads, in their order."""
    given, n = [type(own) for own in inputs], len(needed)
    if given[:n] != [*needed] or any(own not in optional for own in given[n:]):
        read = " and ".join(own.name for own in (*needed, *optional))
        raise InputError(f"the model reads {read}, and the inputs are {', '.join(own.name for own in inputs)}")


def batches(n: int, size: int) -> Iterator[np.ndarray]:
    """Positions of n samples, `size` at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))
