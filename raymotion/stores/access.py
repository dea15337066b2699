"""Permission to read http(s) addresses, and how long to retry while a store fails.

Both are kept in environment variables, so that child processes, such as Ray's workers, inherit them. Workers of a
cluster that is already running get them with their plan (`Access.apply`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from raymotion.errors import InputError, StoreUnavailable

T = TypeVar("T")

PATIENCE = "RAYMOTION_STORE_PATIENCE"
ALLOW_HTTP = "RAYMOTION_ALLOW_HTTP"
DEFAULT_PATIENCE = 120.0

# Seconds between two tries: the pause doubles up to the longest, and a random part of it, from half to all, is waited,
# so that many workers do not retry at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0


@dataclass(frozen=True)
class Access:
    """Settings of this process for access to stores.

    Attributes:
        patience: seconds for which a request is retried while a store fails.
        allow_http: whether http:// and https:// addresses may be read.
    """

    patience: float = DEFAULT_PATIENCE
    allow_http: bool = False

    def apply(self) -> None:
        """Sets this access for the process and its child processes."""
        if current() != self:  # called by readers in many threads, so write the environment only if it differs
            os.environ[PATIENCE] = f"{self.patience:g}"
            os.environ[ALLOW_HTTP] = "1" if self.allow_http else "0"


def current() -> Access:
    """Returns the access of this process.

    Raises:
        InputError: RAYMOTION_STORE_PATIENCE is not a number of seconds.
    """
    text = os.environ.get(PATIENCE, "").strip()
    try:
        patience = float(text) if text else DEFAULT_PATIENCE
        if not 0 <= patience < float("inf"):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{PATIENCE}={text} is not a number of seconds", remedy="Set it to 120, or unset it."
        ) from error
    return Access(patience, os.environ.get(ALLOW_HTTP, "").strip().lower() in ("1", "true", "yes", "on"))


@contextlib.contextmanager
def using(*, patience: float | None = None, allow_http: bool | None = None) -> Iterator[Access]:
    """Changes the access for the duration of the block; None keeps the current value."""
    before = {name: os.environ.get(name) for name in (PATIENCE, ALLOW_HTTP)}
    now = current()
    access = Access(
        now.patience if patience is None else patience, now.allow_http if allow_http is None else allow_http
    )
    try:
        access.apply()
        yield access
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Retries:
    """Decides, for one request, how long to pause after a failure and when to give up.

    Args:
        address: of the requested file.
        action: for messages, such as `read it`.
        store: for messages: an endpoint, or the kind of store.
    """

    def __init__(self, address: str, action: str, store: str) -> None:
        self.address, self.action, self.store = address, action, store
        self.patience = current().patience
        self.tries = 0
        self.first_failure = 0.0

    def pause(self, error: BaseException) -> float:
        """Returns the seconds to wait before the next try.

        Raises:
            StoreUnavailable: the patience is used up.
        """
        now = time.monotonic()
        self.first_failure = self.first_failure or now
        self.tries += 1
        spent = now - self.first_failure
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.tries - 1, 10))
        if spent >= self.patience:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            times = "once" if self.tries == 1 else f"{self.tries} times in {spent:.0f} s"
            raise StoreUnavailable(
                f"{self.address}: the store ({self.store}) failed; tried {times} to {self.action} "
                f"(the last time: {reason[:300]}). When the store answers again, the same command goes on"
            ) from error
        _say_that_it_waits(self, error, spent)
        return min(longest * random.uniform(0.5, 1.0), max(0.05, self.patience - spent))


# A waiting command warns after this many seconds, and then at most this often.
SILENT_SECONDS, SAY_EVERY = 5.0, 30.0
_said_at = float("-inf")


def _say_that_it_waits(retries: Retries, error: BaseException, spent: float) -> None:
    global _said_at
    now = time.monotonic()
    if spent < SILENT_SECONDS or now - _said_at < SAY_EVERY:
        return
    _said_at = now
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    logging.getLogger("raymotion").warning(
        f"{retries.address}: the store ({retries.store}) has been failing for {spent:.0f} s ({reason}); "
        f"retrying for up to {retries.patience:g} s"
    )


def retried(retries: Retries, act: Callable[[], T], is_passing: Callable[[Exception], bool]) -> T:
    """Calls `act`, and repeats it while it fails with a transient error."""
    while True:
        try:
            return act()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(retries.pause(error))
