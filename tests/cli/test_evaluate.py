"""`raymotion evaluate` as a command: its options reach the settings, and mistakes are one line with exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raymotion.evaluation.evaluate as room
from raymotion.data.samples import table_from_rows, write_samples


def test_mistakes_are_one_line(runner: Any, tmp_path: Path) -> None:
    table = table_from_rows([{"sample_id": "a", "group_id": "a", "source": "x", "captions": ["one"]}])
    write_samples(tmp_path / "samples.parquet", table)
    absent = runner("evaluate", tmp_path / "absent", tmp_path / "samples.parquet", "--out", tmp_path / "out")
    assert absent.code == 2 and "no such checkpoint" in absent.err and absent.err.count("\n") == 1
    incomplete = runner("evaluate", tmp_path / "absent", tmp_path / "samples.parquet")
    assert incomplete.code == 2 and "out" in incomplete.err
    assert runner("evaluate", "a", "b", "--out", "c", "--split", "dev").code == 2


def test_options_reach_the_settings(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(settings: room.EvaluateSettings, *, address: str | None, progress: str, **_: Any) -> None:
        seen.append((settings, address, progress))
        raise room.InputError("far enough")

    monkeypatch.setattr(room, "evaluate_checkpoint", stop)
    outcome = runner(
        "evaluate", "ckpt", "s.parquet", "--out", "o", "--split", "val", "--features", "f", "--soft", "--bins", 15,
        "--bootstrap", 0, "--workers", 2, "--progress", "none", "--address", "host:1", "--set", "seed=3",
    )  # fmt: skip
    assert "far enough" in outcome.err
    ((settings, address, progress),) = seen
    assert (settings.model, settings.samples, settings.out) == ("ckpt", "s.parquet", "o")
    assert (settings.split, settings.features, settings.soft, settings.bins) == ("val", "f", True, 15)
    assert (settings.bootstrap, settings.workers, settings.seed) == (0, 2, 3)
    assert (address, progress) == ("host:1", "none")
