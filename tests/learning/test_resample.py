"""Resampling against imbalanced-learn itself, and what its rows must hold whatever the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.over_sampling import ADASYN, SMOTE

from raymotion.errors import InputError
from raymotion.learning.resample import PRESENT, Resampled, ResamplingSettings, resample


def toy(n: int = 120, dims: tuple[int, ...] = (4, 7), labels: int = 4, seed: int = 0) -> tuple[list[np.ndarray], ...]:
    """Streams of different scale whose means depend on the labels; class 0 in most rows, the last one rare."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, labels)) < np.linspace(0.7, 0.08, labels)).astype(np.float32)
    targets[:3, -1] = 1
    features = [
        (10.0**s * (rng.normal(size=(n, d)) + targets @ rng.normal(size=(labels, d)))).astype(np.float32)
        for s, d in enumerate(dims)
    ]
    return features, np.ones((n, len(dims)), dtype=bool), targets  # type: ignore[return-value]


def lies_between(value: np.ndarray, first: np.ndarray, second: np.ndarray, slack: float = 1e-4) -> bool:
    room = slack * (1 + np.maximum(np.abs(first), np.abs(second)))
    return bool(((value >= np.minimum(first, second) - room) & (value <= np.maximum(first, second) + room)).all())


@pytest.mark.parametrize("method", ["adasyn", "smote"])
def test_rows_are_imbalanced_learns_own(method: str) -> None:
    """Two classes, of which one is rare: the same rows as imblearn makes of the standardised matrix."""
    features, mask, targets = toy(labels=2)
    chosen = ResamplingSettings(method=method, level="full", quantile=1.0)  # type: ignore[arg-type]
    ours = resample(features, mask, targets, chosen, seed=7)
    count = int(targets[:, 1].sum())
    budget = int(targets[:, 0].sum()) - count
    assert ours.per_class.tolist() == [0, budget]

    scaled = [(f - f.mean(axis=0)) / f.std(axis=0) / np.sqrt(f.shape[1]) for f in features]
    seed = int(np.random.SeedSequence([7, 1]).generate_state(1)[0])
    asked = budget + count if method == "adasyn" else budget
    sampler = {"adasyn": ADASYN, "smote": SMOTE}[method](sampling_strategy={1: count + asked}, random_state=seed)
    x, _ = sampler.fit_resample(np.concatenate(scaled, axis=1), targets[:, 1].astype(int))
    reference = x[len(targets) :]
    raw = np.concatenate(features, axis=1)
    got = (np.concatenate(ours.features, axis=1) - raw.mean(axis=0)) / raw.std(axis=0)
    got = got / np.sqrt(np.repeat([4, 7], [4, 7]))
    if method == "smote":
        assert np.allclose(got, reference, atol=1e-4)
    else:  # ours are a random part of those that were asked for
        distance = np.abs(got[:, None] - reference[None]).max(axis=2)
        nearest = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 1e-4
        assert len(set(nearest)) == budget


def check(result: Resampled, features: list[np.ndarray], mask: np.ndarray, targets: np.ndarray) -> None:
    """What holds for every result."""
    a, b = result.parents.T
    assert lies_between(result.targets, targets[a], targets[b], slack=1e-6)
    assert np.array_equal(result.mask, mask[a] & mask[b])
    assert result.mask.any(axis=1).all()
    for s, block in enumerate(result.features):
        assert block.dtype == np.float32 and np.isfinite(block).all()
        has = result.mask[:, s]
        assert lies_between(block[has], features[s][a[has]], features[s][b[has]])
        assert not block[~has].any()
    assert result.per_class.sum() == len(result) == len(result.mask)
    owner = np.repeat(np.arange(targets.shape[1]), result.per_class)
    assert (result.targets[np.arange(len(owner)), owner] >= PRESENT).all()
    assert np.array_equal(result.before, (targets >= PRESENT).sum(axis=0))
    assert np.array_equal(result.after - result.before, (result.targets >= PRESENT).sum(axis=0))


@pytest.mark.parametrize("method", ["adasyn", "smote"])
def test_no_original_is_returned_and_labels_come_from_both_parents(method: str) -> None:
    """13.6: the public code returns the originals too, which then count twice, and copies the labels of one parent."""
    features, mask, targets = toy()
    features[0][5], features[1][5] = features[0][4], features[1][4]  # two equal rows
    targets[4:6, -1] = 1
    result = resample(features, mask, targets, ResamplingSettings(method=method, level="full"), seed=0)  # type: ignore[arg-type]
    check(result, features, mask, targets)
    assert (result.parents[:, 0] != result.parents[:, 1]).all()
    fractional = (result.targets > 0) & (result.targets < 1)
    assert fractional.any()  # labels that only one parent has
    owner = np.repeat(np.arange(4), result.per_class)
    assert np.array_equal(result.targets[np.arange(len(result)), owner], np.ones(len(result)))  # exactly 1
    # Labels are mixed by the same share as features.
    i = int(np.flatnonzero(fractional.any(axis=1) & (result.parents != 4).all(axis=1))[0])
    a, b = result.parents[i]
    share = np.linalg.norm(result.features[1][i] - features[1][b]) / np.linalg.norm(features[1][a] - features[1][b])
    assert np.allclose(result.targets[i], share * targets[a] + (1 - share) * targets[b], atol=1e-3)


def test_rare_classes_gain_and_the_budgets_hold() -> None:
    """13.6: a batch of 32 holds 0.2 positives of the rarest class, which the public code then skips."""
    features, mask, targets = toy(400, labels=6)
    before = targets.sum(axis=0)
    median = np.median(before)
    mini = resample(features, mask, targets, ResamplingSettings(method="adasyn", total=1.0), seed=0)
    wanted = np.where(before < median, np.minimum(before, median - before), 0)
    assert np.array_equal(mini.per_class, np.floor(wanted))
    assert (mini.after >= before + mini.per_class).all()
    small = resample(features, mask, targets, ResamplingSettings(method="adasyn"), seed=0)
    assert 95 <= len(small) <= 0.25 * 400 < len(mini)
    full = resample(features, mask, targets, ResamplingSettings(method="adasyn", level="full"), seed=0)
    assert np.array_equal(full.per_class, np.floor(np.maximum(median - before, 0)))
    capped = resample(features, mask, targets, ResamplingSettings(method="adasyn", level="full", total=0.1), seed=0)
    assert 30 < len(capped) <= 40
    assert not resample(features, mask, targets, ResamplingSettings(), seed=0).per_class.any()


def test_a_missing_stream_is_mended_by_nobody() -> None:
    features, mask, targets = toy()
    mask[::3, 1] = False
    features[1][::3] = np.nan  # what stands there must not matter
    clean = [features[0], np.where(mask[:, 1:], features[1], 0)]
    chosen = ResamplingSettings(method="adasyn", level="full")
    result = resample(features, mask, targets, chosen, seed=0)
    check(result, clean, mask, targets)
    assert 0 < result.mask[:, 1].mean() < 1
    again = resample(clean, mask, targets, chosen, seed=0)
    assert np.array_equal(result.parents, again.parents)
    mask[:, 0] = ~mask[:, 1]  # parents that have nothing in common make no row
    few = resample(clean, mask, targets, chosen, seed=0)
    check(few, clean, mask, targets)
    assert any("no stream in common" in note for note in few.notes)


def test_a_wide_stream_or_a_large_scale_does_not_decide_who_is_near() -> None:
    """13.6: the public code measures on the raw scale of all streams side by side."""
    features, mask, targets = toy()
    chosen = ResamplingSettings(method="smote", level="full")
    once = resample(features, mask, targets, chosen, seed=0)
    wide = [np.tile(features[0], (1, 50)), 1000 * features[1] + 5]
    assert np.array_equal(resample(wide, mask, targets, chosen, seed=0).parents, once.parents)


def test_the_projected_search_finds_nearly_the_same_neighbours() -> None:
    """Clusters of six in 600 dimensions: with 128 of them projected, both parents still come from one cluster."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20), 6)
    features = [(rng.normal(size=(20, d))[cluster] + 0.3 * rng.normal(size=(120, d))) for d in (400, 200)]
    targets = np.stack([cluster < 18, cluster < 8], axis=1).astype(np.float32)
    for width in (128, None):
        chosen = ResamplingSettings(method="smote", level="full", quantile=1.0, search_width=width)
        result = resample(features, np.ones((120, 2), dtype=bool), targets, chosen, seed=0)
        assert len(result) == 60
        assert np.array_equal(cluster[result.parents[:, 0]], cluster[result.parents[:, 1]])


def test_seeds_and_random_copies() -> None:
    features, mask, targets = toy()
    chosen = ResamplingSettings(method="random", level="full")
    copies = resample(features, mask, targets, chosen, seed=0)
    check(copies, features, mask, targets)
    assert (copies.parents[:, 0] == copies.parents[:, 1]).all()
    assert np.allclose(copies.features[0], features[0][copies.parents[:, 0]])
    for method in ("adasyn", "smote", "random"):
        chosen = ResamplingSettings(method=method, level="full")  # type: ignore[arg-type]
        first, same, other = (resample(features, mask, targets, chosen, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first.features[0], same.features[0])
        assert not np.array_equal(first.parents, other.parents)


def test_what_can_not_be_done_is_told() -> None:
    features, mask, targets = toy(labels=4)
    targets[:, 3] = 0
    targets[7, 3] = 1  # a single positive
    targets[:, 2] = 0
    far = [f.copy() for f in features]
    for f in far:  # eight positives of class 2 far from all others: none of their neighbours lacks the class
        f[20:28] += 100 * f.std()
    targets[20:28, 2] = 1
    chosen = ResamplingSettings(method="adasyn", level="full")
    result = resample(far, mask, targets, chosen, seed=0, labels=["joy", "peace", "fear", "pain"])
    check(result, far, mask, targets)
    assert result.per_class[3] == 0
    assert "pain: left out, because its only positive has no neighbour of its class." in result.notes
    assert any(note.startswith("fear: ADASYN found no rows") and "SMOTE instead" in note for note in result.notes)
    assert result.per_class[2] > 0
    with pytest.raises(InputError, match="do not fit 2 streams"):
        resample(features, mask[:, :1], targets, chosen, seed=0)
    features[0][0, 0] = np.inf
    with pytest.raises(InputError, match="stream 0 are not all finite"):
        resample(features, mask, targets, chosen, seed=0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from(["adasyn", "smote", "random"]),
    st.sampled_from(["mini", "full"]),
    st.floats(0, 1),
)
def test_small_problems_never_crash(seed: int, n: int, width: int, method: str, level: str, missing: float) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, width)) < rng.random(width)).astype(np.float32)
    # few distinct values, so that rows coincide
    features = [rng.integers(0, 3, (n, d)).astype(np.float16) for d in (1, 3)]
    mask = rng.random((n, 2)) >= missing
    chosen = ResamplingSettings(method=method, level=level)  # type: ignore[arg-type]
    result = resample(features, mask, targets, chosen, seed=seed)
    check(result, [f.astype(np.float32) for f in features], mask, targets)
    budgets = chosen.budgets(result.before, n)
    assert (result.per_class <= budgets).all()
    assert budgets.sum() <= (0.25 if level == "mini" else 1.0) * n
