"""The data of a study: what trials load, and the facts for its record. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymotion.learning.bootstrap import finite, sampling_units
from raymotion.models.inputs.base import Input
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.multilabel import HARD
from raymotion.models.training_set import TrainingSet
from raymotion.study.record import DataFacts, Metric, SplitFacts, targets_digest

# The data of this process's study, mapped once, with values that runs have computed from them.
_loaded: dict[str, TrainingSet] = {}


def study_data(folder: str, inputs: Sequence[Input]) -> TrainingSet:
    """Loads the data in `folder` for these inputs, once per process."""
    if folder not in _loaded:
        _loaded.clear()
        _loaded[folder] = TrainingSet.load(folder, inputs)
    return _loaded[folder]


def ids_of(data: TrainingSet, split: str) -> list[str]:
    """Returns the sample ids of a split."""
    return [data.sample_ids[row] for row in data.splits[split]]


def truth_of(data: TrainingSet, output: Output, split: str) -> np.ndarray:
    """Returns an output's targets for a split, (n, k).

    0 or 1 for labels; for numbers, NaN marks unknown values; for vectors, the group that a sample belongs to.
    """
    arrays = data.targets_of(output).arrays
    own = arrays[HARD] if HARD in arrays else next(iter(arrays.values()))
    return np.asarray(own.reshape(len(own), -1)[data.splits[split]])


def units_of(data: TrainingSet, split: str) -> np.ndarray:
    """Returns the image number of each sample of a split; a bootstrap resamples whole images."""
    rows = data.splits[split]
    return sampling_units([data.groups[row] for row in rows], len(rows))


def figure_of(metric: Metric, output: Output) -> str:
    """Returns the output's name for the metric, one of its `metric_names`."""
    return next(name for name in output.metric_names if metric.name in (name, f"{output.name}_{name}"))


def baseline_of(metric: Metric, output: Output, data: TrainingSet, split: str) -> float | None:
    """Returns the metric of the constant prediction (`Output.baseline`); None if it is undefined."""
    rows, targets = data.splits[split], data.targets_of(output)
    answer = np.broadcast_to(output.baseline(targets, data.splits["train"]), (len(rows), output.width))
    return finite(output.metrics(targets, rows, answer)[figure_of(metric, output)])


def data_facts(data: TrainingSet, output: Output) -> DataFacts:
    """Returns sizes and label prevalence of the splits; those of the test split do not influence any choice."""
    labels = [] if output.vocabulary is None else list(output.vocabulary.labels)
    truth = {name: truth_of(data, output, name) for name in data.splits}
    return DataFacts(
        samples=data.name,
        counts=data.counts,
        splits={
            name: SplitFacts(samples=len(rows), images=len({data.groups[row] for row in rows}))
            for name, rows in data.splits.items()
        },
        targets={name: targets_digest(ids_of(data, name), own) for name, own in truth.items()},
        labels=labels,
        one_label=output.gives == "one_label",
        prevalence={
            name: [float(rate) for rate in own.mean(axis=0)] for name, own in truth.items() if len(own) and labels
        },
    )
