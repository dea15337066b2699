"""The metrics of one label against scikit-learn, on ties, and on resamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from raymotion.errors import InputError
from raymotion.learning.metrics.single_label import (
    CLASS_METRICS,
    class_metrics,
    confusion,
    evaluate_classes,
    said,
    weighed_class_metrics,
)

LABELS = ("calm", "happy", "sad", "scared")


def data(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True labels (n,) and probabilities (n, 4) that know a little of them."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    p = rng.dirichlet(np.ones(4), n) + 0.6 * np.eye(4)[truth] * rng.random((n, 1))
    return truth, p / p.sum(axis=1, keepdims=True)


def sklearns(truth: np.ndarray, p: np.ndarray) -> dict[str, float]:
    answer = p.argmax(axis=1)
    return {
        "log_loss": log_loss(truth, p, labels=range(p.shape[1])),
        "accuracy": accuracy_score(truth, answer),
        "macro_f1": f1_score(truth, answer, average="macro"),
    }


def test_the_figures_and_their_baselines_are_scikit_learns() -> None:
    truth, p = data()
    hard, prior = np.eye(4)[truth], np.array([0.2, 0.6, 0.1, 0.1])
    found = evaluate_classes(hard, p, prior=prior, labels=LABELS, bootstrap=200)
    own, constant = np.tile(prior, (200, 1)), np.tile(hard.mean(axis=0), (200, 1))
    for name in CLASS_METRICS:
        assert found[name].value == pytest.approx(sklearns(truth, p)[name])
        assert found[name].prior == pytest.approx(sklearns(truth, own)[name])
        assert found[name].constant == pytest.approx(sklearns(truth, constant)[name])
        assert found[name].verdict == "better"
    assert class_metrics(hard, p, hard=hard) == pytest.approx(sklearns(truth, p))
    assert (confusion(hard, p) == confusion_matrix(truth, p.argmax(axis=1))).all()


def test_a_model_that_is_worse_than_the_majority_is_called_worse() -> None:
    truth, _ = data()
    always_sad = np.tile([0.2, 0.2, 0.4, 0.2], (200, 1))
    found = evaluate_classes(np.eye(4)[truth], always_sad, prior=[0.5, 0.3, 0.15, 0.05], labels=LABELS, bootstrap=200)
    assert found["accuracy"].verdict == found["log_loss"].verdict == "worse"


def test_the_interval_is_that_of_repeated_groups() -> None:
    truth, p = data(60)
    hard, units = np.eye(4)[truth], np.arange(60) // 3
    measure = weighed_class_metrics(hard, p, hard=hard, units=units)
    counts = np.random.default_rng(1).integers(0, 3, (20, 20))
    found = measure(counts.astype(float))
    for row in range(20):
        rows = np.repeat(np.arange(60), counts[row][units])
        expected = sklearns(truth[rows], p[rows])
        assert {name: found[name][row] for name in CLASS_METRICS} == pytest.approx(expected)


def test_soft_targets_change_the_log_loss_alone() -> None:
    truth, p = data()
    hard = np.eye(4)[truth]
    soft = 0.8 * hard + 0.05
    found = evaluate_classes(
        hard, p, prior=[0.25] * 4, labels=LABELS, soft_targets=soft, soft_prior=soft.mean(axis=0), bootstrap=0
    )
    plain = evaluate_classes(hard, p, prior=[0.25] * 4, labels=LABELS, bootstrap=0)
    assert found["log_loss"].value == pytest.approx(float(-(soft * np.log(p)).sum(axis=1).mean()))
    rates = soft.mean(axis=0)
    assert found["log_loss"].prior == pytest.approx(float(-(soft @ np.log(rates)).mean()))
    for name in ("accuracy", "macro_f1"):
        assert (found[name].value, found[name].constant) == (plain[name].value, plain[name].constant)


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(2, 5)), elements=st.sampled_from([0.0, 0.25, 1.0])))
def test_ties_share_an_answer(scores: np.ndarray) -> None:
    shares = said(scores)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(scores)))
    assert (shares[scores < scores.max(axis=1, keepdims=True)] == 0).all()
    # A constant gains nothing from the order of the labels.
    even = np.full(scores.shape, 1.0 / scores.shape[1])
    hard = np.eye(scores.shape[1])[scores.argmax(axis=1)]
    assert class_metrics(hard, even, hard=hard)["accuracy"] == pytest.approx(1.0 / scores.shape[1])


def test_what_cannot_be_evaluated_is_refused() -> None:
    hard, p = np.eye(4), np.full((4, 4), 0.25)
    for targets, values, prior in ((hard[:0], p[:0], p[0]), (hard, p[:, :3], p[0]), (hard, p, p[0, :2])):
        with pytest.raises(InputError):
            evaluate_classes(targets, values, prior=prior, labels=LABELS)
    with pytest.raises(InputError, match="finite"):
        evaluate_classes(hard, p * np.nan, prior=p[0], labels=LABELS)
    assert np.isnan(class_metrics(hard[:0], p[:0], hard=hard[:0])["accuracy"])
