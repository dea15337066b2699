"""Selection of the configuration that a stage carries forward, from validation results and their uncertainty.

The public study carries forward the highest score of one seed each; its gaps are smaller than the difference between
two runs of the same configuration (31.23 against 31.35). Here a difference counts if it survives a paired bootstrap
over the validation images and exceeds two standard errors between seeds. Any other difference is a tie, and a tie
keeps the incumbent: a change needs evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raymotion.errors import RunFailed
from raymotion.learning.paired import PairedGain
from raymotion.learning.significance import is_significant, seed_error
from raymotion.study.record import (
    COMPLETE,
    JOINT,
    MACRO_AP,
    Compared,
    Comparison,
    Configuration,
    Metric,
    StudyRecord,
    Winner,
)

Ties = Literal["incumbent", "highest"]
# Gain of the first of two validation predictions, each (seeds, n, L), over the second, in the study's metric.
Gain = Callable[[np.ndarray, np.ndarray], PairedGain]


@dataclass(frozen=True)
class Candidate:
    """A complete trial.

    Attributes:
        scores: best validation score of each seed.
        probabilities: predictions of those epochs, (seeds, n, L).
        name: its name in sentences.
        config: all fields.
    """

    key: str
    scores: Sequence[float]
    probabilities: np.ndarray = field(repr=False)
    parameters: int
    name: str = ""
    config: Configuration = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean score over the seeds."""
        return float(np.mean(self.scores))


def choose(
    candidates: Sequence[Candidate],
    gain: Gain,
    *,
    metric: Metric = MACRO_AP,
    incumbent: str | None = None,
    ties: Ties = "incumbent",
    baseline: float | None = None,
) -> Winner:
    """Chooses the configuration to carry forward.

    The leader has the best mean over seeds. A candidate is tied with it if the lead is not significant
    (`learning.significance.is_significant`); with one seed, only the bootstrap over images decides. Among tied
    candidates the incumbent wins, else the one with the fewest parameters, else the one with the better mean.

    Args:
        incumbent: key of the configuration that the stage before carried forward.
        ties: `highest` always takes the leader.
        baseline: score of `Metric.baseline`; the reason says so if the chosen configuration is no better.

    Raises:
        RunFailed: there is no candidate.
    """
    if not candidates:
        raise RunFailed("no configuration of this stage was trained to its end")
    ranked = sorted(candidates, key=lambda own: (-metric.gain(own.mean), own.parameters, own.key))
    leader, others = ranked[0], ranked[1:]
    error = seed_error([own.scores for own in candidates])
    lead = {own.key: compared(own.key, gain(leader.probabilities, own.probabilities), error) for own in others}
    tied = [leader, *(own for own in others if lead[own.key].tied)]
    kept = next((own for own in tied if own.key == incumbent), None)
    if ties == "highest" or len(tied) == 1:
        chosen = leader
    else:
        chosen = kept or min(tied, key=lambda own: (own.parameters, -metric.gain(own.mean)))
    reason = _reason(chosen, ranked, lead, None if ties == "highest" else incumbent, ties, metric)
    if baseline is not None and metric.gain(chosen.mean - baseline) <= 0:
        reason += f" It is no better than {metric.baseline} ({baseline:.4f}), which looks at nothing."
    return Winner(
        key=chosen.key,
        config=chosen.config,
        leader=leader.key,
        incumbent=incumbent,
        reason=reason,
        compared=list(lead.values()),
    )


def compared(key: str, gain: PairedGain, error: float | None) -> Compared:
    """Returns the gain over the trial `key`, and whether it is a tie.

    Args:
        error: standard error of a difference between seeds (`seed_error`).
    """
    value = gain.value or 0.0
    tied = is_significant(value, error, tied=gain.tied) is False
    return Compared(
        key=key, difference=value, low=gain.low or 0.0, high=gain.high or 0.0, tied=tied, seed_error=error
    )  # fmt: skip


def compare_joint(
    record: StudyRecord, gain: Gain, validation: Callable[[str], np.ndarray], epochs: Mapping[str, int]
) -> Comparison:
    """Compares the joint search's best trial with the best trial of any stage, on validation: joint minus staged.

    Both are the best of many draws. The configuration that the stages carried forward may be a lower one, tied with
    their best; the joint search's gain over it is `carried`.

    Args:
        validation: returns a trial's validation predictions.
        epochs: of each search, as in `Comparison`.
    """
    assert record.joint is not None
    parts = {"stages": [own for stage in record.stages for own in stage.trials], JOINT: record.joint.trials}
    scores = {own.key: own.score for own in parts["stages"] if own.status == COMPLETE and own.score}
    staged = max(scores, key=lambda key: record.metric.gain(scores[key].mean))
    carried, joint = record.stages[-1].winner.key, record.joint.winner.key
    scores |= {own.key: own.score for own in parts[JOINT] if own.status == COMPLETE and own.score}
    error = seed_error([score.seeds for score in scores.values()])
    best = validation(joint)
    gap = compared(staged, gain(best, validation(staged)), error)
    other = gap if carried == staged else compared(carried, gain(best, validation(carried)), error)
    # A configuration that both searches trained counts for both.
    counts = {name: len({own.key for own in trials}) for name, trials in parts.items()}
    effort = [f"{counts[name]} configurations and {epochs[name]:,} epochs" for name in (JOINT, "stages")]
    if staged == joint:
        found = "both found the same best configuration"
    elif gap.tied:
        found = "no difference that these data show"
    elif gap.difference > 0:
        found = "going stage by stage missed something"
    else:
        found = "the stages found the better one"
    reason = (
        f"Joint search ({effort[0]}) against stages ({effort[1]}), the best of each: {gap.difference:+.4f} "
        f"validation {record.metric.title} ({gap.noise}): {found}."
    )
    if carried not in (staged, joint):
        reason += f" Over what the stages carried forward: {other.difference:+.4f} ({other.noise})."
    return Comparison(
        joint_key=joint, gap=gap, carried=other, configurations=counts, epochs=dict(epochs), reason=reason
    )


def _reason(
    chosen: Candidate,
    ranked: Sequence[Candidate],
    lead: Mapping[str, Compared],
    incumbent: str | None,
    rule: Ties,
    metric: Metric,
) -> str:
    """Explains the choice in one sentence, with the deciding numbers."""
    leader = ranked[0]
    if len(ranked) == 1:
        return f"{_name(leader)} is the only one that was trained to its end ({metric.title} {leader.mean:.4f})."
    ties = [own for own in ranked[1:] if lead[own.key].tied]
    if chosen is leader:
        second = ranked[1]
        gap = lead[second.key]
        text = (
            f"{_name(leader)} leads with {metric.title} {leader.mean:.4f}; the next, {_name(second)}, is "
            f"{gap.difference:.4f} behind ({gap.noise})"
        )
        if not ties:
            return text + ", which is a difference."
        if rule == "highest":
            why = "a tie goes to the best score here"
        else:
            smallest = all(own.parameters > chosen.parameters for own in ties)
            small = "it is the smallest of the tied" if smallest else "none of the tied is smaller"
            why = "it was carried in" if chosen.key == incumbent else small
        others = "1 other is" if len(ties) == 1 else f"{len(ties)} others are"
        return text + f"; {others} tied with it, and {why}."
    gap = lead[chosen.key]
    if chosen.key == incumbent:
        why = "which is no evidence for a change: it stays"
    else:
        sizes = f"{chosen.parameters:,} weights, not {leader.parameters:,}"
        why = f"which is a tie, and it is the smallest of the tied ({sizes})"
    return f"{_name(leader)} is {gap.difference:.4f} better than {_name(chosen)} ({gap.noise}), {why}."


def _name(own: Candidate) -> str:
    return own.name or own.key
