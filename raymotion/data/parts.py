"""Reads the output folder of a batch job: its record and its verified parts.

    data/part-00012.parquet         good rows
    _job.json, __job.json           the job's record, and its second copy
    _quarantine/part-00012.pq       rows that failed, in Parquet
    _commits/part-00012.json        digests and sizes of both files
    _domain/part-00012.safetensors  features of a few random rows, for the domain check
    _README.md, .huggingface.yaml   the card, and the location of the rows for `datasets`

pandas and pyarrow read every file below a folder unless its name, or the name of a parent folder, begins with `_` or
`.`; DuckDB, polars and Ray Data read files that end in `.parquet`. Only the parts of good rows satisfy both rules, so
all of these libraries can read the good rows given the folder's name.

Opening a finished folder compares file sizes with the commits, which costs one listing. Reading a whole part also
compares its digest.
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

JOB, DATA, QUARANTINE, COMMITS, DOMAIN = "_job.json", "data", "_quarantine", "_commits", "_domain"
# Version of this layout in the job's record. Folders of other versions are refused.
FORMAT = 3
# File names that a job writes.
PART, COMMIT = re.compile(r"/part-\d{5,9}\.(?:parquet|pq)$"), re.compile(r"(part-\d{5,9})\.json")
SAMPLE = re.compile(r"part-\d{5,9}\.safetensors")
# Names of parts for readers: any in a copied folder; in a job's folder, other names are refused.
ANY_PART = re.compile(r"[^._].*\.(?:parquet|pq)")
TAIL_BYTES = 1 << 16
VERIFY = "Run the command that made the folder again, with --verify: it makes damaged parts again."


@dataclass(frozen=True)
class FileMark:
    """The mark by which a file is recognised.

    Attributes:
        sha256: hex digest of all bytes.
        size: number of bytes.
        tail: hex digest of the last `TAIL_BYTES`. They contain the footer with the statistics of every column, so one
            short read detects exchanged parts.
    """

    sha256: str
    size: int | None = None
    tail: str | None = None

    @classmethod
    def of(cls, data: bytes) -> FileMark:
        """Returns the mark of a file with these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data), hashlib.sha256(data[-TAIL_BYTES:]).hexdigest())


def part_name(stem: str, *, quarantine: bool = False) -> str:
    """Returns the path of a part below its folder; `stem` is the shard's name, such as `part-00012`."""
    return f"{QUARANTINE}/{stem}.pq" if quarantine else f"{DATA}/{stem}.parquet"


def sample_name(stem: str) -> str:
    """Returns the path of a shard's sample of features below its folder; see `part_name`."""
    return f"{DOMAIN}/{stem}.safetensors"


def list_parts(folder: storage.PathLike, *, quarantine: bool = False) -> dict[str, int]:
    """Returns the sizes of all files that readers take for parts, by path below the folder."""
    place = QUARANTINE if quarantine else DATA
    sizes = storage.list_sizes(storage.join(folder, place))
    return {f"{place}/{name}": size for name, size in sorted(sizes.items()) if ANY_PART.fullmatch(name)}


def write_job(folder: storage.PathLike, record: Mapping[str, Any]) -> None:
    """Writes a job's record and its copy."""
    records.write_twice(storage.join(folder, JOB), record)


def remove_job(folder: storage.PathLike) -> None:
    """Removes a job's record and its copy."""
    for path in (storage.join(folder, JOB), records.copy_of(storage.join(folder, JOB))):
        storage.remove(path)


def read_job(folder: storage.PathLike) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the record of a job, and why it was read from the copy, if so; see `records.read_twice`.

    Raises:
        InputError: the folder has the layout of another version.
    """
    record, reason = records.read_twice(
        storage.join(folder, JOB),
        remedy="Run the command that made the folder again: it rebuilds the record from its commits.",
    )
    if record is not None and (version := record.get("format", FORMAT)) != FORMAT:
        raise InputError(
            f"has folder layout {version}, this version of raymotion reads {FORMAT}",
            path=folder,
            remedy="Make the data set again, in a fresh folder.",
        )
    return record, reason


def running_job(folder: storage.PathLike) -> dict[str, Any]:
    """Returns the record of a job, complete or not."""
    record, _ = read_job(folder)
    if record is None:
        raise Damaged(f"has lost its {JOB}", path=folder, remedy="Run the same command again.")
    return record


def complete_job(
    folder: storage.PathLike, kind: str | None, *, what: str, command: str, complete: bool = True
) -> dict[str, Any]:
    """Returns the record of a finished job, or of any job with `complete=False`.

    Args:
        kind: kind of the job; None accepts any.
        what: name of the folder for messages, e.g. "labelling job".
        command: the command that makes such a folder.

    Raises:
        InputError: there is no record, the job is of another kind, or it is not complete.
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
    if complete and record.get("status") != "complete":
        raise InputError(
            f"the {what} is not complete (status: {record.get('status', 'unknown')})",
            path=folder,
            remedy=f"Run the same `{command}` command again: it goes on where it stopped.",
        )
    return record


def read_marks(folder: storage.PathLike, *, quarantine: bool = False) -> dict[str, list[FileMark]] | None:
    """Returns the marks that each part was committed with, by path: one, or two while labels are being chosen.

    Args:
        quarantine: read the marks of the failed rows' parts; a shard may have none.

    Returns:
        None for a folder without commits, i.e. a copy.

    Raises:
        Damaged: a commit cannot be read.
    """
    commits = storage.join(folder, COMMITS)
    stems = [found[1] for name in storage.list_names(commits) if (found := COMMIT.fullmatch(name))]
    prefix = "quarantine_" if quarantine else ""

    def marks(stem: str) -> list[FileMark]:
        path = storage.join(commits, f"{stem}.json")
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

    with ThreadPoolExecutor(16) as pool:  # object stores are slow, but serve many requests at once
        known = zip([part_name(stem, quarantine=quarantine) for stem in stems], pool.map(marks, stems), strict=True)
        return {name: own for name, own in known if own} if stems else None


def part_names(folder: storage.PathLike) -> list[str]:
    """Returns the paths of the parts of a finished data set below its folder, in order; see `part_marks`."""
    return list(part_marks(folder))


def part_marks(
    folder: storage.PathLike, *, quarantine: bool = False, complete: bool = True
) -> dict[str, list[FileMark]]:
    """Returns the parts of a data set in order, by path below the folder, with their valid marks.

    A folder without commits gives no marks.

    Args:
        quarantine: the parts of failed rows.
        complete: whether the job is complete; parts of a running job need no commit.

    Raises:
        Damaged: a part is missing, differs in size from the commit, or does not belong to the job.
    """
    sizes = list_parts(folder, quarantine=quarantine)
    marks = read_marks(folder, quarantine=quarantine)
    if marks is None:
        return {name: [] for name in sizes}
    for name in sorted({*sizes, *marks}):
        path = storage.join(folder, name)
        if name not in sizes:
            raise Damaged("is missing, although it was committed", path=path, remedy=VERIFY)
        if name not in marks and complete:
            raise Damaged("is not a part that the job committed", path=path, remedy=f"Remove it. Or: {VERIFY}")
        known = [mark.size for mark in marks.get(name, ()) if mark.size is not None]
        if known and sizes[name] not in known:
            raise Damaged(f"has {sizes[name]:,} bytes, {known[0]:,} were committed", path=path, remedy=VERIFY)
    return {name: marks.get(name, []) for name in sizes}


@contextlib.contextmanager
def open_part(folder: storage.PathLike, name: str, marks: Sequence[FileMark]) -> Iterator[pq.ParquetFile]:
    """Opens a part for reading within the block, after comparing its bytes with the commit.

    The whole file is held in memory. `name` is its path below the folder, as in `part_marks`.

    Raises:
        Damaged: it differs from the commit, or is not a Parquet file.
    """
    path = storage.join(folder, name)
    data = storage.require(path)
    if marks and hashlib.sha256(data).hexdigest() not in {mark.sha256 for mark in marks}:
        raise Damaged("is not what was committed", path=path, remedy=VERIFY)
    with storage.open_parquet(path, data, remedy=VERIFY) as part:
        yield part
