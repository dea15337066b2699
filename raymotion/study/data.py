"""The data of a study: what trials see of them, and what its record says of them. Imports neither torch nor Ray."""

from __future__ import annotations

import numpy as np

from raymotion.study.record import DataFacts, SplitFacts, targets_digest
from raymotion.train.fusion_data import FusionData, prepare_fusion

StudyData = FusionData
prepare = prepare_fusion

# The data of the study that this process works for: mapped once, with what tasks have computed of them.
_loaded: dict[str, StudyData] = {}


def study_data(folder: str) -> StudyData:
    """The data in `folder`, loaded once in a process."""
    if folder not in _loaded:
        _loaded.clear()
        _loaded[folder] = StudyData.load(folder)
    return _loaded[folder]


def ids_of(data: StudyData, split: str) -> list[str]:
    """The ids of a split's samples."""
    return [data.sample_ids[row] for row in data.splits[split]]


def without_test(data: StudyData) -> StudyData:
    """`data` as trials see them: no sample of the test split, no label of it, not its size.

    The public study's every choice agrees with its test scores (emotic_study.md 13.2). Here a trial could not read the
    test split if it tried.
    """
    keep = np.sort(np.concatenate([data.splits["train"], data.splits["val"]]))
    place = np.full(len(data.sample_ids), -1, dtype=np.int64)
    place[keep] = np.arange(len(keep))
    return StudyData(
        sample_ids=[data.sample_ids[row] for row in keep],
        groups=[data.groups[row] for row in keep],
        splits={
            "train": place[data.splits["train"]],
            "val": place[data.splits["val"]],
            "test": np.zeros(0, dtype=np.int64),
        },
        hard=data.hard[keep],
        soft=data.soft[keep],
        vad=data.vad[keep],
        vocabulary=data.vocabulary,
        folders=data.folders,
        rows=data.rows[keep],
        counts=data.counts,
        name=data.name,
        fingerprint=data.fingerprint,
        opened=data.opened,
    )


def data_facts(data: StudyData) -> DataFacts:
    """Sizes and label prevalence of the splits: test's sizes and rates are facts of the data, no choice uses them."""
    return DataFacts(
        samples=data.name,
        counts=data.counts,
        splits={
            name: SplitFacts(persons=len(rows), images=len({data.groups[row] for row in rows}))
            for name, rows in data.splits.items()
        },
        targets={name: targets_digest(ids_of(data, name), data.hard[rows]) for name, rows in data.splits.items()},
        labels=list(data.vocabulary.labels),
        prevalence={
            name: [float(rate) for rate in data.hard[rows].mean(axis=0)]
            for name, rows in data.splits.items()
            if len(rows)
        },
    )
