"""Progress in a log, and lines of Ray that mean nothing."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from raymotion.batch.progress import Progress, duration


def test_lines_tell_counts_rate_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("lines", total=10, done=4, title="labels") as progress:
        progress.waiting("2 x (1 CPU), cpu: starting")
        progress.advance(3, 1)
        progress.advance(3, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "labels: 4/10 done before, 2 x (1 CPU), cpu: starting"
    assert lines[-1].startswith("labels: 10/10, ") and "1 in quarantine" in lines[-1]


def test_nothing_is_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("auto", total=2, done=0, title="labels") as progress:
        progress.waiting("starting")
        progress.advance(2, 0)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_noise_is_dropped_and_everything_else_is_kept() -> None:
    """File descriptor 2 itself is at stake, so in a process of its own."""
    code = """
import os, sys
from raymotion.batch.quiet import without_noise
with without_noise():
    os.write(2, b"Actor X has constructor arguments in the object store and max_restarts > 0. If\\n")
    os.write(2, b"a line of Ray that matters\\n")
    print("a line of Python", file=sys.stderr)
    os.write(2, b"no newline at the end")
print("after", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "max_restarts" not in done.stderr
    for text in ("a line of Ray that matters", "a line of Python", "no newline at the end", "after"):
        assert text in done.stderr


class Clock:
    """Stands for `time.time` of the progress: what it shows depends on nothing else."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr("raymotion.batch.progress.time", self)

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def test_the_rate_begins_with_the_first_ready_worker_and_not_with_the_start(monkeypatch, capsys) -> None:
    """20 s until the first worker is ready, then 120 images in 2 s: 60 images/s, not 5.5."""
    clock = Clock(monkeypatch)
    with Progress("lines", total=600, done=0, title="labels") as progress:
        clock.now += 21.0
        progress.advance(60, 0, ready_at=1020.0, done_at=1021.0)
        clock.now += 1.0
        progress.advance(60, 0, ready_at=1020.5, done_at=1022.0)  # a second worker, ready a little later
        assert progress.rate.per_second == pytest.approx(60.0)
        assert progress.left() == pytest.approx(480 / 60)
        clock.now += 3.0  # while a shard is under way, what is left grows smaller
        assert progress.left() == pytest.approx(5.0)
        assert progress.note() == "60.0 images/s, 0 in quarantine"
        assert progress.rate.seconds == pytest.approx(2.0)


def test_what_earlier_runs_have_done_is_not_in_the_rate(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("none", total=100, done=90, title="labels")
    clock.now += 5
    progress.advance(5, 0, ready_at=1004.0, done_at=1005.0)
    assert progress.rate.per_second == pytest.approx(5.0) and progress.left() == pytest.approx(1.0)


def test_lines_come_while_nothing_ends(monkeypatch, capsys) -> None:
    """A shard that takes minutes, a training whose epochs do: a line now and then says that it lives."""
    monkeypatch.setattr("raymotion.batch.progress.LINE_EVERY_SECONDS", 0.05)
    with Progress("lines", total=10, done=0, title="labels") as progress:
        progress.waiting("starting")
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4 and set(lines[1:]) == {"labels: 0/10, starting"}


def test_the_bar_shows_the_same_rate(monkeypatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("bar", total=600, done=0, title="labels") as progress:
        progress.waiting("2 x (1 CPU), cpu: starting")
        time.sleep(0.3)  # it is drawn ten times a second
        now = time.time()
        progress.advance(60, 0, ready_at=now - 1.0, done_at=now)
        progress.say("a line above it")
    shown = terminal.getvalue()
    assert "starting" in shown and "60.0 images/s, about 9 s left" in shown and "a line above it" in shown


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text
