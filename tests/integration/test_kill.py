"""`kill -9` of a labelling job's driver, for real, at the worst moments; benchmarks/kill_resume.py does it twenty times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from raymotion.data.coco import read_coco
from raymotion.data.samples import write_samples
from raymotion.data.synthetic import write_coco
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.tokenizer import train_tokenizer
from raymotion.models.visualbert import TeacherConfig, VisualBertTeacher
from raymotion.vocabulary import SOCRATIS_29


@pytest.fixture
def job(tmp_path: Path) -> tuple[list[str], Path]:
    """The command line of a job of 120 images, 6 of them damaged, in 40 shards; and its output folder."""
    write_coco(str(tmp_path / "coco"), 120, 0, corrupt=0.05)
    write_samples(str(tmp_path / "s.parquet"), read_coco(str(tmp_path / "coco"), "val2017")[0])
    tokenizer = train_tokenizer([f"a caption about {i}" for i in range(40)], size=100)
    torch.manual_seed(0)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 1024})
    save_checkpoint(
        tmp_path / "teacher",
        VisualBertTeacher(config, 29),
        tokenizer,
        SOCRATIS_29,
        modalities=["text", "regions"],
        extractor={
            "name": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random:0", "count": 4, "dim": 1024,
        },
        training={},
    )  # fmt: skip
    out = tmp_path / "out"
    script = Path(sys.executable).with_name("raymotion")
    arguments = ["--teacher", str(tmp_path / "teacher"), "--out", str(out), "--shard-rows", "3", "--max-failed", "0.1"]
    return [str(script), "label", str(tmp_path / "s.parquet"), *arguments], out


@pytest.mark.timeout(240)
def test_killed_twice_and_run_again(job: tuple[list[str], Path], tmp_path: Path) -> None:
    command, out = job
    commits = out / "_commits"
    first_commits: dict[str, int] = {}
    for at_least in (2, 10):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 100
        while len(list(commits.glob("*.json")) if commits.exists() else []) < at_least:
            assert driver.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(1.0)  # its orphans may still finish what they are at
        if not first_commits:
            first_commits = {path.name: path.stat().st_mtime_ns for path in commits.iterdir()}
    assert not list(out.glob(".*")) or all(path.name.endswith(".tmp") for path in out.glob(".*"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What was committed before the first kill was not touched again.
    assert {name: (commits / name).stat().st_mtime_ns for name in first_commits} == first_commits

    good = [i for path in sorted(out.glob("part-*")) for i in pq.read_table(path).column("sample_id").to_pylist()]
    bad = {
        row["sample_id"]: row["reason"]
        for path in (out / "quarantine").glob("part-*")
        for row in pq.read_table(path).to_pylist()
    }
    samples = pq.read_table(tmp_path / "s.parquet").column("sample_id").to_pylist()
    assert sorted([*good, *bad]) == sorted(samples) and len(good) == len(set(good))
    damaged = json.loads((tmp_path / "coco/corrupt.json").read_text())
    assert {f"coco:{Path(entry['file']).stem}": entry["reason"] for entry in damaged} == bad
    record = json.loads((out / "job.json").read_text())
    assert record["counts"]["in"] == 120 and [run["status"] for run in record["runs"]][-1] == "complete"

    # The same files as of a run that nobody disturbed.
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("part-*.parquet")}

    whole = tmp_path / "whole"
    subprocess.run([part if part != str(out) else str(whole) for part in command], check=True, capture_output=True)
    assert files(whole) == files(out)
