"""Reads persons from the nested MATLAB structs of EMOTIC's `Annotations.mat`.

    train, val, test: 1 x images struct
        filename, folder, image_size {n_row, n_col}, original_database, person: 1 x persons struct
            train:     body_bbox, annotations_categories, annotations_continuous, gender, age
            val, test: body_bbox, annotations_categories, combined_categories, annotations_continuous,
                       combined_continuous, gender, age

Fields are found by name, and by position only if a file uses other names, because positions do not reveal the order of
`image_size` (the public conversion takes its first value for the width).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.data.readers.emotic.persons import Person, checked_labels, checked_place, mean_vad, vad_of
from raymotion.data.samples import SPLITS
from raymotion.errors import InputError, located

_IMAGE = ("filename", "folder", "image_size", "original_database", "person")
_ONE = ("body_bbox", "annotations_categories", "annotations_continuous", "gender", "age")
_SEVERAL = (
    "body_bbox", "annotations_categories", "combined_categories", "annotations_continuous", "combined_continuous",
    "gender", "age",
)  # fmt: skip
_VAD = ("valence", "arousal", "dominance")


def read_mat(path: storage.PathLike, empty: list[tuple[str, str]] | None = None) -> list[Person]:
    """Reads all persons of an `Annotations.mat`, split by split, in the order of the file.

    Args:
        empty: list to which folder and file name of images without persons are added.

    Raises:
        InputError: the file is damaged, of another kind or without splits, or a name, a box or labels are invalid;
            names the image and the person (both counted from 0).
    """
    import scipy.io

    data = storage.require(path)
    if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:128]:
        raise InputError("is a MATLAB 7.3 file", path=path, remedy="Save it in MATLAB with -v7, as EMOTIC ships it.")
    try:
        content = scipy.io.loadmat(io.BytesIO(data), variable_names=list(SPLITS))
    except Exception as error:  # zlib.error, ValueError, TypeError, MatReadError, ... depending on the damage
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise InputError(
            f"is not a readable .mat file ({reason})", path=path, remedy="Unpack the archive again."
        ) from error
    found = [split for split in SPLITS if split in content]
    if not found:
        raise InputError("holds none of train, val and test", path=path, remedy="Give EMOTIC's Annotations.mat.")
    return [person for split in found for person in _persons(content[split], split, path, empty)]


def _persons(images: Any, split: str, path: storage.PathLike, empty: list[tuple[str, str]] | None) -> Iterator[Person]:
    index = 0
    with located(path, row=split):
        structs = _records(images)
    for number, image in enumerate(structs):
        row = f"{split} image {number}"
        with located(path, row=row):
            filename, folder, size, _, persons = _fields(image, _IMAGE)
            texts = _text(folder), _text(filename)
            if texts[0] is None or texts[1] is None:
                raise InputError("filename and folder are not text")
            place = checked_place(texts[0], texts[1])
            annotated = _size(size)
            records = _records(persons)
        if not records and empty is not None:
            empty.append(place)
        for k, record in enumerate(records):
            with located(path, row=f"{row}, person {k}"):
                yield _person(record, split, index, place, annotated)
            index += 1


def _person(record: Any, split: str, index: int, place: tuple[str, str], size: tuple[float, float] | None) -> Person:
    # The number of fields distinguishes the two layouts, not the split: a repacked file may have either.
    names = record.dtype.names if isinstance(record, np.void) else None
    count = len(names) if names else len(record)
    if "combined_categories" in (names or ()) or count >= len(_SEVERAL):
        box, own, combined, own_vad, combined_vad, gender, age = _fields(record, _SEVERAL)
    else:
        box, own, own_vad, gender, age = _fields(record, _ONE)
        combined = combined_vad = None
    corners = _numbers(box)
    if corners is None or len(corners) not in (0, 4):
        raise InputError("body_bbox is not four numbers")
    choices = tuple(labels for labels in (checked_labels(_leaves(a)) for a in _each(own)) if labels)
    vad = vad_of(_numbers(combined_vad, _VAD)) if combined_vad is not None else None
    if vad is None:
        vad = mean_vad(values for a in _each(own_vad) if (values := _numbers(a, _VAD)) is not None)
    return Person(
        split=split,
        index=index,
        folder=place[0],
        filename=place[1],
        size=size,
        box=(corners[0], corners[1], corners[2], corners[3]) if corners else None,
        choices=choices or None,
        combined=None if combined is None else checked_labels(_leaves(combined)),
        vad=vad,
        gender=_text(gender) or "",
        age=_text(age) or "",
    )


def _records(value: Any) -> list[Any]:
    """Returns the elements of a struct array, or of a cell array of structs."""
    if isinstance(value, np.ndarray) and value.dtype.names:
        return list(value.ravel())
    if isinstance(value, np.ndarray) and value.dtype == object:
        result: list[Any] = []
        for cell in value.ravel():
            struct = isinstance(cell, np.ndarray) and cell.dtype.names
            result.extend(cell.ravel() if struct else [np.ravel(cell)])
        return result
    if isinstance(value, np.ndarray) and value.size == 0:
        return []
    raise InputError("is not a struct array", remedy="Is it EMOTIC's Annotations.mat?")


def _fields(record: Any, names: tuple[str, ...]) -> list[Any]:
    """Returns the values of `names`; None for missing optional ones. Raises if a required field is missing."""
    own = record.dtype.names if isinstance(record, np.void) else None
    if own and set(own) & set(names):
        missing = [name for name in (names[0], names[-1] if names is _IMAGE else names[1]) if name not in own]
        if missing:
            raise InputError(f"lacks {', '.join(missing)} (has {', '.join(own)})")
        return [record[name] if name in own else None for name in names]
    values = list(record)
    if len(values) < len(names):
        raise InputError(f"has {len(values)} fields, EMOTIC has {len(names)} there")
    return values[: len(names)]


def _each(value: Any) -> list[Any]:
    """Returns one entry for each annotator: the elements of a struct array."""
    if value is None:
        return []
    if isinstance(value, np.ndarray) and value.dtype.names:
        return list(value.ravel())
    if isinstance(value, np.ndarray) and value.dtype == object and value.size:
        cells = [cell for cell in value.ravel() if isinstance(cell, np.ndarray)]
        if any(cell.dtype.names or cell.dtype == object for cell in cells):  # a cell array of annotators
            return [entry for cell in cells for entry in (cell.ravel() if cell.dtype.names else [cell])]
    return [value]


def _leaves(value: Any) -> Iterator[Any]:
    """Yields the strings and numbers nested in cells and structs, in order."""
    if isinstance(value, np.void) and value.dtype.names:
        for name in value.dtype.names:
            yield from _leaves(value[name])
    elif isinstance(value, np.ndarray):
        if value.dtype.names or value.dtype == object:
            for item in value.ravel():
                yield from _leaves(item)
        else:
            yield from value.ravel().tolist()
    else:
        yield value


def _numbers(value: Any, names: tuple[str, ...] = ()) -> list[float] | None:
    """Returns the numbers in `value` (of a struct: in the order of `names`); None if it holds anything else."""
    if isinstance(value, np.ndarray) and value.dtype.names and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, np.void) and value.dtype.names and names and set(names) <= set(value.dtype.names):
        leaves = [leaf for name in names for leaf in _leaves(value[name])]
    else:
        leaves = list(_leaves(value))
    if any(isinstance(leaf, bool) or not isinstance(leaf, int | float) for leaf in leaves):
        return None
    return [float(leaf) for leaf in leaves]


def _text(value: Any) -> str | None:
    leaves = list(_leaves(value))
    if not leaves:
        return ""
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], str) else None


def _size(value: Any) -> tuple[float, float] | None:
    numbers = _numbers(value, ("n_col", "n_row"))
    if value is None or numbers == []:
        return None
    if numbers is None or len(numbers) < 2:
        raise InputError("image_size is not two numbers")
    return numbers[0], numbers[1]
