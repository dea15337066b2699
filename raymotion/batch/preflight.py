"""What is settled before a job works: its record, whether a folder is its own, and whether images can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raymotion import __version__, storage
from raymotion.batch.verify import warn
from raymotion.data.parts import JOB, read_job, write_job
from raymotion.errors import InputError, SettingsMismatch

if TYPE_CHECKING:
    from raymotion.batch.job import JobSpec

FORMAT = 1


def new_record(spec: JobSpec, identity: Mapping[str, Any], digest: str, samples: pa.Table) -> dict[str, Any]:
    """The record of a job that begins."""
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
    for package in ("ray", "torch", "torchvision", "transformers", "pyarrow", "pillow", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def input_digest(samples: pa.Table, columns: Sequence[str] = ()) -> str:
    """Digest of the rows' values, not of the file: the same table written twice is the same input.

    Args:
        columns: those that the job reads besides sample_id, image_uri and captions.
    """
    digest = hashlib.sha256()
    for batch in samples.select(["sample_id", "image_uri", "captions", *columns]).to_batches(max_chunksize=4096):
        digest.update(json.dumps(batch.to_pylist(), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def read_record(folder: str, kind: str) -> dict[str, Any] | None:
    """job.json of an output folder, or None where there is none; one of another kind of job is an error.

    A damaged job.json is written again from its copy, and told.

    Raises:
        Damaged: both are damaged.
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
        warn(f"{path} {reason}: it is written again from its copy")
        write_job(folder, record)
    return record


def check_folder(folder: str) -> None:
    """The output folder can be written to, and holds nothing that is not ours."""
    # A manifest of ours, and temporary files, may be left by a run that was killed before its job.json.
    names = [name for name in storage.list_names(folder) if not name.startswith(("_", "."))]
    for inner in ("quarantine", "_commits"):
        names += [f"{inner}/{name}" for name in storage.list_names(storage.join(folder, inner))]
    if names:
        raise InputError(
            f"holds {names[0]}, but no job.json",
            path=folder,
            remedy="Use a fresh output folder, or remove those files.",
        )
    storage.make_dir(folder)
    storage.probe_writable(folder)


def check_image_folders(samples: pa.Table, *, required: bool) -> None:
    """Every folder that images are in can be looked into, and a file of it read: else all rows would end in quarantine.

    Args:
        required: whether a table without any image is an error.
    """
    uris = pc.drop_null(samples.column("image_uri")).to_pylist()
    if not uris and required:
        raise InputError("no sample has an image_uri", remedy="Prepare the table with --images.")
    first: dict[str, str] = {}
    for uri in uris:
        first.setdefault(storage.parent(uri), uri)
    for folder in sorted(first):
        storage.require_folder(folder)
        # A folder may be entered and its files still be closed to us.
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            storage.explained(first[folder], "read it"),
        ):
            fs, inner = storage.filesystem(first[folder])
            fs.open(inner, "rb").close()


def computed_with(device: str, precision: str, batch_size: int) -> dict[str, Any]:
    """What changes results in their last digits: a data set is made with one of each."""
    libraries = {name: number for name, number in _versions().items() if name in ("torch", "torchvision", "pillow")}
    return {"device": device, "precision": precision, "batch_size": batch_size, **libraries}
