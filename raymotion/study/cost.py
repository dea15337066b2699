"""The cost of a study."""

from __future__ import annotations

from collections.abc import Iterable

from raymotion.study.record import STOPPED, Cost, StudyRecord, TrialRecord


def cost(record: StudyRecord, epochs: int) -> Cost:
    """Returns the cost of the study so far.

    Args:
        epochs: maximum number of epochs of one training run.
    """
    lines = [own for part in record.parts for own in part.trials]
    # A trial that an earlier stage stopped and a later one trained again counts twice.
    trained = [own for own in lines if own.reused_from is None]
    return Cost(
        trials=len(lines),
        trained=len(trained),
        reused=len(lines) - len(trained),
        stopped=sum(own.status == STOPPED for own in trained),
        epochs=sum(part.epochs for part in record.parts),
        epochs_without_stopping=len(trained) * len(record.seeds) * epochs,
        seconds=round(sum(part.seconds for part in record.parts), 2),
    )


def epochs_of(trials: Iterable[TrialRecord | None]) -> int:
    """Returns the number of epochs of the trials, summed over seeds."""
    return sum(value is not None for trial in trials if trial for epoch in trial.epochs for value in epoch.score)


def busy_seconds(trials: Iterable[TrialRecord]) -> float:
    """Returns the wall time during which at least one trial was training, from the trials' end times and durations."""
    total = until = 0.0
    for start, end in sorted((trial.order - trial.seconds, trial.order) for trial in trials):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
