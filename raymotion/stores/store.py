"""Interface of the stores behind `storage`: S3 (the module `s3`), the web and other stores (`fsspec_stores`)."""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol


class Store(Protocol):
    """Reads and writes files by full address; raises FileNotFoundError and PermissionError as a local disk does."""

    def read(self, address: str, start: int | None = None, end: int | None = None) -> bytes:
        """Reads a file, or its bytes from `start` up to but excluding `end`."""

    def size(self, address: str) -> int:
        """Returns the size of a file in bytes."""

    def write(self, address: str, data: bytes) -> None:
        """Writes a file atomically."""

    def remove(self, address: str) -> None:
        """Removes a file."""

    def remove_tree(self, address: str) -> None:
        """Removes all files below the address."""

    def exists(self, address: str) -> bool:
        """Returns whether the file or folder exists."""

    def is_dir(self, address: str) -> bool:
        """Returns whether there are files below the address."""

    def names(self, address: str) -> list[str]:
        """Returns the names of the files directly below the address."""

    def entries(self, address: str) -> dict[str, dict[str, Any]]:
        """Returns the store's metadata of files and folders directly below the address, by name; folders end in `/`."""

    def tree(self, address: str) -> list[str]:
        """Returns the names of all files below the address, relative to it."""

    def open_file(self, address: str) -> BinaryIO:
        """Opens a seekable file for reading."""
