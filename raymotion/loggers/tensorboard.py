"""TensorBoard: event files in a local folder, written by tensorboardX, which comes with Ray Tune."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from raymotion import storage
from raymotion.errors import InputError
from raymotion.loggers.logger import LoggedRun, Logger, Status


class TensorBoardLogger(Logger):
    """Event files for TensorBoard: `tensorboard --logdir tensorboard/`.

    Attributes:
        folder: local folder with one subfolder for each run; None: `tensorboard` beside the checkpoint.
    """

    packages: ClassVar[Mapping[str, str]] = {"tensorboardX": "tensorboardX"}
    folder: str | None = None

    _writer: Any = None
    _session_end: Any = None
    _epoch: int = 0

    def place(self, out: str) -> str:
        """Returns the folder of all runs, for a checkpoint or a study in `out`."""
        return storage.absolute(self.folder or storage.join(storage.parent(storage.absolute(out)), "tensorboard"))

    def check(self, out: str) -> None:
        super().check(out)
        if storage.is_remote(self.place(out)):
            raise InputError(
                "the logger tensorboard writes to this machine only",
                path=self.place(out),
                remedy="Give it a folder: loggers: [{name: tensorboard, folder: tensorboard/}].",
            )

    def begin(self, run: LoggedRun) -> str:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        folder = run.id or free_folder(self.place(run.out), run.name)
        # A killed command may have written an epoch that it did not record: TensorBoard drops it.
        # Files are named by the second: without a number, a command that goes on at once would replace the last one.
        number = len(os.listdir(folder)) if run.id and os.path.isdir(folder) else 0
        self._writer = SummaryWriter(
            folder, purge_step=run.epoch + 1 if run.id else None, filename_suffix=f".{number}" if number else ""
        )
        known = {name: own if isinstance(own, str | bool | int | float) else str(own) for name, own in run.flat.items()}
        experiment, start, self._session_end = hparams(known, {"best_epoch": 0})
        if run.id is None:
            self._writer.file_writer.add_summary(experiment)
            self._writer.file_writer.add_summary(start)
            self._writer.flush()
        self._epoch = run.epoch
        return folder

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, global_step=epoch)
        self._writer.flush()
        self._epoch = epoch

    def end(self, status: Status, summary: Mapping[str, float | str]) -> None:
        for name, value in {**summary, "status": status}.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, global_step=self._epoch)
            else:
                self._writer.add_scalar(name, value, global_step=self._epoch)
        if status == "complete":
            self._writer.file_writer.add_summary(self._session_end)
        self._writer.close()


def free_folder(place: str, name: str) -> str:
    """Returns a folder in `place` for a new run, `name` or `name-2` and so on: two runs in one are drawn as one."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for own in names if not os.path.exists(folder := storage.join(place, own)))
