"""Checks before a job starts: its record, whether the output folder is its own, and whether images can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymotion import storage
from raymotion.batch.ledger import ATTEMPTS, MANIFEST, shard_name
from raymotion.batch.spec import JobSpec
from raymotion.batch.verify import warn
from raymotion.data.parts import (
    COMMITS,
    DATA,
    DOMAIN,
    FORMAT,
    JOB,
    PART,
    QUARANTINE,
    SAMPLE,
    list_parts,
    part_name,
    read_job,
    remove_job,
    write_job,
)
from raymotion.data.provenance import begun_at, read_made_from, require_same_pictures
from raymotion.data.samples import require_allowed_images
from raymotion.errors import InputError, SettingsMismatch
from raymotion.version import __version__

# Number of prefixes tried in an object store; a data set may have one for each picture.
MOST_REMOTE_FOLDERS = 32
ONLY_FEW = 3


def new_record(spec: JobSpec, identity: Mapping[str, Any], digest: str, samples: pa.Table) -> dict[str, Any]:
    """Returns the record of a new job."""
    return {
        "job": spec.kind,
        "format": FORMAT,
        "status": "running",
        "digest": digest,
        "identity": identity,
        "settings": spec.settings.model_dump(mode="json"),
        "input": {"path": spec.settings.samples, "rows": samples.num_rows, "digest": identity["input"]["digest"]},
        "model": dict(spec.model),
        "vocabulary": spec.vocabulary.to_dict() if spec.vocabulary else None,
        "notices": list(spec.notices),
        "versions": _versions(),
        "runs": [],
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"raymotion": __version__, "python": platform.python_version()}
    for package in ("ray", "torch", "torchvision", "transformers", "pyarrow", "pillow", "simplejpeg", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def input_digest(samples: pa.Table, columns: Sequence[str] = ()) -> str:
    """Returns a digest of the values of the rows, so that the same table written twice is the same input.

    Args:
        columns: columns that the job reads besides sample_id, image_uri and captions.
    """
    digest = hashlib.sha256()
    for batch in samples.select(["sample_id", "image_uri", "captions", *columns]).to_batches(max_chunksize=4096):
        digest.update(json.dumps(batch.to_pylist(), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def read_record(folder: str, kind: str) -> dict[str, Any] | None:
    """Returns the record of an output folder, or None. A damaged record is restored from its copy, with a message.

    Raises:
        InputError: the record belongs to another kind of job.
        Damaged: record and copy are damaged.
    """
    record, reason = read_job(folder)
    if record is None:
        return None
    path = storage.join(folder, JOB)
    if not isinstance(record.get("identity"), dict) or "status" not in record or "digest" not in record:
        raise InputError("is not the record of a raymotion job", path=path, remedy="Use a fresh output folder.")
    if record.get("job") != kind:
        raise SettingsMismatch(
            f"the folder holds a {record.get('job')} job, not a {kind} job", path=folder, remedy="Use a fresh folder."
        )
    if reason is not None:
        warn(f"{path} {reason}; restoring it from its copy")
        write_job(folder, record)
    return record


def require_same_pictures_as_before(
    folder: str, shards: Iterable[int], samples: pa.Table, record: Mapping[str, Any]
) -> None:
    """Raises a `SettingsMismatch` if a picture has changed since a finished shard was made from it.

    Otherwise the output would be made from two versions of the pictures.

    Args:
        shards: the committed shards.
    """

    def read(name: str) -> list[pa.Table]:
        with contextlib.suppress(InputError):  # reported by the code that compares digests
            return [read_made_from(folder, [name])]
        return []

    names = [part_name(shard_name(shard)) for shard in shards]
    with ThreadPoolExecutor(16) as pool:  # object stores are slow, but serve many requests at once
        made = [table for tables in pool.map(read, names) for table in tables]
    if made:
        require_same_pictures(
            samples,
            pa.concat_tables(made),
            what="rows",
            where=folder,
            remedy="Put the old pictures back, or use a fresh output folder.",
            since=begun_at(record),
            error=SettingsMismatch,
        )


def free_if_nothing_committed(folder: str) -> None:
    """Removes the remains of a job that committed nothing, so that it does not bind the folder to its settings.

    Nothing is removed unless a record proves that the folder belongs to a job.
    """
    try:
        record, _ = read_job(folder)
    except InputError:
        return
    if not isinstance(record, dict) or "identity" not in record or record.get("status") == "complete":
        return
    if storage.list_entries(storage.join(folder, COMMITS)):
        return
    remove_parts(folder)  # from shards without a commit
    storage.remove_tree(storage.join(folder, ATTEMPTS))
    storage.remove(storage.join(folder, MANIFEST))
    remove_job(folder)  # last, because it is the proof
    if not storage.is_remote(folder):
        for inner in (DATA, QUARANTINE, COMMITS, DOMAIN, ""):
            with contextlib.suppress(OSError):
                os.rmdir(storage.join(folder, inner))


def remove_parts(folder: str) -> None:
    """Removes the files with names of a job's parts, of good and of failed rows, and of their samples."""
    for quarantine in (False, True):
        for name in list_parts(folder, quarantine=quarantine):
            if PART.search(name):
                storage.remove(storage.join(folder, name))
    for name in storage.list_names(storage.join(folder, DOMAIN)):
        if SAMPLE.fullmatch(name):
            storage.remove(storage.join(folder, DOMAIN, name))


def check_folder(folder: str) -> None:
    """Checks that the output folder is writable and contains no files of others."""
    # A manifest of ours, and temporary files, may be left by a run that was killed before its record was written.
    names = [name for name in storage.list_names(folder) if not name.startswith(("_", "."))]
    # Nor in the folders that a job makes, and removes.
    for inner in (DATA, QUARANTINE, COMMITS, DOMAIN, ATTEMPTS):
        names += [f"{inner}/{name}" for name in storage.list_entries(storage.join(folder, inner))]
    if names:
        raise InputError(
            f"holds {names[0]}, but no {JOB}",
            path=folder,
            remedy="Use a fresh output folder, or remove those files.",
        )
    storage.make_dir(folder)
    storage.probe_writable(folder)


def check_image_folders(samples: pa.Table, *, required: bool) -> None:
    """Checks that every folder of images can be listed and one of its files read.

    Without permission every row would end in quarantine. In object stores, which have no folders, one file is read for
    some of the prefixes. Web addresses are not tried.

    Args:
        required: whether a table without any image is an error.
    """
    uris = pc.drop_null(samples.column("image_uri")).to_pylist()
    if not uris and required:
        raise InputError("no sample has an image_uri", remedy="Prepare the table with --images.")
    require_allowed_images(samples)
    first: dict[str, str] = {}
    rows: Counter[str] = Counter()
    for uri in uris:
        if not storage.is_http(uri):
            folder = storage.parent(uri)
            first.setdefault(folder, uri)
            rows[folder] += 1
    remote = sorted(folder for folder in first if storage.is_remote(folder))
    some = remote[:: max(1, -(-len(remote) // MOST_REMOTE_FOLDERS))]
    with ThreadPoolExecutor(16) as pool:  # a store answers slowly, but many at once
        found = list(pool.map(_is_there, [first[folder] for folder in some]))
    for folder, there in zip(some, found, strict=True):
        # One file may be missing, and the only one of its folder too; a folder of many without any is a mistake.
        if not there and (rows[folder] > ONLY_FEW or not any(found)):
            storage.require_folder(folder)
    for folder in sorted(folder for folder in first if not storage.is_remote(folder)):
        storage.require_folder(folder)
        # A folder may be entered and its files still be closed to us.
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            storage.explained(first[folder], "read it"),
        ):
            open(storage.absolute(first[folder]), "rb").close()


def _is_there(file: str) -> bool:
    try:
        storage.read_head(file, 1)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def computed_with(device: str, precision: str, batch_size: int) -> dict[str, Any]:
    """Returns what affects the last digits of results, and so must be the same for a whole data set."""
    libraries = {
        name: number for name, number in _versions().items() if name in ("torch", "torchvision", "pillow", "simplejpeg")
    }
    return {"device": device, "precision": precision, "batch_size": batch_size, **libraries}
