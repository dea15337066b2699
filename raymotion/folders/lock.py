"""Locks that allow one writer per folder, end with the process, and name their owner.

On a local disk the kernel holds the lock (`flock` on a hidden file), so it is released at once if the process is
killed. File systems without `flock` and object stores use a lease (`folders.lease`): a record that its owner renews
every few seconds. Another process may take it over once the owner is known to be dead, or has not renewed it for
`STALE` seconds.

Locks on local disks are renewed too, because on some network disks an `flock` is only visible on one machine and would
not keep out another.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from raymotion import storage
from raymotion.errors import AccessDenied, InputError, RaymotionError, RunFailed
from raymotion.folders.lease import BEAT, STALE, Lease, await_silence, cell_at, refusal
from raymotion.folders.owner import Owner
from raymotion.storage import LOCK

# Errors of file systems without locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

P = ParamSpec("P")
R = TypeVar("R")


def one_writer_of(
    place: str, *, beside: bool = False, patience: float = 0.0
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that writes to a folder, so that each call holds `one_writer`.

    Args:
        place: the parameter with the folder, or an attribute of a parameter: `out`, `settings.out`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name, *attributes = place.split(".")

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            folder: Any = bound.arguments[name]
            for attribute in attributes:
                folder = getattr(folder, attribute)
            with one_writer(folder, beside=beside, patience=patience):
                return function(*args, **kwargs)

        return locked

    return decorate


@contextlib.contextmanager
def one_writer(folder: storage.PathLike, *, beside: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Locks `folder` for this thread for the duration of the block; reentrant.

    Locks nothing if this process has no write permission there.

    Args:
        folder: need not exist. Folders created for the lock are removed with it unless they hold output.
        beside: place a local lock next to the output, because that is a file or a folder that is replaced as a whole.
        patience: seconds to wait for another writer to finish before raising.

    Raises:
        InputError: another process, or another thread of this one, is writing there. The message names it.
        RunFailed: another process took over the folder, because this one had not renewed its lock for too long.
    """
    target = _canonical(folder)
    inside, outside = storage.join(target, LOCK), _beside(target)
    path, other = (outside, inside) if beside and not storage.is_remote(target) else (inside, outside)
    me = threading.get_ident()
    if _held_here.get(path) == me:
        yield
        return
    made = _make(path)
    try:
        _refuse_if_locked(other, folder)
        hold = _acquire(path, folder, patience)
        if hold is None:
            yield
            return
        _held_here[path] = me
        _lost_here.pop(path, None)
        try:
            with _renewed(hold, path, folder):
                yield
        finally:
            del _held_here[path]
            if path in _lost_here:
                _lost_here[path] = None
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # not empty: it holds output now
                os.rmdir(place)


# Keyed by the path of the lock. Held locks: the holding thread. Lost locks, until this process acquires them again: the
# thread that still works in the folder, or None once it has left.
_held_here: dict[str, int] = {}
_lost_here: dict[str, int | None] = {}


def is_lost(folder: storage.PathLike) -> bool:
    """Returns whether another process has taken over `folder`, or another folder locked by the thread that holds it.

    Call this before cleaning up after an error, since the files may belong to the new owner.
    """
    target = _canonical(folder)
    places = (storage.join(target, LOCK), _beside(target))
    holders = {_held_here[place] for place in places if place in _held_here}
    return any(place in _lost_here for place in places) or not holders.isdisjoint(_lost_here.values())


def owner_of(folder: storage.PathLike) -> Owner | None:
    """Returns who holds or has last held the lock of a folder, in it or beside it; None if nobody is recorded."""
    target = _canonical(folder)
    found = []
    for place in (storage.join(target, LOCK), _beside(target)):
        with contextlib.suppress(OSError, RaymotionError):
            if (owner := Owner.read(storage.read_bytes(place))) is not None:
                found.append(owner)
    return max(found, key=lambda owner: owner.since, default=None)


def _canonical(folder: storage.PathLike) -> str:
    """Returns a unique name of a folder, with links resolved."""
    target = storage.absolute(folder)
    return target if storage.is_remote(target) else os.path.realpath(target)


def _beside(target: str) -> str:
    name = target.rstrip("/").rsplit("/", 1)[-1]
    return storage.join(storage.parent(target.rstrip("/")), f".{name}.lock")


def _make(path: str) -> list[str]:
    """Creates the folder of a local lock; returns the folders that did not exist, innermost first."""
    if storage.is_remote(path):
        return []
    missing, place = [], os.path.dirname(path)
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    try:
        storage.make_dir(os.path.dirname(path))
    except AccessDenied:
        return []  # reported by the code that writes there
    return missing


def _locked_by_other_user(path: str) -> bool:
    return not storage.is_remote(path) and os.path.exists(path) and os.access(os.path.dirname(path), os.W_OK)


def _refuse_if_locked(path: str, folder: storage.PathLike) -> None:
    """Raises if the folder is locked at `path`, the alternative place of a local lock."""
    if storage.is_remote(path) or not os.path.isfile(path) or _held_here.get(path) == threading.get_ident():
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, blocking=False, fallback_to_soft=False):
            pass
    except Timeout:
        raise refusal(_read_owner(path), folder) from None
    except OSError as error:
        owner = _read_owner(path) if error.errno in _NO_LOCKS else None
        if owner is not None and owner.lives():
            raise refusal(owner, folder) from error


def _read_owner(path: str) -> Owner | None:
    try:
        return Owner.read(Path(path).read_bytes())
    except OSError:
        return None


class _Hold(Protocol):
    """A held lock."""

    def renew(self) -> bool:
        """Renews the lock; returns False if another process has it now. Raises if the store is down."""

    def release(self) -> None: ...


def _acquire(path: str, folder: storage.PathLike, patience: float) -> _Hold | None:
    """Acquires the lock at `path`; returns None without write permission; raises an `InputError` naming its owner."""
    give_up = time.monotonic() + patience
    while True:
        try:
            with storage.explained(folder, "write to it"):
                return _take(path, folder)
        except AccessDenied as error:
            if _locked_by_other_user(path):
                raise AccessDenied(
                    "was locked by another user",
                    path=path,
                    remedy="Remove that file once no raymotion command of theirs is writing there.",
                ) from error
            return None
        except InputError:
            if time.monotonic() >= give_up:
                raise
        time.sleep(0.5)


def _take(path: str, folder: storage.PathLike) -> _Hold:
    if storage.is_remote(path):
        return Lease(cell_at(path)).take(folder)
    for _ in range(10):
        try:
            # filelock would leave an empty file there, which looks like a lock that was partly written.
            if not os.path.exists(path) and not _has_locks(path):
                return Lease(cell_at(path)).take(folder)
            return _Flock(path).take(folder)
        except FileNotFoundError:  # removed by another process that created the folder and has just ended
            storage.make_dir(os.path.dirname(path))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return Lease(cell_at(path)).take(folder)
    raise refusal(None, folder)


def _has_locks(path: str) -> bool:
    """Returns whether the file system supports `flock`, tested with a temporary file next to `path`."""
    from filelock import FileLock

    probe = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with FileLock(probe, fallback_to_soft=False):
            return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


@contextlib.contextmanager
def _renewed(hold: _Hold, path: str, folder: storage.PathLike) -> Iterator[None]:
    """Renews `hold` in a thread until the block ends; interrupts the block if the lock is lost."""
    over, lost = threading.Event(), threading.Event()
    holder = threading.get_ident()
    in_main = threading.current_thread() is threading.main_thread()

    def beat() -> None:
        while not over.wait(BEAT):
            try:
                mine = hold.renew()
            except Exception:  # the store is down; the next renewal may succeed
                continue
            if not mine and not over.is_set():
                lost.set()
                _lost_here[path] = holder
                if in_main:  # only a signal interrupts a blocking system call
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return

    thread = threading.Thread(target=beat, name="folder-lock", daemon=True)
    before = signal.signal(signal.SIGUSR1, _interrupt) if in_main else None
    thread.start()
    try:
        yield
    except BaseException as error:
        if lost.is_set():
            raise _lost(folder) from error
        raise
    finally:
        over.set()
        thread.join(timeout=BEAT)
        if in_main:
            signal.signal(signal.SIGUSR1, before if before is not None else signal.SIG_DFL)
        if not lost.is_set():
            with contextlib.suppress(Exception):  # a lock that cannot be removed becomes stale
                hold.release()
    if lost.is_set():
        raise _lost(folder)


def _interrupt(number: int, frame: object) -> None:
    raise _Lost


class _Lost(KeyboardInterrupt):
    """Raised in the main thread if its lock is lost; like Ctrl-C, it is not caught by `except Exception`."""


def _lost(folder: storage.PathLike) -> RunFailed:
    return RunFailed(
        f"{folder}: another process took this folder over, because this one had shown no sign of life for {STALE:g} s. "
        "What was committed stays; the same command goes on once the other has ended"
    )


class _Flock:
    """A local file locked by the kernel; its content names the owner."""

    def __init__(self, path: str) -> None:
        from filelock import FileLock

        self.path, self.owner = path, Owner.here()
        self.lock = FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)

    def take(self, folder: storage.PathLike) -> _Flock:
        from filelock import Timeout

        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            raise refusal(_read_owner(self.path), folder) from None
        try:
            left = _read_owner(self.path)
            # An flock of another machine may be invisible here. An owner on this machine has released it.
            if left is not None and not left.same_kernel:
                await_silence(left, folder, lambda: str(os.stat(self.path).st_mtime_ns), self._age())
            with open(self.path, "r+b") as file:
                file.truncate()
                file.write(json.dumps(asdict(self.owner)).encode())
        except BaseException:
            self.lock.release()
            raise
        return self

    def _age(self) -> float:
        """Returns the seconds since the last renewal by the clock of the disk, since those of machines may differ."""
        probe = f"{self.path}.{self.owner.token}.tmp"
        with open(probe, "wb"):
            pass
        now = os.stat(probe).st_mtime
        os.unlink(probe)
        return max(0.0, now - os.stat(self.path).st_mtime)

    def renew(self) -> bool:
        held = _read_owner(self.path)
        if held is not None and held.token != self.owner.token:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return True

    def release(self) -> None:
        # Removed while held: a process that has opened it meanwhile finds it unlinked and tries again.
        with contextlib.suppress(OSError):
            if (held := _read_owner(self.path)) is not None and held.token == self.owner.token:
                os.unlink(self.path)
        self.lock.release()
