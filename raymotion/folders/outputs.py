"""What a command may overwrite or remove: what raymotion made, told by a mark or by its content, never by a name."""

from __future__ import annotations

from collections.abc import Callable

from raymotion import storage
from raymotion.errors import InputError
from raymotion.storage import MARK, PathLike
from raymotion.stores.local_files import file_to_write


def require_replaceable(path: PathLike, kind: str, is_kind: Callable[[bytes], bool]) -> None:
    """Raises unless `path` may be written: nothing is there, or an empty file, or what an earlier command wrote.

    Args:
        kind: of file that is to be written, with its article, for the message: `a report`.
        is_kind: whether the file that begins with these bytes (up to 4096) is one.
    """
    with storage.explained(path, "write it"):
        if not storage.is_remote(path):
            file_to_write(path, storage.absolute(path))
        elif storage.is_dir(path):
            return
        if not storage.exists(path):
            return
        with storage.open_input(path) as file:
            head = file.read(4096)
    if head and not is_kind(head):
        raise InputError(f"exists already and is not {kind}", path=path, remedy="Name another --out.")


def first_line(head: bytes) -> bytes:
    """The first line of a file that begins with `head`, as far as it is known, without its end."""
    return head.split(b"\n", 1)[0].rstrip(b"\r")


def is_page(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an HTML page of raymotion's."""
    return head.lstrip()[:14].lower() == b"<!doctype html" and b"<title>raymotion" in head


def run_folder(out: PathLike) -> str:
    """Where the state of the unfinished run of `out` stands: beside it, hidden."""
    target = storage.absolute(out).rstrip("/")
    return storage.join(storage.parent(target), f".{target.rsplit('/', 1)[-1]}.run")


def claim(folder: PathLike) -> None:
    """Makes a folder for working files, with a mark that it is raymotion's: only such a folder may be removed.

    Raises:
        InputError: it holds something, and no mark.
    """
    if is_claimed(folder):
        return
    there = storage.list_entries(folder)
    if there:
        raise InputError(
            f"holds {there[0]}, and was not made by raymotion, which keeps an unfinished run there",
            path=folder,
            remedy="Move it, or choose another --out.",
        )
    storage.write_json(storage.join(folder, MARK), {"made_by": "raymotion"})


def is_claimed(folder: PathLike) -> bool:
    """Whether `claim` marked the folder."""
    path = storage.join(folder, MARK)
    try:
        found = storage.read_json(path) if storage.exists(path) else None
    except InputError:
        return False
    return isinstance(found, dict) and found.get("made_by") == "raymotion"


def remove_claimed(folder: PathLike) -> None:
    """Removes a folder that `claim` marked, with all that is in it; leaves any other alone."""
    if is_claimed(folder):
        storage.remove_tree(folder)
