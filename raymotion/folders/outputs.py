"""Checks that commands overwrite or remove only files of raymotion, known by a mark or their content, not by name."""

from __future__ import annotations

from collections.abc import Callable

from raymotion import storage
from raymotion.errors import InputError
from raymotion.storage import MARK, PathLike
from raymotion.stores.local_files import file_to_write


def require_replaceable(path: PathLike, kind: str, is_kind: Callable[[bytes], bool]) -> None:
    """Raises unless `path` does not exist, is an empty file, or is a file of this kind.

    Args:
        kind: kind of the file to write, with its article, for the message: `a report`.
        is_kind: tests whether a file that begins with these bytes (up to 4096) is of this kind.
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
    """Returns the first line of `head`, without its line break."""
    return head.split(b"\n", 1)[0].rstrip(b"\r")


def is_page(head: bytes) -> bool:
    """Returns whether a file that begins with `head` is an HTML page made by raymotion."""
    return head.lstrip()[:14].lower() == b"<!doctype html" and b"<title>raymotion" in head


def run_folder(out: PathLike) -> str:
    """Returns the hidden folder next to `out` that holds the state of an unfinished run."""
    target = storage.absolute(out).rstrip("/")
    return storage.join(storage.parent(target), f".{target.rsplit('/', 1)[-1]}.run")


def claim(folder: PathLike) -> None:
    """Creates a folder for working files and marks it as made by raymotion; only marked folders are ever removed.

    Raises:
        InputError: the folder is not empty and has no mark.
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
    """Returns whether `claim` marked the folder."""
    path = storage.join(folder, MARK)
    try:
        found = storage.read_json(path) if storage.exists(path) else None
    except InputError:
        return False
    return isinstance(found, dict) and found.get("made_by") == "raymotion"


def remove_claimed(folder: PathLike) -> None:
    """Removes a folder and its content if `claim` marked it."""
    if is_claimed(folder):
        storage.remove_tree(folder)
