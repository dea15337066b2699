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


def record_rates(shift: PriorShift, vocabulary: Vocabulary, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a choice's record: `rates` and `notes`.

    Args:
        model: its description in the job's record.
    """
    rates = shift.to_dict()
    notes = rate_notes(vocabulary.labels, rates)
    own: Mapping[str, Any] = next((out for out in model.get("outputs") or () if out.get("vocabulary")), {})
    loss = (own.get("loss") or {}).get("name")
    if loss not in (None, "bce"):
        notes.append(
            f"The model was trained with the loss {loss}, whose probabilities do not follow the class rates of "
            "training: estimated rates may say more about the loss than about the collection."
        )
    return {"rates": rates, "notes": notes}
