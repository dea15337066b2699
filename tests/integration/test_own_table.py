"""From a csv of one's own, with emotions of one's own, to an audit: the README's five commands."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
EMOTIONS = ["anger", "awe", "boredom", "calm", "fear", "joy", "sadness", "surprise"]


def commands() -> list[list[str]]:
    """The first block below "With your own data"."""
    section = (REPOSITORY / "README.md").read_text().partition("## With your own data")[2]
    block = section.split("```")[1].replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readmes_five_commands_on_a_csv(
    tmp_path: Path, run_command: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    shared = REPOSITORY.parent / "shared" / "data" / "coco"
    pictures = sorted(shared.rglob("*.jpg"))[:60]
    if not pictures:
        pictures = [tmp_path / f"{i}.jpg" for i in range(60)]
        for i, path in enumerate(pictures):
            Image.new("RGB", (80, 60), (4 * i, 255 - 4 * i, 100)).save(path)
    rng = random.Random(0)
    rows = [f"{path},A picture,{';'.join(rng.sample(EMOTIONS, rng.randint(1, 3)))}" for path in pictures]
    (tmp_path / "feelings.csv").write_text("\n".join(["path,text,feelings", *rows]) + "\n")
    five = commands()
    assert [command[0] for command in five] == ["data", "train", "label", "report", "audit"]
    for command in five:
        more = ["--epochs", "1"] if command[0] == "train" else []
        done = run_command(*command, *more, cwd=tmp_path, timeout=300)
        assert done.code == 0, (command, done.err)
        assert "RANDOM WEIGHTS" not in done.out + done.err
    labels = pd.read_parquet(tmp_path / "labels")
    assert len(labels) == 60 and all(len(row) == 8 for row in labels["probabilities"])
    assert (tmp_path / "report.html").stat().st_size > 10_000 and (tmp_path / "audit" / "audit.json").exists()
