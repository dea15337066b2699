"""Progress of a long job: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Literal

ProgressKind = Literal["auto", "bar", "lines", "none"]
LINE_EVERY_SECONDS = 30.0


class Progress:
    """Counts rows on standard error.

    Args:
        kind: `bar` draws one, `lines` prints a line every 30 seconds, `none` is silent; `auto` is a bar on a
            terminal and silent elsewhere.
        total: rows of the job.
        done: rows that earlier runs have committed.
        title: of the job.
    """

    def __init__(self, kind: ProgressKind, *, total: int, done: int, title: str) -> None:
        self.kind = ("bar" if sys.stderr.isatty() else "none") if kind == "auto" else kind
        self.total, self.done, self.title = total, done, title
        self.failed = 0
        self.started = self.last_line = time.monotonic()
        self.first_done = done
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.kind == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def waiting(self, text: str) -> None:
        """Says what is being waited for before the first row."""
        if self._bar is not None:
            self._bar.update(self._task, rate=text)
        elif self.kind == "lines":
            print(f"{self.title}: {self.done}/{self.total} done before, {text}", file=sys.stderr, flush=True)

    def note(self, rate: float) -> str:
        """What stands beside the count, at `rate` rows a second."""
        return f"{rate:.1f} images/s" + (f", {self.failed} in quarantine" if self.failed or self._bar is None else "")

    def advance(self, rows: int, failed: int) -> None:
        """Counts the rows of one committed shard."""
        self.done += rows
        self.failed += failed
        now = time.monotonic()
        rate = (self.done - self.first_done) / max(1e-9, now - self.started)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.note(rate))
        elif self.kind == "lines" and (now - self.last_line >= LINE_EVERY_SECONDS or self.done == self.total):
            self.last_line = now
            left = (self.total - self.done) / max(rate, 1e-9)
            print(
                f"{self.title}: {self.done}/{self.total}, {self.note(rate)}, about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
