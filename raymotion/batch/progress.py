"""Progress of a long command: a bar on a terminal, a line now and then in a log, or nothing."""

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
    """Rows a second, from the moment the first worker was ready to the end of the last committed shard.

    This is the one rate of a run: of the bar, of the lines, and of what _job.json and the summary say. Starting Ray and
    loading models is not in it; that is told as the startup.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.ready_at, self.done_at = math.inf, -math.inf

    def add(self, rows: int, *, ready_at: float, done_at: float) -> None:
        """Counts a shard of `rows`: when its worker was ready to begin with its first one, and when it was committed.

        Both are seconds since the epoch.
        """
        self.rows += rows
        self.ready_at, self.done_at = min(self.ready_at, ready_at), max(self.done_at, done_at)

    @property
    def seconds(self) -> float:
        """From the first worker's being ready to the last committed shard; 0 before that."""
        return max(1e-9, self.done_at - self.ready_at) if self.rows else 0.0

    @property
    def per_second(self) -> float | None:
        """None before the first shard."""
        return self.rows / self.seconds if self.rows else None


class Progress:
    """Counts on standard error what is done of a whole.

    Args:
        kind: `bar` draws one, `lines` prints a line every 30 seconds and one at the end, `none` is silent; `auto` is a
            bar on a terminal and silent elsewhere.
        total: of the whole; None: not known yet.
        done: what earlier runs have done of it.
        title: what it is.
        unit: what is counted.
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

            # On a narrow terminal the note is cut, not the count.
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
        """Says what is being waited for before the first row."""
        self._waiting = text
        self._show()
        if self.kind == "lines":
            count = "" if self.total is None else f"{self.done}/{self.total} done before, "
            print(f"{self.title}: {count}{text}", file=sys.stderr, flush=True)

    def note(self) -> str:
        """What stands beside the count."""
        rate = self.rate.per_second
        if rate is None:
            return ""
        failed = f", {self.failed} in quarantine" if self.failed or self.kind == "lines" else ""
        return f"{rate:.1f} {self.unit}/s{failed}"

    def left(self) -> float | None:
        """Seconds to the end at the rate so far; None where there is no rate yet."""
        rate = self.rate.per_second
        if rate is None or self.total is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (time.time() - self.rate.done_at))

    def advance(self, rows: int, failed: int, *, ready_at: float | None = None, done_at: float | None = None) -> None:
        """Counts the rows of one committed shard; without times (see `Rate.add`), from when this was made to now."""
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
        """Called now and then by another thread: looks where things stand, where nobody calls `advance`."""

    def _status(self) -> str:
        left = None if self.done == self.total else self.left()
        parts = (self._waiting, self.note(), "" if left is None else f"about {duration(left)} left")
        return ", ".join(part for part in parts if part)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=self._status())

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
    """`auto` is a bar on a terminal, and nothing elsewhere."""
    if kind == "auto":
        return "bar" if sys.stderr.isatty() else "none"
    return kind


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
