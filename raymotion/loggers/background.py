"""Calls in the background, in order: what may wait for a server must not hold a training up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

PATIENCE = 60.0


class Background:
    """Runs calls one after the other in a thread that does not keep the process alive. Calls must not raise."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="raymotion-loggers")
        self._thread.start()

    def do(self, call: Callable[[], None]) -> None:
        """Adds a call, and returns at once."""
        self._calls.put(call)

    def close(self, patience: float = PATIENCE) -> bool:
        """Waits for the calls so far, for `patience` seconds at most, and returns whether all have returned."""
        self._calls.put(None)
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
