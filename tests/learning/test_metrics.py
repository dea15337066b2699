"""Metrics against scikit-learn, hand calculation and the published constants of Socratis."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss

from raymotion.errors import InputError
from raymotion.learning.metrics.average_precision import average_precision, random_order_ap, ranking
from raymotion.learning.metrics.multilabel import Evaluation, evaluate, top_k_hits
from raymotion.vocabulary import SOCRATIS_29

CSV = Path(__file__).resolve().parents[3] / "shared/data/socratis/cleaned_data.csv"


def sample(n: int = 120, width: int = 7, seed: int = 3, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Targets and scores that carry some of them, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, width)) < np.linspace(0.6, 0.1, width)).astype(float)
    return targets, np.round(np.clip(0.25 * targets + 0.7 * rng.random((n, width)), 0, 1), decimals)


def names(width: int) -> list[str]:
    return [f"e{j}" for j in range(width)]


def test_against_scikit_learn() -> None:
    targets, p = sample()
    result = evaluate(targets, p, prior=np.full(7, 0.3), labels=names(7), bootstrap=20)
    assert result["micro_ap"].value == pytest.approx(average_precision_score(targets, p, average="micro"))
    assert result["macro_ap"].value == pytest.approx(average_precision_score(targets, p, average="macro"))
    for j, score in enumerate(result.per_class):
        assert score.average_precision == pytest.approx(average_precision_score(targets[:, j], p[:, j]))
        assert score.prevalence == pytest.approx(targets[:, j].mean())
    columns = [log_loss(targets[:, j], np.clip(p[:, j], 1e-7, 1 - 1e-7)) for j in range(7)]
    assert result["bce"].value == pytest.approx(np.mean(columns))


def test_baselines_against_scikit_learn() -> None:
    targets, p = sample()
    prior = np.array([0.5, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1])
    result = evaluate(targets, p, prior=prior, labels=names(7), bootstrap=20)
    spread = np.broadcast_to(prior, targets.shape)
    assert result["micro_ap"].prior == pytest.approx(average_precision_score(targets, spread, average="micro"))
    assert result["macro_ap"].prior == pytest.approx(average_precision_score(targets, spread, average="macro"))
    assert result["micro_ap"].constant == pytest.approx(targets.mean())
    assert result["macro_ap"].constant == pytest.approx(targets.mean(axis=0).mean())
    assert result["bce"].prior == pytest.approx(np.mean([log_loss(targets[:, j], spread[:, j]) for j in range(7)]))
    own = np.broadcast_to(targets.mean(axis=0), targets.shape)
    assert result["bce"].constant == pytest.approx(np.mean([log_loss(targets[:, j], own[:, j]) for j in range(7)]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=25))
def test_average_precision_with_ties(rows: list[tuple[bool, int]]) -> None:
    truth, scores = np.array([float(t) for t, _ in rows]), np.array([s / 4 for _, s in rows])
    value = average_precision(truth, scores)
    if truth.sum() == 0:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(average_precision_score(truth, scores))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=2, max_size=5), st.integers(1, 3))
def test_ties_are_the_mean_over_all_orders(row: list[tuple[bool, int]], k: int) -> None:
    truth, scores = np.array([[float(t) for t, _ in row]]), np.array([[s / 2 for _, s in row]])
    hits = []
    for order in itertools.permutations(range(len(row))):
        top = sorted(order, key=lambda j: -scores[0, j])[:k]
        hits.append(sum(row[j][0] for j in top))
    chance, expected = top_k_hits(truth, scores, k)
    assert chance[0] == pytest.approx(np.mean([h > 0 for h in hits]))
    assert expected[0] == pytest.approx(np.mean(hits))


def test_by_hand() -> None:
    targets = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=float)
    p = np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.8, 0.7, 0.1], [0.5, 0.4, 0.3, 0.05]])
    result = evaluate(targets, p, prior=[0.4, 0.3, 0.2, 0.1], labels=names(4), bootstrap=10)
    assert result["top_1"].value == pytest.approx(1 / 3)  # the sample without a label counts as missed
    assert result["top_2"].value == pytest.approx(2 / 3)
    assert result["recall_at_3"].value == pytest.approx(1.0)  # 2 of 2, 1 of 1; the third has nothing to find
    assert result["recall_at_3"].samples == 2
    assert result["recall_at_3_public"].value == pytest.approx(3 / 9)
    assert result.distinct_top3 == 2
    assert result.classes_left_out == 1
    assert result.per_class[2].average_precision is None
    assert result["macro_ap"].value == pytest.approx(np.mean([0.5, 0.5, 1.0]))  # ties of the first two classes


def test_a_constant_answer_gains_nothing() -> None:
    targets, _ = sample(400)
    flat = np.full(targets.shape, 0.4)
    result = evaluate(targets, flat, prior=targets.mean(axis=0), labels=names(7), bootstrap=200)
    assert result["top_1"].value == pytest.approx(targets.mean())  # a random label
    assert result["macro_ap"].value == pytest.approx(result["macro_ap"].constant)
    assert result["micro_ap"].value == pytest.approx(targets.mean())
    assert result.distinct_top3 == 1
    assert result["bce"].verdict == "worse"
    assert all(metric.verdict != "better" for metric in result.metrics.values())


def test_soft_targets_are_for_the_bce_only() -> None:
    targets, p = sample()
    soft = targets * 0.5
    hard = evaluate(targets, p, prior=np.full(7, 0.3), labels=names(7), bootstrap=10)
    result = evaluate(targets, p, prior=np.full(7, 0.3), labels=names(7), bootstrap=10, soft_targets=soft)
    q = np.clip(p, 1e-7, 1 - 1e-7)
    assert result["bce"].value == pytest.approx(-(soft * np.log(q) + (1 - soft) * np.log(1 - q)).mean())
    rates = soft.mean(axis=0)
    entropy = -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)).mean()
    assert result["bce"].constant == pytest.approx(entropy)
    assert result["top_1"] == hard["top_1"]
    with pytest.raises(InputError, match="soft_targets"):
        evaluate(soft, p, prior=np.full(7, 0.3), labels=names(7))


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    n = 900
    targets = np.zeros((n, 4))
    targets[:, 0] = rng.random(n) < 0.7
    p = np.tile([0.9, 0.2, 0.1, 0.05], (n, 1))
    metric = evaluate(targets, p, prior=[0.1, 0.2, 0.3, 0.4], labels=names(4), bootstrap=2000)["top_1"]
    rate = targets[:, 0].mean()
    half = 1.96 * np.sqrt(rate * (1 - rate) / n)
    assert metric.value == pytest.approx(rate)
    assert metric.low == pytest.approx(rate - half, abs=0.004)
    assert metric.high == pytest.approx(rate + half, abs=0.004)
    # The training prior ranks a label first that nobody has: the whole of the rate is gained.
    assert metric.prior == 0.0
    assert metric.prior_gain == pytest.approx((metric.low, metric.high))


@pytest.mark.slow
def test_interval_of_average_precision_by_plain_resampling() -> None:
    targets, p = sample(150, 3)
    metric = evaluate(targets, p, prior=np.full(3, 0.3), labels=names(3), bootstrap=1000)["macro_ap"]
    rng = np.random.default_rng(99)
    drawn = []
    for _ in range(1000):
        rows = rng.integers(0, 150, 150)
        drawn.append(average_precision_score(targets[rows], p[rows], average="macro"))
    low, high = np.percentile(drawn - np.mean(drawn) + metric.value, (2.5, 97.5))
    assert metric.low == pytest.approx(low, abs=0.012)
    assert metric.high == pytest.approx(high, abs=0.012)
    assert metric.resamples == 1000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=5))
def test_expected_average_precision_of_a_random_order(rows: list[tuple[bool, int]]) -> None:
    truth, scores = [float(t) for t, _ in rows], np.array([s / 3 for _, s in rows])
    if not any(truth):
        return
    expected = np.mean([average_precision(np.array(order), scores) for order in itertools.permutations(truth)])
    _, ends = ranking(scores)
    assert random_order_ap(ends, sum(truth), len(truth)) == pytest.approx(expected)


def test_random_scores_are_not_called_better() -> None:
    """Rare classes and few samples: the case where a random order beats the prevalence, on average by a fifth."""
    rates = np.where(np.arange(20) % 3 == 0, 0.03, 0.15)
    verdicts = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        targets = (rng.random((150, 20)) < rates).astype(float)
        result = evaluate(targets, rng.random((150, 20)), prior=rates, labels=names(20), bootstrap=100, seed=seed)
        verdicts.append(result["macro_ap"].verdict)
        assert result["macro_ap"].low <= result["macro_ap"].value <= result["macro_ap"].high
    # One in forty is expected; six or more have a chance of less than 1 in 1000.
    assert verdicts.count("better") < 6


def test_round_trip_through_json() -> None:
    targets, p = sample(30)
    targets[:, 6] = 0
    result = evaluate(targets, p, prior=np.full(7, 0.3), labels=names(7), bootstrap=20)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert Evaluation.from_dict(json.loads(text)) == result
    with pytest.raises(InputError, match="readable evaluation"):
        Evaluation.from_dict({"samples": 3})


def test_no_positive_at_all_is_null_not_nan() -> None:
    result = evaluate(np.zeros((5, 3)), np.full((5, 3), 0.2), prior=[0.1] * 3, labels=names(3), bootstrap=10)
    assert result["macro_ap"].value is None
    assert result["recall_at_3"].value is None
    assert result["macro_ap"].verdict == "unclear"
    json.dumps(result.to_dict(), allow_nan=False)


def test_same_seed_same_intervals() -> None:
    targets, p = sample()
    first, second = (
        evaluate(targets, p, prior=np.full(7, 0.3), labels=names(7), bootstrap=50, seed=5) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("targets", "p", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "at least one"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "do not fit"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "between 0 and 1"),
        (np.zeros((4, 3)), np.full((4, 3), 1.5), "between 0 and 1"),
    ],
)
def test_bad_input(targets: np.ndarray, p: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(targets, p, prior=[0.1] * 3, labels=names(3))


@pytest.mark.slow
def test_2000_samples_of_29_labels_take_seconds() -> None:
    targets, p = sample(2000, 29, decimals=6)
    start = time.perf_counter()
    evaluate(targets, p, prior=np.full(29, 0.2), labels=names(29))
    assert time.perf_counter() - start < 15


@pytest.mark.skipif(not CSV.exists(), reason="the Socratis table is not here")
def test_published_constants_of_socratis() -> None:
    with CSV.open(newline="") as file:
        rows = [ast.literal_eval(row["emotions"]) for row in csv.DictReader(file)]
    targets = np.stack([SOCRATIS_29.encode(row) for row in rows]).astype(float)
    rates = targets.mean(axis=0)
    p = np.broadcast_to(rates, targets.shape)
    result = evaluate(targets, p, prior=rates, labels=SOCRATIS_29.labels, bootstrap=20)
    assert result.samples == 2065
    for name, published in [("top_1", 0.673), ("top_2", 0.832), ("top_3", 0.885), ("recall_at_3", 0.398)]:
        assert result[name].constant == pytest.approx(published, abs=5e-4)
        assert result[name].value == pytest.approx(published, abs=5e-4)
        assert result[name].verdict == "unclear"
    assert result["recall_at_3_public"].constant == pytest.approx(0.442, abs=5e-4)
    assert result["bce"].prior == pytest.approx(0.3452, abs=5e-5)
    assert result["macro_ap"].constant == pytest.approx(0.137, abs=5e-4)


def test_persons_of_one_image_are_drawn_together() -> None:
    """Every row twice, in one group each: intervals are those of the single rows; drawn singly they are too narrow."""
    targets, p = sample(80)
    prior = np.full(7, 0.3)
    once = evaluate(targets, p, prior=prior, labels=names(7), bootstrap=200)
    twice, both = targets.repeat(2, axis=0), p.repeat(2, axis=0)
    images = [f"emotic:{i}" for i in range(80) for _ in range(2)]
    grouped = evaluate(twice, both, prior=prior, labels=names(7), bootstrap=200, groups=images)
    narrow = evaluate(twice, both, prior=prior, labels=names(7), bootstrap=200)
    for name in ("bce", "macro_ap", "micro_ap", "top_1", "recall_at_3"):
        a, b, c = once[name], grouped[name], narrow[name]
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))
        assert c.high - c.low < 0.9 * (b.high - b.low)
    for single, person in zip(once.per_class, grouped.per_class, strict=True):
        assert (person.low, person.high) == pytest.approx((single.low, single.high))
    with pytest.raises(InputError, match=r"groups of shape \(2,\) do not fit 160 samples"):
        evaluate(twice, both, prior=prior, labels=names(7), groups=["a", "b"])
