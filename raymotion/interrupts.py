"""Handling of Ctrl-C, SIGTERM and SIGHUP at any time, even while the main thread is inside a C++ call.

The command line enters `handled` once. The first signal raises `Stopped` in the main thread, which unwinds as for any
error. A watching thread is notified too (Python's C handler writes to its pipe, whatever the main thread is doing); if
the main thread has not ended the process after `GRACE_SECONDS`, the watching thread does. Either way the process prints
one line and exits with code 128 + signal. A second signal ends it at once.

Outside `handled` (raymotion used as a library) this module does nothing; the caller handles signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# `ray job stop` kills a process that has not ended after 3 seconds.
GRACE_SECONDS = 2.5
CALLBACK_SECONDS, SECOND_CALLBACK_SECONDS = 3.0, 0.5
# `timeout`, shells and terminals send a signal to a process and to its group: it arrives twice within milliseconds.
TWICE_SECONDS = 0.3
LINE = "stopped; the same command goes on from here"

Hook = Callable[[], object]


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""


class _Line:
    """The message of one line, printed once, by whichever thread comes first."""

    told = False

    def tell(self) -> None:
        if self.told:
            return
        self.told = True
        with contextlib.suppress(Exception):
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K\x1b[?25h")  # a progress bar hides the cursor
            sys.stderr.write(f"{LINE}\n")
            sys.stderr.flush()


class _Watch(_Line):
    """The handlers, hooks and watching thread of one `handled` block."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug
        self.signum: int | None = None
        self.first: list[Hook] = []  # run at once, in parallel with the main thread
        self.forced: list[Hook] = []  # run if the main thread does not unwind
        self.last: list[Hook] = []  # run before the process ends in either case
        self.raised, self.muted = False, False
        self.ending, self.muting = threading.Lock(), threading.Lock()
        self.before: dict[int, Any] = {}
        self.ignored: list[int] = []
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)

    def install(self) -> None:
        """Installs handlers, except for signals that the process ignores (under `nohup`, or in the background)."""
        for number in SIGNALS:
            if number not in self.before:
                self.before[number] = signal.getsignal(number)
                if self.before[number] is signal.SIG_IGN:
                    self.ignored.append(number)
            signal.signal(number, signal.SIG_IGN if number in self.ignored else self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signum = self.signum or number
        if not self.raised:
            self.raised = True
            self._mute()
            raise Stopped

    def _mute(self) -> None:
        if self.debug:
            return
        # The second thread waits for the first; otherwise it would continue before standard error is muted.
        with self.muting:
            if not self.muted:
                mute()
            self.muted = True

    def run(self) -> None:
        """Waits for signals and ends the process if the main thread does not; runs in the watching thread."""
        while (number := self._next(None)) is None:
            pass
        if number < 0:  # the block has ended
            return
        self.signum = self.signum or number
        began = time.monotonic()
        self._mute()
        _run_within(list(self.first), CALLBACK_SECONDS)
        allowed = CALLBACK_SECONDS
        while (left := began + GRACE_SECONDS - time.monotonic()) > 0:
            number = self._next(left)
            if number is not None and time.monotonic() - began > TWICE_SECONDS:
                allowed = SECOND_CALLBACK_SECONDS
                break
        self.end(allowed)

    def _next(self, timeout: float | None) -> int | None:
        """Returns the next handled signal; None for another signal or after `timeout`; -1 if the pipe is closed."""
        if not select.select([self.reader], [], [], timeout)[0]:
            return None
        data = os.read(self.reader, 1)
        return -1 if not data else data[0] if data[0] in SIGNALS and data[0] not in self.ignored else None

    def end(self, forced: float | None = None) -> None:
        """Prints the line, runs the last hooks and exits. Does not return.

        Args:
            forced: seconds allowed for the `forced` hooks; None if the main thread has unwound.
        """
        self.ending.acquire(timeout=2 * CALLBACK_SECONDS)  # a second caller waits until the first ends the process
        if forced is not None:
            _run_within(list(self.forced), forced)
        self.tell()
        _run_within(list(self.last), CALLBACK_SECONDS)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(128 + (self.signum or signal.SIGINT))


_watch: _Watch | None = None


@contextlib.contextmanager
def handled(*, debug: bool = False) -> Iterator[None]:
    """Handles signals for the duration of the block; a signal ends the process there.

    Does nothing if nested, or in a thread other than the main one.

    Args:
        debug: do not mute standard error, and so show what Ray prints while it is shut down.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _watch = _Watch(debug)
    wakeup = signal.set_wakeup_fd(watch.writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch.run, name="signals", daemon=True)
    thread.start()
    try:
        watch.install()
        yield
    finally:
        if watch.signum is not None:
            watch.end()
        signal.set_wakeup_fd(wakeup)
        for number, before in watch.before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        os.close(watch.writer)
        thread.join()
        os.close(watch.reader)
        _watch = None


def active() -> bool:
    """Returns whether a `handled` block is active."""
    return _watch is not None


def stopping() -> bool:
    """Returns whether a signal has arrived and the process is about to end."""
    return _watch is not None and _watch.signum is not None


def tell() -> None:
    """Prints, once, the line that the command was stopped."""
    (_watch or _Line()).tell()


def reinstall() -> None:
    """Reinstalls the handlers after code that has replaced them, such as `ray.init`."""
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.install()


@contextlib.contextmanager
def on_signal(hook: Hook) -> Iterator[None]:
    """Runs `hook` as soon as a signal arrives, in another thread, while the main thread unwinds."""
    with _registered("first", hook):
        yield


@contextlib.contextmanager
def on_forced_end(hook: Hook) -> Iterator[None]:
    """Runs `hook` if the process is ended while the main thread hangs, in place of its `except` clauses."""
    with _registered("forced", hook):
        yield


@contextlib.contextmanager
def before_exit(hook: Hook) -> Iterator[None]:
    """Runs `hook` just before a signal ends the process; it stays registered if the signal arrives in the block."""
    with _registered("last", hook):
        yield


@contextlib.contextmanager
def _registered(kind: str, hook: Hook) -> Iterator[None]:
    hooks: list[Hook] | None = None if _watch is None else getattr(_watch, kind)
    if hooks is not None:
        hooks.append(hook)
    try:
        yield
    finally:
        if hooks is not None and (kind != "last" or not stopping()):
            hooks.remove(hook)


def _run_within(hooks: list[Hook], seconds: float) -> None:
    """Runs the hooks, newest first, and waits for them at most `seconds`."""

    def run() -> None:
        for hook in reversed(hooks):
            with contextlib.suppress(Exception):
                hook()

    if hooks:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)


def _say_nothing(*_: object) -> None:
    pass


def mute() -> None:
    """Silences standard error except for writes to `sys.stderr`.

    Otherwise Ray's C++ core, dying threads and destructors would report at length that they were interrupted.
    """
    with contextlib.suppress(Exception):
        if (logging := sys.modules.get("logging")) is not None:
            logging.disable(logging.CRITICAL)
        threading.excepthook = _say_nothing
        sys.unraisablehook = _say_nothing
        if sys.stderr.fileno() == 2:
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
