"""Reads the csv files of the public conversion of EMOTIC: `train.csv`, `val.csv` and `test.csv`, one line per person.

Columns: Index, Folder, Filename, Image Size, BBox, Categorical_Labels, Continuous_Labels, Gender, Age. Lists are
Python literals. Train has one annotator; val and test have only the union of several.
"""

from __future__ import annotations

import ast
import re

from raymotion import storage
from raymotion.data.images.files import EXTENSIONS
from raymotion.data.readers.emotic.persons import Person, checked_labels, checked_place, vad_of
from raymotion.data.text_rows import Cells, delimited_rows
from raymotion.errors import InputError, located

COLUMNS = (
    "Index", "Folder", "Filename", "Image Size", "BBox", "Categorical_Labels", "Continuous_Labels", "Gender", "Age",
)  # fmt: skip
_NEEDED = COLUMNS[1:7]

# The longest valid list, all 26 labels, has 400 characters; a literal of megabytes could overflow the parser's stack.
_LONGEST = 4_000
_MISSING = re.compile(r"\bnan\b", re.IGNORECASE)


def read_csv(path: storage.PathLike, split: str) -> list[Person]:
    """Reads the persons of one csv, in order; `index` is the column Index or, without it, the row from 0.

    Raises:
        InputError: a column is missing, or a value is not a list or not valid in EMOTIC; names the line.
    """
    persons: list[Person] = []
    seen: set[int] = set()
    optional = [name for name in COLUMNS if name not in _NEEDED]
    rows = delimited_rows(
        storage.read_text(path), path, _NEEDED, optional=optional, verbatim=("Folder", "Filename"), is_start=_is_start
    )
    for line, values in rows:
        with located(path, line=line):
            index = _index(values.get("Index"), len(persons))
            if index in seen:
                raise InputError(f"Index {index} appears twice", remedy="An Index is unique.")
            seen.add(index)
            persons.append(_person(values, split, index))
    return persons


def _is_start(cells: Cells) -> bool:
    return cells["Filename"].lower().endswith(EXTENSIONS)


def _person(values: dict[str, str], split: str, index: int) -> Person:
    folder, filename = checked_place(values["Folder"].strip(), values["Filename"].strip())
    labels = checked_labels(_list(values, "Categorical_Labels"))
    size, box, vad = (
        _numbers(values, column, count) for column, count in (("Image Size", 2), ("BBox", 4), ("Continuous_Labels", 3))
    )
    return Person(
        split=split,
        index=index,
        folder=folder,
        filename=filename,
        size=(size[0], size[1]) if size else None,
        box=(box[0], box[1], box[2], box[3]) if box else None,
        # Val and test have only the union, so shares are unknown; train has one annotator, with share 1.
        choices=(labels,) if split == "train" and labels else None,
        combined=None if split == "train" else labels,
        vad=vad_of(vad),
        gender=values.get("Gender", "").strip(),
        age=values.get("Age", "").strip(),
    )


def _index(text: str | None, position: int) -> int:
    if text is None:
        return position
    if not re.fullmatch(r"\s*\d{1,9}(\.0)?\s*", text, re.ASCII):
        raise InputError(f"Index {text[:40]!r} is not a whole number")
    return int(float(text))


def _list(values: dict[str, str], column: str) -> list[object]:
    """Parses a Python literal of a list; executes nothing."""
    text = values[column]
    if len(text) > _LONGEST:
        raise InputError(f"{column} has {len(text):,} characters")
    if not text.strip():
        return []
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{column} is {text[:40]!r}, not a list as Python writes it") from error
    if not isinstance(value, list | tuple):
        raise InputError(f"{column} is {text[:40]!r}, not a list")
    return list(value)


def _numbers(values: dict[str, str], column: str, count: int) -> list[float]:
    """Parses a list of `count` numbers or an empty one; `nan` and None become NaN."""
    literals = {column: _MISSING.sub("None", values[column])}
    numbers = [float("nan") if value is None else value for value in _list(literals, column)]
    if len(numbers) not in (0, count) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise InputError(f"{column} is {values[column][:40]!r}, not a list of {count} numbers")
    try:
        return [float(v) for v in numbers]  # type: ignore[arg-type]
    except OverflowError as error:
        raise InputError(f"{column} holds a number that is out of range") from error
