"""What a training says between its epochs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from raymotion.folders.outputs import run_folder
from raymotion.train import progress as room
from raymotion.train.progress import STEPS, Pace, TrainingProgress, pace_file, read_pace
from raymotion.train.runs import ComparisonProgress


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(room, "time", self)

    def time(self) -> float:
        return self.now

    monotonic = time


def trained(clock: Clock, pace: Pace, *, first: float, each: float, validation: float, epochs: int, steps: int) -> None:
    for epoch in range(epochs):
        pace.begin(epoch, epochs, steps)
        for number in range(1, steps + 1):
            clock.now += first if (epoch, number) == (0, 1) else each
            pace.step(number, 32, 0.5)
        clock.now += validation


def test_the_rate_is_that_of_training_steps_alone(monkeypatch) -> None:
    """A first step of 40 s (data, compilers) and 10 s of validation an epoch are no part of 32 samples in 2 s."""
    clock, told = Clock(monkeypatch), []
    pace = Pace(lambda news: told.append(dict(news)), every=0.0)
    trained(clock, pace, first=40.0, each=2.0, validation=10.0, epochs=3, steps=5)
    assert len(told) == 15
    assert told[0]["samples_per_second"] is None and told[0]["left"] is None
    assert all(news["samples_per_second"] == pytest.approx(16.0) for news in told[1:])
    assert [told[-1][name] for name in ("epoch", "epochs", "step", "steps")] == [3, 3, 5, 5]
    assert told[-1]["left"] == 0.0
    # Nine steps and a validation have taken 28 s since the first step: five steps more are expected to take 15.6 s.
    assert told[9]["left"] == pytest.approx((8 * 2 + 12) / 9 * 5)


def test_it_is_told_at_most_once_in_a_while(monkeypatch) -> None:
    clock, told = Clock(monkeypatch), []
    trained(clock, Pace(told.append, every=1.0), first=0.1, each=0.1, validation=0.0, epochs=1, steps=50)
    assert 4 <= len(told) <= 6


def test_a_loss_that_is_no_number_is_told_as_that(tmp_path: Path, capsys) -> None:
    pace = pace_file(str(tmp_path))
    pace.begin(0, 2, 3)
    pace.step(1, 8, math.nan)
    news = read_pace(str(tmp_path))
    assert news is not None and news["loss"] is None
    with TrainingProgress("lines") as shown:
        shown.stepped(news)
    assert capsys.readouterr().err == "training, epoch 1/2: 1/3, batches, loss not a number\n"


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"{}", b"\xff"])
def test_a_torn_file_is_no_news(tmp_path: Path, content: bytes) -> None:
    assert read_pace(str(tmp_path)) is None
    (tmp_path / STEPS).write_bytes(content)
    assert read_pace(str(tmp_path)) is None


NEWS: dict[str, Any] = {
    "epoch": 3, "epochs": 20, "step": 40, "steps": 120, "samples_per_second": 512.25, "loss": 0.23456,
    "epoch_left": 12.0, "left": 90.0,
}  # fmt: skip


def test_step_rate_and_loss_are_shown(capsys) -> None:
    with TrainingProgress("lines") as shown:
        shown.waiting("starting")
        shown.stepped({**NEWS, "at": time.time()})
        shown.epoch_ended(
            {"epoch": 3, "train_loss": 0.2, "val_bce": 0.3, "val_macro_ap": 0.4, "best_epoch": 2, "other": None}
        )
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: starting",
        "epoch 3: training loss 0.2000, validation BCE 0.3000, mAP 0.4000 (best: epoch 2)",
        "training, epoch 3/20: 40/120, batches, 512.2 samples/s, loss 0.2346, about 12 s left (90 s for all epochs)",
    ]


@pytest.mark.parametrize(
    "news, told",
    [
        ({"step": 120}, "120/120, batches, 512.2 samples/s, loss 0.2346, validating (90 s for all epochs)"),
        ({"epoch": 20}, "40/120, batches, 512.2 samples/s, loss 0.2346, about 12 s left"),
        ({"epoch_left": None, "left": None}, "40/120, batches, 512.2 samples/s, loss 0.2346"),
    ],
)
def test_the_end_of_an_epoch_and_of_a_run(capsys, news: dict[str, Any], told: str) -> None:
    with TrainingProgress("lines") as shown:
        shown.stepped({**NEWS, **news, "at": time.time()})
    assert capsys.readouterr().err == f"training, epoch {news.get('epoch', 3)}/20: {told}\n"


def test_a_validated_epoch_is_not_being_validated(capsys) -> None:
    with TrainingProgress("lines") as shown:
        shown.stepped({**NEWS, "epoch": 20, "step": 120, "at": time.time()})
        shown.epoch_ended({"epoch": 20.0, "train_loss": 0.2, "val_bce": 0.3, "best_epoch": 2})
    assert capsys.readouterr().err.splitlines()[-1].endswith("512.2 samples/s, loss 0.2346")


@pytest.mark.parametrize("kind", ["none", "lines"])
def test_a_warning_is_shown_whatever_the_progress(capsys, kind: Any) -> None:
    with TrainingProgress(kind) as shown:
        shown.warn("nobody answers")
    assert "warning: nobody answers\n" in capsys.readouterr().err


def test_the_last_step_of_an_epoch_is_told_however_soon(monkeypatch) -> None:
    """Else the display would stop short of the end while the model is validated."""
    clock, told = Clock(monkeypatch), []
    pace = Pace(lambda news: told.append(dict(news)), every=1000.0)
    trained(clock, pace, first=1.0, each=2.0, validation=5.0, epochs=2, steps=4)
    assert [(news["epoch"], news["step"]) for news in told] == [(1, 1), (1, 4), (2, 4)]
    assert [news["epoch_left"] for news in told] == [None, 0.0, 0.0]


def test_the_time_left_in_the_epoch_is_that_of_its_training_steps(monkeypatch) -> None:
    clock, told = Clock(monkeypatch), []
    pace = Pace(lambda news: told.append(dict(news)), every=0.0)
    trained(clock, pace, first=40.0, each=2.0, validation=10.0, epochs=2, steps=5)
    assert [news["epoch_left"] for news in told] == [
        None,
        *(pytest.approx(2.0 * k) for k in (3, 2, 1, 0, 4, 3, 2, 1, 0)),
    ]


def test_the_line_of_an_epoch_names_whatever_was_measured(capsys) -> None:
    with TrainingProgress("lines") as shown:
        shown.epoch_ended({"epoch": 1, "train_loss": 0.2, "val_mae": 1.5, "val_ccc": 0.25, "best_epoch": 1})
        shown.epoch_ended({"epoch": 2, "train_loss": 0.1, "val_bce": 0.3, "val_vad_ccc": 0.5, "best_epoch": 2})
    assert capsys.readouterr().err.splitlines()[:2] == [
        "epoch 1: training loss 0.2000, validation MAE 1.5000, CCC 0.2500 (best: epoch 1)",
        "epoch 2: training loss 0.1000, validation BCE 0.3000, vad: CCC 0.5000 (best: epoch 2)",
    ]


def test_a_comparison_tells_where_its_runs_are(tmp_path: Path, capsys) -> None:
    names = ["scratch-seed0", "scratch-seed1", "A1B-seed0"]
    for name, epoch in (("scratch-seed0", 4), ("scratch-seed1", 2)):
        pace = pace_file(run_folder(tmp_path / name))
        pace.begin(epoch - 1, 9, 3)
        pace.step(1, 8, 0.5)
    with ComparisonProgress("lines", str(tmp_path), names) as shown:
        shown.refresh()
        assert "scratch-seed0 epoch 4/9" in shown.note() and "scratch-seed1 epoch 2/9" in shown.note()
        shown.ended("scratch-seed0")
        assert "scratch-seed0" not in shown.note()
    assert capsys.readouterr().err.splitlines()[-1].startswith("fine-tuning: 1/3, runs, in training: scratch-seed1")
