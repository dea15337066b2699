"""Losses of a joint space, against NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymotion.errors import InputError
from raymotion.learning.losses.contrastive import LOSSES, make_contrastive_loss


def unit(rng: np.random.Generator, n: int, dim: int = 5) -> torch.Tensor:
    values = rng.normal(size=(n, dim)).astype(np.float32)
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True))


SCALE, BIAS = torch.tensor(7.0), torch.tensor(-2.0)


def test_infonce_is_the_mean_cross_entropy_of_both_directions() -> None:
    u, v = unit(np.random.default_rng(0), 6), unit(np.random.default_rng(1), 6)
    logits = 7.0 * u @ v.T
    reference = (
        torch.nn.functional.cross_entropy(logits, torch.arange(6))
        + torch.nn.functional.cross_entropy(logits.T, torch.arange(6))
    ) / 2
    assert float(make_contrastive_loss("infonce")(u, v, torch.arange(6), SCALE, BIAS)) == pytest.approx(
        float(reference)
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_captions_of_the_same_picture_are_no_negatives(name: str) -> None:
    """Systems.md 2.8.11. Row 5 is row 0's picture once more: in its group it is no negative."""
    u, v = unit(np.random.default_rng(0), 6), unit(np.random.default_rng(1), 6)
    groups = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = make_contrastive_loss(name)
    cosines = (u @ v.T).numpy().astype(np.float64)
    negatives = groups[:, None].numpy() != groups[None, :].numpy()
    own = np.diag(cosines)
    if name == "infonce":
        weight = np.where(negatives | np.eye(6, dtype=bool), np.exp(7 * cosines), 0)
        expected = -(np.log(np.exp(7 * own) / weight.sum(1)) + np.log(np.exp(7 * own) / weight.sum(0))) / 2
    elif name == "vse++":
        hinges = np.where(negatives, np.maximum(0, 0.2 + cosines - own[:, None]), 0)
        back = np.where(negatives, np.maximum(0, 0.2 + cosines - own[None, :]), 0)
        expected = hinges.max(1) + back.max(0)
    else:
        logits = 7 * cosines - 2
        others = np.where(negatives, np.log1p(np.exp(logits)), 0)
        expected = np.log1p(np.exp(-np.diag(logits))) + (others.sum(0) + others.sum(1)) / 2
    assert float(loss(u, v, groups, SCALE, BIAS)) == pytest.approx(expected.mean(), rel=1e-5)
    # Of hinges only the hardest counts, which may be another's.
    assert float(loss(u, v, torch.arange(6), SCALE, BIAS)) >= float(loss(u, v, groups, SCALE, BIAS))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_absent_sides_and_weightless_samples_are_left_out(name: str) -> None:
    u, v = unit(np.random.default_rng(0), 7), unit(np.random.default_rng(1), 7)
    loss = make_contrastive_loss(name)
    u[6], weights = 0, torch.tensor([1.0, 1, 1, 1, 1, 0, 1])
    kept = loss(u[:5], v[:5], torch.arange(5), SCALE, BIAS)
    assert float(loss(u, v, torch.arange(7), SCALE, BIAS, weights)) == pytest.approx(float(kept), rel=1e-6)


def test_one_pair_teaches_nothing_and_breaks_nothing() -> None:
    u, v = unit(np.random.default_rng(0), 1).requires_grad_(), unit(np.random.default_rng(1), 1)
    loss = make_contrastive_loss("infonce")(u, v, torch.arange(1), SCALE, BIAS)
    loss.backward()
    assert float(loss.detach()) == 0 and u.grad is not None and not u.grad.any()


def test_all_negatives_is_the_sum_of_hinges() -> None:
    u, v = unit(np.random.default_rng(0), 4), unit(np.random.default_rng(1), 4)
    cosines, total = (u @ v.T).numpy(), 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                total += max(0.0, 0.3 + cosines[i, j] - cosines[i, i]) + max(0.0, 0.3 + cosines[j, i] - cosines[i, i])
    found = make_contrastive_loss("vse++", {"margin": 0.3, "all_negatives": True})
    assert float(found(u, v, torch.arange(4), SCALE, BIAS)) == pytest.approx(total / 4, rel=1e-5)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match=r"margn.*Its options are: margin, all_negatives"):
        make_contrastive_loss("vse++", {"margn": 1})
