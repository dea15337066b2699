"""Checks and safe writes on local disks: targets of links, atomic replacement of folders, free space."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator

from raymotion.errors import DiskFull, InputError

PathLike = str | os.PathLike[str]


def file_to_write(path: PathLike, named: str) -> str:
    """Returns the local file to write to, with links resolved.

    Opens nothing: a pipe would wait for its reader, and a device would accept the data.

    Args:
        path: as the user gave it, for messages.
        named: the same, absolute.

    Raises:
        InputError: the path is not a regular file, or is a link that cannot be followed.
    """
    target = os.path.realpath(named)
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(named) and not os.path.isdir(os.path.dirname(target)):
            raise InputError(
                f"is a link to {target}, whose folder is not there",
                path=path,
                remedy="Make the folder, or the link anew.",
            ) from None
        return target
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError("is a link that leads to itself", path=path, remedy="Name another file.") from error
        raise
    if stat.S_ISREG(mode):
        return target
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }  # fmt: skip
    kind = kinds.get(stat.S_IFMT(mode), "something else")
    raise InputError(f"is {kind}, not a file", path=path, remedy="Name a file.")


@contextlib.contextmanager
def replaced(folder: str) -> Iterator[str]:
    """Yields the path of a temporary folder that replaces the local `folder` if the block succeeds.

    The block must create the folder. On failure, the old folder is kept.
    """
    temporary = f"{os.path.dirname(folder)}/.{os.path.basename(folder)}.{uuid.uuid4().hex[:8]}.tmp"
    old = f"{temporary}.old"
    try:
        yield temporary
        if os.path.isdir(folder) and os.listdir(folder):
            os.rename(folder, old)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.isdir(old):
            if os.path.exists(folder):
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, folder)


def is_full(error: BaseException | None) -> bool:
    """Returns whether `error` or its cause is a full disk. Libraries in C and Rust report it only in the message."""
    seen: list[BaseException] = []
    while error is not None and not any(error is other for other in seen):
        if isinstance(error, DiskFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def disk_full(path: PathLike, error: BaseException) -> DiskFull:
    """Converts `error` to a `DiskFull` that names the path, which the system's error does not."""
    if isinstance(error, DiskFull):
        return error
    quota = getattr(error, "errno", None) == errno.EDQUOT or "quota" in str(error)
    reason = "the disk quota is used up" if quota else "no space left on the device"
    return DiskFull(f"{path}: {reason}. Make room there, or choose another place; the same command then goes on")


def reserve(path: PathLike) -> None:
    """Allocates the disk space of a file before it is written through a memory map.

    Otherwise a full disk would kill the process.
    """
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
        except (AttributeError, OSError) as error:  # not supported by the system or the file system
            if is_full(error):
                raise
