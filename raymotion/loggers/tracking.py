"""Keeps the loggers of a training run up to date, without ever holding it up or ending it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from raymotion import records, storage
from raymotion.errors import RaymotionError
from raymotion.loggers import background
from raymotion.loggers.background import Background
from raymotion.loggers.logger import LoggedRun, Logger, Status

Warn = Callable[[str], None]
Epoch = Mapping[str, float]


@dataclass
class _Followed:
    """One logger of a run, and how far it has come."""

    logger: Logger
    run: LoggedRun
    begun: bool = False
    warned: bool = False

    @property
    def key(self) -> str:
        """The name of its entry in the record: with other options it logs to another place."""
        return f"{self.logger.name} {self.logger.digest()}"


class Tracking:
    """Sends the epochs of one run to its loggers, in a thread of its own.

    A failure of a logger gives one warning; after each further epoch the logger is tried again, with all epochs that
    it lacks. How far each has come stands in a record beside the run's state, so that a later command continues.

    Args:
        loggers: as the recipe has them.
        run: the run; ids come from the record.
        record: address of the record.
        constants: figures that are logged with every epoch, such as baselines.
        warn: receives the warnings.
    """

    def __init__(
        self, loggers: Sequence[Logger], run: LoggedRun, *, record: str, constants: Mapping[str, float], warn: Warn
    ) -> None:
        self._path, self._constants, self._warn = record, dict(constants), warn
        self._closed = False
        self._known: dict[str, Any] = {}
        with contextlib.suppress(OSError, RaymotionError):
            if storage.exists(record):
                self._known = records.read_record(record)
        self._each = []
        for logger in loggers:
            own = _Followed(logger.model_copy(), run)
            before = self._known.get(own.key) or {}
            own.run = replace(run, id=before.get("id"), epoch=int(before.get("epoch") or 0))
            self._each.append(own)
        self._background = Background() if self._each else None

    def __bool__(self) -> bool:
        return self._background is not None

    def log(self, epochs: Sequence[Epoch]) -> None:
        """Logs the epochs that are new to a logger, and returns at once.

        Args:
            epochs: all epochs of the run so far, in order, each with its number as `epoch`.
        """
        if self._background is not None:
            for own in self._each:
                self._background.do(partial(self._logs, own, epochs))

    def close(self, status: Status, epochs: Sequence[Epoch], summary: Mapping[str, float | str]) -> None:
        """Logs the rest and ends the run in each logger; waits at most `background.PATIENCE` seconds.

        Someone who interrupts a training waits for a sixth of that.
        """
        if self._background is None:
            return
        self.log(epochs)
        for own in self._each:
            self._background.do(partial(self._ends, own, status, epochs, summary))
        patience = background.PATIENCE / (6 if status == "interrupted" else 1)
        if not self._background.close(patience):
            names = ", ".join(own.logger.name for own in self._each)
            self._warn(f"logger {names}: no answer for {patience:.0f} s; the end of the run is not logged")
        self._closed = True

    def _logs(self, own: _Followed, epochs: Sequence[Epoch]) -> None:
        before = own.run
        with self._one_warning(own):
            self._begin(own)
            for line in epochs:
                number = int(line["epoch"])
                if number > own.run.epoch:
                    figures = {name: value for name, value in line.items() if name != "epoch"}
                    own.logger.log(number, {**figures, **self._constants})
                    own.run = replace(own.run, epoch=number)
        if own.run != before:
            self._write(own)

    def _begin(self, own: _Followed) -> None:
        if not own.begun:
            own.run = replace(own.run, id=str(own.logger.begin(own.run)))
            own.begun = True

    def _ends(
        self, own: _Followed, status: Status, epochs: Sequence[Epoch], summary: Mapping[str, float | str]
    ) -> None:
        if own.run.epoch < len(epochs):  # no epoch follows: it is tried once more
            self._logs(own, epochs)
        with self._one_warning(own):
            self._begin(own)
            own.logger.end(status, summary)
        if (missing := len(epochs) - own.run.epoch) > 0:
            self._warn(f"logger {own.logger.name}: {missing} of {len(epochs)} epochs are not logged")

    @contextlib.contextmanager
    def _one_warning(self, own: _Followed) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not own.warned:
                own.warned = True
                reason = (str(error).strip().splitlines() or [""])[0]
                self._warn(
                    f"logger {own.logger.name} failed ({type(error).__name__}: {reason}); training goes on, and the "
                    "logger is tried again after each epoch"
                )

    def _write(self, own: _Followed) -> None:
        self._known[own.key] = {"id": own.run.id, "epoch": own.run.epoch}
        # Without the record a resumed run is logged as a new one, which is no reason to end this one.
        with contextlib.suppress(OSError, RaymotionError):
            if not self._closed:  # the run's folder may be gone
                records.write_record(self._path, self._known, durable=False)
