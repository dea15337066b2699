"""The five commands of docs/annotation.md, as they stand, on real pictures where they are at hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raymotion.data.samples import read_samples
from raymotion.vocabulary import MIKELS_8

REPOSITORY = Path(__file__).resolve().parents[2]


def commands() -> list[list[str]]:
    block = (REPOSITORY / "docs" / "annotation.md").read_text().split("```bash")[1].split("```")[0]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_loop(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    pictures = sorted((REPOSITORY.parent / "shared" / "data" / "coco").rglob("*.jpg"))[:60]
    if not pictures:
        pictures = [tmp_path / f"{i}.jpg" for i in range(60)]
        for i, path in enumerate(pictures):
            Image.new("RGB", (80, 60), (4 * i, 255 - 4 * i, 100)).save(path)
    run = lambda *words: run_command(*words, cwd=tmp_path, timeout=300)  # noqa: E731
    pd.DataFrame({"image": [str(path) for path in pictures], "caption": "A picture"}).to_csv(tmp_path / "t.csv")
    assert run("data", "prepare", "table", "t.csv", "--out", "pool.parquet").code == 0
    ids = read_samples(tmp_path / "pool.parquet")["sample_id"].to_pylist()
    answers = pd.DataFrame(np.random.default_rng(0).random((60, 8)), columns=list(MIKELS_8.labels))
    answers.insert(0, "id", ids)
    answers.to_csv(tmp_path / "p.csv", index=False)
    assert run("wrap", "stored-probabilities", "p.csv", "--vocabulary", "mikels-8", "--out", "student").code == 0

    five = commands()
    assert [words[0] for words in five] == ["label", "select", "review", "data", "train"]
    for words in five:
        if words[0] == "data":  # what a person saves from the page
            text = (tmp_path / "review" / "data.js").read_text()
            shown = json.loads(text.removeprefix("const REVIEW = ").removesuffix(";\n"))["ids"]
            marks = pd.DataFrame({"sample_id": shown, "verdict": "correct", "labels": '["awe"]'})
            marks.loc[::2, "labels"] = '["fear", "sadness"]'
            marks.to_csv(tmp_path / "corrections.csv", index=False)
        done = run(*words, *(["--epochs", "1"] if words[0] == "train" else []))
        assert done.code == 0, (words, done.err)
    table = read_samples(tmp_path / "corrected.parquet")
    assert table.num_rows == 60 and set(table["label_source"].to_pylist()) == {"review/corrected"}
    assert (tmp_path / "student-2" / "model.safetensors").exists()
    again = [*five[1][:-1], "ask-2", "--reviewed", "corrected.parquet"]
    done = run(*again)
    assert done.code == 0 and re.search(r"^0 of 60 images selected", done.out, re.MULTILINE), "all were looked at"
