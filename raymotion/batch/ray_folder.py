"""Temporary folders of private Ray instances, and removal of those left by killed processes.

A name alone is no proof. A folder is removed only if it holds a mark that raymotion wrote into this very folder, on
this machine since its last boot, and if the lock that its owner held can be acquired.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from raymotion.folders.owner import Owner

PREFIX = "raymotion-"
MARK = ".raymotion-ray.json"


@contextlib.contextmanager
def ray_folder(base: str | os.PathLike[str]) -> Iterator[str]:
    """Creates a folder in `base` for the duration of the block, and first removes those of dead processes."""
    remove_abandoned(base)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=base)
    try:
        # Not inherited by Ray's processes, which may outlive this one for a while.
        held = os.open(Path(folder, MARK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # without file locks, only this process removes the folder
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(held, json.dumps({**asdict(Owner.here()), "inode": os.stat(folder).st_ino}).encode())
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def remove_abandoned(base: str | os.PathLike[str]) -> None:
    """Removes the folders in `base` that `ray_folder` made and whose process is known to be dead."""
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(folder: Path) -> None:
    try:
        held = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_ours(folder, os.read(held, 1 << 16)):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # held by its owner, in this container or another one
        pass
    finally:
        os.close(held)


def _is_ours(folder: Path, mark: bytes) -> bool:
    owner = Owner.read(mark)
    if owner is None or not owner.same_kernel or os.lstat(folder).st_uid != os.getuid():
        return False
    # A copy of such a folder (another inode) belongs to the user.
    return bool(json.loads(mark).get("inode") == os.stat(folder).st_ino) and owner.lives() is not True
