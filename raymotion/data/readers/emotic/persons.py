"""One person of EMOTIC as annotated, whichever file it came from, and the checks that both files need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymotion.data.boxes import Box
from raymotion.errors import InputError
from raymotion.vocabulary import EMOTIC_26


@dataclass(frozen=True)
class Person:
    """What the annotations say of one person; nothing is corrected yet.

    Attributes:
        split: train, val or test.
        index: of the person in the annotations of its split.
        folder, filename: of the image, below the image root.
        size: width and height of the image as annotated, or None.
        box: x1, y1, x2, y2 of the body in pixels, or None; possibly degenerate or beyond the border.
        choices: the labels of each annotator (those who chose none are no annotators), or None where the file does
            not tell them apart.
        combined: the labels of all annotators together, where the file has them.
        vad: valence, arousal and dominance on EMOTIC's scale of 1 to 10, or None where one of them is missing.
        gender, age: as written, "" where there is none.
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
        """As in the sample table."""
        return f"emotic:{self.split}:{self.index}"

    @property
    def image(self) -> str:
        """FOLDER/FILENAME."""
        return f"{self.folder}/{self.filename}" if self.folder else self.filename

    def labels(self) -> tuple[str, ...]:
        """The union of what the annotators chose, in the vocabulary's order."""
        chosen = {label for labels in self.choices or () for label in labels} | set(self.combined or ())
        return tuple(label for label in EMOTIC_26.labels if label in chosen)

    def shares(self) -> tuple[float, ...] | None:
        """The share of annotators that chose each of `labels()`, or None where the file does not tell.

        A label that only the combined list has gets the least share that someone's choice can have.
        """
        if not self.choices:
            return None
        count = len(self.choices)
        return tuple(max(sum(label in own for own in self.choices), 1) / count for label in self.labels())


def checked_labels(labels: Iterable[object]) -> tuple[str, ...]:
    """Distinct labels of EMOTIC's 26, or an `InputError` that names the first other one."""
    result = dict.fromkeys(str(label).strip() if isinstance(label, str) else label for label in labels)
    for label in result:
        if label not in EMOTIC_26:
            raise InputError(
                f"{label!r} is not one of EMOTIC's 26 categories",
                remedy="Correct it there; the categories are written as in `Doubt/Confusion`.",
            )
    return tuple(str(label) for label in result)


def checked_place(folder: str, filename: str) -> tuple[str, str]:
    """`folder` and `filename` without slashes at their ends, unless they lead out of the image root."""
    parts = [*folder.split("/"), *filename.split("/")]
    if not filename.strip("/") or ".." in parts or "://" in f"{folder}/{filename}" or "\0" in f"{folder}{filename}":
        raise InputError(f"{folder!r} and {filename!r} do not name a file below the image folder")
    return folder.strip("/"), filename.strip("/")


def vad_of(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Three numbers, or None where one of them is missing or NaN (as in the public conversion)."""
    if values is None or len(values) != 3 or not all(math.isfinite(value) for value in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])


def mean_vad(rows: Iterable[Sequence[float]]) -> tuple[float, float, float] | None:
    """The mean over the annotators that gave all three values."""
    full = [vad for vad in (vad_of(row) for row in rows) if vad is not None]
    if not full:
        return None
    return vad_of([sum(vad[i] for vad in full) / len(full) for i in range(3)])
