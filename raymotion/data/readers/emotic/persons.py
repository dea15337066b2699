"""An annotated person of EMOTIC, independent of the file format, and checks shared by both formats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymotion.data.boxes import Box
from raymotion.errors import InputError
from raymotion.vocabulary import EMOTIC_26


@dataclass(frozen=True)
class Person:
    """The annotations of one person, not yet corrected.

    Attributes:
        split: train, val or test.
        index: position of the person in the annotations of its split.
        folder, filename: location of the image relative to the image root.
        size: width and height of the image as annotated, or None.
        box: x1, y1, x2, y2 of the body in pixels, or None; possibly degenerate or beyond the border.
        choices: labels of each annotator (without annotators who chose none), or None if the file does not list
            annotators separately.
        combined: labels of all annotators together, if the file has them.
        vad: valence, arousal and dominance on EMOTIC's scale of 1 to 10, or None if one of them is missing.
        gender, age: as written, "" if missing.
    """

    split: str
    index: int
    folder: str
    filename: str
    size: tuple[float, float] | None
    box: Box | None
    choices: tuple[tuple[str, ...], ...] | None
    combined: tuple[str, ...] | None
    vad: tuple[float, float, float] | None
    gender: str = ""
    age: str = ""

    @property
    def sample_id(self) -> str:
        """Id in the sample table."""
        return f"emotic:{self.split}:{self.index}"

    @property
    def image(self) -> str:
        """Path of the image: FOLDER/FILENAME."""
        return f"{self.folder}/{self.filename}" if self.folder else self.filename

    def labels(self) -> tuple[str, ...]:
        """Returns the union of the annotators' labels, in the order of the vocabulary."""
        chosen = {label for labels in self.choices or () for label in labels} | set(self.combined or ())
        return tuple(label for label in EMOTIC_26.labels if label in chosen)

    def shares(self) -> tuple[float, ...] | None:
        """Returns the share of annotators who chose each of `labels()`, or None if unknown.

        A label that is only in the combined list gets the share of one annotator.
        """
        if not self.choices:
            return None
        count = len(self.choices)
        return tuple(max(sum(label in own for own in self.choices), 1) / count for label in self.labels())


def checked_labels(labels: Iterable[object]) -> tuple[str, ...]:
    """Returns the distinct labels; raises an `InputError` for the first that is not one of EMOTIC's 26."""
    result = dict.fromkeys(str(label).strip() if isinstance(label, str) else label for label in labels)
    for label in result:
        if label not in EMOTIC_26:
            raise InputError(
                f"{label!r} is not one of EMOTIC's 26 categories",
                remedy="Correct it there; the categories are written as in `Doubt/Confusion`.",
            )
    return tuple(str(label) for label in result)


def checked_place(folder: str, filename: str) -> tuple[str, str]:
    """Strips outer slashes from `folder` and `filename`; raises an `InputError` if they leave the image root."""
    parts = [*folder.split("/"), *filename.split("/")]
    if not filename.strip("/") or ".." in parts or "://" in f"{folder}/{filename}" or "\0" in f"{folder}{filename}":
        raise InputError(f"{folder!r} and {filename!r} do not name a file below the image folder")
    return folder.strip("/"), filename.strip("/")


def vad_of(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Returns three numbers, or None if one of them is missing or not finite (as in the public conversion)."""
    if values is None or len(values) != 3 or not all(math.isfinite(value) for value in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])


def mean_vad(rows: Iterable[Sequence[float]]) -> tuple[float, float, float] | None:
    """Returns the mean over the annotators with all three values; None if there are none."""
    full = [vad for vad in (vad_of(row) for row in rows) if vad is not None]
    if not full:
        return None
    return vad_of([sum(vad[i] for vad in full) / len(full) for i in range(3)])
