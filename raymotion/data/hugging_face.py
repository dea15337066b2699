"""Data sets of Hugging Face: the records of one, by the library `datasets`, and what its features say of the cells.

`hf:owner/name` is a data set of the hub (`hf:owner/name@REVISION` one version of it), `hf:FOLDER` one on disk: what
`save_to_disk` wrote, or any folder that `datasets.load_dataset` reads. A further `:CONFIG` names one of its
configurations. No code of a data set runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymotion.errors import InputError
from raymotion.weights import first_line, is_hub_id

PREFIX = "hf:"
# The key in the metadata of a Parquet file under which `datasets` keeps the features.
FEATURES_KEY = b"huggingface"


def is_hugging_face(path: str) -> bool:
    """Returns whether a path names a data set of Hugging Face."""
    return path.startswith(PREFIX)


def short_name(path: str) -> str:
    """Returns what a data set is called, without owner, folder and configuration."""
    return path.removeprefix(PREFIX).rstrip("/").rpartition("/")[2].partition(":")[0]


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns column -> names of its classes, for columns of class numbers or lists of them.

    Args:
        features: `Features.to_dict()` of a data set.
    """
    found = {}
    for column, feature in features.items():
        inner = feature
        while isinstance(inner, Mapping) and "names" not in inner and isinstance(inner.get("feature"), Mapping):
            inner = inner["feature"]
        names = inner[0].get("names") if isinstance(inner, list) and inner and isinstance(inner[0], Mapping) else None
        if isinstance(inner, Mapping) and inner.get("_type") == "ClassLabel":
            names = inner.get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[column] = names
    return found


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Returns the features that the metadata of a Parquet file's schema hold; empty if there are none."""
    try:
        features = json.loads((metadata or {}).get(FEATURES_KEY, b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def named(value: Any, names: Sequence[str]) -> Any:
    """Returns the class names of a class number or a list of them; -1, of rows without a class, becomes None.

    Raises:
        InputError: there is no such class.
    """
    if isinstance(value, list):
        return [name for own in value if (name := named(own, names)) is not None]
    if value is None or value == -1:
        return None
    if isinstance(value, str):
        return value
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(f"there is no class {value!r} of {len(names)} ({', '.join(names[:5])} ...)")
    return names[value]


def rows_of(name: str) -> tuple[list[str], list[str], Iterator[tuple[str, int, dict[str, Any]]]]:
    """Opens the data set that `hf:...` names.

    Returns:
        Its columns, its splits, and split, number and cells of each row. Classes are named; a picture is a mapping of
        `bytes` and `path`, of which either may be None.

    Raises:
        InputError: the library `datasets` is not installed, there is no such data set or configuration, or
            it cannot be read.
    """
    found = _loaded(name)
    features = {column: own for part in found.values() for column, own in part.features.to_dict().items()}
    classes = class_names(features)

    def each() -> Iterator[tuple[str, int, dict[str, Any]]]:
        for split, part in found.items():
            for number, row in enumerate(_undecoded(part)):
                cells = {key: named(value, classes[key]) if key in classes else value for key, value in row.items()}
                yield split, number, cells

    return list(features), list(found), each()


def _loaded(name: str) -> Mapping[str, Any]:
    """Returns split -> `datasets.Dataset`."""
    place, _, config = name.removeprefix(PREFIX).removeprefix("//").partition(":")
    place = os.path.expanduser(place)
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "data sets of Hugging Face are read by the library `datasets`, which is not installed",
            path=name,
            remedy="Install it: pip install 'raymotion[datasets]'.",
        ) from error
    on_hub = not os.path.isdir(place)
    if on_hub and not is_hub_id(place):
        raise InputError(f"there is no folder {place}", path=name, remedy="A data set of the hub is hf:owner/name.")
    on_disk = any(os.path.exists(os.path.join(place, own)) for own in ("dataset_dict.json", "state.json"))
    if on_disk and config:
        raise InputError(
            "was written by save_to_disk: it has no configurations", path=name, remedy=f"Write hf:{place}."
        )
    try:
        if on_disk:
            found = datasets.load_from_disk(place)
        else:
            repository, _, revision = place.partition("@") if on_hub else (place, "", "")
            found = datasets.load_dataset(repository, config or None, revision=revision or None)
    except Exception as error:  # the library raises errors of many kinds, of its own and of what it is made from
        raise InputError(
            f"cannot be read ({first_line(error)})",
            path=name,
            remedy="Write hf:owner/name, hf:owner/name:CONFIG or hf:FOLDER.",
        ) from error
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def _undecoded(part: Any) -> Any:
    """Returns a data set whose pictures stay bytes, without columns of sounds and films."""
    for column, feature in part.features.items():
        kind = type(feature).__name__
        if kind in ("Audio", "Video", "Pdf"):
            part = part.remove_columns(column)
        elif kind == "Image":
            part = part.cast_column(column, type(feature)(decode=False))
    return part
