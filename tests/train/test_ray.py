"""Training through Ray Train: killed workers and a killed driver cost at most the epoch in flight."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.folders.outputs import run_folder
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.train.fit import fit
from raymotion.vocabulary import VALENCE_3


def write_table(path: Path | str, n: int = 60) -> None:
    rng = np.random.default_rng(0)
    words = ["gloomy", "plain", "sunny"]
    rows: list[dict[str, Any]] = []
    for i in range(n):
        k = int(rng.integers(3))
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"s{i}", "captions": [f"a {words[k]} day"], "source": "t",
                "labels": [VALENCE_3.labels[k]], "split": ("train", "train", "val", "test")[i % 4],
            }
        )  # fmt: skip
    write_samples(path, table_from_rows(rows, VALENCE_3))


def recipe(samples: Path | str, *, epochs: int, workers: int) -> TeacherRecipe:
    return TeacherRecipe.model_validate(
        {
            "data": {"samples": str(samples)},
            "model": {"size": "tiny"},
            "optimiser": {"epochs": epochs, "patience": epochs, "batch_size": 8},
            "workers": workers,
            "use_gpu": False,
        }
    )


@pytest.mark.timeout(400)  # a worker group is started twice; on a busy machine that takes minutes
@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_its_epoch(ray_local: Any, s3: str, tmp_path: Path) -> None:
    """From a table on S3 to a checkpoint on S3; the result is that of a run in one process, without Ray."""
    write_table(f"{s3}/s.parquet")
    killed: list[int] = []
    reported: list[int] = []

    def kill_once(metrics: Mapping[str, Any]) -> None:
        if metrics["epoch"] >= 2 and not killed:
            reported.append(int(metrics["epoch"]))
            for child in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in child.name() or any("RayTrainWorker" in part for part in child.cmdline()):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    # Fifteen epochs, so that on a busy machine the kill comes before the last.
    info = fit(recipe(f"{s3}/s.parquet", epochs=15, workers=1), f"{s3}/teacher", progress=kill_once).info
    assert killed
    # The epochs before the one in flight were not computed again: the first process's name still stands beside them.
    # (The one that was reported last may not have reached Ray's controller.)
    attempts = [e["attempt"] for e in info.training["history"]]
    assert len(set(attempts)) == 2, attempts
    assert set(attempts[: reported[0] - 1]) == {attempts[0]} and attempts[0].endswith(f"-{killed[0]}")
    assert attempts[-1] != attempts[0]
    assert [e["epoch"] for e in info.training["history"]] == list(range(1, 16))
    assert storage.list_names(run_folder(f"{s3}/teacher")) == []
    alone = fit(recipe(f"{s3}/s.parquet", epochs=15, workers=0), tmp_path / "alone").info
    for here, there in zip(alone.training["history"], info.training["history"], strict=True):
        assert here["val_bce"] == pytest.approx(there["val_bce"], abs=1e-4)


def test_a_plan_that_does_not_fit_is_refused_at_once(ray_local: Any, tmp_path: Path) -> None:
    write_table(tmp_path / "s.parquet")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"999 x \(1 CPU\) cannot be placed"):
        fit(recipe(tmp_path / "s.parquet", epochs=1, workers=999), tmp_path / "o")
    assert time.monotonic() - started < 20


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_driver_goes_on_with_the_same_command(tmp_path: Path) -> None:
    """In one process, for speed: that Ray finds the run again is what the test of the killed worker shows."""
    write_table(tmp_path / "s.parquet")
    (tmp_path / "r.yaml").write_text(
        "kind: teacher-visualbert\nmodel: {size: tiny}\n"
        "optimiser: {epochs: 40, patience: 40, batch_size: 8}\nuse_gpu: false\n"
    )
    out = tmp_path / "teacher"
    command = [
        sys.executable, "-m", "raymotion.cli.main", "train", str(tmp_path / "r.yaml"),
        "--samples", str(tmp_path / "s.parquet"), "--out", str(out), "--workers", "0",
    ]  # fmt: skip
    progress = Path(run_folder(out), "progress.json")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while not progress.exists():
            assert first.poll() is None and time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    assert not out.exists()
    done = storage.read_json(progress)["epoch"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert again.returncode == 0, again.stderr
    history = read_checkpoint_info(out).training["history"]
    attempts = [e["attempt"] for e in history]
    kept = attempts.count(attempts[0])
    # The state is kept before the progress is written down, so one epoch more may have been finished.
    assert kept in (done, done + 1) and set(attempts[:kept]).isdisjoint(attempts[kept:])
    assert f"went on after epoch {kept}\n" in again.stderr
    assert 1 <= done < 40 and [e["epoch"] for e in history] == list(range(1, 41))
    assert not progress.exists()
