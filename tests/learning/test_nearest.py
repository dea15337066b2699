"""Exact search among vectors, beside sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.learning import nearest
from raymotion.learning.nearest import best_items, cosines


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 12), st.integers(0, 99))
def test_the_best_items_are_those_of_a_full_sort(queries: int, items: int, dim: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: many cosines are equal.
    asked, pool = (rng.integers(-1, 2, (n, dim)).astype(np.float32) for n in (queries, items))
    places, found = best_items(asked, pool, count)
    for row in range(queries):
        lengths = np.linalg.norm(asked[row]) * np.linalg.norm(pool.astype(np.float64), axis=1)
        own = np.round(np.divide(pool @ asked[row], lengths, out=np.zeros(items), where=lengths > 0), 9)
        expected = sorted(range(items), key=lambda i, own=own: (-own[i], i))[: min(count, items)]
        assert places[row].tolist() == expected
        assert found[row] == pytest.approx(own[expected])


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    asked, pool = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    pool[20:] = pool[:20]  # ties
    whole = best_items(asked, pool, 7)
    monkeypatch.setattr(nearest, "BLOCK", 90)  # two queries at a time
    parts = best_items(asked, pool, 7)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one, other)
    assert cosines(asked, pool)[0, whole[0][0, 0]] == whole[1][0, 0]
