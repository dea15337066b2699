"""Class rates of a labelled collection, estimated from its own probabilities: `--adapt-rates`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.data.parts import JOB
from raymotion.errors import InputError
from raymotion.learning.priors import CHUNK_ROWS, PriorShift, estimate_rates, rate_notes
from raymotion.vocabulary import Vocabulary


def require_rates(rates: Sequence[float] | np.ndarray | None, where: storage.PathLike) -> np.ndarray:
    """Returns the class rates of a model's training, (L,); raises an `InputError` that names `where` if unknown."""
    if rates is None:
        raise InputError(
            "does not record the class rates of the model's training, from which --adapt-rates corrects",
            path=where,
            remedy="Leave --adapt-rates out, or label with a model of `raymotion train`.",
        )
    return np.asarray(rates, dtype=np.float64)


def training_rates(record: Mapping[str, Any], folder: storage.PathLike) -> np.ndarray:
    """Returns the class rates that the model of a labelled folder learned, (L,), from the job's record.

    Raises:
        InputError: they are not recorded.
    """
    model = record.get("model") or {}
    return require_rates(model.get("learned_rates") or model.get("prior"), storage.join(folder, JOB))


def adapted(probabilities: np.ndarray, training: np.ndarray, weight: float) -> tuple[np.ndarray, PriorShift]:
    """Returns the probabilities (n, L) corrected to the rates of these very rows, float32, and the rates."""
    shift = estimate_rates(probabilities, training, weight=weight)
    found = np.empty(probabilities.shape, np.float32)
    for start in range(0, len(found), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        found[rows] = shift.apply(probabilities[rows])
    return found, shift


def notes_on_rates(rates: Mapping[str, Any], vocabulary: Vocabulary, model: Mapping[str, Any]) -> list[str]:
    """Returns sentences on estimated rates that should not be trusted.

    Args:
        rates: of `PriorShift.to_dict`.
        model: its description in the job's record; of several models, each is judged.
    """
    notes = rate_notes(vocabulary.labels, rates)
    members = model.get("members") or [model]
    for member in members:
        who = "The model" if len(members) == 1 else f"The model {member.get('path')}"
        own: Mapping[str, Any] = next((out for out in member.get("outputs") or () if out.get("vocabulary")), {})
        loss = own.get("loss") or {}
        if loss.get("name") not in (None, "bce"):
            notes.append(
                f"{who} was trained with the loss {loss['name']}, whose probabilities do not follow the class rates of "
                "training: estimated rates may say more about the loss than about the collection."
            )
        smoothing = (loss.get("options") or {}).get("label_smoothing")
        if smoothing and member.get("prior") is not None and "learned_rates" not in member:
            notes.append(
                f"{who} was trained with label smoothing ({smoothing:g}) by an earlier version, which did not record "
                "the rates that it learned: the correction starts from others. Train it anew."
            )
        if made := member.get("resampling"):
            notes.append(
                f"{who} was trained with synthetic rows for rare labels ({made}), and the recorded class rates are "
                "those without them: the estimated rates of rare labels may be too high."
            )
    return notes
