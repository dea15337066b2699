"""`kill -9` of a running attack on Ray, and the same command again: exactly once, on both cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raymotion.report.attack_page import write
from raymotion.robustness.pixel_attack import AttackSummary, PixelAttackSettings, attack_pixels


def settings_of(trained: Any, out: Path, workers: int) -> PixelAttackSettings:
    """What the command line below says; in this process, since a second one would start a second Ray."""
    return PixelAttackSettings(
        samples=trained.samples, model=trained.model, out=str(out), images=40, queries=300, population=20,
        pixels=(1, 3), workers=workers, cpus_per_worker=1,
    )  # fmt: skip


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("attacks/data/part-*")}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_and_run_again(one_label: Any, ray_local: Any, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [
        str(Path(sys.executable).with_name("raymotion")), "attack", "pixels", one_label.samples, "--model",
        one_label.model, "--out", str(out), "--images", "40", "--queries", "300", "--population", "20", "--pixels", "1",
        "--pixels", "3", "--workers", "1", "--cpus-per-worker", "1",
    ]  # fmt: skip
    commits = out / "attacks" / "_commits"
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 150
    while len(list(commits.glob("*.json")) if commits.exists() else []) < 3:
        assert driver.poll() is None, "the attack ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(1.0)  # its orphans may still finish what they are at
    before = {path.name: path.stat().st_mtime_ns for path in commits.iterdir()}
    assert 3 <= len(before) < 20 and not (out / "attack.json").exists()

    again = attack_pixels(settings_of(one_label, out, 1), progress="none", write_page=write)
    assert again.job.record["runs"][-1]["resumed_from_shards"] == len(before)
    assert {name: (commits / name).stat().st_mtime_ns for name in before} == before, "shards were done again"
    rows = [row for path in sorted(out.glob("attacks/data/part-*")) for row in pq.read_table(path).to_pylist()]
    wanted = pq.read_table(out / "samples.parquet").column("sample_id").to_pylist()
    assert len(wanted) == 40 and {row["sample_id"] for row in rows} == set(wanted)
    once = [(row["sample_id"], row["pixels"], row["method"]) for row in rows]
    assert len(once) == len(set(once)), "an attack is there twice"
    assert all(
        len([one for one in once if one[0] == row["sample_id"]]) == (6 if row["state"] == "attacked" else 1)
        for row in rows
    )
    assert len(list((out / "pictures").iterdir())) == sum(bool(row["success"]) for row in rows) > 0

    # The same files as of a run that nobody disturbed, here by two actors at once.
    undisturbed = attack_pixels(settings_of(one_label, whole, 2), progress="none", write_page=write)
    assert parts(whole) == parts(out)
    assert both_worked(undisturbed, whole)
    told = [json.loads((folder / "attack.json").read_text())["lines"] for folder in (out, whole)]
    assert told[0] == told[1]


def both_worked(summary: AttackSummary, out: Path) -> bool:
    """Whether two actors have committed shards, at the same time."""
    workers = {json.loads(path.read_text())["worker"] for path in (out / "attacks/_commits").glob("*.json")}
    return summary.job.record["throughput"]["workers"] == 2 and len(workers) == 2
