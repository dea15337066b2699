"""The interval of a share that is 0 or 1, for which a bootstrap gives none: its resamples do not vary."""

from __future__ import annotations


def exact_interval(share: float, n: int) -> tuple[float, float]:
    """Returns the exact 95 % interval of a share of 0 or 1 in n independent cases (Clopper and Pearson 1934).

    Args:
        share: 0 or 1.
        n: at least 1.
    """
    beyond = 1.0 - 0.025 ** (1.0 / n)
    return (0.0, beyond) if share == 0 else (1.0 - beyond, 1.0)
