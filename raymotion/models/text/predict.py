"""What a model of captions says of samples: the mean over the captions of each."""

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
    """Predictions (samples, width) float32: those of each caption of a sample, averaged.

    Args:
        model: where it stands says where the tensors go.
        tokens, owners: word pieces of each caption, and its sample; each sample has one at least.
        logits: (ids, attention mask, samples of these captions) -> (captions, width).
        decode: what makes a prediction of logits.
    """
    device = next(model.parameters()).device
    total = np.zeros((samples, width), dtype=np.float64)
    # Captions of like length together, so that little of a batch is padding. Results go back by owner: order is kept.
    order = np.argsort([len(sequence) for sequence in tokens], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = pad([tokens[i] for i in chosen], pad_id=pad_id)
        found = logits(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), owners[chosen])
        np.add.at(total, owners[chosen], decode(found.float()).cpu().numpy().astype(np.float64))
    return (total / np.bincount(owners, minlength=samples)[:, None]).astype(np.float32)
