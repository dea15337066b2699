"""Checks for NaN and infinity in weights and predictions.

Predictions of NaN cannot be ranked, but sorting still returns labels: every picture would get the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def is_number(value: object) -> bool:
    """Returns whether a value from a JSON file is a finite number within the range of a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def require_finite(weights: Mapping[str, Tensor], path: object) -> None:
    """Checks that all values of the tensors are finite.

    Args:
        path: their file, for the message.

    Raises:
        InputError: a tensor contains NaN or infinity; the first one is named.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() < 4 else tensor
        # The sum suffices nearly always: it overflows only for enormous finite numbers.
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
    """Returns bool (n,): which rows of `values` (n, ...) are entirely finite."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
