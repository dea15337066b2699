"""Progress of a long command: a bar on a terminal, occasional lines in a log, or nothing."""

from __future__ import annotations

import math
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, Self

ProgressKind = Literal["auto", "bar", "lines", "none"]
LINE_EVERY_SECONDS = 30.0


class Rate:
    """Rows per second, from when the first worker is ready until the last shard is committed.

    The bar, the lines, `_job.json` and the summary all report this rate. It excludes the start of Ray and the loading
    of models, which are reported as startup.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.ready_at, self.done_at = math.inf, -math.inf

    def add(self, rows: int, *, ready_at: float, done_at: float) -> None:
        """Counts a shard of `rows`.

        Args:
            ready_at: when its worker was ready for its first shard, in seconds since the epoch.
            done_at: when the shard was committed, in seconds since the epoch.
        """
        self.rows += rows
        self.ready_at, self.done_at = min(self.ready_at, ready_at), max(self.done_at, done_at)

    @property
    def seconds(self) -> float:
        """Time from the first worker being ready to the last commit; 0 before the first commit."""
        return max(1e-9, self.done_at - self.ready_at) if self.rows else 0.0

    @property
    def per_second(self) -> float | None:
        """Rows per second; None before the first shard."""
        return self.rows / self.seconds if self.rows else None


class Progress:
    """Reports progress on standard error.

    Args:
        kind: `bar` draws a progress bar, `lines` prints a line every 30 seconds and one at the end, `none` is silent;
            `auto` is `bar` on a terminal and `none` elsewhere.
        total: number of items; None: not known yet.
        done: number of items done by earlier runs.
        title: text in front of the bar or line.
        unit: name of the items.
    """

    def __init__(self, kind: ProgressKind, *, total: int | None, done: int, title: str, unit: str = "images") -> None:
        self.kind = resolve_kind(kind)
        self.total, self.done, self.title, self.unit = total, done, title, unit
        self.failed = 0
        self.rate = Rate()
        self.started = time.time()
        self._told: int | None = None
        self._waiting = ""
        self._bar: Any = None
        self._task: Any = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if self.kind == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.table import Column

            # A narrow terminal truncates the note, not the count.
            self._bar = RichProgress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(self.title))),
                BarColumn(bar_width=20),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(self.total or 10_000)) + 1)),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        if self.kind in ("bar", "lines"):
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._show()
            self._bar.stop()
        elif self.kind == "lines" and error is None and self._told != self.done:
            self._print_state()

    def waiting(self, text: str) -> None:
        """Shows `text` until the first row is done."""
        self._waiting = text
        self._show()
        if self.kind == "lines":
            count = "" if self.total is None else f"{self.done}/{self.total} done before, "
            print(f"{self.title}: {count}{text}", file=sys.stderr, flush=True)

    def note(self) -> str:
        """Returns the text next to the count: the rate and the failures."""
        rate = self.rate.per_second
        if rate is None:
            return ""
        failed = f", {self.failed} in quarantine" if self.failed or self.kind == "lines" else ""
        return f"{rate:.1f} {self.unit}/s{failed}"

    def left(self) -> float | None:
        """Returns the estimated seconds left; None if the rate or the total is not known yet."""
        rate = self.rate.per_second
        if rate is None or self.total is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (time.time() - self.rate.done_at))

    def advance(self, rows: int, failed: int, *, ready_at: float | None = None, done_at: float | None = None) -> None:
        """Counts one committed shard; the times (see `Rate.add`) default to this object's creation and now."""
        self.done += rows
        self.failed += failed
        self._waiting = ""
        self.rate.add(
            rows,
            ready_at=self.started if ready_at is None else ready_at,
            done_at=time.time() if done_at is None else done_at,
        )
        self._show()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.kind == "lines":
            print(text, file=sys.stderr, flush=True)

    def refresh(self) -> None:
        """Hook that another thread calls regularly; subclasses update the state here if nothing calls `advance`."""

    def _status(self) -> str:
        left = None if self.done == self.total else self.left()
        parts = (self._waiting, self.note(), "" if left is None else f"about {duration(left)} left")
        return ", ".join(part for part in parts if part)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, description=self.title, completed=self.done, total=self.total, note=self._status()
            )

    def _print_state(self) -> None:
        self._told = self.done
        count = "" if self.total is None else f"{self.done}/{self.total}"
        text = ", ".join(part for part in (count, self._status()) if part)
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._ended.wait(1.0 if self._bar is not None else LINE_EVERY_SECONDS):
            try:
                self.refresh()
                if self._bar is None:
                    self._print_state()
                else:
                    self._show()
            except (OSError, ValueError):  # standard error is gone, or was closed
                return


def resolve_kind(kind: ProgressKind) -> Literal["bar", "lines", "none"]:
    """Resolves `auto` to `bar` on a terminal and `none` elsewhere."""
    if kind == "auto":
        return "bar" if sys.stderr.isatty() else "none"
    return kind


def duration(seconds: float) -> str:
    """Formats a duration as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
