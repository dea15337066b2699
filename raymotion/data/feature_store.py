"""Memory-mapped local copies of features that are computed once and read many times.

A copy (`folders.local_copy`) is a folder in the cache, named after a digest of its content, not of its origin.

Region features (`data.features`), stream features (`data.embeddings`) and decoded images
(`train.pictures.cache_pictures`) use such copies. The first two are copied from the Parquet parts of a finished job
(`FeatureFolder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.images.marks import PictureMark
from raymotion.data.parts import VERIFY, FileMark, complete_job, open_part, part_marks
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import MADE_FROM, Comparison, begun_at, require_same_pictures
from raymotion.errors import InputError
from raymotion.folders.local_copy import default_cache, local_copy

# File with the pictures that the rows of a copy were made from.
ROWS = "rows.parquet"


class FeatureFolder(ABC):
    """The features of a finished job, and their local copy, which is made on demand.

    Args:
        folder: output of the job, local or an address.
        cache: local folder for the copies; default `default_cache()`.

    Attributes:
        description: contents of the parts, from their metadata.
        digest: 16 hex digits of the contents, independent of the location.
        part_rows: name and number of rows of each part, in order.
        local, index: folder and index of the copy.
        made_from: sample_id and the columns `made_from_columns` of each row, in order.

    Raises:
        InputError: the folder is not the output of a complete job of this kind, or its files do not match.
    """

    kind: ClassVar[Literal["regions", "embeddings"]]
    job: ClassVar[str]
    command: ClassVar[str]
    made_from_columns: ClassVar[tuple[pa.Field, ...]] = MADE_FROM

    def __init__(self, folder: storage.PathLike, *, cache: str | None = None) -> None:
        self.folder = storage.absolute(folder)
        self._begun = begun_at(require_features(self.folder, self.kind, what=self.job, command=self.command))
        self._marks = part_marks(self.folder)
        if not self._marks:
            raise InputError("holds no parts", path=self.folder)
        self.description: Any = None
        self.part_rows: list[tuple[str, int]] = []
        for name in self._marks:
            path = storage.join(self.folder, name)
            with storage.open_parquet(path, remedy=VERIFY) as parquet:
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
            own = self.describe(schema, path)
            if self.part_rows and own != self.description:
                raise InputError(
                    f"holds other features than {self.part_rows[0][0]}",
                    path=path,
                    remedy=f"Make the folder again with `{self.command}`.",
                )
            self.description = own
            self.part_rows.append((name, count))
        self.digest = digest_of([*self.identity(), parts_digest(self.folder, self._marks)])
        self.local = Path(cache or default_cache()) / self.kind / self.digest
        self.index = local_copy(self.local, self._build)
        self.made_from = pq.read_table(self.local / ROWS)

    @abstractmethod
    def describe(self, schema: pa.Schema, path: str) -> Any:
        """Returns the contents of a part, which must be equal for all parts of a folder.

        Raises:
            InputError: the part does not hold such features.
        """

    @abstractmethod
    def identity(self) -> list[Any]:
        """Returns values for the digest besides the digests of the parts."""

    @abstractmethod
    def copy(self, parts: Iterator[tuple[str, pq.ParquetFile]], rows: int, place: Path) -> Mapping[str, Any]:
        """Writes the features of the parts to files in `place`; returns additional values for the index.

        Args:
            parts: opened parts with their paths.
            rows: total number of rows.
        """

    def _build(self, place: Path) -> Mapping[str, Any]:
        schema = pa.schema([pa.field("sample_id", pa.string()), *self.made_from_columns])
        tables = [schema.empty_table()]

        def parts() -> Iterator[tuple[str, pq.ParquetFile]]:
            for name, marks in self._marks.items():
                with open_part(self.folder, name, marks) as parquet:
                    tables.append(parquet.read(columns=schema.names).select(schema.names).cast(schema))
                    yield storage.join(self.folder, name), parquet

        index = self.copy(parts(), sum(count for _, count in self.part_rows), place)
        table = pa.concat_tables(tables)
        if pc.count_distinct(table.column("sample_id")).as_py() != table.num_rows:
            raise InputError("a sample_id appears twice", path=self.folder)
        pq.write_table(table, place / ROWS)
        return index

    def row_mark(self, row: int) -> PictureMark | None:
        """Returns size and digest of the picture that a row was made from; None if not recorded."""
        size, digest = (self.made_from.column(name)[row].as_py() for name in ("image_bytes", "image_digest"))
        return None if size is None or digest is None else PictureMark(size, digest)

    def compare(self, samples: pa.Table, *, remedy: str, boxes: tuple[str, ...] = ()) -> Comparison:
        """Compares the features with `samples`; see `provenance.require_same_pictures`."""
        return require_same_pictures(
            samples, self.made_from, what="features", where=self.folder, remedy=remedy, boxes=boxes, since=self._begun
        )


def require_features(
    folder: storage.PathLike, kind: Literal["regions", "embeddings"], *, what: str, command: str
) -> dict[str, Any]:
    """Returns the record of a complete features job; raises an `InputError` with the command to run."""
    other = wrong_kind(folder, kind)
    if other is not None:
        raise other
    return complete_job(folder, None, what=what, command=command)


def features_digest(folder: storage.PathLike) -> str:
    """Returns 16 hex digits of the contents of a features job, independent of its location.

    They are computed from the SHA-256 of each part, as committed, or of the file if there is no commit.

    Raises:
        Damaged: a part is missing, or differs in size from the commit.
    """
    return parts_digest(folder, part_marks(folder))


def parts_digest(folder: storage.PathLike, parts: Mapping[str, list[FileMark]]) -> str:
    """Returns the `features_digest` of parts with known marks."""

    def digest(part: str) -> str:
        marks = parts[part]
        return marks[0].sha256 if marks else storage.sha256_file(storage.join(folder, part))

    with ThreadPoolExecutor(16) as pool:  # object stores are slow, but serve many requests at once
        return digest_of(list(pool.map(digest, parts)))


def feature_column(values: np.ndarray, kind: pa.FixedSizeListType, missing: np.ndarray | None = None) -> pa.Array:
    """Converts features (n, ...) to a column of flat fixed-size lists; rows with `missing`, bool (n,), become null."""
    flat = np.ascontiguousarray(values).reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False)
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind, mask=mask)


def feature_matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """Converts the rows of such a column that are not null to a matrix, without Python objects."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
