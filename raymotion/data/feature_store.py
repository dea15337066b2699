"""Memory-mapped local copies of features that are computed once and read many times.

A copy is a folder in the cache, named after a digest of its content, not of its origin. One process builds it in a
temporary folder and renames it, while the others wait; an incomplete copy is never read. The index stores the size of
each file and a digest of its first and last bytes.

Region features (`data.features`), stream features (`data.embeddings`) and decoded images
(`train.pictures.cache_pictures`) use such copies. The first two are copied from the Parquet parts of a finished job
(`FeatureFolder`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymotion import records, storage
from raymotion.config import digest_of
from raymotion.data.images.marks import PictureMark
from raymotion.data.parts import VERIFY, FileMark, complete_job, open_part, part_marks
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import MADE_FROM, Comparison, begun_at, require_same_pictures
from raymotion.errors import AccessDenied, Damaged, InputError

INDEX = "index.json"
# Provenance of each row of a copy.
ROWS = "rows.parquet"
EDGE_BYTES = 1 << 16


def default_cache() -> str:
    """Returns the default cache folder: `$XDG_CACHE_HOME/raymotion`, or `~/.cache/raymotion`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "raymotion")


def local_copy(place: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the index of the copy in the folder `place`; builds the copy if it is missing or damaged.

    Args:
        build: writes all files of a copy into an empty folder and returns further entries of the index.

    Raises:
        AccessDenied, DiskFull: the cache cannot be written. Errors of `build` also pass through; nothing is left then.
    """
    with contextlib.suppress(Damaged):
        return _read_index(place)
    # All processes of a machine arrive here at once: one makes the copy, the others wait for it.
    with storage.explained(place.parent, "write the cache"), _locked(place.with_name(f"{place.name}.lock")):
        with contextlib.suppress(Damaged):
            return _read_index(place)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir()
        try:
            index = build(temporary)
            files = {path.name: _file_mark(path) for path in sorted(temporary.iterdir())}
            records.write_record(temporary / INDEX, {**index, "files": files})
            _rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _read_index(place)


def _rename(temporary: Path, place: Path) -> None:
    try:
        temporary.rename(place)
    except OSError:  # exists: another machine with the same cache made it meanwhile, or it is damaged
        try:
            _read_index(place)
        except Damaged:
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)


def _read_index(folder: Path) -> dict[str, Any]:
    """Returns the index of a copy.

    Raises:
        Damaged: there is no copy, or a file differs in size, first bytes or last bytes.
    """
    if not (folder / INDEX).exists():
        raise Damaged("is not there", path=folder)
    index = records.read_record(folder / INDEX, needs_seal=True)
    for name, mark in index["files"].items():
        try:
            found = _file_mark(folder / name)
        except OSError as error:
            raise Damaged("is missing", path=folder / name) from error
        if found != mark:
            raise Damaged("is not what was written", path=folder / name)
    return index


def _file_mark(path: Path) -> list[Any]:
    """Returns the size of a file and a digest of its first and last bytes, without reading the rest."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return [size, hashlib.sha256(head + file.read()).hexdigest()]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock on `path` among processes of this machine. The kernel releases it if the process dies."""
    from filelock import FileLock

    lock = FileLock(path, mode=0o666, fallback_to_soft=False, thread_local=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except PermissionError as error:
        raise AccessDenied("may not write the cache", path=path, remedy="Set XDG_CACHE_HOME.") from error
    except OSError:  # a file system without locks: each process makes a copy, and the first one is kept
        yield
        return
    try:
        yield
    finally:
        lock.release()


class FeatureFolder(ABC):
    """The features of a finished job, read through a local copy that is made on first use.

    Args:
        folder: output of the job, local or an address.
        cache: local folder for the copies; default `default_cache()`.

    Attributes:
        description: description of the features from the parts' metadata.
        digest: 16 hex digits that depend on the content of the parts, not on the folder's location.
        part_rows: name and number of rows of each part, in order.
        local, index: folder and index of the copy.
        made_from: sample_id and the columns `made_from_columns` of each row, in the order of the rows.

    Raises:
        InputError: the folder is not from such a job, the job is not complete, or its files are inconsistent.
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
        """Returns the description of a part's features, which must be equal for all parts of a folder.

        Raises:
            InputError: the part does not hold such features.
        """

    @abstractmethod
    def identity(self) -> list[Any]:
        """Returns the values that enter the digest before the parts' digests."""

    @abstractmethod
    def copy(self, parts: Iterator[tuple[str, pq.ParquetFile]], rows: int, place: Path) -> Mapping[str, Any]:
        """Copies the features of the parts to files in `place`; returns entries for the index.

        Args:
            parts: path and open file of each part.
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
        """Returns size and digest of the image file that a row was made from; None if not recorded."""
        size, digest = (self.made_from.column(name)[row].as_py() for name in ("image_bytes", "image_digest"))
        return None if size is None or digest is None else PictureMark(size, digest)

    def compare(self, samples: pa.Table, *, remedy: str, boxes: tuple[str, ...] = ()) -> Comparison:
        """Raises unless the features were made from these samples; see `provenance.require_same_pictures`."""
        return require_same_pictures(
            samples, self.made_from, what="features", where=self.folder, remedy=remedy, boxes=boxes, since=self._begun
        )


def require_features(
    folder: storage.PathLike, kind: Literal["regions", "embeddings"], *, what: str, command: str
) -> dict[str, Any]:
    """Returns the _job.json of a complete features job, or raises an `InputError` that names the command to run."""
    other = wrong_kind(folder, kind)
    if other is not None:
        raise other
    return complete_job(folder, None, what=what, command=command)


def features_digest(folder: storage.PathLike) -> str:
    """Returns 16 hex digits that identify the content of a features folder, independent of its location.

    Computed from the SHA-256 of each part: the committed one, or that of the file if there are no commits.

    Raises:
        Damaged: a part is missing, or its size differs from the committed size.
    """
    return parts_digest(folder, part_marks(folder))


def parts_digest(folder: storage.PathLike, parts: Mapping[str, list[FileMark]]) -> str:
    """Computes `features_digest` from parts with known marks."""

    def digest(part: str) -> str:
        marks = parts[part]
        return marks[0].sha256 if marks else storage.sha256_file(storage.join(folder, part))

    with ThreadPoolExecutor(16) as pool:  # object stores answer slowly, but many at once
        return digest_of(list(pool.map(digest, parts)))


def feature_column(values: np.ndarray, kind: pa.FixedSizeListType, missing: np.ndarray | None = None) -> pa.Array:
    """Converts features (n, ...) to a column of flat fixed-size lists; rows where `missing`, bool (n,), are null."""
    flat = np.ascontiguousarray(values).reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False)
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind, mask=mask)


def feature_matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """Converts such a column without nulls to a matrix, without creating Python objects."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
