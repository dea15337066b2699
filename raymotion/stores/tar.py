"""Files inside a tar, read where they lie: `tar://FILE?offset=N&size=N&member=NAME`, FILE being a path or an address.

`data.records` writes such addresses for WebDataset shards. Nothing is unpacked; only uncompressed tars have places.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from raymotion.errors import InputError

SCHEME = "tar"
_ADDRESS = re.compile(r"tar://(.+)\?offset=(\d{1,15})&size=(\d{1,15})&member=([^&/?]*)")


@dataclass(frozen=True)
class Place:
    """A file inside a tar: the tar's path or address, where its bytes begin and how many they are, and its name."""

    file: str
    offset: int
    size: int
    member: str

    @property
    def address(self) -> str:
        """The address of the place."""
        return f"tar://{self.file}?offset={self.offset}&size={self.size}&member={quote(self.member, safe='')}"


def place_of(address: str) -> Place:
    """Parses an address.

    Raises:
        InputError: it names no place in a tar.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(
            "is not an address inside a tar",
            path=address[:200],
            remedy="Prepare the table again with `raymotion data prepare table`, which writes them.",
        )
    return Place(found[1], int(found[2]), int(found[3]), unquote(found[4]))


class Tar:
    """The store of these addresses, which can only be read.

    Args:
        read: returns the bytes of a file from a start up to but excluding an end.
        exists: returns whether a file exists.
    """

    def __init__(self, read: Callable[[str, int, int], bytes], exists: Callable[[str], bool]) -> None:
        self._read, self._exists = read, exists

    def read(self, address: str, start: int | None = None, end: int | None = None) -> bytes:
        place = place_of(address)
        first, last, _ = slice(start, end).indices(place.size)
        return self._read(place.file, place.offset + first, place.offset + max(first, last))

    def open_file(self, address: str) -> BinaryIO:
        return io.BytesIO(self.read(address))

    def size(self, address: str) -> int:
        return place_of(address).size

    def exists(self, address: str) -> bool:
        return self._exists(place_of(address).file)

    def is_dir(self, address: str) -> bool:
        return False

    def names(self, address: str) -> list[str]:
        raise PermissionError(1, "A tar is listed by `raymotion data prepare table` only")

    tree = names

    def entries(self, address: str) -> dict[str, dict[str, Any]]:
        return {}

    def write(self, address: str, data: bytes) -> None:
        raise PermissionError(1, "A tar can be read only")

    def remove(self, address: str) -> None:
        raise PermissionError(1, "A tar can be read only")

    remove_tree = remove
