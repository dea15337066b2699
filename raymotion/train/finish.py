"""The end of a training run: the best epoch scored, and the checkpoint written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from raymotion.models.checkpoint import CheckpointInfo, sample_mark, save_checkpoint
from raymotion.train.fusion_data import FusionData, PersonData
from raymotion.train.fusion_scores import emotic_scores
from raymotion.train.recipe import FusionRecipe, FusionTunedRecipe, TrainRecipe
from raymotion.train.source import describe_targets
from raymotion.train.task import Data, task_of
from raymotion.train.tuned_data import TunedData

MOST_MARKS = 50_000


def finish(recipe: TrainRecipe, data: Data, settings: dict[str, Any], folder: str, target: str) -> CheckpointInfo:
    """Scores the best epoch and writes the checkpoint."""
    import torch
    import transformers
    from safetensors.torch import load_file

    from raymotion.learning.metrics.multilabel import evaluate
    from raymotion.learning.selection import fit_class_thresholds
    from raymotion.train.loop import BEST, PROBABILITIES, read_state

    state = read_state(folder)
    model = task_of(recipe, data).restore(state["model"])
    model.load_state_dict(load_file(Path(folder, BEST)))
    answered = {name: tensor.numpy() for name, tensor in load_file(Path(folder, PROBABILITIES)).items()}
    # Behind the labels of a head with VAD stand valence, arousal and dominance.
    predicted = {name: answers[:, : len(data.vocabulary)] for name, answers in answered.items()}
    soft = recipe.data.soft_targets
    prior = data.prior(soft=soft)

    def score(split: str) -> dict[str, Any] | None:
        rows = data.splits[split]
        if not len(rows):
            return None
        return evaluate(
            data.hard[rows], predicted[split], prior=prior, labels=data.vocabulary.labels, seed=recipe.seed,
            soft_targets=data.soft[rows] if soft else None,
            groups=[data.groups[row] for row in rows] if isinstance(data, PersonData) else None,
        ).to_dict()  # fmt: skip

    training = {
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "splits": {name: len(rows) for name, rows in data.splits.items()},
            "counts": data.counts,
            # So that an evaluation can tell samples that the model knows, however they were split since.
            "seen": seen_marks(data),
        },
        "targets": describe_targets(recipe),
        "seed": recipe.seed,
        "settings": settings,
        "history": state["history"],
        "best_epoch": state["best_epoch"],
        # Of the hard labels: what the share of images with a label is compared with. The BCE's baseline has its own
        # kind.
        "prior": [float(rate) for rate in data.prior(soft=False)],
        "thresholds": [float(t) for t in fit_class_thresholds(data.hard[data.splits["val"]], predicted["val"])],
        "validation": score("val"),
        "test": score("test"),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
    }  # fmt: skip
    if isinstance(data, PersonData):
        training["emotic"] = {
            name: emotic_scores(data, name, answers) for name, answers in answered.items() if len(answers)
        }
        assert isinstance(recipe, FusionRecipe | FusionTunedRecipe)
        return save_checkpoint(
            target, cast(Any, model), None, data.vocabulary, modalities=list(recipe.backbones.chosen()),
            extractor=None, training=training, fusion=_origin(recipe, data), answers=_answers(data, predicted),
        )  # fmt: skip
    return save_checkpoint(
        target,
        cast(Any, model),  # a task restores a model of an architecture that checkpoints know
        data.tokenizer,
        data.vocabulary,
        modalities=data.modalities,
        extractor=None if data.features is None else data.features.extractor,
        training=training,
        answers=_answers(data, predicted),
    )


def _answers(data: Data, predicted: Mapping[str, np.ndarray]) -> pa.Table:
    """Probabilities of the best epoch for every validation and test sample, beside its id."""
    ids, splits, blocks = [], [], []
    for name, matrix in predicted.items():
        ids += [data.sample_ids[row] for row in data.splits[name]]
        splits += [name] * len(data.splits[name])
        blocks.append(matrix[: len(data.splits[name])])
    width = len(data.vocabulary)
    flat = np.concatenate(blocks).astype(np.float32).reshape(-1)
    columns = [pa.array(ids, pa.string()), pa.array(splits, pa.string()),
               pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width)]  # fmt: skip
    table = pa.table(columns, names=["sample_id", "split", "probabilities"])
    return table.replace_schema_metadata(data.vocabulary.to_metadata())


def _origin(recipe: FusionRecipe | FusionTunedRecipe, data: PersonData) -> dict[str, Any]:
    """What a fusion head's checkpoint says of its inputs and outputs."""
    chosen = recipe.backbones.chosen()
    if isinstance(data, TunedData):
        identities = data.identities
    else:
        assert isinstance(data, FusionData)
        identities = {stream: data.embeddings.backbones[name] for stream, name in chosen.items()}
    return {
        "backbones": {stream: {"name": name, "identity": identities[stream]} for stream, name in chosen.items()},
        "loss": {"name": recipe.loss.name, "options": dict(recipe.loss.options)},
    }


def seen_marks(data: Data) -> list[str] | None:
    """Marks of the samples that training or its choices saw; None where they are too many to be kept in a json."""
    rows = [row for name in ("train", "val") for row in data.splits[name]]
    if len(rows) > MOST_MARKS:
        return None
    return sorted(sample_mark(data.sample_ids[row]) for row in rows)
