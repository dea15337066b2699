"""What the EMOTIC papers report beside average precision, of one split."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from raymotion.learning.metrics.average_precision import average_precision, chance_map, interpolated_by_class
from raymotion.learning.vad import SCALE, vad_errors, vad_mean
from raymotion.train.fusion_data import PersonData


def emotic_scores(data: PersonData, split: str, answers: np.ndarray) -> dict[str, Any]:
    """mAP of scikit-learn's kind and of the original authors', chance, and the error of VAD where a head predicts it.

    Both are None for a split without a label.

    Args:
        answers: (rows of the split, L), or (rows, L + 3) with VAD on the scale 0..1 behind the labels.
    """
    rows, width = data.splits[split], len(data.vocabulary)
    hard, scores = data.hard[rows], answers[:, :width]
    there = np.flatnonzero(hard.sum(axis=0) > 0)
    figures: dict[str, Any] = {
        "map": None,
        "interpolated_map": None,
        "chance_map": chance_map(hard.mean(axis=0)),
    }
    if len(there):
        figures["map"] = float(np.mean([average_precision(hard[:, j], scores[:, j]) for j in there]))
        figures["interpolated_map"] = float(np.mean(interpolated_by_class(hard, scores)[there]))
    if answers.shape[1] == width:
        return figures
    mean = vad_mean(data.vad[data.splits["train"]])
    errors = vad_errors(data.vad[rows], answers[:, width:] * SCALE, training_mean=mean)
    return {**figures, "vad_mae": [asdict(error) for error in errors]}
