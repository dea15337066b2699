"""Domains of a table: which rows they are, and what becomes of the others when they are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.domains import domain_values, hold_out, parse_domain, rows_of_domains
from raymotion.data.samples import table_from_rows
from raymotion.errors import InputError

VALUES = st.sampled_from(["news", "art", "web"])
ROWS = st.lists(st.tuples(VALUES, st.integers(0, 5), st.sampled_from(["train", "val", "test", None])), min_size=1)


def table(rows: list[tuple[str, int, str | None]], **more: Any) -> Any:
    return table_from_rows(
        [
            {"sample_id": f"s{i}", "group_id": f"g{group}", "source": source, "split": split, **more}
            for i, (source, group, split) in enumerate(rows)
        ]
    )


@given(ROWS)
def test_a_domain_is_the_test_split_and_its_images_are_nowhere_else(rows: list[tuple[str, int, str | None]]) -> None:
    value = rows[0][0]
    kept, left_out = hold_out(table(rows), [f"source={value}"], where="t")
    images = {group for source, group, _ in rows if source == value}
    expected = [
        (f"s{i}", "test" if source == value else split)
        for i, (source, group, split) in enumerate(rows)
        if source == value or (group not in images and split != "test")
    ]
    assert list(zip(kept["sample_id"].to_pylist(), kept["split"].to_pylist(), strict=True)) == expected
    assert kept.num_rows + sum(left_out.values()) == len(rows)
    assert left_out["images_held_out"] == sum(source != value and group in images for source, group, _ in rows)


def test_several_domains_and_rows_without_a_value() -> None:
    own = table([("news", 0, "train"), ("art", 1, "val"), ("web", 2, "test")])
    assert rows_of_domains(own, ["source=news", "split=test"], where="t").tolist() == [True, False, True]
    marked = table_from_rows(
        [{"sample_id": f"s{i}", "group_id": f"g{i}", "source": "x", "label_source": v} for i, v in enumerate("aab")]
        + [{"sample_id": "s9", "group_id": "g9", "source": "x", "label_source": None}]
    )
    assert domain_values(marked, "label_source", where="t") == {"a": 2, "b": 1}
    assert np.flatnonzero(rows_of_domains(marked, ["label_source=a"], where="t")).tolist() == [0, 1]
    assert parse_domain(" source = a=b ") == ("source", "a=b")


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("source", "is not of the form COLUMN=VALUE"),
        ("=news", "is not of the form"),
        ("sorce=news", "t: the column 'sorce' is not there. Did you mean 'source'? Columns that may name"),
        ("captions=x", "the column 'captions' holds no texts"),
        ("label_source=x", "the column 'label_source' is not there"),
        ("split=val", "no row has a value in the column split"),
        ("source=newz", "no row has source = 'newz'. Did you mean 'news'? There are news (2), art (1)"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(domain: str, told: str) -> None:
    own = table([("news", 0, None), ("art", 1, None), ("news", 2, None)])
    with pytest.raises(InputError) as caught:
        rows_of_domains(own, [domain], where="t")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_of_many_values_a_few_are_named() -> None:
    own = table([(f"set-{i}", i, None) for i in range(30)])
    with pytest.raises(InputError, match=r"set-0 \(1\).* and 18 more\.$"):
        rows_of_domains(own, ["source=other"], where="t")
