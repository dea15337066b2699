"""The public study's losses by hand: they are to be its own, flaws and all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raymotion.errors import InputError
from raymotion.learning.losses.multilabel import link_of, make_loss
from raymotion.published.losses import STATIC_WEIGHTS, DiscretePublished
from raymotion.vocabulary import EMOTIC_26

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4

# Training counts of the 26 classes that the study's fixed weights imply (emotic_study.md, section 1; +- 0.5 %).
COUNTS = {
    "Engagement": 12844, "Happiness": 5627, "Anticipation": 5343, "Excitement": 4398, "Confidence": 4045,
    "Pleasure": 2102, "Peace": 1693, "Disconnection": 1462, "Affection": 1062, "Esteem": 851, "Sympathy": 719,
    "Yearning": 668, "Doubt/Confusion": 660, "Fatigue": 538, "Disquietment": 478, "Surprise": 417, "Sadness": 405,
    "Annoyance": 368, "Sensitivity": 360, "Disapproval": 325, "Suffering": 260, "Anger": 209, "Pain": 188,
    "Fear": 177, "Aversion": 168, "Embarrassment": 152,
}  # fmt: skip


def test_dynamic_weights_by_hand() -> None:
    loss = make_loss("discrete_published")
    assert isinstance(loss, DiscretePublished)
    targets = torch.zeros(6, 4)
    for column, count in enumerate((1, 2, 5, 0)):
        targets[:count, column] = 1.0
    # 1 / ln(n + 1.2): 1 / ln 2.2 = 1.2683, 1 / ln 3.2 = 0.860, 1 / ln 6.2 = 0.548; none: 0.0001
    assert loss.class_weights(targets).tolist() == pytest.approx([1.2683, 0.8597, 0.5481, 1e-4], abs=5e-5)
    # The sum on raw outputs: x = 1/2 everywhere, so (x - y)^2 = 1/4 for all 6 x 4.
    expected = 6 / 4 * (1 / math.log(2.2) + 1 / math.log(3.2) + 1 / math.log(6.2) + 1e-4)
    assert loss(torch.full((6, 4), 0.5), targets).item() == pytest.approx(expected)
    found = link_of("discrete_published").probabilities(torch.tensor([[-0.3, 0.4, 1.7]]))
    assert found.tolist() == [[0.0, pytest.approx(0.4), 1.0]]


def test_the_static_vector_is_that_of_the_training_counts() -> None:
    counts = np.array([COUNTS[name] for name in EMOTIC_26.labels])
    assert np.allclose(STATIC_WEIGHTS, 1 / np.log(counts + 1.2), atol=1.5e-4)
    static = make_loss("discrete_published", options={"weights": "static"})
    logits, targets = torch.zeros(1, 26), torch.zeros(1, 26)
    logits[0, 10] = 2.0  # Embarrassment: 0.1987 x 2^2
    assert static(logits, targets).item() == pytest.approx(0.1987 * 4)
    with pytest.raises(InputError, match="for the 26 EMOTIC labels, not for 3"):
        static(torch.zeros(1, 3), torch.zeros(1, 3))
    mean = make_loss("discrete_published", options={"weights": "mean"})
    assert mean(logits, targets).item() == pytest.approx(4 / 26)


def test_doubled_rows_lengthen_the_step_of_the_published_loss() -> None:
    """13.6: with weights that do not depend on the batch the sum doubles exactly."""
    rng = np.random.default_rng(0)
    logits, targets = torch.tensor(rng.normal(size=(8, 26))), torch.tensor((rng.random((8, 26)) < 0.3) * 1.0)
    for weights in ("mean", "static"):
        loss = make_loss("discrete_published", options={"weights": weights})
        once = loss(logits, targets).item()
        assert loss(logits.repeat(2, 1), targets.repeat(2, 1)).item() == pytest.approx(2 * once, rel=1e-5)
    # dynamic: twice the sum, less what the counts take back
    dynamic = make_loss("discrete_published")
    assert dynamic(logits.repeat(2, 1), targets.repeat(2, 1)).item() > 1.3 * dynamic(logits, targets).item()


def test_asl_by_hand() -> None:
    # Present at p = 1/4: -ln(1/4). Absent at p = 3/4: -(3/4)^4 ln(1/4), not shifted. Absent at p -> 0: .05^4 ln(.95).
    expected = (math.log(4) + 0.75**4 * math.log(4) - 0.05**4 * math.log(0.95)) / 3
    loss = make_loss("asymmetric_published")
    got = loss(torch.tensor([[-LOG3, LOG3, -20.0]]), torch.tensor([[1.0, 0.0, 0.0]])).item()
    assert got == pytest.approx(expected, rel=1e-5)


def test_mllsc_by_hand() -> None:
    # Present: p = 3/4 > .55 -> ln(3/4); p = 1/2 -> flipped: ln(1/2). Absent: p = 1/2 < .6 -> ln(1/2); 3/4 -> ln(3/4).
    expected = (2 * math.log(4 / 3) + 2 * math.log(2)) / 4
    logits, targets = torch.tensor([[LOG3, 0.0, 0.0, LOG3]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert make_loss("mllsc_published")(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_dice_by_hand_lets_frequent_labels_decide() -> None:
    # p = [3/4, 1/2], y = [1, 0]: 1 - (2 x 3/4 + 1) / (5/4 + 1 + 1)
    logits, targets = torch.tensor([[LOG3, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert make_loss("dice_published")(logits, targets).item() == pytest.approx(1 - 2.5 / 3.25)
    # A model that is right on a label of everyone and wrong on a label of one in 50:
    logits = torch.tensor([[20.0, -20.0]]).repeat(50, 1)
    targets = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    targets[0, 1] = 1.0
    assert make_loss("dice_published")(logits, targets).item() < 0.02
    assert make_loss("dice")(logits, targets).item() > 0.2
