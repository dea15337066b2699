"""The kind of docs/kinds.md, taken from the page, trains and labels with the page's own commands."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.vocabulary import VALENCE_3

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "kinds.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)
    return str(found)


def test_the_class_is_short() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) - sum(line.startswith(("from", "import")) for line in lines) <= 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pages_commands(tmp_path: Path, run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = sorted((REPOSITORY.parent / "shared" / "data" / "coco").rglob("*.jpg"))
    pictures = shared or [tmp_path / f"{i}.png" for i in range(142)]
    for i, path in enumerate([] if shared else pictures):
        Image.new("RGB", (40, 30), (i, 255 - i, 90)).save(path)
    light = [float(np.asarray(Image.open(path).convert("L").resize((8, 8))).mean()) for path in pictures]
    bands = np.argsort(np.argsort(light)) * 3 // len(pictures)  # what it can learn: how bright a picture is
    rows = [
        {
            "sample_id": path.stem, "group_id": path.stem, "source": "t", "image_uri": str(path),
            "labels": [VALENCE_3.labels[bands[i]]], "split": ("train", "train", "val", "test")[i % 4],
        }
        for i, path in enumerate(pictures)
    ]  # fmt: skip
    write_samples(tmp_path / "mine.parquet", table_from_rows(rows, VALENCE_3))
    (tmp_path / "my_kinds.py").write_text(block("python"))
    (tmp_path / "colour.yaml").write_text(block("yaml"))
    exported, *commands = block("bash").strip().splitlines()
    for own in shlex.split(exported)[1:]:
        name, _, value = own.partition("=")
        before = os.environ.get(name, "") if name == "PYTHONPATH" else ""
        monkeypatch.setenv(name, f"{tmp_path}:{before}".rstrip(":") if value == "." else value)
    assert [shlex.split(line)[1] for line in commands] == ["kinds", "train", "label"]
    for line in commands:
        done = run_command(*shlex.split(line)[1:], cwd=tmp_path, timeout=200)
        assert done.code == 0, (line, done.err)
        if "kinds" in line:
            assert "mean colour" in done.out
    labels = pd.read_parquet(tmp_path / "labels")
    assert len(labels) == len(pictures) and all(len(row) == 3 for row in labels["probabilities"])
