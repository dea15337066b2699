"""Answers of a service about pictures: the input of models that run somewhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from raymotion.errors import InputError
from raymotion.models.inputs.base import Arrays, Input, Prepared

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe

# Sides in pixels of the pictures that are sent.
SMALLEST, LARGEST = 32, 4096


class Unanswered(Exception):
    """A service has no usable answer about one picture. `reason` is a short code for counts and quarantine files."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Service(Protocol):
    """Asks a service. Instances are pickled and sent to a worker before `open`, so they contain only settings.

    Attributes:
        concurrency: how many questions may be open at once; `ask` is called from as many threads.
        tally: counts for the record of the job, such as tokens. The worker clears it before each shard.
    """

    concurrency: int
    tally: Counter[str]

    def open(self) -> None:
        """Connects, once in each worker.

        Raises:
            InputError: the service does not accept the settings.
            RunFailed: it does not answer.
        """

    def ask(self, picture: bytes) -> np.ndarray:
        """Returns the values (width,) float32 of all outputs, in order, for a picture as JPEG.

        Raises:
            Unanswered: there is no usable answer about this picture.
            InputError, RunFailed: there is none about any.
        """

    def describe(self) -> dict[str, Any]:
        """Returns a description for the record of the job."""


def not_trained() -> InputError:
    """Returns the error for training on the answers of a service."""
    return InputError(
        "a model that answers from an endpoint is not trained",
        remedy="Label with it (`raymotion wrap`, then `raymotion label`), and train a student on the labels.",
    )


class AnswersInput(Input):
    """What a service answers about the whole picture. The network is called with `answer` (n, width) float32.

    Args:
        size: pictures are sent with at most this many pixels on the longer side.
    """

    name: ClassVar[str] = "answers"
    looks_at: ClassVar[str] = "some"
    noun = "an image"
    plural = "images"

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("picture",)

    @property
    def min_side(self) -> int | None:  # type: ignore[override]
        """The size."""
        return self.size

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "size": self.size}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> AnswersInput:
        size = value.get("size")
        if type(size) is not int or not SMALLEST <= size <= LARGEST:
            raise InputError(f"answers: size is {size!r}, not a number from {SMALLEST} to {LARGEST}", path=where)
        return cls(size)

    def collect(self, items: Sequence[Any]) -> Arrays:
        there = np.array([item.answer is not None for item in items], dtype=bool)
        width = next((len(item.answer) for item in items if item.answer is not None), 0)
        values = np.zeros((len(items), width), np.float32)
        for row in np.flatnonzero(there).tolist():
            values[row] = items[row].answer
        return Arrays("picture", there, {"answer": values})

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> Prepared:
        raise not_trained()

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Prepared:
        raise not_trained()
