"""Samples as a fusion head reads them: targets in memory, features of frozen backbones behind memory maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from raymotion import records, storage
from raymotion.config import digest_of
from raymotion.data.embeddings import Embeddings
from raymotion.data.samples import SPLITS, targets
from raymotion.errors import InputError
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.train.data import read_saved
from raymotion.train.source import SPLIT_AGAIN, require_positives, sample_table
from raymotion.vocabulary import Vocabulary

# Imports no torch: Ray Train's controller, and the driver of a study, import this too.
ARRAYS, META = "arrays.safetensors", "data.json"
VAD = ("valence", "arousal", "dominance")


@dataclass(kw_only=True)
class PersonData:
    """Persons and what is right about them, whatever a model looks at.

    Attributes:
        sample_ids: n ids; groups: the image of each.
        splits: train, val and test -> positions of their samples.
        hard, soft: targets (n, L); `soft` are shares of annotators where the table has them.
        vad: valence, arousal, dominance on EMOTIC's scale of 1 to 10, float32 (n, 3); NaN where not known.
        counts: rows of the table, and why some were left out.
    """

    sample_ids: list[str]
    groups: list[str]
    splits: dict[str, np.ndarray]
    hard: np.ndarray
    soft: np.ndarray
    vad: np.ndarray
    vocabulary: Vocabulary
    counts: dict[str, int]
    name: str = ""
    fingerprint: str = ""

    def prior(self, *, soft: bool) -> np.ndarray:
        """Class rates of the training split, float32 (L,)."""
        return np.asarray((self.soft if soft else self.hard)[self.splits["train"]].mean(axis=0), dtype=np.float32)

    def contents(self) -> list[Any]:
        """What decides the answers, for a fingerprint."""
        split_of = np.full(len(self.sample_ids), "", dtype=object)
        for name, rows in self.splits.items():
            split_of[rows] = name
        # Rounded: another version of Parquet may give another last digit. By bytes: there are a million numbers.
        arrays = (self.hard.astype(np.int8), np.round(self.soft, 6), np.round(np.nan_to_num(self.vad, nan=-1.0), 4))
        return [
            self.sample_ids, self.groups, split_of.tolist(), self.vocabulary.fingerprint,
            *(hashlib.sha256(np.ascontiguousarray(own).tobytes()).hexdigest() for own in arrays),
        ]  # fmt: skip

    def write(self, folder: str, kind: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Writes all this, and what a kind of data has besides, for `read_persons`."""
        own = {"hard": self.hard, "soft": self.soft, "vad": self.vad}
        own |= {f"split_{name}": rows for name, rows in self.splits.items()}
        data = save({**own, **arrays})
        storage.write_bytes(storage.join(folder, ARRAYS), data)
        about = {
            "kind": kind, "sample_ids": self.sample_ids, "groups": self.groups, "counts": self.counts,
            "vocabulary": self.vocabulary.to_dict(), "name": self.name, "fingerprint": self.fingerprint,
            "files": {ARRAYS: hashlib.sha256(data).hexdigest()},
        }  # fmt: skip
        records.write_record(storage.join(folder, META), {**about, **meta})


def read_persons(folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """The fields of `PersonData` that `write` left in `folder`, and all arrays and other values there."""
    meta, arrays = read_saved(folder)
    fields = {name: meta[name] for name in ("sample_ids", "groups", "counts", "name", "fingerprint")}
    fields |= {name: arrays[name] for name in ("hard", "soft", "vad")}
    fields |= {
        "splits": {name: arrays[f"split_{name}"] for name in SPLITS},
        "vocabulary": Vocabulary.from_dict(meta["vocabulary"]),
    }
    return fields, arrays, meta


@dataclass(kw_only=True)
class FusionData(PersonData):
    """Persons that a fusion head can learn from.

    Attributes:
        folders: of the embeddings.
        rows: where each sample stands in the embeddings, int64 (n,).
    """

    folders: list[str]
    rows: np.ndarray
    opened: Embeddings | None = field(default=None, repr=False)
    # What tasks have computed of these data, for the next task in the same process.
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def embeddings(self) -> Embeddings:
        return self.opened or Embeddings(self.folders)

    # What the run's bookkeeping asks of every kind of data.
    @property
    def features_folder(self) -> list[str]:
        return self.folders

    @property
    def image_uris(self) -> list[str | None]:
        return []  # it reads features, which another job has made of the pictures

    @property
    def addresses(self) -> list[Any]:
        return []

    def mask(self, streams: Sequence[str]) -> np.ndarray:
        """Which of `streams` each sample has, bool (n, S)."""
        return np.stack([self.embeddings.mask(stream)[self.rows] for stream in streams], axis=1)

    def save(self, folder: str) -> None:
        """Writes what workers need; `load` reads it."""
        self.write(folder, "fusion", {"rows": self.rows}, {"features": self.folders})

    @classmethod
    def load(cls, folder: str) -> FusionData:
        fields, arrays, meta = read_persons(folder)
        return cls(**fields, rows=arrays["rows"], folders=meta["features"])


def prepare_fusion(recipe: FusionRecipe, *, embeddings: Embeddings | None = None) -> FusionData:
    """Reads and checks what the recipe trains on.

    Raises:
        InputError: no labels, no splits, an image in two splits, embeddings of other samples, pictures or boxes, or
            without a backbone that the recipe names.
    """
    opened = embeddings or Embeddings(recipe.data.embeddings)
    persons, table = labelled_persons(
        recipe.data.samples,
        lambda table: opened.rows(table.column("sample_id").to_pylist()) >= 0,
        "embeddings",
        f"Make them from it: raymotion features embeddings {recipe.data.samples} ...",
    )
    if by_name := opened.require_made_from(table).by_name:
        persons["counts"]["compared_by_name_alone"] = by_name
    data = FusionData(
        **persons,
        folders=[storage.absolute(folder) for folder in recipe.data.embeddings],
        rows=opened.rows(persons["sample_ids"]),
        opened=opened,
    )
    data.fingerprint = digest_of([*data.contents(), opened.digest])
    return data


def labelled_persons(
    samples: str, has: Callable[[pa.Table], np.ndarray], what: str, remedy: str
) -> tuple[dict[str, Any], pa.Table]:
    """The fields of `PersonData` for the rows of a table that have labels, a split and what a model needs besides.

    Args:
        has: which rows of a table have that, bool; `what` it is called, and what to do where none has.

    Returns:
        The fields, and the rows that were kept.

    Raises:
        InputError: there are none, or none for training or validation; an image in two splits.
    """
    path = storage.absolute(samples)
    table, soft, vocabulary = sample_table(path)
    counts = {"rows": table.num_rows}
    for reason, known_of in (
        ("labels", lambda table: pc.is_valid(table.column("labels"))),
        ("split", lambda table: pc.is_valid(table.column("split"))),
        (what, has),
    ):
        known = np.asarray(known_of(table))
        counts[f"without_{reason}"] = int((~known).sum())
        table, soft = table.filter(pa.array(known)), soft[known]
    if not table.num_rows:
        raise InputError(f"none of the labelled samples has {what}", path=path, remedy=remedy)
    split_column = np.array(table.column("split").to_pylist())
    splits = {name: np.flatnonzero(split_column == name) for name in SPLITS}
    for name in ("train", "val"):
        if not len(splits[name]):
            raise InputError(
                f"has no sample of the split {name} with labels and {what}",
                path=path,
                remedy=SPLIT_AGAIN,
            )
    hard = targets(table, vocabulary)
    require_positives(hard, splits, path)
    fields = {
        "sample_ids": table.column("sample_id").to_pylist(),
        "groups": table.column("group_id").to_pylist(),
        "splits": splits,
        "hard": hard,
        "soft": soft,
        "vad": np.stack([np.asarray(table.column(name).to_numpy(), dtype=np.float32) for name in VAD], axis=1),
        "vocabulary": vocabulary,
        "counts": counts,
        "name": path.rstrip("/").rsplit("/", 1)[-1],
    }
    return fields, table


def class_counts(data: PersonData, split: str) -> Mapping[str, int]:
    """How many samples of a split have each label."""
    totals = data.hard[data.splits[split]].sum(axis=0).astype(int)
    return dict(zip(data.vocabulary.labels, totals.tolist(), strict=True))
