"""Knowledge distillation from a teacher's probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymotion.errors import InputError

if TYPE_CHECKING:
    import torch

# A probability of 0 or 1 has no finite logit.
EPSILON = 1e-6


def distillation_loss(logits: torch.Tensor, probabilities: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """Computes the cross-entropy of softened predictions, in nats, for independent labels: (n, L), not averaged.

    Follows Hinton, Vinyals and Dean (2015), with one sigmoid per label instead of a softmax: the logits of student and
    teacher are divided by the temperature T, and the loss is multiplied by T^2 to keep the scale of its gradient. At
    T = 1 this is the binary cross-entropy against the probabilities; at any T the minimum is at the teacher's logits.

    Args:
        logits: (n, L), the student's.
        probabilities: (n, L) in [0, 1], the teacher's, at temperature 1.
    """
    import torch
    import torch.nn.functional as F

    if temperature <= 0:
        raise InputError(f"temperature {temperature} is not positive")
    if logits.shape != probabilities.shape:
        raise InputError(f"logits of shape {tuple(logits.shape)} do not fit targets of {tuple(probabilities.shape)}")
    # Always in float32: bfloat16 has only 8 bits for a logarithm near zero.
    targets = probabilities.float()
    if temperature != 1.0:
        targets = torch.sigmoid(torch.logit(targets, eps=EPSILON) / temperature)
    loss = F.binary_cross_entropy_with_logits(logits.float() / temperature, targets, reduction="none")
    return loss * temperature**2
