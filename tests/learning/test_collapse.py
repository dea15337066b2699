from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymotion.learning.collapse import check_collapse, check_one_label, label_sets
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.learning.selection import top_per_class, top_per_image
from raymotion.learning.uncertainty import entropy
from raymotion.vocabulary import SOCRATIS_29

LABELS = SOCRATIS_29.labels
WIDTH = len(LABELS)

# Class rates of the Socratis table, the six most frequent; the rest between 0.02 and 0.19.
PRIOR = np.linspace(0.19, 0.02, WIDTH)
for _name, _rate in {"happy": 0.673, "sad": 0.353, "excited": 0.3, "curious": 0.295, "interested": 0.269}.items():
    PRIOR[SOCRATIS_29.index(_name)] = _rate


def teacher(n: int, skill: float, seed: int = 0) -> np.ndarray:
    """Probabilities around the prior whose logits vary over images with standard deviation `skill`."""
    rng = np.random.default_rng(seed)
    logits = np.log(PRIOR / (1 - PRIOR)) + skill * rng.normal(size=(n, WIDTH))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def test_the_public_labels_are_caught() -> None:
    """Class rates of the published 118,287 pseudo-labels (reference/systems.md 1.5)."""
    rng = np.random.default_rng(0)
    n = 118_287
    rates = {"calm": 0.99983, "bored": 0.99946, "joy": 0.744, "confused": 0.5, "beautiful": 0.119, "concerned": 0.091,
             "good": 0.014, "fear": 0.013, "interested": 0.011, "anger": 0.0066, "neutral": 0.0011}  # fmt: skip
    mask = np.zeros((n, WIDTH), dtype=bool)
    for name, rate in rates.items():
        mask[rng.permutation(n)[: round(rate * n)], SOCRATIS_29.index(name)] = True
    for prior in (PRIOR, None):
        found = check_collapse(mask.astype(np.float32), mask, LABELS, prior=prior)
        assert found.collapsed
        assert "'calm' (99.98 %)" in found.reasons[0] and "'bored' (99.95 %)" in found.reasons[0]


@pytest.mark.parametrize("n", [25, 142, 5000])
@pytest.mark.parametrize("skill", [0.4, 1.0, 2.0])
def test_a_skewed_prior_is_no_collapse(n: int, skill: float) -> None:
    p = teacher(n, skill)
    mask = top_per_image(p, 4)
    for prior in (PRIOR, None):
        found = check_collapse(p, mask, LABELS, prior=prior)
        assert not found.collapsed, found.reasons
    if skill < 1:
        assert mask[:, SOCRATIS_29.index("happy")].mean() > 0.95  # the case that must not alarm
    assert any("no validation metrics" in note for note in found.notes)


def test_a_constant_answer_is_caught_even_if_it_is_the_prior() -> None:
    p = np.tile(PRIOR, (200, 1)) + np.random.default_rng(0).normal(scale=1e-4, size=(200, WIDTH))
    found = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR)
    text = " ".join(found.reasons)
    assert "same label set" in text and "hardly differ" in text and "repeats the prior" in text


def test_one_set_on_most_images() -> None:
    p = teacher(400, 1.0)
    mask = top_per_image(p, 4)
    mask[:370] = top_per_image(PRIOR[None], 4)
    reasons = check_collapse(p, mask, LABELS, prior=PRIOR).reasons
    assert len(reasons) == 1 and reasons[0].startswith("92.5 % of the images have the same label set: ")
    mask[:370] = False
    assert "no label at all" in check_collapse(p, mask, LABELS, prior=PRIOR).reasons[0]


def test_two_sets_for_everything() -> None:
    p = teacher(400, 1.0)
    mask = np.zeros((400, WIDTH), dtype=bool)
    mask[:200, [1, 3, 5]] = True
    mask[200:, [2, 4, 6]] = True
    reasons = check_collapse(p, mask, LABELS, prior=PRIOR).reasons
    assert reasons == ["2 label sets cover 100 % of 400 images: the labels are one of a few answers."]


def test_three_bands_of_valence_are_few_sets_and_fine() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet([1, 1, 1], size=500)
    bands = ["negative", "neutral", "positive"]
    assert not check_collapse(p, top_per_image(p, 1), bands, prior=[0.3, 0.4, 0.3]).collapsed


def test_too_few_images_to_tell() -> None:
    p = np.tile(PRIOR, (19, 1))
    found = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR)
    assert not found.collapsed
    assert "too few" in found.notes[0]


def test_top_per_class_looks_at_selected_images_only() -> None:
    p = teacher(2000, 1.0)
    mask = top_per_class(p, 5)
    assert not check_collapse(p, mask, LABELS, prior=PRIOR, selected=mask.any(axis=1)).collapsed
    assert check_collapse(p, mask, LABELS, prior=PRIOR).collapsed  # most images carry no label then


def evaluation(skill: float, n: int = 400):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(7)
    targets = (rng.random((n, WIDTH)) < PRIOR).astype(float)
    logits = np.log(PRIOR / (1 - PRIOR)) + skill * (targets - PRIOR) * 2
    return evaluate(targets, 1 / (1 + np.exp(-logits)), prior=PRIOR, labels=LABELS, bootstrap=200)


def test_a_teacher_that_beats_its_baselines() -> None:
    p = teacher(200, 1.0)
    good = evaluation(1.0)
    assert good["bce"].verdict == "better" and good["top_1"].verdict == "better"
    found = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=good)
    assert not found.collapsed and not found.notes


def test_a_teacher_that_rightly_says_happy_first() -> None:
    """It tells every class apart, but "happy" stays the first label of every image: a reservation, not a collapse."""
    p = teacher(200, 1.0)
    result = evaluation(0.4)
    assert result["top_1"].value == result["top_1"].constant and result["bce"].verdict == "better"
    found = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=result)
    assert not found.collapsed
    assert "one fixed answer" in found.notes[0] and "reservation" in found.headline


def test_a_teacher_no_better_than_its_prior() -> None:
    p = teacher(200, 1.0)
    worse = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=evaluation(-0.5))
    assert any("no better than its prior" in reason for reason in worse.reasons)
    assert any("one fixed answer" in reason for reason in worse.reasons)
    same = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=evaluation(0.0))
    assert same.collapsed
    # Better than the prior on half of the samples and worse on the others: that may be chance.
    targets = (np.random.default_rng(0).random((30, WIDTH)) < PRIOR).astype(float)
    noisy = PRIOR + np.where(np.arange(30) % 2, 0.05, -0.02)[:, None] * (targets - PRIOR)
    weak = evaluate(targets, noisy, prior=PRIOR, labels=LABELS, bootstrap=300)
    assert weak["bce"].value < weak["bce"].prior
    reasons = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=weak).reasons
    assert any("not clearly better" in reason for reason in reasons)


def test_one_label_repeats_the_prior_if_its_distribution_has_the_same_entropy() -> None:
    prior, other = np.array([0.85, 0.05, 0.05, 0.05]), np.array([0.7936151, 0.2063849, 0.0, 0.0])
    assert entropy(other[None]) == pytest.approx(entropy(prior[None])), "equal, if labels were independent"
    told, rng = "repeats the prior", np.random.default_rng(0)
    # In bits 0.85 and 0.73. As sure of one label as the prior, but each time of another, is no repetition.
    near = np.array([0.85, 0.06, 0.05, 0.04])
    permuted = np.stack([rng.permutation(prior) for _ in range(60)])
    for rows, repeats in (([prior] * 60, True), ([prior, near] * 30, True), ([other] * 60, False), (permuted, False)):
        found = check_one_label(np.stack(rows), LABELS[:4], prior=prior)
        assert any(told in one for one in found.reasons) == repeats


def test_sets_by_hand() -> None:
    sets, counts = label_sets(np.array([[1, 0], [0, 1], [0, 1], [0, 0]], dtype=bool))
    assert sets.astype(int).tolist() == [[0, 1], [1, 0], [0, 0]] and counts.tolist() == [2, 1, 1]


def test_a_gain_that_may_be_chance_is_a_reservation() -> None:
    """Real case: Socratis, captions alone, top-1 0.710 against a constant's 0.691 on 207 images."""
    result = evaluation(1.0)
    top = replace(result["top_1"], value=0.710, constant=0.691, constant_gain=(-0.01, 0.05), samples=207)
    unclear = replace(result, metrics={**result.metrics, "top_1": top})
    p = teacher(200, 1.0)
    found = check_collapse(p, top_per_image(p, 4), LABELS, prior=PRIOR, evaluation=unclear)
    assert not found.collapsed
    assert found.headline.startswith(
        "No collapse found, with a reservation: Whether the teacher's first label is right"
    )
    assert "top-1 0.710, constant 0.691, 207 samples" in found.headline
