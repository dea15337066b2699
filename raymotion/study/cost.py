"""What a study adds up to: what it took, and the joint search beside the stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raymotion.learning.paired import paired_map_gain
from raymotion.learning.significance import seed_error
from raymotion.study.select_winner import Compared, judged
from raymotion.study.record import COMPLETE, STOPPED, TrialRecord
from raymotion.study.space import JOINT

if TYPE_CHECKING:
    from raymotion.study.stages import Search


def compare(study: Search) -> dict[str, Any]:
    """The joint search's best beside the best that any stage trained, on validation: joint minus staged.

    The highest of many draws is compared with the highest of many. What the stages carried on may be a lower one that
    is tied with theirs; the joint search's gain over that is `carried`.
    """
    record = study.record
    parts = {"stages": [own for stage in record["stages"] for own in stage["trials"]], JOINT: record["joint"]["trials"]}
    scores = {own["key"]: own["val_macro_ap"] for own in parts["stages"] if own["status"] == COMPLETE}
    staged = max(scores, key=lambda key: scores[key]["mean"])
    carried, joint = record["stages"][-1]["winner"]["key"], record["joint"]["winner"]["key"]
    scores |= {own["key"]: own["val_macro_ap"] for own in parts[JOINT] if own["status"] == COMPLETE}
    error = seed_error([score["seeds"] for score in scores.values()])

    def against(key: str) -> Compared:
        gain = paired_map_gain(
            study.truth, study.validation(joint), study.validation(key), groups=study.groups, seed=study.base.seed
        )
        return judged(key, gain, error)

    gap = against(staged)
    other = gap if carried == staged else against(carried)
    # Each search by itself: what both needed counts for both.
    counts = {name: len({own["key"] for own in trials}) for name, trials in parts.items()}
    epochs = {"stages": sum(stage["epochs"] for stage in record["stages"])}
    epochs[JOINT] = epochs_of([study.folder.read_trial(own["key"]) for own in parts[JOINT]])
    effort = [f"{counts[name]} configurations and {epochs[name]:,} epochs" for name in (JOINT, "stages")]
    if staged == joint:
        found = "both found the same highest configuration"
    elif gap.tied:
        found = "no difference that these data show"
    elif gap.difference > 0:
        found = "going stage by stage missed something"
    else:
        found = "the stages found the better one"
    reason = (
        f"Joint search ({effort[0]}) against stages ({effort[1]}), the highest of each: {gap.difference:+.4f} "
        f"validation mAP ({gap.noise}): {found}."
    )
    if carried not in (staged, joint):
        reason += f" Over what the stages carried on: {other.difference:+.4f} ({other.noise})."
    return {
        "staged_key": staged, "joint_key": joint, **numbers_of(gap), "configurations": counts, "epochs": epochs,
        "carried": {"key": carried, **numbers_of(other)}, "reason": reason,
    }  # fmt: skip


def numbers_of(gap: Compared) -> dict[str, Any]:
    return {name: value for name, value in asdict(gap).items() if name != "key"}


def epochs_of(trials: Iterable[TrialRecord | None]) -> int:
    """Epochs that trials took, where one seed's epoch is one."""
    lines = [line for trial in trials if trial is not None for line in trial.epochs]
    return sum(value is not None for line in lines for value in line["val_macro_ap"])


def busy_seconds(trials: Iterable[TrialRecord]) -> float:
    """How long at least one of the trials was in training, by the clock: from when each ended, and how long it took."""
    total = until = 0.0
    for start, end in sorted((trial.order - trial.seconds, trial.order) for trial in trials):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def cost(study: Search) -> dict[str, Any]:
    """What the study took so far. `epochs` counts one seed's epoch as one."""
    record = study.record
    parts = [*record["stages"], *([record["joint"]] if record["joint"] else [])]
    told = [own for part in parts for own in part["trials"]]
    # One that an earlier stage stopped, and a later one trained again, is two.
    trained = [own for own in told if own["reused_from"] is None]
    return {
        "trials": len(told),
        "trained": len(trained),
        "reused": len(told) - len(trained),
        "stopped": sum(own["status"] == STOPPED for own in trained),
        "epochs": sum(part["epochs"] for part in parts),
        "epochs_without_stopping": len(trained) * len(study.seeds) * study.base.optimiser.epochs,
        "seconds": round(sum(part["seconds"] for part in parts), 2),
    }
