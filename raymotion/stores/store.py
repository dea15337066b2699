"""What `storage` asks of a store: of S3 (the module `s3`), of the web and of what fsspec knows (`fsspec_stores`)."""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol


class Store(Protocol):
    """Addresses are complete. A missing file is a FileNotFoundError, a refusal a PermissionError."""

    def read(self, address: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to before `end`."""

    def size(self, address: str) -> int:
        """Bytes of a file."""

    def write(self, address: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""

    def remove(self, address: str) -> None:
        """Removes a file."""

    def remove_tree(self, address: str) -> None:
        """Removes all files below the address."""

    def exists(self, address: str) -> bool:
        """Whether there is such a file or folder."""

    def is_dir(self, address: str) -> bool:
        """Whether files lie below the address."""

    def names(self, address: str) -> list[str]:
        """Names of the files directly below the address."""

    def entries(self, address: str) -> dict[str, dict[str, Any]]:
        """What the store says of what lies directly below the address, by name; folders end in `/`."""

    def tree(self, address: str) -> list[str]:
        """All files below the address, relative to it."""

    def open_file(self, address: str) -> BinaryIO:
        """A file for reading and seeking."""
