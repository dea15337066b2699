"""`kill -9` of a study's driver in stage 3, for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def finished_trials(out: Path) -> dict[str, tuple[int, int]]:
    """Attempts, and when it was last written, of each finished trial."""
    found = {}
    for path in out.glob("trials/*/trial.json"):
        record = json.loads(path.read_text())
        if record["status"] != "running":
            found[path.parent.name] = (record["attempts"], path.stat().st_mtime_ns)
    return found


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_killed_in_stage_3_and_run_again(
    tmp_path: Path,
    write_features: Callable[..., tuple[str, str]],
    write_spaces: Callable[..., str],
    stages: dict[str, dict[str, Any]],
) -> None:
    """The restart begins in stage 3, and no finished trial is trained again or written again."""
    _, embeddings = write_features(tmp_path)
    third = {**stages["stage3.yaml"], "grid": {"loss.name": ["discrete", "bce", "dice", "focal", "asymmetric"]}}
    out = tmp_path / "out"
    command = [
        str(Path(sys.executable).with_name("raymotion")), "study", "run",
        write_spaces(tmp_path, {**stages, "stage3.yaml": third}), "--embeddings", embeddings, "--out", str(out),
        "--seeds", "2", "--concurrent", "1",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ended_in_stage_3() -> int:
        records = [json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")]
        return sum(own["stage"] == "loss" and own["status"] != "running" for own in records)

    give_up = time.monotonic() + 240
    while ended_in_stage_3() < 2:
        assert first.poll() is None and time.monotonic() < give_up, "it ended, or hung, before it could be killed"
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(2.0)  # what it started dies with it, a moment later
    before = finished_trials(out)
    record = json.loads((out / "study.json").read_text())
    assert [own["name"] for own in record["stages"]] == ["backbones", "fusion"] and record["status"] == "running"
    stages_before = {own["name"]: own for own in record["stages"]}

    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    after = finished_trials(out)
    assert {key: after[key] for key in before} == before, "a finished trial ran again"
    record = json.loads((out / "study.json").read_text())
    assert record["status"] == "complete" and len(record["stages"]) == 3 and record["joint"] is not None
    assert {own["name"]: own for own in record["stages"][:2]} == stages_before
    assert len(after) == record["cost"]["trained"] and all(attempts <= 2 for attempts, _ in after.values())
    assert "Traceback" not in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_study_and_no_trial_is_blamed(
    tmp_path: Path,
    stop_command: Callable[..., None],
    write_features: Callable[..., tuple[str, str]],
    write_spaces: Callable[..., str],
    number: int,
) -> None:
    """Tune takes Ctrl-C to end its search well, and the next stage would begin."""
    _, embeddings = write_features(tmp_path)
    out = tmp_path / "out"
    command = [
        "study", "run", write_spaces(tmp_path), "--embeddings", embeddings, "--out", out, "--seeds", "2",
        "--concurrent", "1",
    ]  # fmt: skip
    stop_command(command, lambda: len(list(out.glob("trials/*/trial.json"))) >= 2, number, group=True)
    record = json.loads((out / "study.json").read_text())
    assert record["status"] == "interrupted" and record["joint"] is None
    trials: list[dict[str, Any]] = [json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")]
    assert not [own for own in trials if own["status"] == "failed"]
