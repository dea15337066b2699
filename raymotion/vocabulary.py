"""Ordered emotion vocabularies.

Position `i` of a probability vector corresponds to `labels[i]`. The order never changes, and every file, checkpoint and
study stores its fingerprint, so that two vocabularies are never mixed by accident. (One public system took its order
from an unordered set, so its columns changed their meaning with every run.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.errors import InputError, VocabularyMismatch

if TYPE_CHECKING:
    import numpy as np

METADATA_KEY = b"raymotion.vocabulary"


@dataclass(frozen=True)
class Vocabulary:
    """Emotion labels in their fixed order.

    Attributes:
        name: e.g. `socratis-29`.
        labels: distinct, non-empty strings.
    """

    name: str
    labels: tuple[str, ...]
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels or any(not isinstance(label, str) or not label.strip() for label in self.labels):
            raise InputError(f"vocabulary {self.name!r} needs at least one label, and no empty one")
        if any("\ud800" <= letter <= "\udfff" for text in (self.name, *self.labels) for letter in text):
            raise InputError(f"vocabulary {self.name!a} has a label with half a character (a lone surrogate)")
        object.__setattr__(self, "_index", {label: i for i, label in enumerate(self.labels)})
        if len(self._index) != len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise InputError(f"vocabulary {self.name!r} names {', '.join(twice)} more than once")

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return label in self._index

    def index(self, label: str) -> int:
        """Returns the position of `label`; raises an `InputError` if the vocabulary lacks it."""
        try:
            return self._index[label]
        except KeyError:
            raise InputError(f"{label!r} is not an emotion of the vocabulary {self.name}") from None

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the ordered labels; independent of the name."""
        return hashlib.sha256(json.dumps(list(self.labels)).encode()).hexdigest()[:16]

    def encode(self, labels: Iterable[str], weights: Sequence[float] | None = None) -> np.ndarray:
        """Returns a target vector, float32 (len(self),): 0 for absent labels, else 1 or the weight in [0, 1]."""
        import numpy as np

        target = np.zeros(len(self), dtype=np.float32)
        names = list(labels)
        values = [1.0] * len(names) if weights is None else list(weights)
        if len(values) != len(names):
            raise InputError(f"{len(names)} labels have {len(values)} weights")
        for label, weight in zip(names, values, strict=True):
            target[self.index(label)] = weight
        return target

    def decode(self, chosen: Iterable[int]) -> list[str]:
        """Returns the labels at the given positions, in vocabulary order."""
        return [self.labels[i] for i in sorted(set(chosen))]

    def require_same(self, other: Vocabulary, *, here: str, there: str) -> None:
        """Raises a `VocabularyMismatch` unless both have the same labels in the same order."""
        if self.labels == other.labels:
            return
        if set(self.labels) == set(other.labels):
            difference = "the same labels in another order"
        else:
            only_here = sorted(set(self.labels) - set(other.labels))[:3]
            only_there = sorted(set(other.labels) - set(self.labels))[:3]
            difference = f"only in the first: {only_here or 'none'}; only in the second: {only_there or 'none'}"
        raise VocabularyMismatch(
            f"{here} uses the vocabulary {self.name} ({len(self)} labels, {self.fingerprint}), "
            f"{there} uses {other.name} ({len(other)} labels, {other.fingerprint}): {difference}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the form that is written to files."""
        return {"name": self.name, "fingerprint": self.fingerprint, "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: object = None) -> Vocabulary:
        """Reads the form of `to_dict`; raises `VocabularyMismatch` if the fingerprint does not match the labels."""
        try:
            name, labels = str(value["name"]), value["labels"]
        except (KeyError, TypeError, IndexError) as error:
            raise InputError("holds no vocabulary with name and labels", path=where) from error
        if not isinstance(labels, list | tuple):
            raise InputError("holds a vocabulary whose labels are not a list", path=where)
        try:
            vocabulary = cls(name, tuple(labels))
        except InputError as error:
            raise InputError(error.reason, path=where) from error
        stated = value.get("fingerprint", vocabulary.fingerprint)
        if stated != vocabulary.fingerprint:
            raise VocabularyMismatch(
                f"vocabulary {vocabulary.name} says fingerprint {stated}, its labels give {vocabulary.fingerprint}",
                path=where,
                remedy="The labels were edited after the file was written: restore them.",
            )
        return vocabulary

    def to_metadata(self) -> dict[bytes, bytes]:
        """Returns the entry for the metadata of an Arrow schema."""
        return {METADATA_KEY: json.dumps(self.to_dict()).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, *, where: object = None) -> Vocabulary | None:
        """Returns the vocabulary in the metadata of an Arrow schema, or None."""
        raw = (metadata or {}).get(METADATA_KEY)
        if raw is None:
            return None
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise InputError("holds a damaged vocabulary", path=where, remedy="Prepare it again.") from error
        return cls.from_dict(value, where=where)


# Kosti et al. (2017), published order.
EMOTIC_26 = Vocabulary(
    "emotic-26",
    (
        "Affection", "Anger", "Annoyance", "Anticipation", "Aversion", "Confidence", "Disapproval", "Disconnection",
        "Disquietment", "Doubt/Confusion", "Embarrassment", "Engagement", "Esteem", "Excitement", "Fatigue", "Fear",
        "Happiness", "Pain", "Peace", "Pleasure", "Sadness", "Sensitivity", "Suffering", "Surprise", "Sympathy",
        "Yearning",
    ),
)  # fmt: skip

# Deng et al. (2023), Socratis: labels of at least 100 images. No order was published; ours is sorted.
SOCRATIS_29 = Vocabulary(
    "socratis-29",
    (
        "amazed", "anger", "angry", "annoyed", "awe", "beautiful", "bored", "calm", "concerned", "confused", "curious",
        "disgusted", "excited", "fear", "good", "happy", "hopeful", "impressed", "inspired", "interested", "intrigued",
        "joy", "neutral", "nostalgic", "proud", "sad", "scared", "upset", "worried",
    ),
)  # fmt: skip

# Mikels et al. (2005), in the order of You et al. (2016).
MIKELS_8 = Vocabulary(
    "mikels-8", ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
)

VALENCE_3 = Vocabulary("valence-3", ("negative", "neutral", "positive"))

VOCABULARIES: dict[str, Vocabulary] = {v.name: v for v in (EMOTIC_26, SOCRATIS_29, MIKELS_8, VALENCE_3)}


def get_vocabulary(name: str) -> Vocabulary:
    """Returns a vocabulary by name; raises an `InputError` for an unknown name."""
    try:
        return VOCABULARIES[name]
    except KeyError:
        raise InputError(
            f"no vocabulary is called {name!r}", remedy=f"Choose from {', '.join(VOCABULARIES)}."
        ) from None


def read_vocabulary(source: str) -> Vocabulary:
    """Returns the vocabulary called `source`, or that of a file: a label in each line, or the form of `to_dict`.

    Lines that begin with `#` are comments. The name is that of the file.

    Raises:
        InputError: there is no such vocabulary or file, or the file is invalid.
    """
    if source in VOCABULARIES:
        return VOCABULARIES[source]
    if not storage.exists(source):
        raise InputError(
            "no vocabulary has this name, and there is no such file",
            path=source,
            remedy=f"Give a file with a label in each line, or one of {', '.join(VOCABULARIES)}.",
        )
    if storage.suffix(source) == ".json":
        return Vocabulary.from_dict(storage.read_json(source), where=source)
    lines = [line.strip() for line in storage.read_text(source).splitlines()]
    labels = tuple(line for line in lines if line and not line.startswith("#"))
    try:
        return Vocabulary(f"{PurePosixPath(source).stem}-{len(labels)}", labels)
    except InputError as error:
        raise InputError(error.reason, path=source) from error


def valence_band(valence: float, *, neutral: tuple[float, float] = (40.0, 60.0)) -> str:
    """Returns the label of `VALENCE_3` for a valence from 0 to 100; both ends of `neutral` count as neutral."""
    if not 0.0 <= valence <= 100.0:
        raise InputError(f"valence {valence} is not between 0 and 100")
    low, high = neutral
    return "negative" if valence < low else "positive" if valence > high else "neutral"
