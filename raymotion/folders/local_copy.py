"""Local copies of data that are prepared once and read many times.

A copy is a folder in the cache, named after a digest of its content, not of its origin. One process builds it in a
temporary folder and renames it, while the others wait; an incomplete copy is never read. The index stores the size of
each file and a digest of its first and last bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raymotion import records, storage
from raymotion.errors import AccessDenied, Damaged

INDEX = "index.json"
EDGE_BYTES = 1 << 16


def default_cache() -> str:
    """Returns the folder for local copies: `$XDG_CACHE_HOME/raymotion`, or `~/.cache/raymotion`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "raymotion")


def local_copy(place: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the index of the local copy in the folder `place`, building the copy if it is missing or damaged.

    Args:
        build: writes all files of a copy to an empty folder, and returns additional values for the index.

    Raises:
        AccessDenied, DiskFull: the cache cannot be written. Errors of `build` leave nothing behind.
    """
    with contextlib.suppress(Damaged):
        return _read_index(place)
    # Many processes of a machine may start at once: one makes the copy while the others wait.
    with storage.explained(place.parent, "write the cache"), _locked(place.with_name(f"{place.name}.lock")):
        with contextlib.suppress(Damaged):
            return _read_index(place)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir()
        try:
            index = build(temporary)
            files = {path.name: _file_mark(path) for path in sorted(temporary.iterdir())}
            records.write_record(temporary / INDEX, {**index, "files": files})
            _rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _read_index(place)


def _rename(temporary: Path, place: Path) -> None:
    try:
        temporary.rename(place)
    except OSError:  # there is a copy, made by another machine with the same cache or damaged
        try:
            _read_index(place)
        except Damaged:
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)


def _read_index(folder: Path) -> dict[str, Any]:
    """Reads the index of a copy.

    Raises:
        Damaged: there is no copy, or its files differ in size, or at their beginning or end.
    """
    if not (folder / INDEX).exists():
        raise Damaged("is not there", path=folder)
    index = records.read_record(folder / INDEX, needs_seal=True)
    for name, mark in index["files"].items():
        try:
            found = _file_mark(folder / name)
        except OSError as error:
            raise Damaged("is missing", path=folder / name) from error
        if found != mark:
            raise Damaged("is not what was written", path=folder / name)
    return index


def _file_mark(path: Path) -> list[Any]:
    """Returns the size of a file and a digest of its first and last bytes, which is cheap for large files."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return [size, hashlib.sha256(head + file.read()).hexdigest()]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock of this machine during the block. The kernel releases the lock of a process that dies."""
    from filelock import FileLock

    lock = FileLock(path, mode=0o666, fallback_to_soft=False, thread_local=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except PermissionError as error:
        raise AccessDenied("may not write the cache", path=path, remedy="Set XDG_CACHE_HOME.") from error
    except OSError:  # a file system without locks: each process makes a copy, and the first one is kept
        yield
        return
    try:
        yield
    finally:
        lock.release()
