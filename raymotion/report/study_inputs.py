"""The inputs of a study: the targets of its samples, and backbones with random weights.

A study keeps the test split's targets out of its folder, so that no trial can read them; the report reads them from the
sample table, by id, and checks them against the digest in the record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.data.parts import read_job
from raymotion.errors import Damaged
from raymotion.study.record import StudyRecord, targets_digest

CHANGED = "The sample table has changed since the study was run"


def targets(study: StudyRecord, split: str, sample_ids: Sequence[str]) -> tuple[np.ndarray | None, str]:
    """Returns the targets of samples of a split, (n, L) of 0 and 1, in the order of the ids.

    Returns None and the reason if the sample table is gone, or has changed for these samples since the study was run.
    """
    from raymotion.data.samples import read_samples, vocabulary_of
    from raymotion.data.samples import targets as matrix

    named = [study.settings.get("samples"), *((job.get("settings") or {}).get("samples") for job in _jobs(study))]
    path = next((own for own in (*named, study.data.samples) if isinstance(own, str) and storage.exists(own)), None)
    if path is None:
        return None, "The sample table of the study was not found, so predictions cannot be compared with it."
    table = read_samples(path)
    vocabulary = vocabulary_of(table)
    if vocabulary is None or list(vocabulary.labels) != study.data.labels:
        return None, f"{CHANGED}: it has other emotions."
    place = {
        own: row
        for row, (own, of, labels) in enumerate(
            zip(*(table.column(name).to_pylist() for name in ("sample_id", "split", "labels")), strict=True)
        )
        if of == split and labels is not None
    }
    if any(own not in place for own in sample_ids):
        return None, f"{CHANGED}: the split {split} has other samples."
    hard = matrix(table.take([place[own] for own in sample_ids]), vocabulary)
    if targets_digest(sample_ids, hard) != study.data.targets.get(split):
        return None, f"{CHANGED}: the split {split} has other labels."
    return hard, ""


def random_backbones(study: StudyRecord) -> list[str]:
    """Returns the names of backbones with random weights, according to the records of the embeddings."""
    found = [pair for job in _jobs(study) for pair in _weights(job.get("model"))]
    return sorted({name for name, weights in found if weights.startswith("random:")})


def _jobs(study: StudyRecord) -> list[Mapping[str, Any]]:
    """Returns the _job.json records of the embeddings that still exist."""
    found = []
    for folder in study.settings.get("embeddings") or []:
        with contextlib.suppress(Damaged):  # the report does not depend on it
            found.append(read_job(folder)[0])
    return [job for job in found if job is not None]


def _weights(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields (name, weights) of every backbone in a record."""
    if isinstance(value, Mapping):
        if isinstance(value.get("weights"), str):
            yield name or str(value.get("name")), value["weights"]
        for key, item in value.items():
            yield from _weights(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _weights(item, name)
