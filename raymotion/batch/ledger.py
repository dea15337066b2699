"""The books of one output folder: what is planned, what is committed, which rows kill their worker.

    OUT/_job.json                   settings, input, counts, throughput; OUT/__job.json is a second copy
    OUT/data/part-00012.parquet     good rows of shard 12
    OUT/_quarantine/part-00012.pq   rows of shard 12 that failed, if any
    OUT/_manifest.pq                the sample table of the job, one row group for each shard
    OUT/_commits/part-00012.json    written last: shard 12 is done
    OUT/_attempts/RUN/part-00012.json   shard 12 was begun in this run; which row was under way when its worker died

`raymotion.data.parts` says why the files have these names.
A shard is a fixed range of rows (of whole images, where a job works on the rows of one image together), so the same
input and settings give the same files, whatever happened on the way.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymotion import records, storage
from raymotion.data.parts import COMMIT, COMMITS, FileMark, part_name
from raymotion.errors import Damaged, InputError, SettingsMismatch

# In a commit's tally and in the counts of the job's record: good rows whose picture is damaged (`--damaged keep`).
DAMAGED_KEPT = "damaged_kept"
MANIFEST, ATTEMPTS = "_manifest.pq", "_attempts"
AGAIN = "Run the same command again: it rewrites the file."
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def default_shard_rows(rows: int, most: int = 256, *, remote: bool = False) -> int:
    """Rows of a shard: about 64 shards, so that the workers end together, between 8 and `most` rows each.

    Args:
        remote: the output lies in an object store, where each shard costs three requests: half as many shards.
    """
    return max(8, min(most, -(-rows // (32 if remote else 64))))


def shard_name(index: int) -> str:
    """`part-00012` for shard 12."""
    return f"part-{index:05d}"


def by_image(samples: pa.Table) -> pa.Table:
    """The rows ordered so that those of one image follow each other; images in the order in which they first appear."""
    uris = samples.column("image_uri").to_pylist()
    first: dict[str, int] = {}
    places = [row if uri is None else first.setdefault(uri, row) for row, uri in enumerate(uris)]
    return samples.take(pa.array(np.argsort(places, kind="stable")))


def shard_starts(samples: pa.Table, rows_per_shard: int, *, keep_images_together: bool = False) -> list[int]:
    """First rows of the shards: every `rows_per_shard` rows, or as many whole images as have no more rows than that.

    Args:
        keep_images_together: rows of one image, which follow each other (`by_image`), share a shard. One image of more
            than `rows_per_shard` rows makes a larger shard.
    """
    if not keep_images_together:
        return list(range(0, samples.num_rows, rows_per_shard))
    uris = samples.column("image_uri").to_pylist()
    images = [row for row, uri in enumerate(uris) if not row or uri is None or uri != uris[row - 1]]
    starts: list[int] = []
    for row, end in zip(images, [*images[1:], len(uris)], strict=True):
        if not starts or end - starts[-1] > rows_per_shard:
            starts.append(row)
    return starts


def shard_sizes(samples: pa.Table, rows_per_shard: int, *, keep_images_together: bool = False) -> list[int]:
    """Rows of each shard."""
    starts = shard_starts(samples, rows_per_shard, keep_images_together=keep_images_together)
    return [end - start for start, end in zip(starts, [*starts[1:], samples.num_rows], strict=True)]


def write_manifest(folder: str, samples: pa.Table, sizes: Sequence[int]) -> bool:
    """Writes the sample table with one row group for each shard, unless that is what is there.

    Args:
        sizes: rows of each shard.

    Returns:
        whether another file, a damaged one perhaps, was there.
    """
    buffer = io.BytesIO()
    start = 0
    with pq.ParquetWriter(buffer, samples.schema, compression="zstd", write_page_checksum=True) as writer:
        for size in sizes:
            writer.write_table(samples.slice(start, size), row_group_size=size)
            start += size
    data, path = buffer.getvalue(), storage.join(folder, MANIFEST)
    there = None
    with contextlib.suppress(FileNotFoundError):
        there = storage.read_bytes(path)
    if there != data:
        storage.write_bytes(path, data)
    return there is not None and there != data


class Manifest:
    """Rows of a shard, read from the manifest when they are needed.

    Args:
        folder: output folder of the job.
        columns: what a row holds besides sample_id, image_uri and captions.
    """

    def __init__(self, folder: str, columns: Sequence[str] = ()) -> None:
        self.columns = ["sample_id", "image_uri", "captions", *columns]
        self.path = storage.join(folder, MANIFEST)
        with storage.parquet_explained(self.path, remedy=AGAIN):
            source: Any = storage.absolute(self.path)
            if storage.is_remote(self.path):  # one small download instead of several range requests a shard
                source = pa.BufferReader(storage.read_bytes(self.path))
            try:
                self._file = pq.ParquetFile(source, memory_map=True, page_checksum_verification=True)
            except FileNotFoundError as error:
                raise Damaged("is missing", path=self.path, remedy=AGAIN) from error

    def shard_sizes(self) -> list[int]:
        """Rows of each shard."""
        metadata = self._file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def rows(self, shard: int) -> list[dict[str, Any]]:
        """The rows of one shard, as mappings of `columns`."""
        if shard >= self._file.metadata.num_row_groups:
            raise Damaged(f"has no rows of {shard_name(shard)}", path=self.path, remedy=AGAIN)
        with storage.parquet_explained(self.path, remedy=AGAIN):
            return self._file.read_row_group(shard, columns=self.columns, use_threads=False).to_pylist()


@dataclass(frozen=True)
class Commit:
    """One finished shard: its counts, the digests of its files, and what it took.

    `good + quarantined == rows`, always.

    Attributes:
        sha256, bytes, tail: of the part (see `FileMark`); the same of the quarantine part, None where no row failed.
        tally: what its stages counted, by name.
        computed: device, precision and the like, as in the job's record.
        pending: mark of a part that is about to take the place of this one, with other labels chosen. Until that is
            done either is the right one.
    """

    shard: int
    job_digest: str
    rows: int
    good: int
    quarantined: int
    by_reason: dict[str, int]
    sha256: str
    bytes: int
    quarantine_sha256: str | None
    seconds: float
    stage_seconds: dict[str, float]
    worker: str
    attempt: int
    tally: dict[str, int] = field(default_factory=dict)
    tail: str | None = None
    quarantine_bytes: int | None = None
    quarantine_tail: str | None = None
    computed: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] | None = None

    @property
    def marks(self) -> list[FileMark]:
        """What the part may be."""
        mark = FileMark(self.sha256, self.bytes, self.tail)
        return [mark, FileMark(**self.pending)] if self.pending else [mark]

    @property
    def quarantine_marks(self) -> list[FileMark]:
        """What the quarantine part may be; empty where there is none."""
        if self.quarantine_sha256 is None:
            return []
        return [FileMark(self.quarantine_sha256, self.quarantine_bytes, self.quarantine_tail)]

    def __post_init__(self) -> None:
        if self.good + self.quarantined != self.rows or sum(self.by_reason.values()) != self.quarantined:
            raise ValueError(f"the books of {shard_name(self.shard)} do not close: {self}")


def commit_path(folder: str, shard: int) -> str:
    """Where the commit of a shard stands."""
    return storage.join(folder, COMMITS, f"{shard_name(shard)}.json")


def write_commit(folder: str, commit: Commit) -> None:
    """Writes the commit of a finished shard, sealed."""
    records.write_record(commit_path(folder, commit.shard), asdict(commit))


def read_commit(folder: str, shard: int) -> Commit:
    """The commit of a shard.

    Raises:
        Damaged: it cannot be read, or is that of another shard.
        InputError: there is none.
    """
    path = commit_path(folder, shard)
    record = records.read_record(path, needs_seal=True)
    try:
        commit = Commit(**record)
    except (TypeError, ValueError) as error:
        raise Damaged(f"is damaged: it is not a commit ({error})", path=path) from error
    if commit.shard != shard:
        raise Damaged(f"is damaged: it is the commit of {shard_name(commit.shard)}", path=path)
    return commit


def committed_shards(folder: str) -> list[int]:
    """Numbers of the shards for which there is a commit, whatever it holds."""
    names = storage.list_names(storage.join(folder, COMMITS))
    return [int(found[1].removeprefix("part-")) for name in names if (found := COMMIT.fullmatch(name))]


def read_commits(folder: str, job_digest: str) -> dict[int, Commit]:
    """All commits of a folder whose shards are done (`verify.survey` finds out which are not).

    Raises:
        Damaged: a commit cannot be read. SettingsMismatch: it is of another job.
    """
    with ThreadPoolExecutor(16) as pool:  # object stores answer slowly, but many at once
        commits = list(pool.map(lambda shard: read_commit(folder, shard), committed_shards(folder)))
    for commit in commits:
        require_same_job(folder, commit, job_digest)
    return {commit.shard: commit for commit in commits}


def require_same_job(folder: str, commit: Commit, job_digest: str) -> None:
    """Raises `SettingsMismatch` for the commit of another job."""
    if commit.job_digest != job_digest:
        raise SettingsMismatch(
            f"belongs to another job ({commit.job_digest}, not {job_digest})",
            path=commit_path(folder, commit.shard),
            remedy="Use a fresh output folder.",
        )


def forget(folder: str, shard: int) -> None:
    """Makes a shard one that is not done: removes its commit, and then its files."""
    storage.remove(commit_path(folder, shard))
    for quarantine in (False, True):
        storage.remove(storage.join(folder, part_name(shard_name(shard), quarantine=quarantine)))


@dataclass
class Attempt:
    """How often a shard was begun in this run, and what is suspected of killing its worker.

    Attributes:
        count: times begun.
        suspect: the row under way alone, None outside of probing.
        suspected: how often a worker died with that row under way alone. Once may be the node's fault, twice is not.
        probed: whether every row that is not blamed ran alone and lived.
        deaths_as_batch: deaths since then.
    """

    count: int = 0
    suspect: int | None = None
    suspected: dict[str, int] = field(default_factory=dict)
    probed: bool = False
    deaths_as_batch: int = 0

    @property
    def blamed(self) -> list[int]:
        """Rows under which two workers died."""
        return [int(row) for row, deaths in self.suspected.items() if deaths >= 2]


class Attempts:
    """Attempt notes of one run. They are of use only while that run lives: a killed driver blames no row.

    In an object store each request costs a round trip. There only the process that takes the place of one that died
    keeps notes: Ray gives it the shard under which the other died, so a row that kills is found one death later than
    on a disk. It lists the notes once, when it gets ready; those of finished shards stay until the run ends
    (`remove_attempts`), and a note beside a commit says nothing.

    Args:
        replaces: whether this process takes the place of one that died.
    """

    def __init__(self, folder: str, run_id: str, *, replaces: bool = True) -> None:
        self._out, self._keeps = folder, replaces or not storage.is_remote(folder)
        self.folder = storage.join(folder, ATTEMPTS, run_id)
        self._listed: set[str] | None = None

    def begin(self, shard: int) -> Attempt:
        """Notes that a shard begins; returns what is known of its attempts, this one included."""
        if not self._keeps:
            return Attempt(count=1)
        path = self._path(shard)
        attempt = self._read(path) if self._has_note(shard) else Attempt()
        attempt.count += 1
        if attempt.suspect is not None:
            row = str(attempt.suspect)
            attempt.suspected[row] = attempt.suspected.get(row, 0) + 1
            attempt.suspect = None
        if attempt.probed:
            attempt.deaths_as_batch += 1
        self.note(shard, attempt)
        return attempt

    def _has_note(self, shard: int) -> bool:
        if not storage.is_remote(self.folder):
            return storage.exists(self._path(shard))
        if self._listed is None:
            self._listed = set(storage.list_names(self.folder))
        return f"{shard_name(shard)}.json" in self._listed and not storage.exists(commit_path(self._out, shard))

    def note(self, shard: int, attempt: Attempt) -> None:
        """Writes what is known of a shard's attempts."""
        # A note has to outlive its process, not the machine: no fsync, which would cost more than the note.
        records.write_record(self._path(shard), asdict(attempt), durable=False)

    @staticmethod
    def _read(path: str) -> Attempt:
        """A note that cannot be read says only that the shard was begun."""
        try:
            return Attempt(**records.read_record(path, needs_seal=True))
        except (InputError, TypeError):
            return Attempt(count=1)

    def begin_setup(self) -> int:
        """Notes that a worker loads its models; returns how many died at that on this machine."""
        self._listed = set(storage.list_names(self.folder))
        begun = [name for name in self._listed if name.startswith("setup-")]
        # A note whose process is gone was left by a death; a process can be looked up on its own machine only.
        own = [name for name in begun if name.startswith(f"setup-{socket.gethostname()}-")]
        dead = [name for name in own if not Path("/proc", name.rsplit("-", 1)[1].removesuffix(".json")).exists()]
        storage.write_json(self._setup_path(), {}, durable=False)
        return len(dead)

    def end_setup(self) -> None:
        """Removes the note of `begin_setup`: the models are loaded."""
        storage.remove(self._setup_path())

    def _setup_path(self) -> str:
        return storage.join(self.folder, f"setup-{socket.gethostname()}-{os.getpid()}.json")

    def end(self, shard: int) -> None:
        """Removes the note of a shard that was committed."""
        if not storage.is_remote(self.folder) or f"{shard_name(shard)}.json" in (self._listed or ()):
            storage.remove(self._path(shard))

    def _path(self, shard: int) -> str:
        return storage.join(self.folder, f"{shard_name(shard)}.json")


def remove_attempts(folder: str) -> None:
    """Removes the notes of all runs."""
    storage.remove_tree(storage.join(folder, ATTEMPTS))
