"""One process at a time works on a study: who ends first clears away what the other would still read."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from raymotion import storage
from raymotion.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Holds the lock file at `path`, local or an address, for the length of the block.

    It names host and process. One whose process has ended is taken over, and so is one of another host: whether a
    process there lives can not be seen from here, and a machine that is gone must not lock a study for ever.

    Raises:
        InputError: the process that it names is alive on this host.
    """
    held = _read(path)
    host = socket.gethostname()
    if held is not None and held.get("host") == host and _alive(held):
        raise InputError(
            f"is being worked on by process {held['pid']} of this machine",
            path=storage.parent(path),
            remedy="Wait until it has ended, or end it; the same command then goes on.",
        )
    mine = {"host": host, "pid": os.getpid(), "began": _began(os.getpid())}
    storage.write_json(path, mine)
    try:
        yield
    finally:
        if _read(path) == mine:
            with contextlib.suppress(OSError):
                storage.remove(path)


def _read(path: str) -> dict[str, object] | None:
    """What the file says; None where there is none, or it is cut off."""
    if not storage.exists(path):
        return None
    try:
        found = storage.read_json(path)
    except InputError:
        return None
    return found if isinstance(found, dict) else None


def _alive(held: dict[str, object]) -> bool:
    pid = held.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if Path("/proc/self").exists():
        # The number may have been given to another process since.
        began = _began(pid)
        return began is not None and began == held.get("began")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _began(pid: int) -> int | None:
    """When a process of this machine started, in ticks since boot (proc(5)); None where it has ended."""
    try:
        state, *fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
