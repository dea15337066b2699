"""The domain check from training to the page: what a checkpoint keeps, what a job keeps, and what is told of both."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.status import job_status
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.domain_sample import read_sample
from raymotion.models.hub import copy_checkpoint
from raymotion.report.page import summary_lines, write_report
from raymotion.train.fit import fit


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, write_set: Callable[..., str], student_recipe: Callable[..., Any]
) -> Path:
    """A student of 160 small pictures with two captions each."""
    folder = tmp_path_factory.mktemp("student")
    fit(student_recipe(write_set(folder / "set", 160), optimiser={"epochs": 2}), str(folder / "s"))
    return folder / "s"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Green, bright and wide pictures, with captions that say the same with other words."""
    folder = tmp_path_factory.mktemp("others")
    rng = np.random.default_rng(1)
    rows = []
    for i in range(64):
        pixels = np.clip(np.array((120, 255, 160)) + rng.normal(0, 5, (36, 90, 3)), 1, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"sample_id": f"o{i}", "group_id": f"o{i}", "image_uri": str(folder / f"{i}.png"), "source": "o",
                     "captions": [f"said a sunny day and day {i}"]})  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows))
    return str(folder / "samples.parquet")


def run(samples: str, model: Path | list[Path], out: Path, **more: Any) -> dict[str, Any]:
    chosen = [str(own) for own in model] if isinstance(model, list) else str(model)
    return dict(label(LabelSettings(samples=samples, model=chosen, out=str(out), **{"workers": 0, **more})).record)


def parts(folder: Path, *names: str) -> dict[str, bytes]:
    return {f"{name}/{file.name}": file.read_bytes() for name in names for file in sorted((folder / name).iterdir())}


def test_a_checkpoint_keeps_what_its_last_layer_read_of_training(student: Path) -> None:
    info = read_checkpoint_info(student)
    assert info.domain == hashlib.sha256((student / "domain.safetensors").read_bytes()).hexdigest()
    kept = read_sample(student / "domain.safetensors", info.domain, remedy="")
    # 120 samples of two captions each, 16 samples of 32 captions at a time, of which 16 are kept.
    table = pq.read_table(student.parent / "set/samples.parquet")
    training = [row for row in table.to_pylist() if row["split"] == "train"]
    assert kept.features.shape == (len(training), 16) and kept.features.dtype == np.float16
    assert {name: len(own) for name, own in kept.statistics.items()} == dict.fromkeys(
        ("captions", "words", "unknown_words", "brightness", "contrast", "aspect", "kilobytes"), len(training)
    )
    assert set(kept.statistics["captions"]) == {2} and np.allclose(kept.statistics["aspect"], 40 / 36)
    assert np.allclose(kept.statistics["words"], 7), "a gloomy day , said number 1"
    sizes = sorted(Path(row["image_uri"]).stat().st_size / 1000 for row in training)
    assert np.allclose(np.sort(kept.statistics["kilobytes"]), sizes)
    grey = [np.asarray(Image.open(row["image_uri"]).convert("L"), np.float32).mean() / 255 for row in training]
    assert np.allclose(np.sort(kept.statistics["brightness"]), np.sort(grey), atol=0.03)
    # Independently: the features of every training caption, of which those are some.
    model = load_model(student)
    seen: list[torch.Tensor] = []
    model.network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    reads = {own.name: own for own in model.inputs}
    for row in training:
        pixels = np.asarray(Image.open(row["image_uri"]).convert("RGB"))
        item: Any = type("Item", (), {"row": row, "pixels": pixels})
        model.predict({name: own.collect([item]) for name, own in reads.items()})
    every = torch.cat(seen).numpy()
    far = [np.abs(every - row.astype(np.float32)).max(axis=1).min() for row in kept.features]
    assert max(far) < 2e-3


def test_its_own_kind_is_near_and_another_far(student: Path, others: str, tmp_path: Path) -> None:
    own = run(str(student.parent / "set/samples.parquet"), student, tmp_path / "own")["domain"]
    assert own["grade"] == "near" and own["low"] <= 0.5 <= own["high"]
    found = run(others, student, tmp_path / "others")
    domain = found["domain"]
    assert domain["grade"] == "far" and domain["headline"].startswith("This collection is far from what the model")
    rows = {row["name"]: (row["training"], row["collection"]) for row in domain["statistics"]}
    assert rows["captions of a sample"] == (2, 1)
    assert rows["width of a picture / height"] == (pytest.approx(40 / 36, abs=1e-3), 2.5)
    assert rows["share of unknown words (mean)"][1] > 0.1 > rows["share of unknown words (mean)"][0]
    assert rows["brightness of a picture (0 to 1)"][1] > rows["brightness of a picture (0 to 1)"][0]
    card = (tmp_path / "others/_README.md").read_text()
    assert f"**{domain['headline']}**" in card and "| width of a picture / height | 1.11 | 2.5 |" in card
    assert domain["headline"] in job_status(tmp_path / "others").lines
    page = write_report(tmp_path / "others", tmp_path / "page.html")
    assert domain["headline"] in summary_lines(page)
    html = (tmp_path / "page.html").read_text()
    assert domain["headline"] in html and "width of a picture / height</td><td>1.11</td><td>2.5</td>" in html


def test_predictions_stay_and_a_resumed_job_judges_the_same_rows(student: Path, others: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(student, plain)
    training = json.loads((plain / "training.json").read_text())
    del training["domain"]
    (plain / "training.json").write_text(json.dumps(training))
    without = run(others, plain, tmp_path / "without")
    assert not (tmp_path / "without/_domain").exists()
    assert without["domain"]["grade"] == "unknown" and "holds no sample of its training data" in str(without["domain"])
    whole = run(others, student, tmp_path / "whole")
    assert parts(tmp_path / "whole", "data") == parts(tmp_path / "without", "data")
    made = parts(tmp_path / "whole", "data", "_domain")
    assert len(made) == 16  # 8 shards of 8 rows
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("_commits/part-00002.json", "_domain/part-00002.safetensors", "_domain/part-00005.safetensors"):
        (tmp_path / "resumed" / name).unlink()
    os.truncate(tmp_path / "resumed/_domain/part-00006.safetensors", 40)
    resumed = run(others, student, tmp_path / "resumed")
    assert [own["shard"] for own in resumed["runs"][-1]["done_again"]] == ["part-00005", "part-00006"]
    assert "the sample of features" in resumed["runs"][-1]["done_again"][0]["reason"]
    assert parts(tmp_path / "resumed", "data", "_domain") == made and resumed["domain"] == whole["domain"]


@pytest.mark.slow
def test_ray_keeps_the_same_rows(student: Path, others: str, tmp_path: Path, ray_local: None) -> None:
    here, there = (run(others, student, tmp_path / f"{n}", workers=n) for n in (0, 1))
    assert parts(tmp_path / "0", "data", "_domain") == parts(tmp_path / "1", "data", "_domain")
    assert here["domain"] == there["domain"]


@pytest.mark.parametrize("damage", ["is missing", "is not what was written"])
def test_damage_of_the_sample_is_told(student: Path, others: str, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    copy_checkpoint(student, copy)
    path = copy / "domain.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage != "is missing":
        data[-3] ^= 1
        path.write_bytes(data)
    found = run(others, copy, tmp_path / "labels")
    assert found["status"] == "complete" and found["domain"]["grade"] == "unknown"
    assert str(path) in found["domain"]["headline"] and damage in found["domain"]["headline"]


def test_several_models_are_judged_by_the_first_that_knows(
    student: Path, others: str, student_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    second = tmp_path / "second"
    fit(student_recipe(str(student.parent / "set/samples.parquet"), seed=1, optimiser={"epochs": 1}), str(second))
    both = sorted((student, second), key=lambda folder: read_checkpoint_info(folder).fingerprint)
    found = run(others, [student, second], tmp_path / "labels")["domain"]
    alone = run(others, both[0], tmp_path / "alone")["domain"]
    assert f"what the model {both[0]} learned from" in found["headline"] and found["auc"] == alone["auc"]
