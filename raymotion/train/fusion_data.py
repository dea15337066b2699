"""Samples as a fusion head reads them: targets in memory, features of frozen backbones behind memory maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load, save

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.embeddings import Embeddings
from raymotion.data.samples import SPLITS, targets
from raymotion.errors import InputError
from raymotion.train.fusion_recipe import FusionRecipe
from raymotion.train.source import sample_table
from raymotion.vocabulary import Vocabulary

# Imports no torch: Ray Train's controller, and the driver of a study, import this too.
ARRAYS, META = "arrays.safetensors", "data.json"
VAD = ("valence", "arousal", "dominance")


@dataclass
class FusionData:
    """Persons that a fusion head can learn from.

    Attributes:
        sample_ids: n ids; groups: the image of each.
        splits: train, val and test -> positions of their samples.
        hard, soft: targets (n, L); `soft` are shares of annotators where the table has them.
        vad: valence, arousal, dominance on EMOTIC's scale of 1 to 10, float32 (n, 3); NaN where not known.
        folders: of the embeddings.
        rows: where each sample stands in the embeddings, int64 (n,).
        counts: rows of the table, and why some were left out.
    """

    sample_ids: list[str]
    groups: list[str]
    splits: dict[str, np.ndarray]
    hard: np.ndarray
    soft: np.ndarray
    vad: np.ndarray
    vocabulary: Vocabulary
    folders: list[str]
    rows: np.ndarray
    counts: dict[str, int]
    name: str = ""
    fingerprint: str = ""
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

    def prior(self, *, soft: bool) -> np.ndarray:
        """Class rates of the training split, float32 (L,)."""
        return np.asarray((self.soft if soft else self.hard)[self.splits["train"]].mean(axis=0), dtype=np.float32)

    def mask(self, streams: Sequence[str]) -> np.ndarray:
        """Which of `streams` each sample has, bool (n, S)."""
        return np.stack([self.embeddings.mask(stream)[self.rows] for stream in streams], axis=1)

    def save(self, folder: str) -> None:
        """Writes what workers need; `load` reads it."""
        arrays = {"hard": self.hard, "soft": self.soft, "vad": self.vad, "rows": self.rows}
        arrays |= {f"split_{name}": rows for name, rows in self.splits.items()}
        storage.write_bytes(storage.join(folder, ARRAYS), save(arrays))
        meta = {
            "kind": "fusion", "sample_ids": self.sample_ids, "groups": self.groups, "counts": self.counts,
            "vocabulary": self.vocabulary.to_dict(), "features": self.folders, "name": self.name,
            "fingerprint": self.fingerprint,
        }  # fmt: skip
        storage.write_json(storage.join(folder, META), meta)

    @classmethod
    def load(cls, folder: str) -> FusionData:
        meta = storage.read_json(storage.join(folder, META))
        arrays: dict[str, np.ndarray] = load(storage.require(storage.join(folder, ARRAYS)))
        return cls(
            sample_ids=meta["sample_ids"],
            groups=meta["groups"],
            splits={name: arrays[f"split_{name}"] for name in SPLITS},
            hard=arrays["hard"],
            soft=arrays["soft"],
            vad=arrays["vad"],
            rows=arrays["rows"],
            vocabulary=Vocabulary.from_dict(meta["vocabulary"]),
            folders=meta["features"],
            counts=meta["counts"],
            name=meta["name"],
            fingerprint=meta["fingerprint"],
        )


def prepare_fusion(recipe: FusionRecipe, *, embeddings: Embeddings | None = None) -> FusionData:
    """Reads and checks what the recipe trains on.

    Raises:
        InputError: no labels, no splits, an image in two splits, embeddings of other samples or without a backbone
            that the recipe names.
    """
    path = storage.absolute(recipe.data.samples)
    table, soft, vocabulary = sample_table(path)
    opened = embeddings or Embeddings(recipe.data.embeddings)
    counts = {"rows": table.num_rows}

    def keep(known: np.ndarray, reason: str) -> None:
        nonlocal table, soft
        counts[reason] = int((~known).sum())
        table, soft = table.filter(pa.array(known)), soft[known]

    keep(np.asarray(pc.is_valid(table.column("labels"))), "without_labels")
    keep(np.asarray(pc.is_valid(table.column("split"))), "without_split")
    keep(opened.rows(table.column("sample_id").to_pylist()) >= 0, "without_embeddings")
    if not table.num_rows:
        raise InputError(
            "the embeddings are of none of the labelled samples",
            path=path,
            remedy=f"Make them from it: raymotion features embeddings {recipe.data.samples} ...",
        )
    sample_ids = table.column("sample_id").to_pylist()
    split_column = np.array(table.column("split").to_pylist())
    splits = {name: np.flatnonzero(split_column == name) for name in SPLITS}
    for name in ("train", "val"):
        if not len(splits[name]):
            raise InputError(
                f"has no sample of the split {name} with labels and embeddings",
                path=path,
                remedy="Prepare it with splits: `raymotion data prepare` does.",
            )
    hard = targets(table, vocabulary)
    vad = np.stack([np.asarray(table.column(name).to_numpy(), dtype=np.float32) for name in VAD], axis=1)
    data = FusionData(
        sample_ids=sample_ids,
        groups=table.column("group_id").to_pylist(),
        splits=splits,
        hard=hard,
        soft=soft,
        vad=vad,
        vocabulary=vocabulary,
        folders=[storage.absolute(folder) for folder in recipe.data.embeddings],
        rows=opened.rows(sample_ids),
        counts=counts,
        name=path.rstrip("/").rsplit("/", 1)[-1],
        opened=opened,
    )
    data.fingerprint = digest_of(
        [sample_ids, data.groups, split_column.tolist(), hard.astype(int).tolist(), np.round(soft, 6).tolist(),
         np.round(np.nan_to_num(vad, nan=-1.0), 4).tolist(), vocabulary.fingerprint, opened.digest]
    )  # fmt: skip
    return data


def class_counts(data: FusionData, split: str) -> Mapping[str, int]:
    """How many samples of a split have each label."""
    totals = data.hard[data.splits[split]].sum(axis=0).astype(int)
    return dict(zip(data.vocabulary.labels, totals.tolist(), strict=True))
