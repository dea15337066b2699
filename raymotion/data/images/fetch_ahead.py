"""Pictures fetched before they are needed, many at a time, so that a slow store is not waited for once a picture.

The caller says which addresses come (`ahead`), and takes their bytes one after the other (`fetch`). Files of a local
disk are read when they are needed, as long as the disk is fast: threads beside a model that uses all cores would only
take time from it. Where it turns out slow - a network disk - they are fetched ahead too.
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
# Taken for the size of a picture that is under way, until larger ones were seen.
EXPECTED_BYTES = 2 * 1024**2

# A local file that takes longer than this does not come from a disk of this machine, or from one that seeks.
SLOW_SECONDS = 0.005
_MEASURED, _ENOUGH = 32, 8


@dataclass(eq=False)
class _Entry:
    """One address: `takers` will ask for it; `data` or `error` once it was read."""

    uri: str
    takers: int = 0
    begun: bool = False
    data: bytes | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.data is not None or self.error is not None


class FetchAhead:
    """Reads addresses in the order in which they were named, ahead of who takes them. Safe to share between threads.

    Args:
        read: gives the bytes of an address.
        requests: reads at the same time.
        most_bytes: of what was read and not yet taken, and of what is expected of the reads under way.
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
        """Fetches these addresses during the block; what nobody took is dropped at its end.

        An address that is named n times is read once, and kept until it was taken n times.
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
                # Daemons: a process that ends does not wait for a store.
                threading.Thread(target=self._work, name="fetch-ahead", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                for uri, count in wanted.items():
                    self._release(uri, count)

    def fetch(self, uri: str) -> bytes:
        """The bytes at `uri`, fetched ahead or now; raises what reading it raised."""
        with self._changed:
            entry = self._entries.get(uri)
            if entry is not None and entry.begun:
                while not entry.done:
                    self._changed.wait()
                return self._take(entry)
            if entry is not None:  # nobody has begun it: who needs it reads it
                entry.begun = True
                self._queue.remove(entry)
                self._running += 1
        if entry is None:
            return self._timed(uri)
        self._fill(entry)
        with self._changed:
            return self._take(entry)

    def is_slow(self, uri: str) -> bool:
        """Whether an address is worth fetching ahead."""
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
        """One thread: reads until nothing is left to read."""
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
        """Reads an entry that this thread has begun."""
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
    """The one of this process: its bounds are the process's."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = FetchAhead()
        return _shared
