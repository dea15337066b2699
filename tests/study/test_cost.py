"""What a study adds up to, by hand: what it took, and the joint search beside the stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raymotion.learning.metrics.average_precision import average_precision
from raymotion.study.record import StudyFolder, TrialRecord
from raymotion.study.cost import busy_seconds, compare, epochs_of

TRUTH = (np.random.default_rng(0).random((200, 4)) < 0.3).astype(np.float32)


def trial(key: str, epochs: int, **fields: Any) -> TrialRecord:
    lines = [{"epoch": i + 1, "val_macro_ap": [0.1, None if i else 0.2]} for i in range(epochs)]
    return TrialRecord(key, {}, [0, 1], epochs=lines, **fields)


def test_hours_before_a_kill_count_and_hours_side_by_side_count_once() -> None:
    trials = [trial(key, 1, order=end, seconds=length) for key, end, length in
              [("a", 110.0, 10.0), ("b", 112.0, 7.0), ("c", 111.0, 2.0), ("d", 1000.0, 50.0)]]  # fmt: skip
    assert busy_seconds(trials) == pytest.approx(12.0 + 50.0) and busy_seconds([]) == 0.0
    assert epochs_of([*trials, trial("e", 3), None]) == 4 * 2 + 4  # the second seed had stopped after its first


def test_the_joint_search_is_held_against_the_highest_of_the_stages_not_a_tied_one(tmp_path: Path) -> None:
    """The highest of many draws beats a lower one that a tie kept, by selection alone."""
    rng, folder = np.random.default_rng(1), StudyFolder(tmp_path)
    answers = {key: np.stack([skill * TRUTH + rng.normal(size=TRUTH.shape) for _ in range(2)])
               for key, skill in (("kept", 0.6), ("high", 2.6), ("drawn", 2.5), ("stopped", 9.0))}  # fmt: skip
    told = {}
    for number, (key, scores) in enumerate(answers.items()):
        maps = [np.mean([average_precision(TRUTH[:, j], own[:, j]) for j in range(4)]) for own in scores]
        status = "stopped" if key == "stopped" else "complete"
        told[key] = {"key": key, "status": status, "val_macro_ap": {"mean": np.mean(maps), "seeds": maps}}
        folder.write_trial(trial(key, number + 1, status=status))
    stages = [{"trials": [told["high"], told["stopped"]], "epochs": 11, "winner": {"key": "kept"}},
              {"trials": [told["kept"]], "epochs": 2, "winner": {"key": "kept"}}]  # fmt: skip
    joint = {"trials": [told["drawn"], told["high"]], "winner": {"key": "drawn"}}
    study: Any = SimpleNamespace(
        record={"stages": stages, "joint": joint}, truth=TRUTH, groups=[str(i) for i in range(200)], folder=folder,
        base=SimpleNamespace(seed=0), validation=lambda key: answers[key],
    )  # fmt: skip
    found = compare(study)
    gain = {key: told["drawn"]["val_macro_ap"]["mean"] - told[key]["val_macro_ap"]["mean"] for key in ("high", "kept")}
    assert (found["staged_key"], found["joint_key"]) == ("high", "drawn")
    assert found["difference"] == pytest.approx(gain["high"], abs=1e-6) and gain["high"] < 0
    assert found["carried"]["key"] == "kept" and found["carried"]["difference"] == pytest.approx(gain["kept"], abs=1e-6)
    assert found["carried"]["low"] > 0 and "missed something" not in found["reason"]
    # What each search took by itself: two draws of 3 + 1 and 2 + 1 epochs against three configurations.
    assert found["configurations"] == {"stages": 3, "joint": 2} and found["epochs"] == {"stages": 13, "joint": 7}
    assert "2 configurations and 7 epochs" in found["reason"] and "budget" not in found["reason"]
