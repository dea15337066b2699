"""Uncertainty of labels, and the rows that a person should look at first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from raymotion.errors import InputError
from raymotion.learning.uncertainty import disagreement, entropy, margin, pick_rows

PROBABILITIES = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(2, 5)), elements=st.floats(0, 1))


@given(PROBABILITIES)
def test_measures_agree_with_scipy(p: np.ndarray) -> None:
    both = np.stack([p, 1 - p])
    assert np.allclose(entropy(p), stats.entropy(both, base=2, axis=0).mean(axis=1))
    top = np.sort(p, axis=1)
    assert np.allclose(margin(p), 1 - (top[:, -1] - top[:, -2]))
    assert np.allclose(disagreement([p, p, p]), 0, atol=1e-12)


@given(PROBABILITIES, st.integers(0, 3))
def test_disagreement_is_the_mean_divergence_to_the_mean(p: np.ndarray, seed: int) -> None:
    committee = [p, np.random.default_rng(seed).random(p.shape), 1 - p]
    mean = np.mean(committee, axis=0)
    told = [
        stats.entropy(np.stack([own, 1 - own]), np.stack([mean, 1 - mean]), base=2, axis=0).mean(axis=1)
        for own in committee
    ]
    assert np.allclose(disagreement(committee), np.mean(told, axis=0))


@given(PROBABILITIES, st.integers(0, 3))
def test_one_label_is_one_distribution(weights: np.ndarray, seed: int) -> None:
    p = (weights + 1e-3) / (weights + 1e-3).sum(axis=1, keepdims=True)
    assert np.allclose(entropy(p, one_label=True), stats.entropy(p, base=2, axis=1))
    committee = [p, np.random.default_rng(seed).dirichlet(np.ones(p.shape[1]), len(p)), p[:, ::-1]]
    told = [stats.entropy(own, np.mean(committee, axis=0), base=2, axis=1) for own in committee]
    assert np.allclose(disagreement(committee, one_label=True), np.mean(told, axis=0))


def test_one_label_ranks_otherwise_than_independent_labels() -> None:
    p = np.array([[0.5, 0.5, 0.0, 0.0], [0.8, 0.0666, 0.0667, 0.0667]])
    assert entropy(p).argmax() == 0
    assert entropy(p, one_label=True).argmax() == stats.entropy(p, base=2, axis=1).argmax() == 1


def test_extremes() -> None:
    assert entropy(np.array([[0.5, 0.5], [0.0, 1.0]])).tolist() == [1.0, 0.0]
    assert entropy(np.array([[0.5, 0.5], [0.0, 1.0]], np.float32), one_label=True).tolist() == [1.0, 0.0]
    assert entropy(np.full((1, 8), 0.125), one_label=True).tolist() == [3.0]
    assert margin(np.array([[0.5], [0.9]])).tolist() == pytest.approx([1.0, 0.2])
    assert disagreement([np.array([[0.0]]), np.array([[1.0]])]).tolist() == [1.0]
    assert disagreement([np.array([[0.5]]), np.array([[0.5]])]).tolist() == [0.0], "unsure, but of one mind"
    with pytest.raises(InputError):
        disagreement([np.zeros((2, 2))])
    with pytest.raises(InputError):
        disagreement([np.zeros((2, 2)), np.zeros((2, 3))])


def named(n: int) -> list[str]:
    return [f"s{i}" for i in range(n)]


def test_one_label_does_not_take_all() -> None:
    scores = np.concatenate([np.full(90, 0.9), np.full(10, 0.1)])  # the rare label is never the most uncertain
    mask = np.zeros((100, 2), bool)
    mask[:90, 0] = mask[90:, 1] = True
    picked = pick_rows(scores, mask, named(100), named(100), 12)
    assert mask[picked].sum(axis=0).tolist() == [6, 6]
    assert mask[picked[0], 1], "the rarer label first"
    assert len(set(picked)) == 12
    # Once the rare label has no row left, the others go on.
    assert mask[pick_rows(scores, mask, named(100), named(100), 40)].sum(axis=0).tolist() == [30, 10]


def test_the_highest_scores_of_a_label_and_one_row_of_a_group() -> None:
    scores, mask = np.array([0.1, 0.9, 0.8, 0.7]), np.ones((4, 1), bool)
    assert pick_rows(scores, mask, named(4), named(4), 2) == [1, 2]
    assert pick_rows(scores, mask, named(4), ["a", "b", "b", "c"], 9) == [1, 3, 0]
    assert pick_rows(scores, mask, named(4), ["a", "b", "b", "c"], 9, without={"c"}) == [1, 0]
    assert pick_rows(scores, mask, named(4), named(4), 9, among=np.array([True, False, False, True])) == [3, 0]
    assert pick_rows(scores, np.zeros((4, 1), bool), named(4), named(4), 2) == [1, 2], "rows without a label too"
    assert pick_rows(scores[:0], mask[:0], [], [], 2) == []


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 40), st.data())
def test_the_choice_does_not_depend_on_the_order_of_rows(seed: int, n: int, count: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    scores, mask = rng.integers(0, 3, n) / 2, rng.random((n, 3)) < 0.4
    ids, groups = named(n), [f"g{i}" for i in rng.integers(0, 20, n)]
    picked = pick_rows(scores, mask, ids, groups, count, seed=seed)
    assert len({groups[i] for i in picked}) == len(picked) == min(count, len(set(groups)))
    order = data.draw(st.permutations(range(n)))
    again = pick_rows(scores[order], mask[order], [ids[i] for i in order], [groups[i] for i in order], count, seed=seed)
    assert [ids[i] for i in picked] == [ids[order[i]] for i in again]


def test_equal_scores_are_drawn_by_the_seed() -> None:
    flat, mask = np.zeros(200), np.ones((200, 1), bool)
    first, second = (pick_rows(flat, mask, named(200), named(200), 20, seed=seed) for seed in (0, 1))
    assert first != second and first != list(range(20))
    assert first == pick_rows(flat, mask, named(200), named(200), 20, seed=0)
