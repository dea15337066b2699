"""What a study has done so far, from its folder alone."""

from __future__ import annotations

from raymotion import storage
from raymotion.batch.status import Status, state_of
from raymotion.study.record import COMPLETE, StudyFolder


def is_study(folder: storage.PathLike) -> bool:
    """Returns whether a folder is that of a study."""
    return storage.exists(StudyFolder(folder).record)


def study_status(folder: storage.PathLike) -> Status:
    """Returns the status of a study.

    Raises:
        InputError: its record cannot be read.
    """
    own = StudyFolder(storage.absolute(folder))
    record = own.require()
    state, who = state_of(own.path, record.status)
    lines = [
        f"{stage.title}: {sum(trial.status == COMPLETE for trial in stage.trials)} of {len(stage.trials)} "
        f"configurations trained to their end; {stage.winner.reason}"
        for stage in record.stages
    ]
    if record.test is not None:
        lines.append("Everything is chosen, and the test split was scored.")
    return Status("study", state, len(record.stages), None, "stages decided", who, lines=lines)
