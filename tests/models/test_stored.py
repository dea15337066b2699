"""Anybody's probabilities: wrapped, they label a table with the command of every model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import raymotion
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.stored.input import StoredInput
from raymotion.vocabulary import VALENCE_3


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rows = [
        {
            "sample_id": f"coco:{i:04d}", "group_id": f"g{i}", "source": "t", "captions": [f"Caption {i}."],
            "image_uri": f"/data/val/{i:04d}.jpg", "labels": [VALENCE_3.labels[i % 3]],
            "split": ("train", "val", "test")[i % 3],
        }
        for i in range(12)
    ]  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, VALENCE_3))
    return tmp_path / "s.parquet"


def frame(rows: int, ids: str) -> pd.DataFrame:
    values = np.random.default_rng(0).random((rows, 3)).round(4)
    values[0] = (0.0, 1.0, 0.5)
    table = pd.DataFrame(values, columns=list(VALENCE_3.labels))
    table.insert(0, "id", [ids.format(f"{i:04d}") for i in range(rows)])
    return table


@pytest.mark.parametrize(
    "kind, ids", [("csv", "coco:{}"), ("parquet", "{}"), ("jsonl", "{}.jpg"), ("csv", "/data/val/{}.jpg")]
)
def test_a_table_is_labelled_and_evaluated(
    samples: Path, tmp_path: Path, runner: Callable[..., Any], kind: str, ids: str
) -> None:
    table, path = frame(11, ids), tmp_path / f"p.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    done = runner("wrap", "stored-probabilities", path, "--vocabulary", "valence-3", "--out", tmp_path / "m")
    assert done.code == 0, done.err
    assert "no answer for any other" in (tmp_path / "m" / "README.md").read_text()
    done = runner(
        "label", samples, "--model", tmp_path / "m", "--out", tmp_path / "labels", "--workers", 0, "--max-failed", 0.2
    )
    assert done.code == 0 and "12 in = 11 good + 1 in quarantine" in done.out and "no_input" in done.out, done.err
    found = pd.read_parquet(tmp_path / "labels").set_index("sample_id")["probabilities"]
    for i in range(11):
        assert found[f"coco:{i:04d}"] == pytest.approx(table.iloc[i, 1:].astype(float), abs=2e-7)
    named = raymotion.open_labels(tmp_path / "labels")
    assert set(VALENCE_3.labels) <= set(named.columns)


def test_without_a_vocabulary_the_columns_are_the_labels(samples: Path, tmp_path: Path, runner: Any) -> None:
    frame(3, "{}").rename(columns={"positive": "joy"}).to_csv(tmp_path / "p.csv", index=False)
    assert runner("wrap", "stored-probabilities", tmp_path / "p.csv", "--out", tmp_path / "m").code == 0
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["outputs"][0]["vocabulary"]["labels"] == [
        "joy" if name == "positive" else name for name in VALENCE_3.labels
    ]


@pytest.mark.parametrize(
    "text, options, told",
    [
        ("id,negative,neutral,positive\na,0.1,0.2,1.5\n", [], r"line 2: positive is '1\.5', not a probability"),
        ("id,negative,neutral,positive\na,0.1,,0.5\n", [], r"line 2: neutral is '', not a probability"),
        ("id,negative,neutral,positive\na,0,0,nan\n", [], r"positive is 'nan'"),
        ("id,negative,neutral,positive\na,0,0,1\na,0,0,1\n", [], r"line 3: the id 'a' appears twice"),
        ("id,negative,neutral,positive\n ,0,0,1\n", [], r"line 2: id is empty"),
        ("id,negative,neutral\na,0,0\n", [], r"has no column positive"),
        ("key,negative,neutral,positive\na,0,0,1\n", [], r"no column of ids .*--id-column"),
        ("id,negative,neutral,positive\na,0,0,1\n", ["--id-column", "key"], r"has no column 'key'"),
    ],
)
def test_mistakes_in_a_table_are_named(
    tmp_path: Path, runner: Callable[..., Any], text: str, options: list[str], told: str
) -> None:
    (tmp_path / "p.csv").write_text(text)
    done = runner(
        "wrap",
        "stored-probabilities",
        tmp_path / "p.csv",
        "--vocabulary",
        "valence-3",
        *options,
        "--out",
        tmp_path / "m",
    )
    assert done.code == 2 and re.search(told, done.err), done.err
    assert not (tmp_path / "m").exists()


def test_stored_probabilities_are_not_trained(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not trained.*wrap stored-probabilities"):
        StoredInput(["a"]).prepare(None, None, where="s")  # type: ignore[arg-type]
