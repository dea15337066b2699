"""Fetching ahead: once for each address, within its bounds; errors where they belong; fast disks left alone."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from raymotion.data.images.fetch_ahead import FetchAhead

URIS = [f"s3://bucket/{number}.jpg" for number in range(40)]


class SlowStore:
    """Answers after `seconds`; remembers who asked, and how many asked at once."""

    def __init__(self, seconds: float = 0.02, size: int = 10) -> None:
        self.seconds, self.size = seconds, size
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, uri: str) -> bytes:
        with self.lock:
            self.asked.append(uri)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        with self.lock:
            self.at_once -= 1
        if "bad" in uri:
            raise FileNotFoundError(uri)
        return uri.encode().ljust(self.size)


def test_latency_is_paid_once_not_once_a_picture() -> None:
    store = SlowStore(0.2)
    fetcher = FetchAhead(store)
    began = time.monotonic()
    with fetcher.ahead(URIS):
        found = [fetcher.fetch(uri) for uri in URIS]
    assert time.monotonic() - began < 0.2 * len(URIS) / 4
    assert found == [uri.encode().ljust(10) for uri in URIS]
    assert Counter(store.asked) == Counter(URIS)


def test_an_address_that_comes_again_is_read_once_and_then_forgotten() -> None:
    store = SlowStore(0.0)
    fetcher = FetchAhead(store)
    with fetcher.ahead([*URIS[:3], None, *URIS[:3]]):
        for uri in [*URIS[:3], *URIS[:3]]:
            fetcher.fetch(uri)
        assert Counter(store.asked) == Counter(URIS[:3])
        fetcher.fetch(URIS[0])  # a third time was not announced
    assert Counter(store.asked)[URIS[0]] == 2
    assert not fetcher._entries and fetcher._held == 0


def test_requests_at_once_are_bounded() -> None:
    store = SlowStore(0.01)
    fetcher = FetchAhead(store, requests=5)
    with fetcher.ahead(URIS):
        for uri in reversed(URIS):  # whatever the order in which they are taken
            fetcher.fetch(uri)
    assert 2 <= store.most <= 6  # five threads, and the one that takes


def test_bytes_are_bounded() -> None:
    size = 1_000_000
    store = SlowStore(0.0, size)
    fetcher = FetchAhead(store, requests=8, most_bytes=10 * size)
    fetcher._expected = size
    with fetcher.ahead(URIS):
        time.sleep(0.3)
        assert fetcher._held <= 10 * size and 5 <= len(store.asked) <= 10
        for uri in URIS:
            assert len(fetcher.fetch(uri)) == size
            assert fetcher._held <= 10 * size
    assert fetcher._held == 0 and Counter(store.asked) == Counter(URIS)


def test_one_that_is_larger_than_the_bound_is_read() -> None:
    store = SlowStore(0.0, 1000)
    fetcher = FetchAhead(store, most_bytes=10)
    with fetcher.ahead(URIS[:4]):
        assert [len(fetcher.fetch(uri)) for uri in URIS[:4]] == [1000] * 4


def test_an_error_is_raised_where_its_address_is_taken() -> None:
    fetcher = FetchAhead(SlowStore(0.0))
    with fetcher.ahead([URIS[0], "s3://bucket/bad", URIS[1]]):
        assert fetcher.fetch(URIS[0])
        with pytest.raises(FileNotFoundError):
            fetcher.fetch("s3://bucket/bad")
        assert fetcher.fetch(URIS[1])
    assert not fetcher._entries


def test_what_nobody_takes_is_dropped() -> None:
    fetcher = FetchAhead(SlowStore(0.0))
    with pytest.raises(ValueError), fetcher.ahead(URIS):
        fetcher.fetch(URIS[0])
        raise ValueError
    time.sleep(0.1)
    assert not fetcher._entries and not fetcher._queue and fetcher._held == 0


def test_several_threads_share_it() -> None:
    store = SlowStore(0.005)
    fetcher = FetchAhead(store, requests=6)
    found: list[bytes] = []

    def take(uris: list[str]) -> None:
        with fetcher.ahead(uris):
            found.extend(fetcher.fetch(uri) for uri in uris)

    threads = [threading.Thread(target=take, args=(URIS[start : start + 20],)) for start in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(found) == sorted(u.encode().ljust(10) for start in (0, 10, 20) for u in URIS[start : start + 20])
    assert not fetcher._entries and fetcher._held == 0


def test_a_fast_disk_is_read_in_turn_and_a_slow_one_ahead() -> None:
    fast, slow = SlowStore(0.0), SlowStore(0.02)
    local = [f"/pictures/{number}.jpg" for number in range(24)]
    for store, ahead in ((fast, False), (slow, True)):
        fetcher = FetchAhead(store)
        for part in (local[:12], local[12:]):
            with fetcher.ahead(part):
                for uri in part:
                    fetcher.fetch(uri)
        assert (store.most > 1) is ahead, "the first part is measured, the second read accordingly"
        assert Counter(store.asked) == Counter(local)
