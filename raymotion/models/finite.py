"""Numbers that are no numbers: NaN and infinity in weights, and in what a model answers.

A model that answers NaN ranks nothing, and yet something is always highest: every picture would get the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError, NotFinite

if TYPE_CHECKING:
    from torch import Tensor


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def require_finite(weights: Mapping[str, Tensor], path: object) -> None:
    """Raises unless every number in the tensors is finite.

    Args:
        path: the file that they are from, for the message.

    Raises:
        InputError: it names the first tensor that holds NaN or infinity.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() < 4 else tensor
        # One pass tells nearly always: only the sum of finite numbers that are enormous is infinite too.
        if bool(values.sum().isfinite()):
            continue
        bad = int((~values.isfinite()).sum())
        if bad:
            raise InputError(
                f"weight {name} holds {bad} of {tensor.numel()} numbers that are NaN or infinite",
                path=path,
                remedy="The training diverged, or the file is damaged: copy it again, or train with a lower rate.",
            )


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which rows of `values` (n, ...) hold finite numbers alone, bool (n,)."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


def require_finite_rows(values: np.ndarray, model: object) -> np.ndarray:
    """`values` (n, L), the answers of the model in the folder `model` to n samples.

    Raises:
        NotFinite: it names the first sample that has NaN or infinity for an answer.
    """
    bad = np.flatnonzero(~finite_rows(values))
    if len(bad):
        raise NotFinite(
            f"{model}: the model answers sample {bad[0]} with NaN or infinity"
            + (f" (and {len(bad) - 1} more of {len(values)})" if len(bad) > 1 else "")
            + ". It cannot label these: train it again, or give it other inputs"
        )
    return values
