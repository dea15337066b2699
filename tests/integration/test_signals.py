"""Ctrl-C, SIGTERM and SIGHUP to whole commands with a Ray of their own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymotion.data.readers.coco import CocoReader
from raymotion.data.samples import write_samples
from raymotion.data.synthetic.collections import write_coco, write_socratis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def in_folder(folder: Path, pattern: str, count: int = 1) -> Callable[[], bool]:
    return lambda: len(list(folder.glob(pattern))) >= count


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_coco(str(folder / "coco"), 200, 0)
    write_samples(str(folder / "samples.parquet"), CocoReader(root=folder / "coco").read()[0])
    return folder / "samples.parquet"


def job(pictures: Path, out: Path) -> list[object]:
    return [
        "features", "regions", pictures, "--out", out, "--extractor", "fasterrcnn_mobilenet_v3_large_320_fpn",
        "--weights", "random:0", "--count", "4", "--shard-rows", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("group", [False, True])
def test_a_job_between_two_shards(stop_command, pictures, tmp_path, number, group):
    out = tmp_path / "out"
    stop_command(job(pictures, out), in_folder(out, "_commits/*.json", 2), number, group=group)
    record = json.loads((out / "_job.json").read_text())
    assert (record["status"], [run["status"] for run in record["runs"]]) == ("interrupted", ["interrupted"])
    commits = len(list((out / "_commits").glob("*.json")))
    time.sleep(2)
    assert len(list((out / "_commits").glob("*.json"))) == commits < 100, "a shard was begun after the end"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_job_while_ray_starts(stop_command, pictures, tmp_path, number, monkeypatch):
    """In the middle of `ray.init`, whose C++ core takes SIGTERM for itself."""
    out, base = tmp_path / "out", Path("/tmp")
    before = set(base.glob("raymotion-*"))

    def raylet_is_there() -> bool:
        return any(list(own.glob("session_*/sockets/raylet")) for own in set(base.glob("raymotion-*")) - before)

    monkeypatch.delenv("TMPDIR", raising=False)
    stop_command(job(pictures, out), raylet_is_there, number, group=False)
    assert not (out / "_job.json").exists(), "it computed nothing, and must not bind the folder to its settings"


@pytest.mark.parametrize("workers, number", [(0, signal.SIGTERM), (1, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_training(stop_command, tmp_path, workers, number, monkeypatch):
    from raymotion.data.readers.socratis import SocratisReader

    write_socratis(str(tmp_path / "socratis"), 60, 0)
    socratis = SocratisReader(path=tmp_path / "socratis/cleaned_data.csv", images=tmp_path / "socratis/images")
    samples, out = tmp_path / "samples.parquet", tmp_path / "teacher"
    write_samples(str(samples), socratis.read()[0])
    command = [
        "train", "teacher-demo", "--samples", samples, "--out", out, "--workers", workers, "--epochs", "2000",
        "--set", "optimiser.patience=2000",
    ]  # fmt: skip
    stop_command(command, in_folder(tmp_path, ".teacher.run/progress.json"), number, group=True)
    assert not out.exists() and (tmp_path / ".teacher.run/settings.json").exists()  # the same command goes on
