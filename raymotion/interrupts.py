"""Ctrl-C, SIGTERM and SIGHUP: noticed at any moment, also while the main thread is inside a C++ call.

`handled` is entered once, by the command line. The first signal raises `Stopped` in the main thread, which unwinds as
for any error. A thread of its own learns of the signal too (Python's C handler writes to its pipe, whatever the main
thread is doing), and where the main thread has not ended the process after `GRACE_SECONDS` that thread does. Either way
the process ends with one line and the code 128 + signal. A second signal ends it at once.

Outside `handled` (raymotion used as a library) all this does nothing, and signals are the caller's.
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
# `ray job stop` kills after 3 seconds what has not ended by itself.
GRACE_SECONDS = 2.5
CALLBACK_SECONDS, SECOND_CALLBACK_SECONDS = 3.0, 0.5
# `timeout`, shells and terminals send one and the same stop to a process and to its group: twice within milliseconds.
TWICE_SECONDS = 0.3
LINE = "stopped; the same command goes on from here"

Hook = Callable[[], object]


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""


class _Line:
    """The one line that is told, by whoever comes first."""

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
    """What one `handled` block has installed."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug
        self.signum: int | None = None
        self.first: list[Hook] = []  # run at once, beside the main thread
        self.forced: list[Hook] = []  # run where the main thread does not unwind
        self.last: list[Hook] = []  # run before the process ends, either way
        self.raised, self.muted = False, False
        self.ending, self.muting = threading.Lock(), threading.Lock()
        self.before: dict[int, Any] = {}
        self.ignored: list[int] = []
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)

    def install(self) -> None:
        """Takes the signals that the process does not ignore: what `nohup`, or a shell in the background, set stays."""
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
        # Whoever comes second waits for the first, or it would go on before standard error is silent.
        with self.muting:
            if not self.muted:
                mute()
            self.muted = True

    def run(self) -> None:
        """The thread: waits for signals, and ends the process if the main thread does not."""
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
        """The next signal of ours; None for another one or after `timeout`; -1 if the pipe is closed."""
        if not select.select([self.reader], [], [], timeout)[0]:
            return None
        data = os.read(self.reader, 1)
        return -1 if not data else data[0] if data[0] in SIGNALS and data[0] not in self.ignored else None

    def end(self, forced: float | None = None) -> None:
        """Ends the process: one line, the last hooks, the code. Does not return.

        Args:
            forced: the main thread has not unwound; how long the hooks for that may take, in seconds.
        """
        self.ending.acquire(timeout=2 * CALLBACK_SECONDS)  # whoever comes second waits for the first one's end
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
    """Handles the signals for the length of the block; the process ends in it if one comes.

    Does nothing in a thread other than the main one, or inside itself.

    Args:
        debug: leave standard error as it is, with what Ray's own code says while it is ended.
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
    """Whether a `handled` block is entered."""
    return _watch is not None


def stopping() -> bool:
    """Whether a signal has come and the process is about to end."""
    return _watch is not None and _watch.signum is not None


def tell() -> None:
    """Says in one line that the command was stopped, once."""
    (_watch or _Line()).tell()


def reinstall() -> None:
    """Takes the signals back from code that has taken them, such as `ray.init`."""
    if _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.install()


@contextlib.contextmanager
def on_signal(hook: Hook) -> Iterator[None]:
    """`hook` runs as soon as a signal comes, in another thread, while the main thread unwinds."""
    with _registered("first", hook):
        yield


@contextlib.contextmanager
def on_forced_end(hook: Hook) -> Iterator[None]:
    """`hook` runs where the process is ended though the main thread hangs: for what its `except` would have done."""
    with _registered("forced", hook):
        yield


@contextlib.contextmanager
def before_exit(hook: Hook) -> Iterator[None]:
    """`hook` runs just before a signal ends the process; it stays registered if the signal comes inside the block."""
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
    """Runs the hooks, the newest first, without waiting for them longer than `seconds`."""

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
    """From here on only `sys.stderr` reaches the terminal.

    Ray's C++ core, dying threads and destructors would explain at length that they were interrupted.
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
