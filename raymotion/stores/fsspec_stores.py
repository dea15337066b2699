"""Stores other than local disks and S3: read-only web addresses, and the stores of other clouds through fsspec."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from raymotion.stores import web
from raymotion.stores.access import Retries, retried

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")


class Web:
    """Files behind http(s), which can only be read: even their size and existence are found by reading them."""

    def read(self, address: str, start: int | None = None, end: int | None = None) -> bytes:
        return web.read(address)[slice(start, end)]

    def open_file(self, address: str) -> BinaryIO:
        return io.BytesIO(web.read(address))

    def exists(self, address: str) -> bool:
        try:
            web.read(address)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, address: str) -> bool:
        return False

    def size(self, address: str) -> int:
        return len(web.read(address))

    def names(self, address: str) -> list[str]:
        raise PermissionError(1, "An http(s) address cannot be listed")

    tree = names

    def entries(self, address: str) -> dict[str, dict[str, Any]]:
        raise PermissionError(1, "An http(s) address cannot be listed")

    def write(self, address: str, data: bytes) -> None:
        raise PermissionError(1, "An http(s) address can be read only")

    def remove(self, address: str) -> None:
        raise PermissionError(1, "An http(s) address can be read only")

    remove_tree = remove


class Generic:
    """A store that fsspec supports, with requests retried while it fails."""

    def __init__(self, fs: AbstractFileSystem, inner: str) -> None:
        self.fs, self.inner = fs, inner

    def _try(self, address: str, action: str, act: Callable[[], T]) -> T:
        return retried(Retries(address, action, address.split("://", 1)[0]), act, _is_passing)

    def read(self, address: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._try(address, "read it", lambda: bytes(self.fs.cat_file(self.inner, start=start, end=end)))

    def open_file(self, address: str) -> BinaryIO:
        return self._try(address, "read it", lambda: self.fs.open(self.inner, "rb"))

    def exists(self, address: str) -> bool:
        return self._try(address, "look at it", lambda: bool(self.fs.exists(self.inner)))

    def is_dir(self, address: str) -> bool:
        return self._try(address, "look at it", lambda: bool(self.fs.isdir(self.inner)))

    def size(self, address: str) -> int:
        return self._try(address, "look at it", lambda: int(self.fs.size(self.inner)))

    def names(self, address: str) -> list[str]:
        return [name for name in self.entries(address) if not name.endswith("/")]

    def entries(self, address: str) -> dict[str, dict[str, Any]]:
        own = self.inner.rstrip("/")

        def look() -> dict[str, dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self.fs.ls(self.inner, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
            entries = {}
            for entry in found:
                name = entry["name"].rstrip("/")
                if name != own:  # a listing of a file contains the file itself
                    end = "/" if entry["type"] == "directory" else ""
                    entries[posixpath.basename(name) + end] = dict(entry)
            return entries

        return self._try(address, "list it", look)

    def tree(self, address: str) -> list[str]:
        base = self.inner if self.inner.endswith("/") else f"{self.inner}/"

        def look() -> list[str]:
            self.fs.invalidate_cache()
            return [str(path)[len(base) :] for path in self.fs.find(self.inner) if str(path).startswith(base)]

        return self._try(address, "list it", look)

    def write(self, address: str, data: bytes) -> None:
        self._try(address, "write it", lambda: self.fs.pipe_file(self.inner, data))

    def remove(self, address: str) -> None:
        self._try(address, "remove it", lambda: self.fs.rm_file(self.inner))

    def remove_tree(self, address: str) -> None:
        self._try(address, "remove it", lambda: self.fs.rm(self.inner, recursive=True))


def _is_passing(error: Exception) -> bool:
    refusals = FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError
    return isinstance(error, OSError | TimeoutError) and not isinstance(error, refusals)
