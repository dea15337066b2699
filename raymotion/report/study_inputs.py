"""What a study read and predicted: targets, predictions of the configurations it scored, backbones of its features.

A study keeps the test split's targets out of its folder, so that no trial can read them; the report takes them from
the sample table, and checks them against the scores in the record (`study_scores`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion import records, storage
from raymotion.config import digest_of
from raymotion.data.parts import read_job
from raymotion.errors import Damaged, InputError
from raymotion.report.study_folder import StudyFolder

CHANGED = "The sample table has changed since the study was run"


def targets(study: StudyFolder) -> tuple[Mapping[str, np.ndarray], str]:
    """What is true of the persons of val and test, split -> (n, L) of 0 and 1, in the order of the predictions.

    Empty, and the reason why, where the sample table is gone, has other labels, or has other persons in a split than
    were predicted (or the same in another order: predictions carry no ids, only the record has a digest of them).
    """
    from raymotion.data.samples import read_samples, vocabulary_of
    from raymotion.data.samples import targets as matrix

    path = _sample_table(study)
    if path is None:
        return {}, "The sample table of the study was not found, so predictions cannot be compared with it."
    table = read_samples(path)
    vocabulary = vocabulary_of(table)
    if vocabulary is None or vocabulary.labels != study.labels:
        return {}, f"{CHANGED}: it has other emotions."
    # In the steps of train/fusion_data.py, so that the rows stand in the order of the predictions.
    table = table.filter(pc.and_(pc.is_valid(table.column("labels")), pc.is_valid(table.column("split"))))
    if (_part(study.record, "data", "counts") or {}).get("without_embeddings"):
        from raymotion.data.embeddings import Embeddings

        rows = Embeddings(_folders(study)).rows(table.column("sample_id").to_pylist())
        table = table.filter(pa.array(rows >= 0))
    split, hard = np.array(table.column("split").to_pylist(), dtype=object), matrix(table, vocabulary)
    ids = np.array(table.column("sample_id").to_pylist(), dtype=object)
    predicted = _part(study.record, "data", "sample_ids") or {}  # an older study has none
    for name in ("val", "test"):
        if name in predicted and predicted[name] != digest_of(ids[split == name].tolist()):
            return {}, f"{CHANGED}: the split {name} has other persons, or the same in another order."
    true = _part(study.record, "data", "targets") or {}
    for name in ("val", "test"):
        if name in true and true[name] != digest_of(hard[split == name].astype(int).tolist()):
            return {}, f"{CHANGED}: the split {name} has other labels."
    return {name: hard[split == name] for name in ("val", "test")}, ""


def predictions(study: StudyFolder, split: str, name: str, key: str) -> list[np.ndarray]:
    """Probabilities (n, L) of each seed whose file is there, for the split `val` or `test`, of one scored entry.

    Raises:
        InputError: a file is damaged, or has another shape than the other seeds'.
    """
    found: list[np.ndarray] = []
    for seed in study.seeds:
        parts = ("trials", key, f"seed-{seed}") if split == "val" else ("test", f"{name}-seed-{seed}")
        path = storage.join(study.path, *parts) + ".safetensors"
        if not storage.exists(path):
            continue
        values = records.read_arrays(path, _recorded(study, split, name, key, path), remedy="Remove it.")
        if split not in values:
            raise InputError(f"holds no predictions for {split!r}", path=path, remedy="Remove it.")
        own = values[split]
        if own.ndim != 2 or own.shape[1] != len(study.labels) or any(own.shape != known.shape for known in found):
            raise InputError(f"has predictions of shape {own.shape}, unlike the other seeds", path=path)
        found.append(own)
    return found


def _recorded(study: StudyFolder, split: str, name: str, key: str, path: str) -> str | None:
    """SHA-256 of a file of predictions, as the record of its trial, or of the study, says."""
    files: Mapping[str, Any] = study.files(key)
    if split == "test":
        entries = _part(study.record, "test", "entries") or []
        files = next((entry.get("files") or {} for entry in entries if entry.get("name") == name), {})
    return files.get(path.rsplit("/", 1)[-1])


def random_backbones(study: StudyFolder) -> list[str]:
    """Names of backbones whose weights were never trained, as the record or the embeddings' own records tell."""
    told = [*_weights(study.record)]
    for job in _jobs(study):
        told += _weights(job.get("model"))
    return sorted({name for name, weights in told if weights.startswith("random:")})


def _sample_table(study: StudyFolder) -> str | None:
    """The sample table, or None if it is nowhere that the records say."""
    named = [_part(study.record, "settings", "samples"), *(_part(job, "settings", "samples") for job in _jobs(study))]
    named.append(_part(study.record, "data", "samples"))
    return next((path for path in named if isinstance(path, str) and storage.exists(path)), None)


def _folders(study: StudyFolder) -> list[str]:
    folders = _part(study.record, "settings", "embeddings")
    return [folder for folder in folders if isinstance(folder, str)] if isinstance(folders, list) else []


def _jobs(study: StudyFolder) -> list[Mapping[str, Any]]:
    """job.json of the embeddings that are still there."""
    found = []
    for folder in _folders(study):
        with contextlib.suppress(Damaged):  # what is known of a job is told, and no report hangs on it
            found.append(read_job(folder)[0])
    return [job for job in found if job is not None]


def _part(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _weights(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, weights) of every backbone's identity in a record."""
    if isinstance(value, Mapping):
        if isinstance(value.get("weights"), str):
            yield name or str(value.get("name")), value["weights"]
        for key, item in value.items():
            yield from _weights(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _weights(item, name)
