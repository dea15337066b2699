"""Fetches images before they are needed, many at a time, to hide the latency of a slow store.

The caller announces addresses (`ahead`) and takes their bytes one by one (`fetch`). Local files are read on demand
while the disk is fast, since threads would take time from a model that uses all cores. If the disk proves slow (a
network disk), they are fetched ahead too.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from raymotion import storage
from raymotion.data.images.decode import fetch

REQUESTS = 64
MOST_BYTES = 256 * 1024**2
# Assumed size of an image that is being read, until larger ones were seen.
EXPECTED_BYTES = 2 * 1024**2

# A local file that takes longer than this is on a network disk or a disk with a seek time.
SLOW_SECONDS = 0.005
_MEASURED, _ENOUGH = 32, 8


@dataclass(eq=False)
class _Entry:
    """One address: the number of `takers` still to come, and `data` or `error` once it was read."""

    uri: str
    takers: int = 0
    begun: bool = False
    data: bytes | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.data is not None or self.error is not None


class FetchAhead:
    """Reads addresses ahead of use, in the order in which they were announced. Thread-safe.

    Args:
        read: returns the bytes of an address.
        requests: maximum number of concurrent reads.
        most_bytes: maximum size of data not yet taken plus the expected size of reads in progress.
    """

    def __init__(
        self, read: Callable[[str], bytes] = fetch, *, requests: int = REQUESTS, most_bytes: int = MOST_BYTES
    ) -> None:
        self._read, self._requests, self._most_bytes = read, requests, most_bytes
        self._changed = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[_Entry] = deque()
        self._threads = 0
        self._running = 0
        self._held = 0
        self._expected = EXPECTED_BYTES
        self._local_seconds: deque[float] = deque(maxlen=_MEASURED)

    @contextlib.contextmanager
    def ahead(self, uris: Iterable[str | None]) -> Iterator[None]:
        """Fetches these addresses for the duration of the block; drops unused data at its end.

        An address given n times is read once and kept until it was taken n times.
        """
        wanted = Counter(uri for uri in uris if uri is not None and self.is_slow(uri))
        with self._changed:
            for uri, count in wanted.items():
                entry = self._entries.get(uri)
                if entry is None:
                    entry = self._entries[uri] = _Entry(uri)
                    self._queue.append(entry)
                entry.takers += count
            missing = min(self._requests, len(self._queue)) - self._threads
            for _ in range(missing):
                self._threads += 1
                # Daemons, so that a process does not wait for a store before it exits.
                threading.Thread(target=self._work, name="fetch-ahead", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                for uri, count in wanted.items():
                    self._release(uri, count)

    def fetch(self, uri: str) -> bytes:
        """Returns the bytes at `uri`, fetched ahead or now; raises the error of the read."""
        with self._changed:
            entry = self._entries.get(uri)
            if entry is not None and entry.begun:
                while not entry.done:
                    self._changed.wait()
                return self._take(entry)
            if entry is not None:  # no thread has begun it: read it here
                entry.begun = True
                self._queue.remove(entry)
                self._running += 1
        if entry is None:
            return self._timed(uri)
        self._fill(entry)
        with self._changed:
            return self._take(entry)

    def is_slow(self, uri: str) -> bool:
        """Returns whether an address is worth fetching ahead."""
        if storage.is_remote(uri):
            return True
        seconds = list(self._local_seconds)
        return len(seconds) >= _ENOUGH and statistics.median(seconds) > SLOW_SECONDS

    def _timed(self, uri: str) -> bytes:
        if storage.is_remote(uri):
            return self._read(uri)
        began = time.perf_counter()
        try:
            return self._read(uri)
        finally:
            self._local_seconds.append(time.perf_counter() - began)

    def _work(self) -> None:
        """Runs in each thread: reads until the queue is empty."""
        while True:
            with self._changed:
                while self._queue and not self._has_room():
                    self._changed.wait()
                if not self._queue:
                    self._threads -= 1
                    return
                entry = self._queue.popleft()
                entry.begun = True
                self._running += 1
            self._fill(entry)

    def _has_room(self) -> bool:
        if not self._running and not self._held:
            return True
        return self._held + (self._running + 1) * self._expected <= self._most_bytes

    def _fill(self, entry: _Entry) -> None:
        """Reads an entry that this thread has claimed."""
        data, error = None, None
        try:
            data = self._timed(entry.uri)
        except Exception as caught:
            error = caught
        except BaseException:  # Ctrl-C in the thread that reads for itself
            with self._changed:
                self._running -= 1
                entry.error = RuntimeError(f"{entry.uri} was not read to its end")
                self._entries.pop(entry.uri, None)
                self._changed.notify_all()
            raise
        with self._changed:
            self._running -= 1
            entry.data, entry.error = data, error
            if data is not None and self._entries.get(entry.uri) is entry:
                self._held += len(data)
                self._expected = max(self._expected, len(data))
            self._changed.notify_all()

    def _take(self, entry: _Entry) -> bytes:
        data, error = entry.data, entry.error
        if self._entries.get(entry.uri) is entry:
            self._release(entry.uri, 1)
        if error is not None:
            raise error
        assert data is not None
        return data

    def _release(self, uri: str, takers: int) -> None:
        entry = self._entries.get(uri)
        if entry is None:
            return
        entry.takers -= takers
        if entry.takers > 0:
            return
        del self._entries[uri]
        if not entry.begun:
            self._queue.remove(entry)
        if entry.data is not None:
            self._held -= len(entry.data)
        self._changed.notify_all()


_lock = threading.Lock()
_shared: FetchAhead | None = None


def shared() -> FetchAhead:
    """Returns the instance shared by the process, so that its limits apply to the whole process."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = FetchAhead()
        return _shared
