"""Progress in a log, and lines of Ray that mean nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raymotion.batch.progress import Progress


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
