"""`raymotion.select`, `evaluate` and `audit` on anybody's arrays, against the functions and libraries behind them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

import raymotion
from raymotion.errors import InputError
from raymotion.learning.selection import top_per_class
from raymotion.vocabulary import MIKELS_8

LABELS = ["calm", "joy", "fear"]


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (400, 3) that say something, and targets drawn from them."""
    rng = np.random.default_rng(3)
    p = rng.beta(0.6, 1.2, size=(400, 3))
    return p, (rng.random(p.shape) < p).astype(int)


def test_targets_come_in_several_shapes(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    p, truth = arrays
    expected = np.mean([average_precision_score(truth[:, j], p[:, j]) for j in range(3)])
    frame = pd.DataFrame(p, columns=LABELS)
    names = [[LABELS[j] for j in np.flatnonzero(row)] for row in truth]
    for targets, scores, labels in [
        (truth, p, LABELS),
        (truth.astype(bool), frame, None),
        (pd.DataFrame(truth, columns=LABELS)[LABELS[::-1]], frame, None),  # joined by name
        (names, p, LABELS),
        (pd.Series(names), frame, None),
        (truth.tolist(), p, LABELS),
    ]:
        found = raymotion.evaluate(targets, scores, labels, bootstrap=100)
        assert found["macro_ap"].value == pytest.approx(expected)
        assert found["bce"].prior == found["bce"].constant and "class prior is that of these samples" in found.notes[0]
    prior = [0.5, 0.2, 0.1]
    found = raymotion.evaluate(truth, p, LABELS, prior=prior, bootstrap=100)
    by_hand = -(truth * np.log(prior) + (1 - truth) * np.log1p(-np.array(prior))).mean()
    assert found["bce"].prior == pytest.approx(by_hand) and found.frame().loc["bce", "prior"] == found["bce"].prior
    assert found.class_frame().loc["joy", "positives"] == truth[:, 1].sum()
    page = found._repr_html_()
    assert "Macro AP" in page and f"{expected:.4f}" in page and found.collapse.headline.split(":")[0] in page


def test_a_selection_is_that_of_its_policy(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    p, _ = arrays
    found = raymotion.select(p, LABELS, policy="top-per-class", count=50)
    np.testing.assert_array_equal(found.mask, top_per_class(p, 50))
    assert found.frame()["chosen"].tolist() == [50, 50, 50] and len(found) == 400
    assert found.names()[0] == [LABELS[j] for j in np.flatnonzero(found.mask[0])]
    limits = raymotion.select(pd.DataFrame(p, columns=LABELS), policy="class-thresholds", thresholds=[0.2, 0.5, 2.0])
    np.testing.assert_array_equal(limits.mask, p >= [0.2, 0.5, 2.0])
    same = raymotion.select(np.tile([0.9, 0.2, 0.1], (400, 1)), LABELS, count=1)
    assert same.collapse.collapsed and "FAILED" in same._repr_html_()
    assert raymotion.select(np.zeros((3, 8)) + 0.2, MIKELS_8, count=2).labels == MIKELS_8.labels


def test_an_audit_finds_the_labels_that_were_flipped(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((400, 3)) < 0.4
    p = np.clip(np.where(truth, 0.9, 0.1) + rng.normal(0, 0.05, truth.shape), 0, 1)
    wrong = truth.copy()
    wrong[:12, 1] ^= True
    found = raymotion.audit(wrong, p, LABELS, bootstrap=100)
    listed = found.frame()
    assert set(map(tuple, listed[["row", "label"]].to_numpy())) >= {(i, "joy") for i in range(12)}
    assert (
        len(listed) < 20 and (listed["kind"] == np.where(wrong[listed.row, 1], "doubtful", "missing")).iloc[:12].all()
    )
    assert listed["contradiction"].is_monotonic_decreasing
    assert f"{len(listed)} labels" in found._repr_html_() and "joy" in found._repr_html_()


def test_an_audit_of_one_label_a_sample_suggests_another() -> None:
    truth = np.arange(300) % 3
    p = 0.8 * np.eye(3)[truth] + 0.2 / 3
    given = truth.copy()
    given[:12] = (truth[:12] + 1) % 3
    found = raymotion.audit([[LABELS[j]] for j in given], p, LABELS, one_label=True, bootstrap=50).frame()
    assert sorted(found["row"]) == list(range(12))
    assert all(LABELS.index(own) == truth[row] for row, own in found[["row", "suggested"]].to_numpy())
    with pytest.raises(InputError, match=r"row 1.*has 2 labels"):
        raymotion.audit([["joy"], ["joy", "calm"], ["fear"]], p[:3], LABELS, one_label=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, t: raymotion.select(p), "the labels have no names"),
        (lambda p, t: raymotion.select(p, ["a", "b"]), "2 different labels do not fit 3 columns"),
        (lambda p, t: raymotion.select(p, ["a", "b", "b"]), "2 different labels do not fit 3 columns"),
        (lambda p, t: raymotion.select(p * 2, LABELS), "not all between 0 and 1"),
        (lambda p, t: raymotion.select(p, LABELS, policy="best"), "policy"),
        (lambda p, t: raymotion.select(p, LABELS, cuont=3), "cuont"),
        (lambda p, t: raymotion.select(np.where(p > 0.9, np.nan, p), LABELS), r"NaN in \d+ of 400 rows.*failure"),
        (lambda p, t: raymotion.select(pd.DataFrame({"path": ["a"], "joy": [0.5]})), "Choose the columns"),
        (lambda p, t: raymotion.select(pd.DataFrame(p, columns=LABELS), LABELS[::-1]), "the columns .* and the labels"),
        (lambda p, t: raymotion.evaluate(t[:9], p, LABELS), "do not fit"),
        (lambda p, t: raymotion.evaluate(t * 0.5, p, LABELS), "targets are 0 or 1"),
        (lambda p, t: raymotion.evaluate([["joy"], ["jo"]], p[:2], LABELS), "row 1: 'jo' is not among the labels"),
        (lambda p, t: raymotion.evaluate(["joy", "calm"], p[:2], LABELS), "row 0: 'joy' is no list of labels"),
        (lambda p, t: raymotion.evaluate([["joy"], None], p[:2], LABELS), "row 1: None is no list of labels"),
        (lambda p, t: raymotion.evaluate(t, p, LABELS, prior=[0.1]), "prior"),
        (lambda p, t: raymotion.audit(None, p, LABELS), "row 0: None is no list of labels"),
        (lambda p, t: raymotion.audit(pd.DataFrame(t, columns=["calm", "joy", "awe"]), p, LABELS), "awe, not calm"),
        (
            lambda p, t: raymotion.audit(
                pd.DataFrame(t, columns=LABELS), pd.DataFrame(p, columns=LABELS, index=range(400)[::-1])
            ),
            "different indices",
        ),
    ],
)
def test_what_does_not_fit_is_told(arrays: tuple[np.ndarray, np.ndarray], call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(*arrays)  # type: ignore[operator]
