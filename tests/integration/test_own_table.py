"""From a table of one's own, with emotions of one's own, to an audit: the README's five commands."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
import tarfile
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


def write_csv(folder: Path, pictures: list[Path], labels: list[list[str]]) -> list[str]:
    rows = [f"{path},A picture,{';'.join(own)}" for path, own in zip(pictures, labels, strict=True)]
    (folder / "feelings.csv").write_text("\n".join(["path,text,feelings", *rows]) + "\n")
    return commands()[0]


def write_tars(folder: Path, pictures: list[Path], labels: list[list[str]]) -> list[str]:
    (folder / "shards").mkdir()
    for first in range(0, len(pictures), 30):
        with tarfile.open(folder / "shards" / f"{first:03d}.tar", "w") as archive:
            for i in range(first, first + 30):
                text = json.dumps({"caption": "A picture", "labels": labels[i]}).encode()
                for kind, data in (("jpg", pictures[i].read_bytes()), ("json", text)):
                    member = tarfile.TarInfo(f"{i:04d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return of_readme("shards/*.tar")


def write_folder(folder: Path, pictures: list[Path], labels: list[list[str]]) -> list[str]:
    for path, own in zip(pictures, labels, strict=True):
        (folder / "IMAGE_FOLDER" / own[0]).mkdir(parents=True, exist_ok=True)
        (folder / "IMAGE_FOLDER" / own[0] / path.name).write_bytes(path.read_bytes())
    return of_readme("IMAGE_FOLDER")


def of_readme(table: str) -> list[str]:
    """The README's command that prepares this table."""
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("raymotion data prepare table") and table in line]
    return shlex.split(line)[1:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("write", [write_csv, write_tars, write_folder])
def test_the_readmes_five_commands(tmp_path: Path, run_command: Callable[..., Any], write: Any) -> None:
    shared = REPOSITORY.parent / "shared" / "data" / "coco"
    pictures = sorted(shared.rglob("*.jpg"))[:60]
    if not pictures:
        pictures = [tmp_path / f"{i}.jpg" for i in range(60)]
        for i, path in enumerate(pictures):
            Image.new("RGB", (80, 60), (4 * i, 255 - 4 * i, 100)).save(path)
    rng = random.Random(0)
    five = commands()
    five[0] = write(tmp_path, pictures, [rng.sample(EMOTIONS, rng.randint(1, 3)) for _ in pictures])
    assert [command[0] for command in five] == ["data", "train", "label", "report", "audit"]
    for command in five:
        more = ["--epochs", "1"] if command[0] == "train" else []
        done = run_command(*command, *more, cwd=tmp_path, timeout=300)
        assert done.code == 0, (command, done.err)
        assert "RANDOM WEIGHTS" not in done.out + done.err
    labels = pd.read_parquet(tmp_path / "labels")
    assert len(labels) == 60 and all(len(row) == 8 for row in labels["probabilities"])
    assert (tmp_path / "report.html").stat().st_size > 10_000 and (tmp_path / "audit" / "audit.json").exists()
