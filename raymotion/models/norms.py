"""Batch norm where a batch may hold a single row."""

from __future__ import annotations

from torch import Tensor, nn


def normed(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    """Normalises values (n, D): by the batch in training, and by the running statistics else.

    One row has no variance: it is normalised by the running statistics in training too, and does not enter them.
    """
    if norm.training and len(values) > 1:
        found: Tensor = norm(values)
        return found
    return nn.functional.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
