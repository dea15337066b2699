"""EMOTIC as the public conversion writes it: `train.csv`, `val.csv` and `test.csv`, one line for each person.

Columns: Index, Folder, Filename, Image Size, BBox, Categorical_Labels, Continuous_Labels, Gender, Age. Lists are
Python literals. The annotators are not told apart: train has one, val and test have the union.
"""

from __future__ import annotations

import ast
import re

from raymotion import storage
from raymotion.data.boxes import Box
from raymotion.data.images.files import EXTENSIONS
from raymotion.data.readers.emotic.persons import Person, checked_labels, checked_place, vad_of
from raymotion.data.text_rows import Cells, delimited_rows
from raymotion.errors import InputError

COLUMNS = (
    "Index", "Folder", "Filename", "Image Size", "BBox", "Categorical_Labels", "Continuous_Labels", "Gender", "Age",
)  # fmt: skip
_NEEDED = COLUMNS[1:7]

# The longest list, all 26 labels, has 400 characters; a literal of megabytes would only fill the parser's stack.
_LONGEST = 4_000
_MISSING = re.compile(r"\bnan\b", re.IGNORECASE)


def read_csv(path: storage.PathLike, split: str) -> list[Person]:
    """The persons of one csv of the public conversion, in its order; `index` is its Index (else the row, from 0).

    Raises:
        InputError: columns that are missing, a list that is none, or values that EMOTIC does not have there, with the
            line of the file.
    """
    persons: list[Person] = []
    seen: set[int] = set()
    optional = [name for name in COLUMNS if name not in _NEEDED]
    rows = delimited_rows(
        storage.read_text(path), path, _NEEDED, optional=optional, verbatim=("Folder", "Filename"), is_start=_is_start
    )
    for line, values in rows:
        index = _index(values.get("Index"), len(persons), path, line)
        if index in seen:
            raise InputError(f"Index {index} appears twice", path=path, line=line, remedy="An Index is unique.")
        seen.add(index)
        persons.append(_person(values, split, index, path, line))
    return persons


def _is_start(cells: Cells) -> bool:
    return cells["Filename"].lower().endswith(EXTENSIONS)


def _person(values: dict[str, str], split: str, index: int, path: storage.PathLike, line: int) -> Person:
    folder, filename = checked_place(values["Folder"].strip(), values["Filename"].strip(), path=path, line=line)
    labels = checked_labels(_list(values["Categorical_Labels"], "Categorical_Labels", path, line), path=path, line=line)
    size = _numbers(values["Image Size"], "Image Size", (0, 2), path, line)
    box = _numbers(values["BBox"], "BBox", (0, 4), path, line)
    vad = _numbers(values["Continuous_Labels"], "Continuous_Labels", (0, 3), path, line)
    return Person(
        split=split,
        index=index,
        where=f"line {line}",
        folder=folder,
        filename=filename,
        size=(size[0], size[1]) if size else None,
        box=_box(box),
        # Of the union in val and test, nobody knows how many chose what; train has one annotator, whose share is 1.
        choices=(labels,) if split == "train" and labels else None,
        combined=None if split == "train" else labels,
        vad=vad_of(vad),
        gender=values.get("Gender", "").strip(),
        age=values.get("Age", "").strip(),
    )


def _box(values: list[float]) -> Box | None:
    return (values[0], values[1], values[2], values[3]) if values else None


def _index(text: str | None, position: int, path: storage.PathLike, line: int) -> int:
    if text is None:
        return position
    if not re.fullmatch(r"\s*\d{1,9}(\.0)?\s*", text, re.ASCII):
        raise InputError(f"Index {text[:40]!r} is not a whole number", path=path, line=line)
    return int(float(text))


def _list(text: str, column: str, path: storage.PathLike, line: int) -> list[object]:
    """A Python literal of a list, and nothing that would run."""
    if len(text) > _LONGEST:
        raise InputError(f"{column} has {len(text):,} characters", path=path, line=line)
    if not text.strip():
        return []
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{column} is {text[:40]!r}, not a list as Python writes it", path=path, line=line) from error
    if not isinstance(value, list | tuple):
        raise InputError(f"{column} is {text[:40]!r}, not a list", path=path, line=line)
    return list(value)


def _numbers(text: str, column: str, sizes: tuple[int, ...], path: storage.PathLike, line: int) -> list[float]:
    """Numbers of such a list, NaN for `nan` and None, which Python's literals do not have."""
    values = _list(_MISSING.sub("None", text), column, path, line)
    numbers = [float("nan") if value is None else value for value in values]
    if len(numbers) not in sizes or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise InputError(f"{column} is {text[:40]!r}, not a list of {sizes[-1]} numbers", path=path, line=line)
    try:
        return [float(v) for v in numbers]  # type: ignore[arg-type]
    except OverflowError as error:
        raise InputError(f"{column} holds a number that is out of range", path=path, line=line) from error
