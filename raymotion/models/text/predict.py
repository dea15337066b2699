"""Predictions of models that read captions, averaged over the captions of each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.models.inputs.captions import pad


def mean_over_captions(
    model: nn.Module,
    tokens: Sequence[Sequence[int] | np.ndarray],
    owners: np.ndarray,
    samples: int,
    *,
    width: int,
    logits: Callable[[Tensor, Tensor, np.ndarray], Tensor],
    decode: Callable[[Tensor], Tensor],
    pad_id: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Predicts (samples, width) float32, averaged over the captions of each sample.

    Args:
        model: determines the device.
        tokens, owners: word pieces and sample of each caption; each sample has at least one.
        logits: maps (ids, attention mask, samples of these captions) to (captions, width).
        decode: maps logits to predictions.
    """
    device = next(model.parameters()).device
    total = np.zeros((samples, width), dtype=np.float64)
    # Captions of similar length are batched together to reduce padding; results are assigned by owner.
    order = np.argsort([len(sequence) for sequence in tokens], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = pad([tokens[i] for i in chosen], pad_id=pad_id)
        found = logits(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), owners[chosen])
        np.add.at(total, owners[chosen], decode(found.float()).cpu().numpy().astype(np.float64))
    return (total / np.bincount(owners, minlength=samples)[:, None]).astype(np.float32)
