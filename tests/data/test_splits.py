"""Splits: every group in one place, rare labels everywhere, and the same result for the same samples."""

from __future__ import annotations

import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymotion.data.samples import table_from_rows
from raymotion.data.splits import DEFAULT_FRACTIONS, empty_splits, split_samples
from raymotion.errors import InputError
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

ABC = Vocabulary("abc", ("a", "b", "c"))


def table(labels: list[list[str] | None], groups: list[str] | None = None, vocabulary: Vocabulary = ABC) -> pa.Table:
    rows = [
        {"sample_id": f"s{i}", "group_id": groups[i] if groups else f"s{i}", "labels": own, "source": "x"}
        for i, own in enumerate(labels)
    ]
    return table_from_rows(rows, vocabulary)


def split_of(result: pa.Table) -> dict[str, str]:
    return dict(zip(result["sample_id"].to_pylist(), result["split"].to_pylist(), strict=True))


def test_a_label_of_ten_images_is_split_eight_one_one():
    # By hand: 8, 1 and 1 of ten are what .8/.1/.1 ask for, for each of three labels that never meet.
    labels = [["a"]] * 10 + [["b"]] * 10 + [["c"]] * 20
    result = split_samples(table(labels))
    counts = Counter(zip((own[0] for own in labels), result["split"].to_pylist(), strict=True))
    assert counts == {
        ("a", "train"): 8, ("a", "val"): 1, ("a", "test"): 1,
        ("b", "train"): 8, ("b", "val"): 1, ("b", "test"): 1,
        ("c", "train"): 16, ("c", "val"): 2, ("c", "test"): 2,
    }  # fmt: skip


def test_rare_labels_come_closer_to_their_share_than_at_random():
    rng = random.Random(3)
    rates = {label: 0.02 + 0.3 * rng.random() ** 3 for label in SOCRATIS_29.labels}
    labels = [[label for label in SOCRATIS_29.labels if rng.random() < rates[label]] for _ in range(800)]

    def error(splits: list[str]) -> float:
        total = Counter(label for own in labels for label in own)
        val = Counter(label for own, split in zip(labels, splits, strict=True) if split == "val" for label in own)
        return sum(abs(val[label] / total[label] - 0.1) for label in total) / len(total)

    stratified = error(split_samples(table(labels, vocabulary=SOCRATIS_29))["split"].to_pylist())
    randomly = []
    for seed in range(20):
        splits = ["val"] * 80 + ["test"] * 80 + ["train"] * 640
        random.Random(seed).shuffle(splits)
        randomly.append(error(splits))
    assert stratified < 0.5 * min(randomly)


def test_sources_are_in_each_split_by_their_share():
    rows = [{"sample_id": f"{i}", "group_id": f"{i}", "source": "news" if i < 900 else "web"} for i in range(1000)]
    result = split_samples(table_from_rows(rows), seed=5)
    counts = Counter(zip(result["source"].to_pylist(), result["split"].to_pylist(), strict=True))
    assert (counts["web", "train"], counts["web", "val"], counts["web", "test"]) == (80, 10, 10)
    assert (counts["news", "val"], counts["news", "test"]) == (90, 90)


def test_unlabelled_samples_are_shuffled_by_the_seed():
    samples = table([None] * 200)
    first, again, other = (split_of(split_samples(samples, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(first.values()) == {"train": 160, "val": 20, "test": 20}
    # Not the first 160 rows.
    assert {first[f"s{i}"] for i in range(160)} == {"train", "val", "test"}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 15), st.one_of(st.none(), st.sets(st.sampled_from("abc")))), min_size=1, max_size=40
    ),
    seed=st.integers(0, 5),
    fractions=st.sampled_from(
        [{"train": 0.8, "val": 0.1, "test": 0.1}, {"train": 0.5, "val": 0.5}, {"test": 1.0}, {"train": 1.0, "val": 0.0}]
    ),
    order=st.randoms(use_true_random=False),
)
def test_properties(rows, seed, fractions, order):
    samples = table([None if own is None else sorted(own) for _, own in rows], [f"g{group}" for group, _ in rows])
    result = split_samples(samples, seed=seed, fractions=fractions)
    # All rows, in their order, with nothing else changed.
    assert result.drop(["split"]).equals(samples.drop(["split"]))
    assert set(result["split"].to_pylist()) <= {name for name, share in fractions.items() if share}
    # No group is divided.
    places: dict[str, set[str]] = {}
    for group, split in zip(result["group_id"].to_pylist(), result["split"].to_pylist(), strict=True):
        places.setdefault(group, set()).add(split)
    assert all(len(own) == 1 for own in places.values())
    # Another order of the rows is the same split.
    shuffled = list(range(samples.num_rows))
    order.shuffle(shuffled)
    assert split_of(split_samples(samples.take(shuffled), seed=seed, fractions=fractions)) == split_of(result)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", [["a"], None, ["a", "b", "c"]])
def test_a_few_images_are_enough_for_every_split(labels, seed):
    for count in range(3, 9):
        result = split_samples(table([labels] * count), seed=seed)
        counts = Counter(result["split"].to_pylist())
        assert counts == {"train": count - 2, "val": 1, "test": 1}
        assert empty_splits(result) is None
    # Three groups, of many rows each.
    grouped = split_samples(table([labels] * 30, [f"g{i % 3}" for i in range(30)]), seed=seed)
    assert Counter(grouped["split"].to_pylist()) == {"train": 10, "val": 10, "test": 10}


def test_fewer_images_than_splits_are_told():
    result = split_samples(table([["a"], ["b"]]))
    assert set(result["split"].to_pylist()) == {"train", "val"}
    assert empty_splits(result) == (
        "test is empty: 2 images are too few for 3 splits; training needs train and val, evaluation test. "
        "Add labelled images"
    )
    one = split_samples(table([["a"]]))
    assert (empty_splits(one) or "").startswith("val and test are empty: 1 images")
    assert empty_splits(one, {**DEFAULT_FRACTIONS, "train": 1.0, "val": 0.0, "test": 0.0}) is None


def test_the_vocabulary_and_old_splits():
    samples = table([["a"], ["b"]])
    once = split_samples(samples, fractions={"test": 1.0})
    assert once.schema.metadata == samples.schema.metadata
    assert split_samples(once, fractions={"val": 1.0})["split"].to_pylist() == ["val", "val"]


@pytest.mark.parametrize(
    "fractions, reason",
    [
        ({"train": 0.8, "val": 0.1}, "sum to 1"),
        ({"train": 1.2, "val": -0.2}, "less than 0"),
        ({"train": float("nan")}, "less than 0"),
        ({"training": 1.0}, "'training' is not one of the splits train, val, test"),
    ],
)
def test_bad_fractions(fractions, reason):
    with pytest.raises(InputError, match=reason):
        split_samples(table([["a"]]), fractions=fractions)


def rated(values: list[float | None], groups: list[str], scale: tuple[float, float] | None = (0.0, 100.0)) -> pa.Table:
    rows = [
        {"sample_id": f"s{i}", "group_id": group, "valence": value, "source": "x"}
        for i, (value, group) in enumerate(zip(values, groups, strict=True))
    ]
    return table_from_rows(rows, scale=scale)


def test_by_hand_each_tenth_of_the_valence_scale_is_split_eight_one_one():
    values = [5.0] * 10 + [55.0] * 20 + [100.0] * 10
    result = split_samples(rated(values, [f"g{i}" for i in range(40)]))
    counts = Counter(zip(values, result["split"].to_pylist(), strict=True))
    assert counts == {
        (5.0, "train"): 8, (5.0, "val"): 1, (5.0, "test"): 1,
        (55.0, "train"): 16, (55.0, "val"): 2, (55.0, "test"): 2,
        (100.0, "train"): 8, (100.0, "val"): 1, (100.0, "test"): 1,
    }  # fmt: skip


def test_valence_comes_closer_to_its_share_than_at_random_and_themes_stay_together():
    # The share of each tenth in validation, as for labels above; 150 themes of one to five pictures.
    rng = random.Random(1)
    values: list[float | None] = []
    groups: list[str] = []
    for theme in range(150):
        mean = rng.betavariate(1.2, 2.5) * 100
        for _ in range(rng.randint(1, 5)):
            values.append(min(max(mean + rng.gauss(0, 3), 0), 100))
            groups.append(f"theme {theme}")
    means = {g: sum(v for v, own in zip(values, groups, strict=True) if own == g) / groups.count(g) for g in groups}

    def error(split_of_group: dict[str, str]) -> float:
        total = Counter(int(means[g] // 10) for g in means)
        val = Counter(int(means[g] // 10) for g in means if split_of_group[g] == "val")
        return sum(abs(val[tenth] - 0.1 * total[tenth]) for tenth in total)

    result = split_samples(rated(values, groups))
    pairs = set(zip(groups, result["split"].to_pylist(), strict=True))
    assert len(pairs) == 150, "no theme is in two splits"
    randomly = []
    for seed in range(20):
        order = sorted(means)
        random.Random(seed).shuffle(order)
        randomly.append(error({g: "val" if k < 15 else "train" for k, g in enumerate(order)}))
    # What is left is rounding: a tenth with 7 themes can not have 0.7 of them.
    assert error(dict(pairs)) <= min(randomly) + 1e-9 and error(dict(pairs)) < 0.6 * sum(randomly) / len(randomly)


def test_valence_without_a_scale_and_without_a_spread():
    spread = split_samples(rated([-3.0] * 10 + [4.0] * 10, [f"g{i}" for i in range(20)], None))
    counts = Counter(zip([-3] * 10 + [4] * 10, spread["split"].to_pylist(), strict=True))
    assert {key: counts[key] for key in ((-3, "val"), (4, "val"), (-3, "test"), (4, "test"))} == {
        (-3, "val"): 1, (4, "val"): 1, (-3, "test"): 1, (4, "test"): 1,
    }  # fmt: skip
    same = split_samples(rated([2.0] * 10, [f"g{i}" for i in range(10)], None))
    assert Counter(same["split"].to_pylist()) == {"train": 8, "val": 1, "test": 1}


def test_pictures_with_a_valence_fill_empty_splits_before_those_without():
    values = [50.0, 60.0, 70.0, *[None] * 30]
    result = split_samples(rated(values, [f"g{i}" for i in range(33)]))
    assert set(result["split"].to_pylist()[:3]) == {"train", "val", "test"}
