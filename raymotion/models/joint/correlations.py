"""Regularised canonical correlation analysis of pictures and their captions, for the start of a joint space.

Hotelling 1936; with a ridge on both covariances (Vinod 1976). With centred x and y, Cxx and Cyy their covariances plus
the penalties, and U S V' = Cxx^(-1/2) Cxy Cyy^(-1/2), the directions are Cxx^(-1/2) U and Cyy^(-1/2) V. Each is weighed
by its correlation, so that uncertain directions count less in a cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are converted to float64 at a time.
BLOCK = 8192


@dataclass(frozen=True)
class Projection:
    """A linear map x -> x weight' + bias, as of `nn.Linear`: weight (D, d) and bias (D,)."""

    weight: Tensor
    bias: Tensor


def correlate(
    images: Tensor, texts: Tensor, owners: Tensor, dim: int, *, image_penalty: float, text_penalty: float
) -> tuple[Projection, Projection]:
    """Returns the projections of pictures and captions to their `dim` most correlated directions.

    A picture counts as often as it has captions. Where the two sides have fewer than `dim` directions, the rest are
    zeros.

    Args:
        images: (n, d) float. texts: (m, e) float. owners: (m,) int64, the picture of each caption.
        image_penalty, text_penalty: multiples of the mean eigenvalue of each covariance.
    """
    count = torch.bincount(owners, minlength=len(images)).double()
    total = count.sum()
    # In blocks: in float64 at once, the captions of a large set would not fit into memory.
    x_sum = sum(count[some] @ images[some].double() for some in torch.arange(len(images)).split(BLOCK))
    y_sum = sum(own.double().sum(dim=0) for own in texts.split(BLOCK))
    x_mean, y_mean = x_sum / total, y_sum / total
    d, e = images.shape[1], texts.shape[1]
    cxx, cyy, cxy = (torch.zeros(*own, dtype=torch.float64) for own in ((d, d), (e, e), (d, e)))
    for some in torch.arange(len(images)).split(BLOCK):
        x = images[some].double() - x_mean
        cxx += (x * count[some][:, None]).T @ x
    for some in torch.arange(len(texts)).split(BLOCK):
        y = texts[some].double() - y_mean
        cyy += y.T @ y
        cxy += (images[owners[some]].double() - x_mean).T @ y
    cxx, cyy, cxy = cxx / total, cyy / total, cxy / total
    x_root, y_root = _inverse_root(cxx, image_penalty), _inverse_root(cyy, text_penalty)
    u, s, vt = torch.linalg.svd(x_root @ cxy @ y_root, full_matrices=False)
    found = []
    for root, basis, mean in ((x_root, u, x_mean), (y_root, vt.T, y_mean)):
        weight = torch.zeros(dim, len(mean), dtype=torch.float64)
        kept = min(dim, len(s))
        weight[:kept] = (root @ basis[:, :kept] * s[:kept]).T
        found.append(Projection(weight.float(), (-weight @ mean).float()))
    return found[0], found[1]


def _inverse_root(covariance: Tensor, penalty: float) -> Tensor:
    """Returns (covariance + penalty x its mean eigenvalue)^(-1/2)."""
    ridge = penalty * covariance.diagonal().mean().clamp(min=1e-12)
    values, basis = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    return (basis * values.clamp(min=1e-12).rsqrt()) @ basis.T
