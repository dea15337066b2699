"""`raymotion audit`: three questions, their answers on the terminal, and one line for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.vocabulary import MIKELS_8, SOCRATIS_29

N = 80


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`labels/` that know the labels of `truth.parquet`, and `unlabelled.parquet`."""
    rng = np.random.default_rng(0)
    true = rng.random((N, 8)) < 0.3
    p = np.clip(np.where(true, 0.7, 0.2) + rng.normal(0, 0.1, (N, 8)), 0.01, 0.99).astype(np.float32)
    table = pa.table(
        {
            "sample_id": [f"s:{i}" for i in range(N)],
            "image_uri": pa.nulls(N, pa.string()),
            "image_bytes": pa.nulls(N, pa.int64()),
            "image_digest": pa.nulls(N, pa.string()),
            "captions": pa.array([["a dog"]] * N),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(p.reshape(-1)), 8),
            "labels": [MIKELS_8.decode(np.flatnonzero(row > 0.5)) for row in p],
            "selected": [True] * N,
        }
    ).replace_schema_metadata(MIKELS_8.to_metadata())
    storage.write_table(tmp_path / "labels" / "data/part-00000.parquet", table)
    job = {"job": "labels", "status": "complete", "vocabulary": MIKELS_8.to_dict(), "counts": {"good": N}}
    storage.write_json(tmp_path / "labels" / "_job.json", job)
    rows = [
        {"sample_id": f"s:{i}", "group_id": f"s:{i}", "source": "x", "labels": MIKELS_8.decode(np.flatnonzero(row))}
        for i, row in enumerate(true)
    ]
    write_samples(tmp_path / "truth.parquet", table_from_rows(rows, MIKELS_8))
    write_samples(
        tmp_path / "words.parquet", table_from_rows([{**row, "labels": ["sad"]} for row in rows], SOCRATIS_29)
    )
    write_samples(tmp_path / "none.parquet", table_from_rows([{**row, "labels": None} for row in rows]))
    return tmp_path


def test_three_questions(runner: Callable[..., Any], folder: Path) -> None:
    quick = ["--bootstrap", "50", "--examples", "2"]
    against = runner("audit", folder / "labels", "--truth", folder / "truth.parquet", "--out", folder / "a", *quick)
    assert against.code == 0 and against.err == "", against.err
    lines = against.out.splitlines()
    assert lines[0].startswith("The probabilities rank images better than chance for 8 of 8 emotions")
    assert lines[0].endswith("The chosen labels agree with people beyond chance.")
    assert lines[1].startswith("note: 80 of 80 labelled images were matched by sample_id")
    assert sum(line.split()[0] in MIKELS_8.labels for line in lines if line) == 8
    assert lines[-1].startswith("audit: ") and all(Path(p).exists() for p in lines[-1][7:].split(", "))
    doubted = runner(
        "audit", folder / "truth.parquet", "--predictions", folder / "labels", "--out", folder / "b", *quick
    )
    assert doubted.code == 0 and "not trained on these labels" in doubted.out, doubted.err
    alone = runner("audit", folder / "labels", "--out", folder / "c", *quick)
    assert alone.code == 0 and "note: The labels were chosen from these very probabilities" in alone.out, alone.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "--truth", "absent.parquet", "--out", "o"], "absent.parquet: no such file"),
        (["absent", "--truth", "truth.parquet", "--out", "o"], "absent: no such folder"),
        (["labels", "--truth", "words.parquet", "--out", "o"], "Say with --mapping FILE what means what"),
        (["labels", "--truth", "none.parquet", "--out", "o"], "none.parquet: has no labels to compare with"),
        (["labels", "--truth", "truth.parquet", "--mapping", "x", "--out", "o"], "x: no such mapping"),
        (["labels", "--mapping", "x", "--out", "o"], "--mapping is for --truth"),
        (["labels", "--out", "labels"], "holds _job.json, which is not part of an audit"),
        (["truth.parquet", "--out", "o"], "is audited with --predictions DIR"),
    ],
)
def test_mistakes_are_one_line(
    runner: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    outcome = runner("audit", *arguments)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not (folder / "o").exists()


def test_two_questions_at_once(runner: Callable[..., Any], folder: Path) -> None:
    outcome = runner("audit", folder / "labels", "--truth", "a", "--predictions", "b", "--out", folder / "o")
    assert outcome.code == 2 and "answer different questions" in outcome.err
