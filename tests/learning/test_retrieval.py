"""Metrics of retrieval, against a count by hand, scikit-learn, and all orders of small pools."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from raymotion.errors import InputError
from raymotion.learning.metrics.retrieval import (
    RETRIEVAL_METRICS,
    Ranks,
    evaluate_retrieval,
    rank_odds,
    rank_queries,
    retrieval_metrics,
    weighed_retrieval,
)


def unit(seed: int, n: int, dim: int = 6) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_recall_is_scikit_learns_where_each_query_has_one_item() -> None:
    queries, items = unit(0, 40), unit(1, 40)
    found = retrieval_metrics(rank_queries(queries, items, np.arange(40), np.arange(40)).ranks)
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(top_k_accuracy_score(np.arange(40), queries @ items.T, k=k))


def test_ranks_are_those_counted_by_hand_over_groups() -> None:
    queries, items = unit(0, 12), unit(1, 20)
    of_query, of_item = np.arange(12) % 4, np.arange(20) % 4
    found = rank_queries(queries, items, of_query, of_item)
    for row, query in enumerate(queries):
        similar = items @ query
        best = similar[of_item == of_query[row]].max()
        assert found.ranks[row] == 1 + int((similar[of_item != of_query[row]] >= best).sum())
    assert found.pool == 20 and (found.own == 5).all()


def test_sibling_captions_are_no_errors_and_equal_rows_no_ties_to_lose() -> None:
    """Systems.md 2.8.7: the public code scored row i against 5i .. 5i + 4, so identical siblings beat each other."""
    pictures = np.eye(3, dtype=np.float32)
    captions = np.repeat(pictures, 5, axis=0)
    groups = np.repeat(np.arange(3), 5)
    assert (rank_queries(captions, pictures, groups, np.arange(3)).ranks == 1).all()
    assert (rank_queries(pictures, captions, np.arange(3), groups).ranks == 1).all()


def test_a_model_that_says_the_same_of_everything_is_last() -> None:
    """Systems.md 2.8.8: all text vectors of the public model were one constant."""
    same = np.tile(unit(0, 1), (10, 1))
    found = rank_queries(same, same, np.arange(10), np.arange(10))
    assert (found.ranks == 10).all() and retrieval_metrics(found.ranks)["recall_at_5"] == 0


@given(st.integers(1, 7), st.data())
def test_chance_is_the_mean_over_all_orders(pool: int, data: st.DataObject) -> None:
    own = data.draw(st.integers(1, pool))
    ranks = [1 + min(order.index(i) for i in range(own)) for order in itertools.permutations(range(pool))]
    counts = np.bincount(ranks, minlength=pool - own + 2)[1:]
    assert rank_odds(own, pool) == pytest.approx(counts / len(ranks))
    chance = Ranks(np.ones(1, np.int64), pool, np.array([own])).chance
    assert chance["recall_at_1"] == pytest.approx(own / pool)
    assert chance["mean_rank"] == pytest.approx(np.mean(ranks))
    assert chance["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))


def test_chance_of_flickr_is_one_in_the_pool_and_falls_with_it() -> None:
    """Systems.md 2.8.6: the pool of the public study grew from 6,071 to 10,315, and R@1 with it to 0.589 times."""
    before, after = (Ranks(np.ones(1, np.int64), n, np.ones(1, np.int64)).chance for n in (6071, 10_315))
    assert before["recall_at_1"] == pytest.approx(1 / 6071)
    assert after["recall_at_5"] / before["recall_at_5"] == pytest.approx(6071 / 10_315)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_metrics_are_numpys(ranks: list[int]) -> None:
    own = np.array(ranks)
    found = retrieval_metrics(own)
    assert found["median_rank"] == pytest.approx(np.median(own)) and found["mean_rank"] == pytest.approx(own.mean())
    assert found["mrr"] == pytest.approx((1 / own).mean()) and found["recall_at_5"] == pytest.approx((own <= 5).mean())


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12), st.data())
def test_weights_are_copies(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    ranks = np.array([rank for rank, _ in rows])
    _, units = np.unique([unit for _, unit in rows], return_inverse=True)
    counts = np.array([data.draw(st.integers(0, 3)) for _ in range(units.max() + 1)])
    copies = np.repeat(ranks, counts[units])
    if not len(copies):
        return
    found = weighed_retrieval(ranks, units)(counts[None].astype(float))
    assert {name: own[0] for name, own in found.items()} == pytest.approx(retrieval_metrics(copies))


def test_an_evaluation_draws_whole_pictures_and_states_chance() -> None:
    ranks = Ranks(np.repeat([1, 9], 50), 20, np.ones(100, np.int64))
    by_picture = evaluate_retrieval(ranks, groups=[str(i // 25) for i in range(100)]).metrics["recall_at_1"]
    by_caption = evaluate_retrieval(ranks).metrics["recall_at_1"]
    assert by_picture.value == by_caption.value == 0.5 and by_picture.prior == pytest.approx(1 / 20)
    assert by_picture.high is not None and by_caption.high is not None
    assert by_picture.high - 0.5 > 2 * (by_caption.high - 0.5) and by_picture.samples == 4
    assert set(evaluate_retrieval(ranks, bootstrap=0).metrics) == set(RETRIEVAL_METRICS)


def test_a_query_without_an_item_is_refused() -> None:
    with pytest.raises(InputError, match="no item of its own group"):
        rank_queries(unit(0, 2), unit(1, 2), np.array([0, 3]), np.array([0, 1]))
