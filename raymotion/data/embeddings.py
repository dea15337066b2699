"""Reads the output of `raymotion features embeddings`.

The local copy has one memory-mapped array of float16 for each stream, backbone and level of augmentation, so that a
trial loads only what it uses. The layout of the parts is described in `data.embedding_layout`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.embedding_layout import (
    AUGMENTED_SPLIT,
    COMMAND,
    EmbeddingLayout,
    FeatureKey,
    FeatureShape,
    layout_of,
)
from raymotion.data.feature_store import FeatureFolder
from raymotion.data.images.marks import PictureMark
from raymotion.data.provenance import (
    BOXES,
    MADE_FROM,
    Comparison,
    require_same_boxes,
    require_same_pictures,
)
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError

__all__ = ["Embeddings", "FeatureBlock", "FeatureKey", "FeatureShape"]

ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class FeatureBlock:
    """Features of one key.

    Attributes:
        array: float16 (m, K, D) or (m, K, T, D), C-contiguous, memory-mapped, read-only. Rows are stored once: persons
            in one image share a row of context features.
        row_of: int64 (n,), position in `array` of each sample of `Embeddings.sample_ids`, or -1.
        views: number of views, K.
        dim: feature dimension, D.
    """

    array: np.ndarray
    row_of: np.ndarray
    views: int
    dim: int

    @property
    def tokens(self) -> int:
        """Number of tokens, T; 0 for pooled features."""
        return int(self.array.shape[2]) if self.array.ndim == 4 else 0


class Embeddings:
    """Features of streams by sample id, from one or several folders of embedding jobs on the same samples.

    Args:
        folders: output folders, local or addresses.
        cache: local folder for the memory-mapped copies; default `default_cache()`.

    Attributes:
        sample_ids: ids of the rows, in the order of the first folder.
        digest: 16 hex digits of the contents, independent of the location.
        keys: the available keys.
        backbones: identity of each backbone by its name in the keys.
        levels: levels of augmentation.
        views: number of views of each level.

    Raises:
        InputError: a folder is not the output of a complete embedding job, its files do not match, or the folders do
            not match: other samples, pictures or boxes, the same name for different features, or augmented views drawn
            from other seeds.
    """

    def __init__(self, folders: storage.PathLike | Sequence[storage.PathLike], *, cache: str | None = None) -> None:
        several = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
        if not several:
            raise InputError("no folder of embeddings was named", remedy=f"Make one with `{COMMAND}`.")
        sources = [_Source(folder, cache=cache) for folder in several]
        first = sources[0]
        self.sample_ids: list[str] = first.ids
        self.digest: str = first.digest if len(sources) == 1 else digest_of([source.digest for source in sources])
        self.backbones: dict[str, dict[str, Any]] = {}
        self.views: dict[str, int] = {}
        self._drawn: tuple[str, tuple[int, int]] | None = None
        self._position = {sample_id: row for row, sample_id in enumerate(self.sample_ids)}
        self._blocks: dict[FeatureKey, FeatureBlock] = {}
        self._sources = sources
        for source in sources:
            self._add(source, first)
        self.folders = tuple(source.folder for source in sources)
        self.keys: tuple[FeatureKey, ...] = tuple(self._blocks)
        self.levels: tuple[str, ...] = tuple(self.views)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._position

    def block(self, stream: str, backbone: str, level: str = "none", *, tokens: bool = False) -> FeatureBlock:
        """Returns the features of one key.

        Raises:
            InputError: they do not exist; names those that do, and the command to make them.
        """
        key = FeatureKey(stream, backbone, level, tokens)
        if key not in self._blocks:
            there = ", ".join(sorted(known.column for known in self.keys))
            augment = f" --augment {level}" if level != "none" else ""
            raise InputError(
                f"holds no features {key.column}; there are {there}",
                path=" and ".join(self.folders),
                remedy=f"Make them: `{COMMAND} SAMPLES --out DIR --{stream} {backbone}{augment}"
                + f"{' --tokens 2' if tokens else ''}`, and name both folders.",
            )
        return self._blocks[key]

    def mask(self, stream: str) -> np.ndarray:
        """Returns bool (n,): which samples have this stream; all False for a stream without features."""
        for key, block in self._blocks.items():
            if key.stream == stream and key.level == "none":
                return np.asarray(block.row_of >= 0)
        return np.zeros(len(self.sample_ids), dtype=bool)

    def rows(self, sample_ids: Iterable[str]) -> np.ndarray:
        """Returns positions in `sample_ids`, int64; -1 for a sample without embeddings."""
        return np.fromiter((self._position.get(sample_id, -1) for sample_id in sample_ids), dtype=np.int64)

    def mark(self, row: int) -> PictureMark | None:
        """Returns the mark of the picture that the features at a position were made from."""
        return self._sources[0].row_mark(row)

    def require_made_from(self, samples: pa.Table) -> Comparison:
        """Raises an `InputError` unless the features were made from the images and boxes of these samples.

        See `provenance`. Boxes are compared for the streams in the folders only.
        """
        first, *others = self._sources
        remedy = f"Use the samples that they were made from, or embed these: `{COMMAND} SAMPLES ...`."
        for source in others:  # the constructor has checked that all folders have the same pictures
            require_same_boxes(
                samples, source.made_from, source.layout.boxes, what="features", where=source.folder, remedy=remedy
            )
        return first.compare(samples, remedy=remedy, boxes=first.layout.boxes)

    def _add(self, source: _Source, first: _Source) -> None:
        """Adds the blocks of `source`, in the order of the first folder's samples."""
        order = _order(source, first)
        if source is not first:
            require_same_pictures(
                first.made_from,
                source.made_from,
                what="features",
                where=source.folder,
                remedy=f"Folders that are read together must come from one sample table, unlike {first.folder}.",
                boxes=[name for name in source.layout.boxes if name in first.layout.boxes],
            )
        for what, own, new in (
            ("backbone", self.backbones, source.layout.backbones),
            ("number of views of level", self.views, source.layout.views),
        ):
            for name in sorted(set(own) & set(new)):
                if own[name] != new[name]:
                    raise InputError(
                        f"its {what} {name} is {new[name]}, in {first.folder} it is {own[name]}",
                        path=source.folder,
                        remedy="Use one of the folders, or make this one again with the same settings.",
                    )
        if (drawn := source.layout.drawn_by) is not None:
            where, earlier = self._drawn or (source.folder, drawn)
            if drawn != earlier:
                # Views are shared by all streams: with other seeds, context and body would not be mirrored together.
                raise InputError(
                    f"its augmented views are of seed {drawn[0]} (renderer {drawn[1]}), those of {where} of seed "
                    f"{earlier[0]} (renderer {earlier[1]}), and a view must be the same in all streams",
                    path=source.folder,
                    remedy=f"Make this folder anew with --seed {earlier[0]}."
                    if drawn[1] == earlier[1]
                    else "Make both folders anew with this version of raymotion.",
                )
            self._drawn = (where, earlier)
        self.backbones.update({name: dict(identity) for name, identity in source.layout.backbones.items()})
        self.views.update(source.layout.views)
        for number, (key, shape) in enumerate(source.layout.shapes.items()):
            if key in self._blocks:
                raise InputError(
                    f"holds {key.column}, as {first.folder} does", path=source.folder, remedy="Name one of them."
                )
            row_of = source.row_of(number)
            if source is not first:
                row_of = row_of[order]
            present: np.ndarray = row_of >= 0
            if key.level == "none" and (known := self.mask(key.stream)).any() and not np.array_equal(known, present):
                raise InputError(
                    f"{int(present.sum())} of its samples have a {key.stream}, "
                    f"in {first.folder} {int(known.sum())} others",
                    path=source.folder,
                    remedy="Make both from one sample table.",
                )
            self._blocks[key] = FeatureBlock(source.array(number), row_of, shape.views, shape.dim)


class _Source(FeatureFolder):
    """One folder: its layout, ids and local copy."""

    kind, job, command = "embeddings", "embedding job", COMMAND
    made_from_columns = (*MADE_FROM, *BOXES)

    def __init__(self, folder: storage.PathLike, *, cache: str | None = None) -> None:
        super().__init__(folder, cache=cache)
        self.ids: list[str] = self.made_from.column("sample_id").to_pylist()

    @property
    def layout(self) -> EmbeddingLayout:
        layout: EmbeddingLayout = self.description
        return layout

    def row_of(self, number: int) -> np.ndarray:
        """Returns `row_of` for the key with this number."""
        return np.asarray(np.load(self.local / f"rows-{number}.npy", allow_pickle=False))

    def array(self, number: int) -> np.ndarray:
        """Returns the stored rows of the key with this number."""
        shape = (self.index["counts"][number], *list(self.layout.shapes.values())[number].of_sample)
        if not shape[0]:  # an empty file cannot be mapped
            return np.zeros(shape, dtype=np.float16)
        return np.memmap(self.local / f"features-{number}.bin", dtype=np.float16, mode="r", shape=shape)

    def describe(self, schema: pa.Schema, path: str) -> EmbeddingLayout:
        return layout_of(schema, path)

    def identity(self) -> list[Any]:
        return [self.layout.to_dict()]

    def copy(self, parts: Iterator[tuple[str, pq.ParquetFile]], rows: int, place: Path) -> Mapping[str, Any]:
        keys = list(self.layout.shapes)
        counts, places = [0] * len(keys), [[np.zeros(0, np.int64)] for _ in keys]
        for path, parquet in parts:
            part = parquet.read(columns=["sample_id", "split", "context_of"]).to_pydict()
            for number, key in enumerate(keys):
                with open(place / f"features-{number}.bin", "ab") as out:
                    has = _append(parquet, key.column, out, path)
                stored = np.where(has, counts[number] + np.cumsum(has) - 1, -1)
                counts[number] += int(has.sum())
                places[number].append(_resolve(key, stored, part, path))
        for number, several in enumerate(places):
            np.save(place / f"rows-{number}.npy", np.concatenate(several).astype(np.int64))
        return {"counts": counts}


def _order(source: _Source, first: _Source) -> np.ndarray:
    """Returns the position in `source` of each sample of `first`, int64."""
    if source is first:
        return np.arange(len(first.ids))
    own, new = set(first.ids), set(source.ids)
    if own != new:
        raise InputError(
            f"holds {len(new)} samples, {first.folder} holds {len(own)}, and {len(own & new)} are in both",
            path=source.folder,
            remedy="Folders that are read together must be made from one sample table.",
        )
    position = {sample_id: row for row, sample_id in enumerate(source.ids)}
    return np.fromiter((position[sample_id] for sample_id in first.ids), dtype=np.int64)


def _append(parquet: pq.ParquetFile, column: str, out: Any, path: str) -> np.ndarray:
    """Appends the rows of `column` that are not null to `out`; returns which they are, bool (rows,)."""
    has = [np.zeros(0, bool)]
    for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=[column]):
        lists = batch.column(0)
        has.append(lists.is_valid().to_numpy(zero_copy_only=False))
        values = lists.flatten()  # skips null lists
        if values.null_count:
            raise InputError(f"column {column} has a null within a feature", path=path)
        if storage.first_not_finite(pa.chunked_array([values])) is not None:
            raise InputError(f"column {column} holds NaN or infinity", path=path, remedy="Make the embeddings again.")
        out.write(np.ascontiguousarray(values.to_numpy(zero_copy_only=False), dtype=np.float16).tobytes())
    return np.concatenate(has)


def _resolve(key: FeatureKey, stored: np.ndarray, part: Mapping[str, list[Any]], path: str) -> np.ndarray:
    """Returns where each row of a part finds its features: context features are stored once for each image."""
    rows = stored
    if key.stream == STREAMS[0]:
        place = {sample_id: row for row, sample_id in enumerate(part["sample_id"])}
        holders = part["context_of"]
        lost = next((holder for holder in holders if holder is not None and holder not in place), None)
        if lost is not None:
            raise InputError(f"context_of names {lost!r}, which is not in this part", path=path)
        rows = np.array([-1 if holder is None else stored[place[holder]] for holder in holders], dtype=np.int64)
    if key.level != "none":  # a validation person may share an image with a training person
        rows = np.where([split == AUGMENTED_SPLIT for split in part["split"]], rows, -1)
    return rows
