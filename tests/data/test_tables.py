"""`raymotion data show`, `merge` and `split`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymotion.data.samples import read_samples, scale_of, table_from_rows, vocabulary_of, write_samples
from raymotion.vocabulary import MIKELS_8, VALENCE_3, Vocabulary


def write(path: Path, ids: list[str], *, vocabulary: Vocabulary | None = VALENCE_3, **more: Any) -> Path:
    scale = more.pop("scale", None)
    rows = [
        {
            "sample_id": name, "group_id": f"g{name}", "source": "t", "image_uri": f"/d/{name}.jpg",
            "captions": [f"About\n{name}"],
            **({"labels": [vocabulary.labels[i % 3]] if i else None} if vocabulary else {}),
            **{key: value[i] for key, value in more.items()},
        }
        for i, name in enumerate(ids)
    ]  # fmt: skip
    write_samples(path, table_from_rows(rows, vocabulary, scale=scale))
    return path


def test_show_counts_by_hand(tmp_path: Path, runner: Callable[..., Any]) -> None:
    splits = ["train", "train", "val", "test", None]
    table = write(
        tmp_path / "t.parquet", list("abcde"), split=splits, valence=[1.0, 3.0, 5.0, None, None], scale=(1, 5)
    )
    done = runner("data", "show", table, "--rows", 2)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert done.code == 0 and lines[:6] == [
        "rows 5 (t 5)", "groups 5", "pictures 5", "captions 5", "splits train 2, val 1, test 1, none 1", "labelled 4",
    ]  # fmt: skip
    assert "scale 1 to 5" in lines and "valence 3.00 (sd 1.63, 3 rows)" in lines
    # Labels of b to e: [1], [2], [0], [1] of the vocabulary; row a is not annotated.
    first, second, third = VALENCE_3.labels
    assert f"{second} 50.0 % 100.0 % 0.0 % 0.0 %" in lines and f"{first} 25.0 % 0.0 % 0.0 % 100.0 %" in lines
    assert f"{third} 25.0 % 0.0 % 100.0 % 0.0 %" in lines
    assert any(line.startswith("b train") and line.endswith("/d/b.jpg About b") for line in lines)
    assert not any(line.startswith("c val") for line in lines)


def test_merge_keeps_rows_vocabulary_and_scale(tmp_path: Path, runner: Callable[..., Any]) -> None:
    first = write(tmp_path / "a.parquet", ["a", "b"], valence=[1.0, 2.0], valence_sd=[0.1, 0.2], scale=(1, 5))
    second = write(tmp_path / "b.parquet", ["c"], vocabulary=None)
    done = runner("data", "merge", first, second, "--out", tmp_path / "m.parquet")
    assert done.code == 0 and re.search(r"rows +3 \(2 tables\)", done.out), done.err
    table = read_samples(tmp_path / "m.parquet")
    assert table["sample_id"].to_pylist() == ["a", "b", "c"] and scale_of(table) == (1.0, 5.0)
    assert vocabulary_of(table) == VALENCE_3 and table["labels"].to_pylist() == [None, [VALENCE_3.labels[1]], None]
    assert table["valence_sd"].to_pylist() == [pytest.approx(0.1), pytest.approx(0.2), None]


@pytest.mark.parametrize(
    "ids, more, told",
    [
        (["b"], {}, r"b\.parquet, row 0: has the sample 'b', which .*a\.parquet has too"),
        (["c"], {"vocabulary": MIKELS_8}, r"vocabular"),
        (
            ["c"],
            {"scale": (1, 9), "valence": [2.0]},
            r"b\.parquet: has a scale of 1 to 9, and .*a\.parquet one of 1 to 5",
        ),
        (["c"], {"group_id": ["ga"], "split": ["test"]}, r"puts the group 'ga' into test, and .*a\.parquet into train"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(
    tmp_path: Path, runner: Callable[..., Any], ids: list[str], more: dict[str, Any], told: str
) -> None:
    first = write(tmp_path / "a.parquet", ["a", "b"], split=["train", "train"], valence=[1.0, 2.0], scale=(1, 5))
    second = write(tmp_path / "b.parquet", ids, **more)
    done = runner("data", "merge", first, second, "--out", tmp_path / "m.parquet")
    assert done.code == 2 and re.search(told, done.err), done.err
    assert not (tmp_path / "m.parquet").exists()


def test_split_anew(tmp_path: Path, runner: Callable[..., Any]) -> None:
    table = write(tmp_path / "t.parquet", [f"s{i}" for i in range(50)])
    done = runner("data", "split", table, "--test-fraction", 0.2, "--out", tmp_path / "s.parquet")
    # 70, 10 and 20 % of 50 groups, of whose labels each split has its part too: within one of the share.
    sizes = [int(size) for size in re.findall(r"(?:train|val|test) (\d+)", done.out)]
    assert done.code == 0 and np.abs(np.array(sizes) - (35, 5, 10)).max() <= 1 and sum(sizes) == 50, done.out
    again = runner("data", "split", table, "--test-fraction", 0.2, "--seed", 1, "--out", tmp_path / "r.parquet")
    assert again.code == 0
    assert read_samples(tmp_path / "s.parquet")["split"] != read_samples(tmp_path / "r.parquet")["split"]
    refused = runner("data", "split", table, "--val-fraction", 0.9, "--test-fraction", 0.2, "--out", tmp_path / "x")
    assert refused.code == 2 and "less than 0" in refused.err
