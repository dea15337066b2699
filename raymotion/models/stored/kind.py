"""Anybody's probabilities as a model: they are labelled with, selected from, audited and evaluated like any other's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from raymotion.config import File, Metavar, Settings
from raymotion.data.records import records_of
from raymotion.data.text_rows import shown
from raymotion.errors import InputError, located
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.kind import Kind, Training, Wrap
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import MultiLabelRecipe
from raymotion.models.stored.input import StoredInput, not_trained
from raymotion.vocabulary import VOCABULARIES, Vocabulary, read_vocabulary

# Columns that hold the ids if the user names none, in this order.
ID_NAMES = ("sample_id", "id", "image_id", "image", "image_uri", "file_name", "filename", "file", "path")


class StoredSource(Settings):
    """A table of probabilities: csv, tsv, JSON (Lines) or Parquet, with an id and a column for each label.

    The id is that of the samples (`sample_id`), or the file name of their picture.
    """

    source: File = Field(description="The table.")
    vocabulary: Annotated[str, Metavar("NAME|FILE")] | None = Field(
        None,
        description=f"{', '.join(VOCABULARIES)}, or a file of labels. Default: the columns other than the id.",
    )
    id_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of ids. Default: by name (sample_id, id, image, file_name ...)."
    )


class StoredRecipe(StoredSource, MultiLabelRecipe):
    """The settings of `raymotion wrap stored-probabilities`."""

    paths: ClassVar[tuple[str, ...]] = ("source", "vocabulary")

    kind: Literal["stored-probabilities"] = "stored-probabilities"


class StoredKind(Kind):
    """Probabilities that were computed elsewhere, found by the id of the sample."""

    name: ClassVar[str] = "stored-probabilities"
    recipe = StoredRecipe
    wraps: ClassVar[Wrap | None] = Wrap(
        StoredSource, "stored-probabilities clip.csv --vocabulary mikels-8 --out stored/"
    )

    def inputs(self, recipe: Any) -> Sequence[Input]:
        return [StoredInput()]

    def outputs(self, recipe: StoredRecipe, facts: DataFacts) -> Sequence[Output]:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: Any, training: Training) -> Any:
        raise not_trained()

    def check_recipe(self, recipe: Any) -> None:
        raise not_trained()

    def wrap(self, recipe: StoredRecipe) -> tuple[Any, Sequence[Input], Sequence[Output]]:
        import torch

        from raymotion.models.stored.network import Stored

        ids, values, vocabulary = read_probabilities(recipe.source, recipe.vocabulary, recipe.id_column)
        network = Stored(len(ids), len(vocabulary))
        network.get_buffer("probabilities").copy_(torch.from_numpy(values))
        return network.eval(), [StoredInput(ids)], [MultiLabel(vocabulary)]

    def shape(self, network: Any) -> dict[str, Any]:
        return {"rows": len(network.get_buffer("probabilities"))}

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Any:
        from raymotion.models.stored.network import Stored

        require_inputs(inputs, [StoredInput])
        rows, found = model.get("rows"), cast(StoredInput, inputs[0])
        if not isinstance(rows, int) or rows < 1:
            raise InputError(f"model.rows is {rows!r}, not a number of rows")
        if found.is_open and len(found.rows) != rows:
            raise InputError(f"model.rows is {rows}, and there are {len(found.rows)} ids")
        return Stored(rows, outputs[0].width)

    def title(self) -> str:
        return "Probabilities that were computed elsewhere"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        source = (training.get("settings") or {}).get("source", "a table")
        return [f"The probabilities of {model['rows']:,} samples, from `{source}`. It has no answer for any other."]


def read_probabilities(
    path: str, vocabulary: str | None, id_column: str | None
) -> tuple[list[str], np.ndarray, Vocabulary]:
    """Reads ids (n), probabilities (n, L) float32 and the vocabulary of a table.

    Raises:
        InputError: a column is missing, an id is empty or appears twice, or a value is no probability.
    """
    names, records = records_of(path)
    folded = {name.strip().casefold(): name for name in names}
    key = id_column or next((folded[name] for name in ID_NAMES if name in folded), None)
    if key is None or key not in names:
        raise InputError(
            f"has no column {id_column!r}" if id_column else "has no column of ids that is known by its name",
            path=path,
            remedy=f"Give --id-column; its columns are {', '.join(map(shown, names))}.",
        )
    if vocabulary is not None:
        own = read_vocabulary(vocabulary)
        missing = [label for label in own.labels if label not in names]
        if missing:
            raise InputError(
                f"has no column {', '.join(map(shown, missing[:5]))}, of which {own.name} has the label",
                path=path,
                remedy=f"Its columns are {', '.join(map(shown, names))}.",
            )
    else:
        labels = tuple(name for name in names if name != key)
        own = Vocabulary(f"columns-{len(labels)}", labels)
    rows: dict[str, list[float]] = {}
    for place, record in records:
        with located(**place):
            sample = str(record.get(key) if record.get(key) is not None else "").strip()
            if not sample:
                raise InputError(f"{shown(key)} is empty")
            if sample in rows:
                raise InputError(f"the id {shown(sample)!r} appears twice", remedy="Keep one row for each.")
            rows[sample] = [_probability(record.get(label), label) for label in own.labels]
    if not rows:
        raise InputError("has no rows", path=path)
    return list(rows), np.array(list(rows.values()), dtype=np.float32), own


def _probability(value: Any, label: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise InputError(f"{shown(label)} is {value!r}, not a probability from 0 to 1")
    return number
