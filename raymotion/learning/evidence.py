"""What a study takes for a difference between configurations: one rule, for its choices and for its report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def seed_error(runs: Iterable[Sequence[float]]) -> float | None:
    """Standard error of a difference of two configurations' means that training seeds alone make.

    From the spread between seeds pooled over the configurations: three seeds of one tell little.

    Args:
        runs: the score of each seed, for each configuration; those of one seed tell nothing.

    Returns:
        In the scores' unit; None where no configuration has two seeds.
    """
    known = [np.asarray(own, dtype=np.float64) for own in runs if len(own) > 1]
    if not known:
        return None
    variance = math.fsum(float(own.var(ddof=1)) for own in known) / len(known)
    return math.sqrt(2 / len(known[0]) * variance)


def stands_out(difference: float, error: float | None, *, tied: bool) -> bool | None:
    """Whether a difference is beyond noise: that of the images, and that of the seeds. The one rule of a study.

    Args:
        error: `seed_error`; None where it is not known.
        tied: whether the interval over images holds 0.

    Returns:
        None where the images tell the two apart and nothing is known of the seeds.
    """
    if tied:
        return False
    return None if error is None else abs(difference) > 2 * error
