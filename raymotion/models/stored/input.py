"""Rows of a table of probabilities, found by the id of a sample or by the name of its picture's file."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.inputs.base import Arrays, Input, Prepared

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe

IDS = "ids.json"


def not_trained() -> InputError:
    """Returns the error for training on stored probabilities."""
    return InputError(
        "stored probabilities are not trained",
        remedy="`raymotion wrap stored-probabilities FILE` makes a model of them.",
    )


class StoredInput(Input):
    """Stored answers. The network is called with `answer` (n,) int64, the row in its table; 0 where there is none.

    A sample is found by its `sample_id`, with or without the part before the colon, or by the file name of its picture,
    with or without its folders and its extension.

    Args:
        ids: of the rows, in order; None if the checkpoint is yet to be opened.
    """

    name: ClassVar[str] = "stored"
    noun = "a row in the table of probabilities"
    plural = "stored probabilities"

    def __init__(self, ids: Sequence[str] | None = None) -> None:
        self._rows = None if ids is None else {own: row for row, own in enumerate(ids)}

    @property
    def is_open(self) -> bool:
        """Whether the ids are known."""
        return self._rows is not None

    @property
    def rows(self) -> Mapping[str, int]:
        """The row of each id."""
        assert self._rows is not None, "the input of a checkpoint that was not opened"
        return self._rows

    def files(self) -> dict[str, bytes]:
        return {IDS: json.dumps(list(self.rows), ensure_ascii=False).encode()}

    def open(self, folder: str, *, shown: str) -> None:
        found = storage.read_json(storage.join(folder, IDS))
        if not isinstance(found, list) or not all(isinstance(own, str) for own in found):
            raise InputError("is not a list of ids", path=storage.join(shown, IDS))
        self._rows = {own: row for row, own in enumerate(found)}

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> StoredInput:
        return cls()

    def row_of(self, sample_id: str, image_uri: str | None) -> int | None:
        """Returns the row of a sample, or None."""
        names = [sample_id, sample_id.partition(":")[2]]
        if image_uri:
            base = posixpath.basename(image_uri)
            names += [image_uri, base, posixpath.splitext(base)[0]]
        return next((self.rows[name] for name in names if name and name in self.rows), None)

    def collect(self, items: Sequence[Any]) -> Arrays:
        rows = [self.row_of(item.row["sample_id"], item.row["image_uri"]) for item in items]
        there = np.array([row is not None for row in rows], dtype=bool)
        return Arrays(self.name, there, {"answer": np.array([row or 0 for row in rows], dtype=np.int64)})

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> Prepared:
        raise not_trained()

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Prepared:
        raise not_trained()
