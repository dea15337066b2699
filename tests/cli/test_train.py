"""`raymotion train`: the table it prints, and the one line for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.vocabulary import VALENCE_3


@pytest.fixture
def samples(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(60):
        k = int(rng.integers(3))
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"s{i}", "captions": [f"a {('gloomy', 'plain', 'sunny')[k]} day"],
                "labels": [VALENCE_3.labels[k]], "split": ("train", "train", "val", "test")[i % 4], "source": "t",
            }
        )  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, VALENCE_3))
    return str(tmp_path / "s.parquet")


def test_train_prints_every_metric_beside_its_baselines(
    samples: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    command = (
        "train",
        "teacher-demo",
        "--samples",
        samples,
        "--out",
        str(tmp_path / "t"),
        "--workers",
        "0",
        "--epochs",
        "2",
    )
    first = runner(*command, "--seed", "3", "--set", "optimiser.patience=1")
    assert first.code == 0, first.err
    info = read_checkpoint_info(tmp_path / "t")
    assert info.training["seed"] == 3 and info.training["settings"]["optimiser"]["epochs"] == 2
    assert "samples: 60 (30 train, 15 val, 15 test)" in first.out and "reads: captions" in first.out
    assert info.validation is not None
    for name, title in (("bce", "BCE"), ("macro_ap", "Macro AP (mAP)"), ("top_1", "Top-1 accuracy")):
        metric = info.validation["metrics"][name]
        line = next(line for line in first.out.splitlines() if line.startswith(title))
        assert all(f"{metric[key]:.4f}" in line for key in ("value", "low", "high", "prior", "constant"))
    assert (
        info.fingerprint in first.out and "epoch 1:" not in first.out + first.err
    )  # no terminal: no running commentary
    again = runner(*command, "--seed", "3", "--set", "optimiser.patience=1")
    assert again.code == 0 and "nothing to do" in again.out
    other = runner(*command, "--seed", "4", "--set", "optimiser.patience=1")
    assert other.code == 2 and "seed: 3 there, 4 here" in other.err and len(other.err.splitlines()) == 1


def test_mistakes_end_in_one_line_and_exit_code_2(samples: str, tmp_path: Path, runner: Callable[..., Any]) -> None:
    out = str(tmp_path / "t")
    for arguments, reason in (
        (("no-such-recipe", "--samples", samples), "no such recipe"),
        (("teacher-demo",), "names no data"),
        (("fusion-emotic",), "names no sample table"),
        (("teacher-demo", "--samples", str(tmp_path / "absent.parquet")), "no such file"),
        (("teacher-demo", "--samples", samples, "--set", "model.size=huge"), "size 'huge' is not one of"),
        (("teacher-demo", "--samples", samples, "--set", "model.colour=red"), "there is no setting model.colour"),
        (("teacher-demo", "--samples", samples, "--set", "optimiser.lr=-1"), "optimiser.lr"),
        (("teacher-demo", "--samples", samples, "--features", str(tmp_path)), "has no _job.json"),
        (("teacher-demo", "--samples", samples, "--set", "init=x/y"), "a tokenizer trained here does not fit"),
    ):
        outcome = runner("train", *arguments, "--out", out, "--workers", "0")
        assert outcome.code == 2 and reason in outcome.err, (arguments, outcome.err)
        assert len(outcome.err.strip().splitlines()) == 1
    assert not Path(out).exists()


@pytest.mark.slow
def test_job_entry_is_the_same_command(samples: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = Path(__file__).resolve().parents[2] / "jobs" / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "teacher-demo", "--samples", samples, "--out", str(tmp_path / "t"), "--workers",
        "0",
         "--epochs", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert [own["type"] for own in config["inputs"]] == ["captions"] and config["kind"] == "teacher-visualbert"


def test_epochs_and_steps_are_told(samples: str, tmp_path: Path, runner: Callable[..., Any]) -> None:
    """And what lies between them."""
    arguments = ("teacher-demo", "--samples", samples, "--workers", "0", "--epochs", "1", "--progress", "lines")
    done = runner("train", *arguments, "--out", tmp_path / "t")
    lines = done.err.splitlines()
    assert done.code == 0 and lines[0] == "training: starting", done.err
    assert any(line.startswith("epoch 1: training loss 0.") for line in lines)
    assert any(re.match(r"training, epoch 1/1: (\d+)/\1, batches, .*loss 0\.\d+$", line) for line in lines)


def test_a_student_tells_of_pictures_that_it_did_without(
    samples: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    rows = pq.read_table(samples).to_pylist()
    for i, row in enumerate(rows):
        row["image_uri"] = str(tmp_path / f"{i}.png")
        Image.fromarray(np.full((40, 40, 3), 40 + i, np.uint8)).save(row["image_uri"])
    (tmp_path / "0.png").write_bytes(b"no picture")
    write_samples(tmp_path / "p.parquet", table_from_rows(rows, VALENCE_3))
    small = ("--set", "model.image_size=32", "--set", "model.hidden_size=16", "--epochs", "1", "--workers", "0")
    done = runner("train", "student-gru-cnn", "--samples", tmp_path / "p.parquet", "--out", tmp_path / "s", *small)
    assert done.code == 0, done.err
    assert "1 picture could not be read: the model did without" in done.out
    assert "reads: captions, picture" in done.out and read_checkpoint_info(tmp_path / "s").kind.name == "student"
    for given in ((), ("--samples", samples, "--labels", tmp_path)):
        refused = runner("train", "student-gru-cnn", *given, "--out", tmp_path / "o", *small)
        assert refused.code == 2 and len(refused.err.strip().splitlines()) == 1
        assert "Give either --samples samples.parquet or --labels FOLDER" in refused.err
