"""What a local disk has to be asked: where a file may be written, and whether there is room."""

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
    """Where a local file is written: through links, to the file that they lead to. Nothing is opened: a pipe would
    wait for its reader, a device would take what it gets.

    Args:
        path: as the user gave it, for messages. named: the same, absolute.

    Raises:
        InputError: something else than a file is there.
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
    """A fresh folder beside the local `folder`, which takes its place if the block ends well.

    The block makes it, by writing into it. Where anything fails, what was there before is there still.
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
    """Whether `error`, or what caused it, says that a disk is full. Libraries in C and Rust say it in words alone."""
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
    """`error` for the user: it names the path, which the system does not."""
    if isinstance(error, DiskFull):
        return error
    quota = getattr(error, "errno", None) == errno.EDQUOT or "quota" in str(error)
    reason = "the disk quota is used up" if quota else "no space left on the device"
    return DiskFull(f"{path}: {reason}. Make room there, or choose another place; the same command then goes on")


def reserve(path: PathLike) -> None:
    """Takes the room on the disk that a file says it has, before it is written through a memory map: on a full disk
    that would kill the process."""
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
        except (AttributeError, OSError) as error:  # a system, or a file system, that cannot
            if is_full(error):
                raise
