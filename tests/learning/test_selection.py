from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from raymotion.errors import InputError
from raymotion.learning.selection import (
    NEVER,
    SelectionPolicy,
    class_thresholds,
    fit_class_thresholds,
    sample_rows,
    threshold,
    top_per_class,
    top_per_image,
)

P = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.8, 0.7, 0.0], [0.9, 0.3, 0.4]], dtype=np.float32)
IDS = ["a", "b", "c", "d"]


def test_per_row_policies_by_hand() -> None:
    assert top_per_image(P, 2).astype(int).tolist() == [[1, 0, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert top_per_image(P, 9).all()
    assert threshold(P, 0.5).astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert class_thresholds(P, [0.85, 0.2, NEVER]).astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0]]


def test_top_per_class_by_hand() -> None:
    # class 0: rows 0 and 3 tie at 0.9; class 2: 0.5, 0.4
    assert top_per_class(P, 2).astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
    assert top_per_class(P, 1).astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]  # ties: earlier row
    assert top_per_class(P, 3, minimum=0.5).astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert top_per_class(P, 100).all()


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 3))
def test_fitted_thresholds_have_the_best_f1_there_is(data: st.DataObject, n: int, width: int) -> None:
    p = data.draw(arrays(np.float32, (n, width), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])))
    targets = data.draw(arrays(np.int8, (n, width), elements=st.integers(0, 1)))
    found = fit_class_thresholds(targets, p)
    for j in range(width):
        if targets[:, j].sum() == 0:
            assert found[j] > 1
            continue
        tried = {cut: f1_score(targets[:, j], p[:, j] >= cut) for cut in sorted(set(p[:, j].tolist()))}
        best = max(tried.values())
        assert f1_score(targets[:, j], p[:, j] >= found[j]) == pytest.approx(best)
        assert found[j] == max(cut for cut, score in tried.items() if score == pytest.approx(best))


def test_sampling_does_not_depend_on_order_or_shards() -> None:
    ids = [f"coco:{i:012d}" for i in range(20_000)]
    chosen = sample_rows(ids, 0.1, seed=1)
    assert chosen.mean() == pytest.approx(0.1, abs=0.007)  # over 3 standard deviations
    assert (sample_rows(ids[::-1], 0.1, seed=1)[::-1] == chosen).all()
    assert (np.concatenate([sample_rows(ids[:7], 0.1, 1), sample_rows(ids[7:], 0.1, 1)]) == chosen).all()
    assert not (sample_rows(ids, 0.1, seed=2) == chosen).all()
    assert (sample_rows(ids, 0.3, seed=1) >= chosen).all()
    assert sample_rows(ids, 1.0).all()


def test_policy_chooses_and_samples() -> None:
    policy = SelectionPolicy(policy="threshold", threshold=0.5)
    mask, selected = policy.choose(P, IDS)
    assert (mask == threshold(P, 0.5)).all()
    assert selected.all() and not policy.is_global

    policy = SelectionPolicy(policy="top-per-class", count=1)
    mask, selected = policy.choose(P, IDS)
    assert policy.is_global
    assert selected.tolist() == [True, False, True, False]


def test_a_sampled_top_per_class_fills_its_classes_from_the_sample() -> None:
    rng = np.random.default_rng(0)
    p, ids = rng.random((500, 4)), [str(i) for i in range(500)]
    policy = SelectionPolicy(policy="top-per-class", count=10, sample_fraction=0.5, seed=4)
    mask, selected = policy.choose(p, ids)
    sampled = sample_rows(ids, 0.5, 4)
    assert mask.sum(axis=0).tolist() == [10] * 4
    assert not (selected & ~sampled).any()
    assert (mask[sampled] == top_per_class(p[sampled], 10)).all()
    mask, selected = SelectionPolicy(sample_fraction=0.5, seed=4).choose(p, ids)
    assert (selected == sampled).all() and (mask.sum(axis=1) == 4).all()


def test_policy_errors() -> None:
    with pytest.raises(InputError, match="brings none"):
        SelectionPolicy(policy="class-thresholds").choose(P, IDS)
    with pytest.raises(InputError, match="sample ids"):
        SelectionPolicy().choose(P, IDS[:2])
    with pytest.raises(InputError, match="do not fit 3 labels"):
        class_thresholds(P, [0.1])
    with pytest.raises(ValueError, match="greater than or equal"):
        SelectionPolicy(count=0)


def test_an_empty_set_of_images_is_fine() -> None:
    empty = np.zeros((0, 3))
    for name in ("top-per-image", "threshold", "top-per-class"):
        mask, selected = SelectionPolicy(policy=name).choose(empty, [])  # type: ignore[arg-type]
        assert mask.shape == (0, 3) and selected.shape == (0,)
