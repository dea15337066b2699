"""Reads the region features that a `raymotion features` job wrote.

The job's Parquet parts are copied once into one memory-mapped array of float16, so that every epoch of every training
run takes any sample's regions in any order without reading, decompressing or holding the rest. The copy goes by what
the parts hold, not by where they lie: a folder that was moved is not copied again, one that was extracted anew is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymotion import records, storage
from raymotion.config import digest_of
from raymotion.data.images.marks import PictureMark
from raymotion.data.parts import VERIFY, FileMark, complete_job, open_part, part_marks
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import (
    MADE_FROM,
    MADE_FROM_COLUMNS,
    Comparison,
    begun_at,
    require_columns,
    require_same_pictures,
)
from raymotion.errors import AccessDenied, Damaged, InputError
from raymotion.stores.local_files import reserve

METADATA_KEY = b"raymotion.regions"
ROWS_AT_A_TIME = 256
INDEX = "index.json"
EDGE_BYTES = 1 << 16
# Which sample each row of a copy is, and what it was made from.
ROWS = "rows.parquet"
COPIED = ["sample_id", *MADE_FROM_COLUMNS]
COPIED_SCHEMA = pa.schema([pa.field("sample_id", pa.string()), *MADE_FROM])
AGAIN = "Make it again with `raymotion features regions`."


def default_cache() -> str:
    """The folder for local copies: `$XDG_CACHE_HOME/raymotion`, or `~/.cache/raymotion`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "raymotion")


class RegionFeatures:
    """Region features by sample id.

    Args:
        folder: output of a features job, local or an address.
        cache: local folder for the memory-mapped copy; default `default_cache()`.

    Attributes:
        extractor: {"name", "weights", "count", "dim"} of what made the features.
        count, dim: regions per image N, and their size D.
        digest: 16 hex digits that change when any part does; the same wherever the folder lies.
        made_from: sample_id, image_uri, image_bytes and image_digest of each row: the picture that it was made from.

    Raises:
        InputError: no features job wrote the folder, the job is not complete, or its files do not fit each other.
    """

    def __init__(self, folder: storage.PathLike, *, cache: str | None = None) -> None:
        self.folder = storage.absolute(folder)
        other = wrong_kind(self.folder, "regions")
        if other is not None:
            raise other
        job = complete_job(self.folder, None, what="features job", command="raymotion features regions")
        parts = part_marks(self.folder)
        if not parts:
            raise InputError("holds no part-*.parquet", path=self.folder)
        self._begun = begun_at(job)
        self.extractor, rows = self._survey(parts)
        self.count, self.dim = int(self.extractor["count"]), int(self.extractor["dim"])
        self.digest = digest_of([self.extractor, rows, parts_digest(self.folder, parts)])
        self._local = Path(cache or default_cache()) / "regions" / self.digest
        try:
            self._open()
        except Damaged:
            # All workers of a machine come here at once: one makes the copy, the others wait for it.
            with locked(self._local.with_name(f"{self.digest}.lock")):
                try:
                    self._open()
                except Damaged:
                    self._build(rows, parts)
                    self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._rows

    def get(self, sample_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, N, D) float32 and mask (n, N) bool; an id without any (its image failed) is all masked."""
        features = np.zeros((len(sample_ids), self.count, self.dim), dtype=np.float32)
        mask = np.zeros((len(sample_ids), self.count), dtype=bool)
        for position, sample_id in enumerate(sample_ids):
            row = self._rows.get(sample_id)
            if row is not None:
                features[position] = self._features[row]
                mask[position] = self._mask[row]
        return features, mask

    def mark(self, sample_id: str) -> PictureMark | None:
        """What the bytes of the picture are known by that the features were made from."""
        row = self._rows.get(sample_id)
        if row is None:
            return None
        size, digest = (self.made_from.column(name)[row].as_py() for name in ("image_bytes", "image_digest"))
        return None if size is None or digest is None else PictureMark(size, digest)

    def require_made_from(self, samples: pa.Table) -> Comparison:
        """Raises an `InputError` unless the features were made from the pictures of these samples (`provenance`)."""
        return require_same_pictures(
            samples,
            self.made_from,
            what="features",
            where=self.folder,
            remedy="Use the samples that they were made from, or extract these: `raymotion features regions SAMPLES`.",
            since=self._begun,
        )

    def _survey(self, parts: Iterable[str]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
        extractor: dict[str, Any] | None = None
        rows = []
        for name in parts:
            path = storage.join(self.folder, name)
            with storage.open_parquet(path, remedy=VERIFY) as parquet:
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
            own = _extractor(schema, path)
            if extractor is not None and own != extractor:
                raise InputError(f"was made by {own}, the other parts by {extractor}", path=path)
            extractor = own
            rows.append((name, count))
        assert extractor is not None
        return extractor, rows

    def _build(self, rows: list[tuple[str, int]], parts: Mapping[str, list[FileMark]]) -> None:
        """Copies all parts into a folder of its own, then renames it: a copy that a crash cut off is never read."""
        total = sum(count for _, count in rows)
        with storage.explained(self._local, "write the cache"), new_copy(self._local) as temporary:
            shape = (total, self.count, self.dim)
            features = np.lib.format.open_memmap(temporary / "features.npy", mode="w+", dtype=np.float16, shape=shape)
            reserve(temporary / "features.npy")
            mask = np.zeros((total, self.count), dtype=bool)
            made_from = [COPIED_SCHEMA.empty_table()]
            count = 0
            for name, marks in parts.items():
                with open_part(self.folder, name, marks) as parquet:
                    for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=[*COPIED, "features", "mask"]):
                        here = slice(count, count + batch.num_rows)
                        count += batch.num_rows
                        features[here] = _matrix(batch.column("features")).reshape(-1, self.count, self.dim)
                        mask[here] = _matrix(batch.column("mask"))
                        bad = storage.first_not_finite(pa.chunked_array([batch.column("features")]))
                        if bad is not None:
                            raise InputError(
                                f"features hold NaN or infinity (sample {batch.column('sample_id')[bad]})",
                                path=storage.join(self.folder, name),
                                remedy="Extract them again: such a picture goes to quarantine.",
                            )
                        made_from.append(pa.Table.from_batches([batch.select(COPIED)]).cast(COPIED_SCHEMA))
            table = pa.concat_tables(made_from)
            if pc.count_distinct(table.column("sample_id")).as_py() != table.num_rows:
                raise InputError("a sample_id appears twice", path=self.folder)
            features.flush()
            np.save(temporary / "mask.npy", mask)
            pq.write_table(table, temporary / ROWS)
            write_index(temporary, {})

    def _open(self) -> None:
        """Raises Damaged where there is no copy, or its files are not those that were made."""
        read_index(self._local)
        self.made_from = pq.read_table(self._local / ROWS)
        self._rows = {sample_id: row for row, sample_id in enumerate(self.made_from.column("sample_id").to_pylist())}
        self._mask = np.load(self._local / "mask.npy", allow_pickle=False)
        self._features = np.load(self._local / "features.npy", mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def new_copy(place: Path) -> Iterator[Path]:
    """A folder to build a local copy in; it becomes `place` at the end of the block, and nothing where that fails."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(place)
        except OSError:  # something is there: what another machine with the same cache made meanwhile, or a damaged one
            try:
                read_index(place)
            except Damaged:
                shutil.rmtree(place, ignore_errors=True)
                temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes index.json of a copy that is complete otherwise: last, and sealed, with size and edges of each file."""
    files = {path.name: _file_mark(path) for path in sorted(folder.iterdir())}
    records.write_record(folder / INDEX, {**index, "files": files})


def read_index(folder: Path) -> dict[str, Any]:
    """What `write_index` wrote.

    Raises:
        Damaged: there is no copy, or its files have other sizes or other edges.
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
    """Size of a file, and a digest of its first and last bytes: cheap for files that are mapped, not read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return [size, hashlib.sha256(head + file.read()).hexdigest()]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process of this machine holds `path`. A process that dies lets go of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        raise AccessDenied("may not write the cache", path=path, remedy="Set XDG_CACHE_HOME.") from error
    try:
        # A file system without locks: then each process makes a copy, and the first one stands.
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def features_digest(folder: storage.PathLike) -> str:
    """16 hex digits of what the parts of a features job hold, wherever the folder lies.

    Made of the SHA-256 of each part: as the job wrote it down, or of the file where there is no such record.

    Raises:
        Damaged: a part is missing, or has another size than was committed.
    """
    return parts_digest(folder, part_marks(folder))


def parts_digest(folder: storage.PathLike, parts: Mapping[str, list[FileMark]]) -> str:
    """`features_digest` of parts whose marks are known."""

    def digest(part: str) -> str:
        marks = parts[part]
        return marks[0].sha256 if marks else storage.sha256_file(storage.join(folder, part))

    with ThreadPoolExecutor(16) as pool:  # object stores answer slowly, but many at once
        return digest_of(list(pool.map(digest, parts)))


def _extractor(schema: pa.Schema, path: str) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise InputError("does not say which extractor made it", path=path, remedy="Make it with `raymotion features`.")
    require_columns(schema, path, remedy=AGAIN)
    try:
        extractor = dict(json.loads(raw))
        size = int(extractor["count"]) * int(extractor["dim"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its description of the features is damaged ({error!r})", path=path, remedy=VERIFY) from error
    for name, wanted in (("features", size), ("mask", int(extractor["count"]))):
        if name not in schema.names:
            raise InputError(f"has no column {name}", path=path)
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != wanted:
            raise InputError(f"column {name} is {kind}, not a list of {wanted}", path=path)
    return dict(extractor)


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """Rows of a fixed-size-list column as a matrix, without a detour over Python objects."""
    width = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
