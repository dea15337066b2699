"""One writer for a folder: a lock that dies with its process, and that says who holds it.

On a local disk the kernel holds the lock (`flock` on a hidden file), so a process that is killed lets go of it at once.
A file system without `flock`, and an object store, get a lease instead (`folders.lease`): a record that its owner
renews every few seconds. Whoever finds one takes it over once its owner is proved dead, or has been silent for `STALE`
seconds.

Local disks are renewed too. An `flock` that holds on one machine alone, as on some network disks, would otherwise let
a second machine in.
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
from raymotion.errors import AccessDenied, InputError, RunFailed
from raymotion.folders.lease import BEAT, STALE, Lease, await_silence, cell_at, refusal
from raymotion.folders.owner import Owner
from raymotion.storage import LOCK

# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

P = ParamSpec("P")
R = TypeVar("R")


def one_writer_of(
    place: str, *, beside: bool = False, patience: float = 0.0
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that writes a folder: `one_writer` holds for the length of each call.

    Args:
        place: the parameter that names the folder, or an attribute of one: `out`, `settings.out`.
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
    """Holds `folder` for this thread for the length of the block; it may do so again inside.

    Where this process may not write at all, nothing is locked: it can do no harm there.

    Args:
        folder: need not exist. What is made for the lock is removed with it.
        beside: the output is a file, or a folder that is replaced as a whole, so a local lock stands beside it.
        patience: seconds to wait for another process to end before it is refused.

    Raises:
        InputError: another process, or another thread of this one, writes there. It is named.
        RunFailed: another process took the folder over, because this one had been silent for too long.
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


# By path of the lock, the thread that holds it; and those that were lost, until this process has them again: the thread
# that still works in the folder, or None once it has left.
_held_here: dict[str, int] = {}
_lost_here: dict[str, int | None] = {}


def is_lost(folder: storage.PathLike) -> bool:
    """Whether another process has taken over `folder`, or a folder around it in whose block this one was locked.

    Whoever cleans up after an error asks first: what is there may be the new owner's.
    """
    target = _canonical(folder)
    places = (storage.join(target, LOCK), _beside(target))
    holders = {_held_here[place] for place in places if place in _held_here}
    return any(place in _lost_here for place in places) or not holders.isdisjoint(_lost_here.values())


def _canonical(folder: storage.PathLike) -> str:
    """One name for one folder, through whichever links it was named."""
    target = storage.absolute(folder)
    return target if storage.is_remote(target) else os.path.realpath(target)


def _beside(target: str) -> str:
    name = target.rstrip("/").rsplit("/", 1)[-1]
    return storage.join(storage.parent(target.rstrip("/")), f".{name}.lock")


def _make(path: str) -> list[str]:
    """Makes the folder of a local lock; returns the folders that were not there, innermost first."""
    if storage.is_remote(path):
        return []
    missing, place = [], os.path.dirname(path)
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    try:
        storage.make_dir(os.path.dirname(path))
    except AccessDenied:
        return []  # told by whoever writes there
    return missing


def _locked_by_other_user(path: str) -> bool:
    return not storage.is_remote(path) and os.path.exists(path) and os.access(os.path.dirname(path), os.W_OK)


def _refuse_if_locked(path: str, folder: storage.PathLike) -> None:
    """Raises if the other place where a local lock of this folder may stand is held."""
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
    """A lock that is held."""

    def renew(self) -> bool:
        """Shows that the owner lives; False if the lock is another's now. A store that is down raises."""

    def release(self) -> None: ...


def _acquire(path: str, folder: storage.PathLike, patience: float) -> _Hold | None:
    """The lock at `path`, None where nothing may be written, or an `InputError` that names its owner."""
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
            # filelock would leave an empty file there, which is nobody's lock and looks like a torn one.
            if not os.path.exists(path) and not _has_locks(path):
                return Lease(cell_at(path)).take(folder)
            return _Flock(path).take(folder)
        except FileNotFoundError:  # removed by another process that had made the folder, and has just ended
            storage.make_dir(os.path.dirname(path))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return Lease(cell_at(path)).take(folder)
    raise refusal(None, folder)


def _has_locks(path: str) -> bool:
    """Whether the file system has `flock`, tried on a file of its own beside `path`."""
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
    """Renews `hold` from a thread until the block ends; ends the block if the lock is lost."""
    over, lost = threading.Event(), threading.Event()
    holder = threading.get_ident()
    in_main = threading.current_thread() is threading.main_thread()

    def beat() -> None:
        while not over.wait(BEAT):
            try:
                mine = hold.renew()
            except Exception:  # a store that is down: the next beat may reach it
                continue
            if not mine and not over.is_set():
                lost.set()
                _lost_here[path] = holder
                if in_main:  # a signal, for only that ends a wait in the kernel
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
            with contextlib.suppress(Exception):  # a lock that cannot be removed goes stale
                hold.release()
    if lost.is_set():
        raise _lost(folder)


def _interrupt(number: int, frame: object) -> None:
    raise _Lost


class _Lost(KeyboardInterrupt):
    """Raised in the main thread whose lock was lost; like Ctrl-C, no `except Exception` holds it up."""


def _lost(folder: storage.PathLike) -> RunFailed:
    return RunFailed(
        f"{folder}: another process took this folder over, because this one had shown no sign of life for {STALE:g} s. "
        "What was committed stays; the same command goes on once the other has ended"
    )


class _Flock:
    """A local file that the kernel locks; what it holds names the owner."""

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
            # Of another machine: its flock may not be seen from here. On this one the kernel has proved it gone.
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
        """Seconds since the last renewal, by the clock of the disk: those of two machines may differ."""
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
        # Removed while it is held: whoever has opened it meanwhile sees that it has no name any more, and tries again.
        with contextlib.suppress(OSError):
            if (held := _read_owner(self.path)) is not None and held.token == self.owner.token:
                os.unlink(self.path)
        self.lock.release()
