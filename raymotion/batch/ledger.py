"""The ledger of an output folder: planned shards, commits, and rows that kill their worker.

    OUT/_job.json                   settings, input, counts, throughput; OUT/__job.json is a second copy
    OUT/data/part-00012.parquet     good rows of shard 12
    OUT/_quarantine/part-00012.pq   rows of shard 12 that failed, if any
    OUT/_manifest.pq                the sample table of the job, one row group for each shard
    OUT/_commits/part-00012.json    written last: shard 12 is done
    OUT/_attempts/RUN/part-00012.json   shard 12 was started in this run; the row in progress when its worker died

The file names are explained in `raymotion.data.parts`.
A shard is a fixed range of rows (of whole images, if a job processes the rows of one image together), so the same
input and settings always give the same files.
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
from raymotion.data.parts import COMMIT, COMMITS, FileMark, part_name, sample_name
from raymotion.errors import Damaged, InputError, SettingsMismatch
from raymotion.learning.domain import ROWS

# Key for the number of good rows with a damaged picture (`--damaged keep`), in commits and records.
DAMAGED_KEPT = "damaged_kept"
MANIFEST, ATTEMPTS = "_manifest.pq", "_attempts"
# Shards of which features are sampled: each is one more file.
MOST_SAMPLED = 64
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
    """Returns the default number of rows of a shard: about 64 shards, with between 8 and `most` rows each.

    Args:
        remote: the output is in an object store, where each shard costs three requests: half as many shards.
    """
    return max(8, min(most, -(-rows // (32 if remote else 64))))


def shard_name(index: int) -> str:
    """Returns `part-00012` for shard 12."""
    return f"part-{index:05d}"


def by_image(samples: pa.Table) -> pa.Table:
    """Orders rows so that those of one image are adjacent; images keep the order of first appearance."""
    uris = samples.column("image_uri").to_pylist()
    first: dict[str, int] = {}
    places = [row if uri is None else first.setdefault(uri, row) for row, uri in enumerate(uris)]
    return samples.take(pa.array(np.argsort(places, kind="stable")))


def shard_starts(samples: pa.Table, rows_per_shard: int, *, keep_images_together: bool = False) -> list[int]:
    """Returns the first row of each shard: every `rows_per_shard` rows, or as many whole images as fit into that.

    Args:
        keep_images_together: keep adjacent rows of one image (`by_image`) in one shard. An image with more rows than
            `rows_per_shard` makes a larger shard.
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


def sampled_shards(shards: int) -> dict[int, int]:
    """Returns how many rows of features the domain check keeps of which shards: about `ROWS` of the whole job."""
    some = np.random.default_rng(shards).permutation(shards)[:MOST_SAMPLED]
    return dict.fromkeys(np.sort(some).tolist(), -(-ROWS // max(1, len(some))))


def write_manifest(folder: str, samples: pa.Table, sizes: Sequence[int]) -> bool:
    """Writes the sample table with one row group for each shard, unless it is already there.

    Args:
        sizes: number of rows of each shard.

    Returns:
        Whether the manifest differed or was damaged.
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
    """Reads the rows of a shard from the manifest on demand.

    Args:
        folder: output folder of the job.
        columns: columns to read besides sample_id, image_uri and captions.
    """

    def __init__(self, folder: str, columns: Sequence[str] = ()) -> None:
        self.columns = ["sample_id", "image_uri", "captions", *columns]
        self.path = storage.join(folder, MANIFEST)
        with storage.parquet_explained(self.path, remedy=AGAIN):
            source: Any = storage.absolute(self.path)
            if storage.is_remote(self.path):  # one small download instead of several range requests for each shard
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
        """Returns the rows of one shard as mappings of `columns`."""
        if shard >= self._file.metadata.num_row_groups:
            raise Damaged(f"has no rows of {shard_name(shard)}", path=self.path, remedy=AGAIN)
        with storage.parquet_explained(self.path, remedy=AGAIN):
            return self._file.read_row_group(shard, columns=self.columns, use_threads=False).to_pylist()


@dataclass(frozen=True)
class Commit:
    """The commit of a finished shard: counts, digests of its files, and resources used.

    Always `good + quarantined == rows`.

    Attributes:
        sha256, bytes, tail: mark of the part (see `FileMark`), and of the quarantine part; None if no row failed.
        tally: counts of the stages, by name.
        computed: device, precision and so on, as in the job's record.
        pending: mark of a part with other labels that is about to replace this one. Until then both are valid.
        sample: mark of the sample of features; None if there is none.
        fitting: by stage, the number of images at a time that it ended with, where more did not fit into memory.
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
    sample: dict[str, Any] | None = None
    fitting: dict[str, int] = field(default_factory=dict)

    @property
    def marks(self) -> list[FileMark]:
        """The valid marks of the part."""
        mark = FileMark(self.sha256, self.bytes, self.tail)
        return [mark, FileMark(**self.pending)] if self.pending else [mark]

    @property
    def quarantine_marks(self) -> list[FileMark]:
        """The valid marks of the quarantine part; empty if there is none."""
        if self.quarantine_sha256 is None:
            return []
        return [FileMark(self.quarantine_sha256, self.quarantine_bytes, self.quarantine_tail)]

    @property
    def sample_marks(self) -> list[FileMark]:
        """The valid marks of the sample of features; empty if there is none."""
        return [FileMark(**self.sample)] if self.sample else []

    def __post_init__(self) -> None:
        if self.good + self.quarantined != self.rows or sum(self.by_reason.values()) != self.quarantined:
            raise ValueError(f"the books of {shard_name(self.shard)} do not close: {self}")


def commit_path(folder: str, shard: int) -> str:
    """Returns the path of the commit of a shard."""
    return storage.join(folder, COMMITS, f"{shard_name(shard)}.json")


def write_commit(folder: str, commit: Commit) -> None:
    """Writes the sealed commit of a finished shard."""
    records.write_record(commit_path(folder, commit.shard), asdict(commit))


def read_commit(folder: str, shard: int) -> Commit:
    """Reads the commit of a shard.

    Raises:
        Damaged: it cannot be read, or belongs to another shard.
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
    """Returns the numbers of the shards that have a commit, valid or not."""
    names = storage.list_names(storage.join(folder, COMMITS))
    return [int(found[1].removeprefix("part-")) for name in names if (found := COMMIT.fullmatch(name))]


def read_commits(folder: str, job_digest: str) -> dict[int, Commit]:
    """Returns all commits of finished shards in a folder (`verify.survey` checks which shards are finished).

    Raises:
        Damaged: a commit cannot be read.
        SettingsMismatch: a commit belongs to another job.
    """
    with ThreadPoolExecutor(16) as pool:  # object stores are slow, but serve many requests at once
        commits = list(pool.map(lambda shard: read_commit(folder, shard), committed_shards(folder)))
    for commit in commits:
        require_same_job(folder, commit, job_digest)
    return {commit.shard: commit for commit in commits}


def require_same_job(folder: str, commit: Commit, job_digest: str) -> None:
    """Raises a `SettingsMismatch` for the commit of another job."""
    if commit.job_digest != job_digest:
        raise SettingsMismatch(
            f"belongs to another job ({commit.job_digest}, not {job_digest})",
            path=commit_path(folder, commit.shard),
            remedy="Use a fresh output folder.",
        )


def forget(folder: str, shard: int) -> None:
    """Marks a shard as unfinished: removes its commit, and then its files."""
    storage.remove(commit_path(folder, shard))
    for quarantine in (False, True):
        storage.remove(storage.join(folder, part_name(shard_name(shard), quarantine=quarantine)))
    storage.remove(storage.join(folder, sample_name(shard_name(shard))))


@dataclass
class Attempt:
    """The attempts at a shard in this run, and the row suspected of killing its worker.

    Attributes:
        count: number of attempts.
        suspect: the row running alone; None outside of probing.
        suspected: how often a worker died while that row ran alone. Once may be the fault of the node, twice is not.
        probed: whether every row that is not blamed has succeeded alone.
        deaths_as_batch: number of deaths since then.
    """

    count: int = 0
    suspect: int | None = None
    suspected: dict[str, int] = field(default_factory=dict)
    probed: bool = False
    deaths_as_batch: int = 0

    @property
    def blamed(self) -> list[int]:
        """The rows at which two workers died."""
        return [int(row) for row, deaths in self.suspected.items() if deaths >= 2]


class Attempts:
    """The attempt notes of one run. They are valid only during that run: a killed driver blames no row.

    In an object store each request costs a round trip, so only a process that replaces a dead one keeps notes: Ray
    gives it the shard at which the other died, and a row that kills is found one death later than on a disk. It lists
    the notes once at its start; notes of finished shards remain until the run ends (`remove_attempts`) and are ignored.

    Args:
        replaces: whether this process replaces a dead one.
    """

    def __init__(self, folder: str, run_id: str, *, replaces: bool = True) -> None:
        self._out, self._keeps = folder, replaces or not storage.is_remote(folder)
        self.folder = storage.join(folder, ATTEMPTS, run_id)
        self._listed: set[str] | None = None

    def begin(self, shard: int) -> Attempt:
        """Notes the start of a shard; returns its attempts, including this one."""
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
        """Writes the note on a shard's attempts."""
        # A note must survive its process, not the machine, so fsync is not needed.
        records.write_record(self._path(shard), asdict(attempt), durable=False)

    @staticmethod
    def _read(path: str) -> Attempt:
        """Reads a note; an unreadable one counts as a single attempt."""
        try:
            return Attempt(**records.read_record(path, needs_seal=True))
        except (InputError, TypeError):
            return Attempt(count=1)

    def begin_setup(self) -> int:
        """Notes that a worker loads its models; returns how many workers of this machine died doing so."""
        self._listed = set(storage.list_names(self.folder))
        begun = [name for name in self._listed if name.startswith("setup-")]
        # A note without a process means a death; processes can be checked only on their own machine.
        own = [name for name in begun if name.startswith(f"setup-{socket.gethostname()}-")]
        dead = [name for name in own if not Path("/proc", name.rsplit("-", 1)[1].removesuffix(".json")).exists()]
        storage.write_json(self._setup_path(), {}, durable=False)
        return len(dead)

    def end_setup(self) -> None:
        """Removes the note of `begin_setup`."""
        storage.remove(self._setup_path())

    def _setup_path(self) -> str:
        return storage.join(self.folder, f"setup-{socket.gethostname()}-{os.getpid()}.json")

    def end(self, shard: int) -> None:
        """Removes the note on a committed shard."""
        if not storage.is_remote(self.folder) or f"{shard_name(shard)}.json" in (self._listed or ()):
            storage.remove(self._path(shard))

    def _path(self, shard: int) -> str:
        return storage.join(self.folder, f"{shard_name(shard)}.json")


def remove_attempts(folder: str) -> None:
    """Removes the notes of all runs."""
    storage.remove_tree(storage.join(folder, ATTEMPTS))
