"""`raymotion features embeddings`: from the command line to features that can be read, and refusals in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymotion.batch import job
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.data.embeddings import Embeddings
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.vocabulary import MIKELS_8, Vocabulary


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for image in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / f"{image}.png")
        for person in range(2):
            rows.append(
                {
                    "sample_id": f"e:{image}:{person}", "group_id": f"e:{image}", "source": "e",
                    "image_uri": str(tmp_path / f"{image}.png"), "body_box": [5.0 + person, 2.0, 30.0, 39.0],
                    "split": ("train", "val", "test")[image],
                }
            )  # fmt: skip
    write_samples(tmp_path / "people.parquet", table_from_rows(rows))
    return tmp_path / "people.parquet"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker in this process; tests/batch has it on Ray."""

    def stream(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
        worker = ShardWorker(plan)
        for shard in shards:
            yield json.loads(worker({"shard": [shard]})["record"][0])

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the worker sets them
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(job, "connect", lambda address: nullcontext())
    monkeypatch.setattr(job, "node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(job, "_stream", stream)


def test_options_become_features(table: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    out = tmp_path / "e"
    done = runner(
        "features", "embeddings", table, "--out", out, "--context", "test_resnet", "--context", "test_vit",
        "--body", "test_resnet", "--augment", "full", "--views", 3, "--tokens", 2, "--seed", 7,
        "--backbone-weights", "random:0", "--backbone-weights", "test_vit=random:9", "--size", "test_vit=48",
        "--size", 64,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "6 samples: 3 images, 6 bodies" in done.out and "ratio 1.000" in done.out
    assert "context/test_vit: 64 numbers, and 4 tokens of 64; rows x views: none 3 x 1, full 1 x 3" in done.out
    assert "RANDOM WEIGHTS" in done.out and f"study run tune_spaces/emotic/ --embeddings {out}" in done.out
    assert "samples/s" in done.out and len(done.out.splitlines()) < 12
    found = Embeddings(out, cache=str(tmp_path / "cache"))
    assert found.backbones["test_vit"]["weights"] == "random:9" and found.backbones["test_vit"]["size"] == 48
    assert found.backbones["test_resnet"]["weights"] == "random:0" and found.backbones["test_resnet"]["size"] == 64
    assert found.views == {"none": 1, "full": 3} and len(found) == 6
    assert found.block("body", "test_resnet", "full", tokens=True).array.shape == (2, 3, 4, 96)

    again = runner(
        "features", "embeddings", table, "--out", out, "--body", "test_resnet", "--backbone-weights", "random:0",
    )  # fmt: skip
    assert again.code == 2 and len(again.err.strip().splitlines()) == 1
    assert "was made with other settings" in again.err and "streams.context" in again.err


@pytest.mark.parametrize(("labels", "recipe"), [(None, "regressor"), (["awe"], "mlp")])
def test_the_next_step_is_one_that_the_table_allows(
    tmp_path: Path, runner: Callable[..., Any], labels: list[str] | None, recipe: str
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    row = {
        "sample_id": "a", "group_id": "a", "source": "a", "image_uri": str(tmp_path / "a.png"), "valence": 2.0,
        "labels": labels, "split": "train",
    }  # fmt: skip
    write_samples(tmp_path / "a.parquet", table_from_rows([row], MIKELS_8, scale=(1.0, 7.0)))
    done = runner(
        "features", "embeddings", tmp_path / "a.parquet", "--out", tmp_path / "e", "--context", "test_resnet",
        "--backbone-weights", "random:0",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"raymotion train {recipe} --samples" in done.out
    assert done.out.startswith("1 samples: 1 images; ") and "persons" not in done.out, "a picture of anything"


def test_a_study_names_what_it_needs(table: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    spaces = Path(__file__).resolve().parents[2] / "tune_spaces" / "emotic-small"
    from raymotion.study.features import embedding_needs

    needs = embedding_needs(spaces)
    done = runner("features", "embeddings", table, "--out", tmp_path / "e", "--study", spaces, "--size", "large")
    # The spaces' backbones have come through to where the sizes are read.
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert all(name in done.err for name in needs["context"] + needs["body"]), done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no stream has a backbone"),
        (("--face", "test_resnet", "--backbone-weights", "random:0"), "raymotion data faces"),
        (("--body", "no_such_net"), "no_such_net"),
        (("--body", "test_resnet", "--backbone-weights", "swim=random:0"), "is for a backbone that no stream"),
    ],
)
def test_refusals_are_one_line(
    table: Path, tmp_path: Path, runner: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    done = runner("features", "embeddings", table, "--out", tmp_path / "e", *options)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("labels", "recipe"), [(None, "regressor"), (["calm"], "mlp")])
def test_the_next_step_learns_what_the_table_has(
    labels: list[str] | None, recipe: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    row = {"sample_id": "r", "group_id": "r", "source": "r", "image_uri": str(tmp_path / "0.png"), "valence": 2.0}
    rated = table_from_rows([{**row, "labels": labels}], Vocabulary("x", ("calm",)), scale=(1.0, 7.0))
    write_samples(tmp_path / "rated.parquet", rated)
    done = runner(
        "features", "embeddings", tmp_path / "rated.parquet", "--out", tmp_path / "e", "--context", "test_resnet",
        "--backbone-weights", "random:0", "--size", 64,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"raymotion train {recipe} --samples {tmp_path / 'rated.parquet'} --embeddings" in done.out
