"""Reads the output of `raymotion features regions`.

The local copy is one memory-mapped array of float16, so that the regions of any sample can be read in any order
without decompressing or loading the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymotion import storage
from raymotion.data.feature_store import FeatureFolder, feature_matrix
from raymotion.data.images.marks import PictureMark
from raymotion.data.parts import VERIFY
from raymotion.data.provenance import Comparison, require_columns
from raymotion.errors import Damaged, InputError
from raymotion.stores.local_files import reserve

METADATA_KEY = b"raymotion.regions"
COMMAND = "raymotion features regions"
ROWS_AT_A_TIME = 256


class RegionFeatures(FeatureFolder):
    """Region features by sample id; see `FeatureFolder` for arguments and errors."""

    kind, job, command = "regions", "features job", COMMAND

    def __init__(self, folder: storage.PathLike, *, cache: str | None = None) -> None:
        super().__init__(folder, cache=cache)
        self._rows = {sample_id: row for row, sample_id in enumerate(self.made_from.column("sample_id").to_pylist())}
        self._mask = np.load(self.local / "mask.npy", allow_pickle=False)
        self._features = np.load(self.local / "features.npy", mmap_mode="r", allow_pickle=False)

    @property
    def extractor(self) -> dict[str, Any]:
        """{"name", "weights", "count", "dim"} of the extractor."""
        return dict(self.description)

    @property
    def count(self) -> int:
        """The number of regions per image, N."""
        return int(self.description["count"])

    @property
    def dim(self) -> int:
        """The length of the feature of a region, D."""
        return int(self.description["dim"])

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._rows

    def get(self, sample_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns features (n, N, D) float32 and mask (n, N) bool, all False for an id without features."""
        features = np.zeros((len(sample_ids), self.count, self.dim), dtype=np.float32)
        mask = np.zeros((len(sample_ids), self.count), dtype=bool)
        for position, sample_id in enumerate(sample_ids):
            row = self._rows.get(sample_id)
            if row is not None:
                features[position] = self._features[row]
                mask[position] = self._mask[row]
        return features, mask

    def mark(self, sample_id: str) -> PictureMark | None:
        """Returns size and digest of the picture that a sample's features were made from, if known."""
        row = self._rows.get(sample_id)
        return None if row is None else self.row_mark(row)

    def require_made_from(self, samples: pa.Table) -> Comparison:
        """Raises an `InputError` unless the features were made from the images of these samples (`provenance`)."""
        remedy = f"Use the samples that they were made from, or extract these: `{COMMAND} SAMPLES`."
        return self.compare(samples, remedy=remedy)

    def identity(self) -> list[Any]:
        return [self.description, self.part_rows]

    def copy(self, parts: Iterator[tuple[str, pq.ParquetFile]], rows: int, place: Path) -> Mapping[str, Any]:
        shape = (rows, self.count, self.dim)
        features = np.lib.format.open_memmap(place / "features.npy", mode="w+", dtype=np.float16, shape=shape)
        reserve(place / "features.npy")
        mask = np.zeros(shape[:2], dtype=bool)
        done = 0
        for path, parquet in parts:
            for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=["sample_id", "features", "mask"]):
                here = slice(done, done + batch.num_rows)
                done += batch.num_rows
                features[here] = feature_matrix(batch.column("features")).reshape(-1, *shape[1:])
                mask[here] = feature_matrix(batch.column("mask"))
                bad = storage.first_not_finite(pa.chunked_array([batch.column("features")]))
                if bad is not None:
                    raise InputError(
                        f"features hold NaN or infinity (sample {batch.column('sample_id')[bad]})",
                        path=path,
                        remedy="Extract them again: such a picture goes to quarantine.",
                    )
        features.flush()
        np.save(place / "mask.npy", mask)
        return {}

    def describe(self, schema: pa.Schema, path: str) -> dict[str, Any]:
        raw = (schema.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise InputError(
                "does not say which extractor made it", path=path, remedy="Make it with `raymotion features`."
            )
        require_columns(schema, path, remedy=f"Make it again with `{COMMAND}`.")
        try:
            extractor = dict(json.loads(raw))
            size = int(extractor["count"]) * int(extractor["dim"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(
                f"its description of the features is damaged ({error!r})", path=path, remedy=VERIFY
            ) from error
        for name, wanted in (("features", size), ("mask", int(extractor["count"]))):
            if name not in schema.names:
                raise InputError(f"has no column {name}", path=path)
            kind = schema.field(name).type
            if not pa.types.is_fixed_size_list(kind) or kind.list_size != wanted:
                raise InputError(f"column {name} is {kind}, not a list of {wanted}", path=path)
        return dict(extractor)
