"""The folder that a batch job wrote, as everything else reads it: its record, and parts that are what it committed.

A commit (`_commits/part-00012.json`) holds the digests and the size of its part. Whoever opens a finished folder
compares the sizes, which costs one listing; whoever reads all bytes anyway compares the digests too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion import records, storage
from raymotion.errors import Damaged, InputError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

JOB = "job.json"
# The names that a job writes.
PART, COMMIT = re.compile(r"part-\d{5,9}\.parquet"), re.compile(r"part-(\d{5,9})\.json")
# What readers take for a part: in a folder that somebody copied, names are theirs; in a job's, others are refused.
ANY_PART = re.compile(r"part-.*\.parquet")
TAIL_BYTES = 1 << 16
VERIFY = "Run the command that made the folder again, with --verify: it makes damaged parts again."


@dataclass(frozen=True)
class FileMark:
    """How a file is known again.

    Attributes:
        sha256: hex digest of all its bytes; size: how many they are.
        tail: hex digest of the last `TAIL_BYTES`. The footer is among them, with the statistics of every column, so
            parts that were exchanged differ here, at the price of one short read.
    """

    sha256: str
    size: int | None = None
    tail: str | None = None

    @classmethod
    def of(cls, data: bytes) -> FileMark:
        return cls(hashlib.sha256(data).hexdigest(), len(data), hashlib.sha256(data[-TAIL_BYTES:]).hexdigest())


def write_job(folder: storage.PathLike, record: Mapping[str, Any]) -> None:
    """Writes job.json and its copy."""
    records.write_twice(storage.join(folder, JOB), record)


def remove_job(folder: storage.PathLike) -> None:
    """Removes job.json and its copy."""
    for path in (storage.join(folder, JOB), records.copy_of(storage.join(folder, JOB))):
        storage.remove(path)


def read_job(folder: storage.PathLike) -> tuple[dict[str, Any] | None, str | None]:
    """The record of a job, and why it had to be taken from the copy, if it had; see `records.read_twice`."""
    return records.read_twice(
        storage.join(folder, JOB),
        remedy="Run the command that made the folder again: it rebuilds the record from its commits.",
    )


def running_job(folder: storage.PathLike) -> dict[str, Any]:
    """The record of a job that is under way, or done."""
    record, _ = read_job(folder)
    if record is None:
        raise Damaged(f"has lost its {JOB}", path=folder, remedy="Run the same command again.")
    return record


def complete_job(folder: storage.PathLike, kind: str | None, *, what: str, command: str) -> dict[str, Any]:
    """The record of a finished job.

    Args:
        kind: of the job; None takes any.
        what: of the folder, for messages: "labelling job".
        command: that makes such a folder.

    Raises:
        InputError: there is no record, it is of another kind, or the job is not complete.
    """
    record, _ = read_job(folder)
    if record is None:
        what = f"has no {JOB}" if storage.is_dir(folder) else "no such folder"
        raise InputError(what, path=folder, remedy=f"Make it with `{command}`.")
    if kind is not None and record.get("job", kind) != kind:
        raise InputError(
            f"is the record of a {record.get('job')} job, not of a {what}",
            path=storage.join(folder, JOB),
            remedy=f"Name a folder that `{command}` made.",
        )
    if record.get("status") != "complete":
        raise InputError(
            f"the {what} is not complete (status: {record.get('status', 'unknown')})",
            path=folder,
            remedy=f"Run the same `{command}` command again: it goes on where it stopped.",
        )
    return record


def read_marks(folder: storage.PathLike, *, quarantine: bool = False) -> dict[str, list[FileMark]] | None:
    """What each part was committed as, by name: one mark, or two while labels are being chosen.

    Args:
        quarantine: the parts of failed rows, of which a shard may have none.

    Returns:
        None for a folder without commits, which holds what somebody copied.

    Raises:
        Damaged: a commit cannot be read.
    """
    commits = storage.join(folder, "_commits")
    names = [name for name in storage.list_names(commits) if COMMIT.fullmatch(name)]
    prefix = "quarantine_" if quarantine else ""

    def marks(name: str) -> list[FileMark]:
        path = storage.join(commits, name)
        commit = records.read_record(path, remedy=VERIFY)
        pending = None if quarantine else commit.get("pending")
        try:
            sha256 = commit[f"{prefix}sha256"]
            if sha256 is None:
                return []
            found = [FileMark(str(sha256), commit.get(f"{prefix}bytes"), commit.get(f"{prefix}tail"))]
            return [*found, FileMark(**pending)] if pending else found
        except (KeyError, TypeError) as error:
            raise Damaged("is damaged: it is not a commit", path=path, remedy=VERIFY) from error

    with ThreadPoolExecutor(16) as pool:  # object stores answer slowly, but many at once
        found = zip([f"{name.removesuffix('.json')}.parquet" for name in names], pool.map(marks, names), strict=True)
        return {name: own for name, own in found if own} if names else None


def part_names(folder: storage.PathLike) -> list[str]:
    """Names of the parts of a finished data set, in order; see `part_marks`."""
    return list(part_marks(folder))


def part_marks(
    folder: storage.PathLike, *, quarantine: bool = False, complete: bool = True
) -> dict[str, list[FileMark]]:
    """The parts of a data set, in order, and what each may be: nothing is known in a folder without commits.

    Args:
        quarantine: the parts of failed rows, which lie in the folder `quarantine`.
        complete: the job is; parts of one that is under way need no commit.

    Raises:
        Damaged: a part is missing, has another size than was committed, or is not of the job.
    """
    place = storage.join(folder, "quarantine") if quarantine else folder
    sizes = {name: size for name, size in storage.list_sizes(place).items() if ANY_PART.fullmatch(name)}
    marks = read_marks(folder, quarantine=quarantine)
    if marks is None:
        return {name: [] for name in sorted(sizes)}
    for name in sorted({*sizes, *marks}):
        path = storage.join(place, name)
        if name not in sizes:
            raise Damaged("is missing, although it was committed", path=path, remedy=VERIFY)
        if name not in marks and complete:
            raise Damaged("is not a part that the job committed", path=path, remedy=f"Remove it. Or: {VERIFY}")
        known = [mark.size for mark in marks.get(name, ()) if mark.size is not None]
        if known and sizes[name] not in known:
            raise Damaged(f"has {sizes[name]:,} bytes, {known[0]:,} were committed", path=path, remedy=VERIFY)
    return {name: marks.get(name, []) for name in sorted(sizes)}


@contextlib.contextmanager
def open_part(folder: storage.PathLike, name: str, marks: Sequence[FileMark]) -> Iterator[pq.ParquetFile]:
    """A part for reading within the block, after its bytes were compared with what was committed.

    Holds the whole file in memory, which was in the memory of the worker that wrote it.

    Raises:
        Damaged: it is not what was committed, or no Parquet file.
    """
    path = storage.join(folder, name)
    data = storage.require(path)
    if marks and hashlib.sha256(data).hexdigest() not in {mark.sha256 for mark in marks}:
        raise Damaged("is not what was committed", path=path, remedy=VERIFY)
    with storage.open_parquet(path, data, remedy=VERIFY) as part:
        yield part
