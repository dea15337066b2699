"""What a study adds up to, by hand: what it took, and the joint search beside the stages."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from raymotion.learning.metrics.average_precision import average_precision
from raymotion.learning.paired import paired_map_gain
from raymotion.study.cost import busy_seconds, epochs_of
from raymotion.study.record import (
    DataFacts,
    Epoch,
    Spread,
    StageRecord,
    StudyRecord,
    TrialLine,
    TrialRecord,
    Winner,
)
from raymotion.study.select_winner import compare_joint

TRUTH = (np.random.default_rng(0).random((200, 4)) < 0.3).astype(np.float32)


def trial(key: str, epochs: int, **fields: Any) -> TrialRecord:
    lines = [
        Epoch(epoch=i + 1, score=[0.1, None if i else 0.2], train_loss=[0.0, 0.0], best=0.1) for i in range(epochs)
    ]  # fmt: skip
    return TrialRecord(key=key, config={}, seeds=[0, 1], epochs=lines, **fields)


def stage(name: str, trials: list[TrialLine], winner: str) -> StageRecord:
    chosen = Winner(key=winner, config={}, leader=winner, incumbent=None, reason="", compared=[])
    return StageRecord(
        name=name, title=name, grid={"a": [1]}, fixed={}, trials=trials, winner=chosen, epochs=1, seconds=1.0
    )  # fmt: skip


def test_hours_before_a_kill_count_and_hours_side_by_side_count_once() -> None:
    trials = [trial(key, 1, order=end, seconds=length) for key, end, length in
              [("a", 110.0, 10.0), ("b", 112.0, 7.0), ("c", 111.0, 2.0), ("d", 1000.0, 50.0)]]  # fmt: skip
    assert busy_seconds(trials) == pytest.approx(12.0 + 50.0) and busy_seconds([]) == 0.0
    assert epochs_of([*trials, trial("e", 3), None]) == 4 * 2 + 4  # the second seed had stopped after its first


def test_the_joint_search_is_compared_with_the_best_of_the_stages_not_a_tied_one() -> None:
    """The best of many draws beats a lower one that a tie kept, by selection alone."""
    rng = np.random.default_rng(1)
    predictions = {key: np.stack([skill * TRUTH + rng.normal(size=TRUTH.shape) for _ in range(2)])
                   for key, skill in (("kept", 0.6), ("high", 2.6), ("drawn", 2.5), ("stopped", 9.0))}  # fmt: skip
    lines = {}
    for key, scores in predictions.items():
        maps = [np.mean([average_precision(TRUTH[:, j], own[:, j]) for j in range(4)]) for own in scores]
        lines[key] = TrialLine(
            key=key, config={}, status="stopped" if key == "stopped" else "complete", score=Spread.of(maps), epochs=1,
            parameters=1, seconds=1.0,
        )  # fmt: skip
    record = StudyRecord(
        status="running", started_at="", settings={}, identity={}, seeds=[0, 1], versions={},
        data=DataFacts(samples="", counts={}, splits={}, targets={}, labels=[], prevalence={}),
        stages=[stage("one", [lines["high"], lines["stopped"], lines["kept"]], "kept"),
                stage("two", [lines["kept"]], "kept")],
        joint=stage("joint", [lines["drawn"], lines["high"]], "drawn"),
    )  # fmt: skip
    gain = partial(paired_map_gain, TRUTH, groups=[str(i) for i in range(200)])
    found = compare_joint(record, gain, lambda key: predictions[key], {"stages": 13, "joint": 7})
    mean = {key: line.mean or 0.0 for key, line in lines.items()}
    assert (found.gap.key, found.joint_key) == ("high", "drawn")
    assert found.gap.difference == pytest.approx(mean["drawn"] - mean["high"], abs=1e-6) and found.gap.difference < 0
    assert found.carried.key == "kept"
    assert found.carried.difference == pytest.approx(mean["drawn"] - mean["kept"], abs=1e-6)
    assert found.carried.low > 0 and "missed something" not in found.reason
    assert found.configurations == {"stages": 3, "joint": 2} and found.epochs == {"stages": 13, "joint": 7}
    assert "2 configurations and 7 epochs" in found.reason
