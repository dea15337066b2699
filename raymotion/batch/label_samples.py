"""`raymotion.label`: labels pictures from Python, into a DataFrame or into a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.batch.labels import LabelSettings
from raymotion.batch.labels import label as run_label_job
from raymotion.batch.progress import ProgressKind
from raymotion.config import load_settings
from raymotion.data.images.files import EXTENSIONS
from raymotion.data.readers.folder import FolderReader
from raymotion.data.samples import OPTIONAL, SCHEMA, read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.pipeline.predictor import CaptionLists, Predictor, label_here, load, named_rows


def label(
    samples: Any,
    model: storage.PathLike | Sequence[storage.PathLike] | Predictor,
    *,
    captions: CaptionLists | None = None,
    out: storage.PathLike | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    weights: str | tuple[str, ...] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Any:
    """Labels many pictures, into a DataFrame, or with `out` into a folder, as the command `raymotion label` does.

    Args:
        samples: a folder of pictures, a picture, a list of paths, of Pillow pictures and of arrays (uint8, (height,
            width, 3), RGB), a sample table (a .parquet), or a DataFrame or Arrow table with a column of pictures
            (image_uri, path, file_name ...) and, for models that read them, captions and other columns of a sample
            table.
        model: checkpoint folder, several of them (their predictions are averaged), or a loaded model.
        captions: for a list, the captions of each picture, possibly none.
        out: folder or address of the labelled data set. The job goes on where it was interrupted, and starts Ray for
            200 pictures or more. Samples that are no file yet are written beside it, to `OUT.samples.parquet`.
        batch_size: number of pictures per batch.
        device: `cpu` or `cuda`, for a model that is not loaded. With `out` a job takes the GPUs that Ray finds.
        weights: weights file of the region extractor or the backbones, as for `load`.
        progress: whether to show it. None: on a terminal and in a notebook.
        settings: with `out`, settings of `raymotion label` (workers, shard_rows, damaged, address ...), and `selection`
            with those of the choice: `selection={"policy": "threshold", "threshold": 0.4}`.

    Returns:
        Without `out`, a DataFrame in the order of the samples: sample_id, image_uri, a column for each label and each
        number, and `failure`, the reason for a missing prediction. The names of the labels are its `attrs["labels"]`.
        With `out`, the job's summary (`batch.job.JobSummary`); `raymotion.open_labels` reads the folder.

    Raises:
        InputError: the model or the samples cannot be read; not for a single picture.
    """
    if out is None:
        if settings:
            raise InputError(f"{next(iter(settings))} is for a labelled folder", remedy="Give out=FOLDER too.")
        own = model if isinstance(model, Predictor) else load(model, device=device or "cpu", weights=weights)
        return label_here(samples, own, captions=captions, batch_size=batch_size or 16, progress=progress)
    if device is not None:
        raise InputError(
            "device is for a DataFrame: a job takes the GPUs that Ray finds", remedy="Give gpus_per_worker=0 for none."
        )
    files = (weights,) if isinstance(weights, str) else weights
    options = {
        "samples": _sample_table(samples, captions, out),
        "model": [own.folder for own in model.info.members or (model.info,)] if isinstance(model, Predictor) else model,
        "out": out, "batch_size": batch_size, "weights": files,
    }  # fmt: skip
    address = settings.pop("address", None)
    kind: ProgressKind = "lines" if progress else "none"
    if progress is None:
        kind = "lines" if "ipykernel" in sys.modules else "auto"
    job = load_settings(LabelSettings, options={**options, **settings})
    return run_label_job(job, address=address, progress=kind)


def _sample_table(samples: Any, captions: CaptionLists | None, out: storage.PathLike) -> str:
    """Returns the path of a sample table of `samples`, written beside `out` if it is not one."""
    is_path = isinstance(samples, str | os.PathLike)
    is_folder = is_path and storage.is_dir(samples)
    if is_path and not is_folder and storage.suffix(samples) not in EXTENSIONS:
        if captions is not None:
            raise InputError("captions are for a list of pictures", remedy="Put them into the table.")
        return os.fspath(samples)
    if is_folder:
        table, _ = FolderReader(folder=os.fspath(samples)).read()
    elif isinstance(samples, pa.Table) and {own.name for own in SCHEMA if not own.nullable} <= set(
        samples.column_names
    ):
        table = samples
    else:
        table = table_from_rows(_rows(samples, captions), where="the samples")
    path = f"{storage.absolute(out).rstrip('/')}.samples.parquet"
    if storage.exists(path):
        if not read_samples(path).equals(table):
            raise InputError("holds the samples of another run", path=path, remedy="Use a fresh output folder.")
    else:
        write_samples(path, table)
    return path


def _rows(samples: Any, captions: CaptionLists | None) -> list[dict[str, Any]]:
    known = {*SCHEMA.names, *OPTIONAL.names} - {"labels", "label_weights"}
    rows = []
    for number, row in enumerate(named_rows(samples, captions)):
        uri = row["image_uri"]
        if uri is not None and not isinstance(uri, str):
            raise InputError(
                f"picture {number} is in memory, and a job reads files", remedy="Save the pictures, or leave out= out."
            )
        named = {name: value for name, value in row.items() if name in known}
        rows.append({"source": "python", **named, "group_id": row.get("group_id") or uri or row["sample_id"]})
    return rows
