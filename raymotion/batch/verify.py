"""Checks that the files of an output folder are still as committed.

Sizes and footers are checked whenever a job resumes or is found complete; all bytes are checked with `--verify`, and
always before a job is marked complete. A shard whose files differ from its commit is redone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.ledger import Commit, shard_name
from raymotion.data.parts import DOMAIN, QUARANTINE, TAIL_BYTES, FileMark, list_parts, part_name, sample_name
from raymotion.errors import AccessDenied, Damaged, InputError

THREADS = 16


def survey(
    folder: str, job_digest: str, sizes: Sequence[int], *, digests: bool
) -> tuple[dict[int, Commit], dict[int, str]]:
    """Returns the valid commits, and the committed shards that must be redone, with the reason.

    Args:
        sizes: number of rows of each shard.
        digests: compare the digests of all files, not only their sizes and footers.

    Raises:
        SettingsMismatch: a commit belongs to another job.
    """
    commits: dict[int, Commit] = {}
    faults: dict[int, str] = {}

    def read(shard: int) -> Commit | str:
        try:
            commit = ledger.read_commit(folder, shard)
        except Damaged as error:
            return f"its commit {error.reason}"
        ledger.require_same_job(folder, commit, job_digest)
        if shard >= len(sizes):
            return f"the job has {len(sizes)} shards"
        if commit.rows != sizes[shard]:
            return f"{commit.rows} rows were committed, and it has {sizes[shard]}"
        return commit

    numbers = ledger.committed_shards(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        for shard, found in zip(numbers, pool.map(read, numbers), strict=True):
            if isinstance(found, str):
                faults[shard] = found
            else:
                commits[shard] = found
    faults.update(faulty_files(folder, commits, digests=digests))
    return {shard: commit for shard, commit in commits.items() if shard not in faults}, dict(sorted(faults.items()))


def faulty_files(folder: str, commits: Mapping[int, Commit], *, digests: bool) -> dict[int, str]:
    """Returns the shards whose files differ from their commits, with the reason."""
    sizes = list_parts(folder) | list_parts(folder, quarantine=True)
    if any(commit.sample for commit in commits.values()):
        sizes |= {f"{DOMAIN}/{name}": size for name, size in storage.list_sizes(storage.join(folder, DOMAIN)).items()}

    def check(commit: Commit) -> str | None:
        good, bad = (part_name(shard_name(commit.shard), quarantine=quarantine) for quarantine in (False, True))
        sample = sample_name(shard_name(commit.shard))
        files = [(good, commit.marks), (bad, commit.quarantine_marks)]
        files += [(sample, commit.sample_marks)] if commit.sample else []
        faults = (_fault(storage.join(folder, name), sizes.get(name), marks, digests) for name, marks in files)
        return next((fault for fault in faults if fault is not None), None)

    with ThreadPoolExecutor(THREADS) as pool:
        return {
            commit.shard: fault
            for commit, fault in zip(commits.values(), pool.map(check, commits.values()), strict=True)
            if fault is not None
        }


def _fault(path: str, size: int | None, marks: Sequence[FileMark], digests: bool) -> str | None:
    """Returns the fault of one file, or None; `marks` lists the allowed versions, and is empty if none may exist."""
    kinds = {QUARANTINE: "the quarantine part", DOMAIN: "the sample of features"}
    kind = kinds.get(path.split("/")[-2], "the part")
    if size is None:
        return f"{kind} is missing" if marks else None
    if not marks:
        return f"{kind} was not committed"
    fitting = [mark for mark in marks if mark.size in (size, None)]
    if not fitting:
        return f"{kind} has {size:,} bytes, {marks[0].size:,} were committed"
    try:
        if digests:
            found = storage.sha256_file(path)
        else:
            tail = storage.read_from(path, max(0, size - TAIL_BYTES))
            found = hashlib.sha256(tail).hexdigest()
    except AccessDenied:
        raise
    except (FileNotFoundError, InputError):
        return f"{kind} is missing"
    except OSError as error:
        if storage.is_remote(path):  # the store failed; the part may be intact
            raise
        return f"{kind} cannot be read ({error.strerror})"
    known = [mark.sha256 if digests else mark.tail for mark in fitting]
    return None if found in known else f"{kind} is not what was committed"


def require_own_parts(folder: str, shards: int) -> None:
    """Raises unless every part in the folder belongs to the job, since readers would include the rows of others."""
    for quarantine in (False, True):
        own = {part_name(shard_name(shard), quarantine=quarantine) for shard in range(shards)}
        for name in list_parts(folder, quarantine=quarantine):
            if name not in own:
                raise InputError(
                    f"is not part of this job, which has {shards} shards",
                    path=storage.join(folder, name),
                    remedy="Remove it, or move it to another folder.",
                )


def redo(folder: str, faults: Mapping[int, str]) -> list[dict[str, str]]:
    """Marks shards as not done and prints a warning; returns the entries for the job's record."""
    for shard, reason in faults.items():
        warn(f"{storage.join(folder, shard_name(shard))}: {reason}; redoing it")
        ledger.forget(folder, shard)
    return [{"shard": shard_name(shard), "reason": reason} for shard, reason in faults.items()]


def warn(text: str) -> None:
    """Prints a warning to standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def left(shards: int, commits: Iterable[int]) -> list[int]:
    """Returns the shards without a commit."""
    done = set(commits)
    return [shard for shard in range(shards) if shard not in done]
