"""The sound losses by hand, against torch and torchvision, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from raymotion.errors import InputError
from raymotion.learning.losses.bce import class_weights, multilabel_bce
from raymotion.learning.losses.multilabel import LOSSES, LabelCorrection, NamedLoss, link_of, make_loss

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
LN2, LN4 = math.log(2), math.log(4)
SOUND = [name for name in LOSSES if not name.endswith("_published")]
RATES = np.array([0.5, 0.1, 0.02])


def a_batch(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    targets = torch.tensor((rng.random((n, 3)) < [0.6, 0.3, 0.1]).astype(np.float32))
    return torch.tensor(rng.normal(0, 2, (n, 3)).astype(np.float32)), targets


def value(name: str, logits: list[list[float]], targets: list[list[float]], **options: object) -> float:
    return make_loss(name, options=options)(torch.tensor(logits), torch.tensor(targets), epoch=99).item()


def test_bce_is_the_teachers_bce() -> None:
    logits, targets = a_batch()
    assert make_loss("bce")(logits, targets).item() == pytest.approx(multilabel_bce(logits, targets).item())
    ours = make_loss("bce", rates=RATES, options={"class_weights": "inverse", "label_smoothing": 0.1})
    weights = class_weights(RATES.tolist(), "inverse")
    expected = multilabel_bce(logits, targets, class_weights=weights, label_smoothing=0.1)
    assert ours(logits, targets).item() == pytest.approx(expected.item())


def test_a_loss_of_the_wrong_shape_is_refused() -> None:
    """Its mean would be a number like any other."""

    class PerSample(NamedLoss):
        name = "per_sample"

        def terms(self, logits, targets, epoch, weights):
            return (logits - targets).square().sum(dim=1)

    with pytest.raises(InputError, match=r"per_sample gives .* \(12,\), not \(12, 3\).*PerSample.terms"):
        PerSample(PerSample.Options())(*a_batch())


def test_discrete_by_hand() -> None:
    # Two samples, two labels; p = [[3/4, 1/2], [1/2, 1/2]]; squared errors [[1/16, 1/4], [1/4, 1/4]].
    logits, targets = [[LOG3, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]
    assert value("discrete", logits, targets, weights="mean") == pytest.approx((1 / 16 + 3 / 4) / 4)
    # Shares of the batch are 1 and 0: weights 1 / ln 2.2 = 1.268 and 1 / ln 1.2 = 5.485, over their mean 3.377.
    present, absent = 1 / math.log(2.2), 1 / math.log(1.2)
    mean = (present + absent) / 2
    expected = (present / mean * (1 / 16 + 1 / 4) + absent / mean * (1 / 4 + 1 / 4)) / 4
    assert value("discrete", logits, targets, weights="dynamic") == pytest.approx(expected)
    static = make_loss("discrete", rates=np.array([1.0, 0.0]), options={"weights": "static"})
    assert static(torch.tensor(logits), torch.tensor(targets)).item() == pytest.approx(expected)


def test_a_class_that_the_batch_lacks_does_not_vanish_from_the_discrete_loss() -> None:
    loss = make_loss("discrete")
    logits = torch.zeros(8, 3, requires_grad=True)
    targets = torch.zeros(8, 3)
    targets[:, 0] = 1.0
    loss(logits, targets).backward()
    assert logits.grad is not None
    # d/dx of (p - y)^2 at x = 0: |2 x 1/2 x 1/4| for all; the weights favour the absent classes 5.48 : 1.27.
    ratio = (logits.grad[0, 2] / -logits.grad[0, 0]).item()
    assert ratio == pytest.approx(math.log(2.2) / math.log(1.2))


def test_focal_is_torchvisions() -> None:
    logits, targets = a_batch()
    for options, alpha in (({}, -1.0), ({"alpha": 0.25}, 0.25), ({"gamma": 1.5, "alpha": 0.6}, 0.6)):
        expected = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=options.get("gamma", 2.0), reduction="mean")
        assert make_loss("focal", options=options)(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    # by hand: present at p = 3/4 and absent at p = 1/2
    expected = (0.25**2 * math.log(4 / 3) + 0.5**2 * LN2) / 2
    assert value("focal", [[LOG3, 0.0]], [[1.0, 0.0]]) == pytest.approx(expected)


def test_asymmetric_by_hand_is_the_published_definition() -> None:
    # Present at p = 1/4: -ln(1/4). Absent at p = 3/4: p_m = 0.7, -(0.7^4) ln(0.3). Absent at p = 0.04: nothing.
    below = math.log(0.04 / 0.96)
    expected = (LN4 - 0.7**4 * math.log(0.3)) / 3
    assert value("asymmetric", [[-LOG3, LOG3, below]], [[1.0, 0.0, 0.0]]) == pytest.approx(expected, rel=1e-5)
    # With gamma+ = 1 a present label at p = 1/4 weighs 3/4.
    assert value("asymmetric", [[-LOG3]], [[1.0]], gamma_positive=1) == pytest.approx(0.75 * LN4)
    # Neither clip nor gammas: cross-entropy.
    plain = {"gamma_negative": 0, "gamma_positive": 0, "clip": 0}
    logits, targets = a_batch()
    got = make_loss("asymmetric", options=plain)(logits, targets).item()
    assert got == pytest.approx(multilabel_bce(logits, targets).item(), rel=1e-6)


def test_asymmetric_teaches_a_present_label_that_the_model_denies() -> None:
    """13.11: the public variant clamps both sides, so that p < 0.05 of a present label has no gradient."""
    gradients = {}
    for name in ("asymmetric", "asymmetric_published"):
        logits = torch.tensor([[-6.0]], requires_grad=True)
        make_loss(name)(logits, torch.ones(1, 1)).backward()
        assert logits.grad is not None
        gradients[name] = logits.grad.item()
    assert gradients["asymmetric"] == pytest.approx(-1.0, abs=0.01)  # p - 1
    assert gradients["asymmetric_published"] == 0.0


def test_dice_by_hand_is_by_class() -> None:
    # Class 1: p = 3/4, 1/4 with y = 1, 0. Class 2: p = 1/2, 1/2 without a positive. smooth 0.1.
    expected = (1 - (0.75 + 0.1) / (0.5 + 0.5 + 0.1) + 1 - 0.1 / (0.5 + 0.1)) / 2
    assert value("dice", [[LOG3, 0.0], [-LOG3, 0.0]], [[1.0, 0.0], [0.0, 0.0]], smooth=0.1) == pytest.approx(expected)


def test_mllsc_is_cross_entropy_until_the_warm_up_is_over() -> None:
    """13.11: the public variant takes every present label away at the start, where p is about 1/2."""
    logits, targets = a_batch()
    loss = make_loss("mllsc", rates=RATES, options={"warmup": 3})
    plain = multilabel_bce(logits, targets).item()
    assert loss(logits, targets, epoch=2).item() == pytest.approx(plain)
    start = torch.zeros(4, 3)
    after = make_loss("mllsc", rates=RATES, options={"warmup": 0})
    assert after(start, targets[:4]).item() == pytest.approx(LN2)
    start.requires_grad_()
    after(start, torch.ones(4, 3)).backward()
    assert start.grad is not None and (start.grad < 0).all()  # present labels still pull up
    public = torch.zeros(4, 3, requires_grad=True)
    make_loss("mllsc_published")(public, torch.ones(4, 3)).backward()
    assert public.grad is not None and (public.grad > 0).all()  # the defect


def test_mllsc_corrects_by_the_class_rate_and_without_gradient_through_the_decision() -> None:
    loss = make_loss("mllsc", rates=np.array([0.5, 0.01]))
    assert isinstance(loss, LabelCorrection)
    p = torch.tensor([[0.04, 0.004], [0.04, 0.0005], [0.95, 0.5]])
    targets = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    # Limits 0.1 x rate: 0.05 and 0.001. A rare class keeps a label at p = 0.004. p = 0.95 becomes present.
    corrected = loss.corrected(torch.logit(p).requires_grad_(), targets)
    assert corrected.tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert not corrected.requires_grad


@pytest.mark.parametrize("name", SOUND)
def test_resampled_rows_do_not_lengthen_the_step(name: str) -> None:
    """13.6: a loss that sums makes a longer step for every synthetic row; a mean does not."""
    logits, targets = a_batch()
    loss = make_loss(name, rates=RATES)
    once = loss(logits, targets, epoch=9).item()
    assert loss(logits.repeat(2, 1), targets.repeat(2, 1), epoch=9).item() == pytest.approx(once, rel=1e-5)
    # and a sample of weight 2 is that sample twice; of weight 0, not there
    weights = torch.ones(len(logits))
    weights[0], weights[1] = 2.0, 0.0
    rows = [0, 0, *range(2, len(logits))]
    weighted = loss(logits, targets, epoch=9, weights=weights).item()
    assert weighted == pytest.approx(loss(logits[rows], targets[rows], epoch=9).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in SOUND), ("asymmetric", {"clip": 0.0, "gamma_negative": 0.5})]
)
def test_gradients_are_finite_at_extreme_logits(name: str, options: dict[str, float]) -> None:
    logits = torch.tensor([[50.0, -50.0, 0.0], [-50.0, 50.0, 200.0]], requires_grad=True)
    loss = make_loss(name, rates=RATES, options=options)
    for targets in (torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 0.4)):
        logits.grad = None
        result = loss(logits, targets, epoch=9)
        result.backward()
        assert torch.isfinite(result) and logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_under_gradient_descent_and_measures_in_float32(name: str) -> None:
    logits, targets = a_batch()
    loss = make_loss(name, rates=RATES)
    assert loss.name == name
    x = logits.clone().requires_grad_()
    before = loss(x, targets)
    before.backward()
    assert x.grad is not None
    assert loss(x.detach() - 1e-3 * x.grad, targets).item() <= before.item()
    half = loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss(logits.bfloat16().float(), targets).item())
    p = link_of(name).probabilities(torch.tensor([[-50.0, 0.5, 50.0]], dtype=torch.bfloat16))
    assert p.dtype == torch.float32 and p.min() >= 0 and p.max() <= 1 and p[0, 0] < p[0, 1] < p[0, 2]


def test_what_does_not_fit_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"no loss is called .nothing.. There are bce, discrete, focal"):
        make_loss("nothing")
    with pytest.raises(InputError, match=r"loss focal: .*gama.*Its options are: gamma, alpha"):
        make_loss("focal", options={"gama": 1})
    with pytest.raises(InputError, match=r"loss dice: .*smooth"):
        make_loss("dice", options={"smooth": -1})
    with pytest.raises(InputError, match="loss discrete with weights=static needs the class rates"):
        make_loss("discrete", options={"weights": "static"})
    with pytest.raises(InputError, match="do not fit"):
        make_loss("bce")(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(InputError, match="do not fit"):
        make_loss("bce")(torch.zeros(2, 3), torch.zeros(2, 3), weights=torch.ones(3))
    with pytest.raises(InputError, match="3 class rates do not fit 4 labels"):
        make_loss("bce", rates=RATES)(torch.zeros(2, 4), torch.zeros(2, 4))
