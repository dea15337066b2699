"""The end of a training run: scores the best epoch and writes the checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.models.checkpoint import CheckpointInfo, sample_mark, save_checkpoint
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.train.source import describe_targets
from raymotion.train.task import Task

MOST_MARKS = 50_000


def finish(
    recipe: TrainRecipe, data: TrainingSet, settings: dict[str, Any], folder: str, target: str
) -> CheckpointInfo:
    """Scores the best epoch and writes the checkpoint.

    Args:
        folder: the last folder that the run saved (`train.loop.Run.save`).
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    from raymotion.train.loop import BEST, DOMAIN, read_predictions, read_state

    state = read_state(folder)
    task = Task(recipe, data)
    network = task.restore(state["model"])
    network.load_state_dict(load_file(Path(folder, BEST)))
    predicted = read_predictions(folder)
    training = {
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "splits": {name: len(rows) for name, rows in data.splits.items()},
            "counts": data.counts,
            "holdout_domain": list(recipe.data.holdout_domain),
            # Lets an evaluation recognise samples that the model has seen, even if they were split again since.
            "seen": seen_marks(data),
        },
        "targets": describe_targets(recipe),
        "seed": recipe.seed,
        "settings": settings,
        "selected_by": task.selected_column,
        "history": state["history"],
        "best_epoch": state["best_epoch"],
        "outputs": {own.name: _facts(own, task, predicted) for own in task.outputs},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
    }  # fmt: skip
    sample = Path(folder, DOMAIN)
    return save_checkpoint(
        target, task.kind, network, task.described(), task.outputs, training=training,
        answers=_answers(task, predicted), domain=sample.read_bytes() if sample.exists() else None,
    )  # fmt: skip


def _facts(output: Output, task: Task, predicted: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the facts that the checkpoint stores about an output, with its metrics on validation and test."""
    data, targets = task.data, task.data.targets_of(output)
    own = {split: values[output.name] for split, values in predicted.items()}
    facts = output.facts(targets, data.splits, own)
    for split, title in (("val", "validation"), ("test", "test")):
        rows = data.splits[split]
        rows_known = rows[targets.known[rows]]
        if not len(rows_known):
            facts[title] = None
            continue
        groups = [data.groups[row] for row in rows_known]
        facts[title] = output.evaluate(
            targets, rows_known, own[split][targets.known[rows]], training=data.splits["train"],
            seed=task.recipe.seed, groups=groups if len(set(groups)) < len(groups) else None,
        )  # fmt: skip
    return facts


def _answers(task: Task, predicted: Mapping[str, Mapping[str, np.ndarray]]) -> pa.Table:
    """Returns a table of the best epoch's predictions for every validation and test sample."""
    data = task.data
    ids, splits = [], []
    for name in predicted:
        ids += [data.sample_ids[row] for row in data.splits[name]]
        splits += [name] * len(data.splits[name])
    columns: dict[str, pa.Array] = {"sample_id": pa.array(ids, pa.string()), "split": pa.array(splits, pa.string())}
    metadata: dict[bytes, bytes] = {}
    for own in task.outputs:
        columns |= own.columns(np.concatenate([values[own.name] for values in predicted.values()]))
        metadata |= own.metadata()
    return pa.table(columns).replace_schema_metadata(metadata)


def seen_marks(data: TrainingSet) -> list[str] | None:
    """Returns the marks of the training and validation samples; None if there are too many for a JSON file."""
    rows = [row for name in ("train", "val") for row in data.splits[name]]
    if len(rows) > MOST_MARKS:
        return None
    return sorted(sample_mark(data.sample_ids[row]) for row in rows)
