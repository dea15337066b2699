"""`kill -9` of a job's driver, for real; benchmarks/kill_resume.py does it twenty times to a labelling job."""

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

from raymotion.batch.regions import RegionSettings, extract_regions
from raymotion.data.readers.coco import CocoReader
from raymotion.data.samples import write_samples
from raymotion.data.synthetic.collections import write_coco

EXTRACTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path) -> None:
    """60 images, 3 of them damaged, in 30 shards; killed with some of them done, then the same command."""
    write_coco(str(tmp_path / "coco"), 60, 0, corrupt=0.05)
    samples, out, whole = tmp_path / "s.parquet", tmp_path / "out", tmp_path / "whole"
    write_samples(str(samples), CocoReader(root=tmp_path / "coco").read()[0])
    command = [
        str(Path(sys.executable).with_name("raymotion")), "features", "regions", str(samples), "--out", str(out),
        "--extractor", EXTRACTOR, "--weights", "random:0", "--count", "4", "--shard-rows", "2",
        "--workers", "1", "--max-failed", "0.1",
    ]  # fmt: skip
    commits = out / "_commits"
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 100
    while len(list(commits.glob("*.json")) if commits.exists() else []) < 3:
        assert driver.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(1.0)  # its orphans may still finish what they are at
    before = {path.name: path.stat().st_mtime_ns for path in commits.iterdir()}
    assert 3 <= len(before) < 30

    def settings(folder: Path, workers: int) -> RegionSettings:
        """What the command line above says; in this process, since a second one would start a second Ray."""
        return RegionSettings(
            samples=str(samples), out=str(folder), extractor=EXTRACTOR, weights="random:0", count=4, shard_rows=2,
            max_failed=0.1, workers=workers,
        )  # fmt: skip

    assert extract_regions(settings(out, 1)).record["runs"][-1]["resumed_from_shards"] == len(before)
    assert {name: (commits / name).stat().st_mtime_ns for name in before} == before, "committed shards were done again"

    good = [i for path in sorted(out.glob("data/part-*")) for i in pq.read_table(path).column("sample_id").to_pylist()]
    bad = {
        row["sample_id"]: row["reason"]
        for path in (out / "_quarantine").glob("part-*")
        for row in pq.read_table(path).to_pylist()
    }
    assert sorted([*good, *bad]) == sorted(pq.read_table(samples).column("sample_id").to_pylist())
    damaged = json.loads((tmp_path / "coco/corrupt.json").read_text())
    assert {f"coco:{Path(entry['file']).stem}": entry["reason"] for entry in damaged} == bad
    record = json.loads((out / "_job.json").read_text())
    assert record["counts"]["in"] == 60 and [run["status"] for run in record["runs"]][-1] == "complete"

    # The same files as of a run that nobody disturbed, here with another number of workers.
    extract_regions(settings(whole, 2))

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("part-*.p*q*")}

    assert files(whole) == files(out)
