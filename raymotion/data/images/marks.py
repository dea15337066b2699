"""Identifies image files by size and digest, independent of their location."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raymotion import storage
from raymotion.errors import RaymotionError, StoreUnavailable

# Maximum number of images that are read for one comparison: 2,000 photographs are some 300 MB.
LOCAL_DIGESTS, REMOTE_DIGESTS = 2_000, 16
# Maximum number of folders of an object store that are listed to get file sizes.
REMOTE_FOLDERS = 32
THREADS = 16


@dataclass(frozen=True)
class PictureMark:
    """Identifies an image file by its size in bytes and 16 hex digits of its BLAKE2b digest."""

    size: int
    digest: str


def mark_of(data: bytes) -> PictureMark:
    """Computes the mark of an image file's bytes; 0.2 ms for a photograph."""
    return PictureMark(len(data), hashlib.blake2b(data, digest_size=8).hexdigest())


@dataclass(frozen=True)
class Picture:
    """One side's view of an image in a join: its address, and its mark if it was read and recorded."""

    uri: str | None
    mark: PictureMark | None = None


def address(uri: str) -> str:
    """Normalizes `uri`, so that two addresses of the same file are equal."""
    if uri.startswith("/") and "//" not in uri and "/." not in uri and not uri.endswith("/"):
        return uri  # most are, and there may be a hundred thousand
    return storage.absolute(uri)


def stamps(uris: Sequence[str | None]) -> list[list[object]]:
    """Returns values that change with the file at each address: size and times, or a store's entity tag.

    Used in names of caches; files are not read. If a file cannot be inspected, its stamp is only the address.
    """
    listed = _listings([uri for uri in uris if uri is not None and is_store(uri)])
    found: list[list[object]] = []
    for uri in uris:
        if uri is None:
            found.append([None])
        elif storage.is_remote(uri):
            info = listed.get(address(uri), {})
            tag = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
            found.append([uri, info.get("size"), str(tag)] if info else [uri])
        else:
            try:
                own = os.stat(address(uri))
                # The time of change too: a copy may keep the time of modification, and a bitmap its size.
                found.append([uri, own.st_size, own.st_mtime_ns, own.st_ctime_ns])
            except OSError:
                found.append([uri])
    return found


def fingerprints(pictures: Sequence[Picture]) -> list[list[str | int | None] | None]:
    """Returns [name, size, digest] of each image for a fingerprint of the data, independent of the folder.

    The digest is the recorded one, or that of the file. Only an even sample of the files is read; for the others, the
    digest is None.
    """
    files = Files(own.uri for own in pictures if own.uri is not None and own.mark is None)
    files.read(set(files.sizes), None)
    result: list[list[str | int | None] | None] = []
    for own in pictures:
        if own.uri is None:
            result.append(None)
            continue
        mark = own.mark or files.marks.get(address(own.uri))
        size = mark.size if mark else files.sizes.get(own.uri)
        result.append([file_name(own.uri), size, mark.digest if mark else None])
    return result


def file_name(uri: str) -> str:
    """Returns the last component of a path (also of a Windows path) or an address."""
    return uri.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def read_mark(uri: str) -> PictureMark | None:
    """Computes the mark of the file at `uri`; None if it cannot be read.

    Raises:
        StoreUnavailable: the store does not respond, so the state of the file is unknown.
    """
    try:
        return mark_of(storage.read_bytes(address(uri)))
    except StoreUnavailable:
        raise
    except (OSError, RaymotionError, ValueError):
        return None


class Files:
    """Sizes of a set of files, and marks of those that were read.

    Attributes:
        sizes: size by address as given. Files that cannot be inspected are missing; None for files in folders of a
            store that were not listed.
        marks: marks of the files read so far, by normalized address.
        failed: normalized addresses of the files that could not be read.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self.sizes: dict[str, int | None] = {}
        self.marks: dict[str, PictureMark] = {}
        self.failed: set[str] = set()
        self._changed: dict[str, float] = {}
        distinct = list(dict.fromkeys(uris))
        local = [uri for uri in distinct if not storage.is_remote(uri)]
        for uri, found in zip(local, _in_threads(_stat, local), strict=True):
            if found is not None:
                self.sizes[uri], self._changed[uri] = found
        remote = [uri for uri in distinct if is_store(uri)]
        if len(remote) <= REMOTE_DIGESTS:
            self._read_now(remote)
            self.sizes |= {uri: self.marks[address(uri)].size for uri in remote if address(uri) in self.marks}
        else:
            folders = list(dict.fromkeys(storage.parent(address(uri)) for uri in remote))[:REMOTE_FOLDERS]
            listed = _listings([uri for uri in remote if storage.parent(address(uri)) in folders])
            for uri in remote:
                if address(uri) in listed:
                    self.sizes[uri] = int(listed[address(uri)]["size"])
                elif storage.parent(address(uri)) not in folders:
                    self.sizes[uri] = None

    def read(self, uris: set[str], since: float | None) -> None:
        """Reads the marks of `uris`, up to the limits; local files changed since `since` (epoch seconds) come first."""
        wanted = [uri for uri in self.sizes if uri in uris and address(uri) not in self.marks]
        local = [uri for uri in wanted if not storage.is_remote(uri)]
        fresh = [uri for uri in local if since is not None and self._changed[uri] >= since]
        chosen = evenly(fresh, LOCAL_DIGESTS)
        others = [uri for uri in local if since is None or self._changed[uri] < since]
        chosen += evenly(others, LOCAL_DIGESTS - len(chosen))
        self._read_now(chosen + evenly([uri for uri in wanted if storage.is_remote(uri)], REMOTE_DIGESTS))

    def _read_now(self, uris: Sequence[str]) -> None:
        for uri, mark in zip(uris, _in_threads(read_mark, uris), strict=True):
            if mark is not None:
                self.marks[address(uri)] = mark
            else:
                self.failed.add(address(uri))


def evenly(values: Sequence[str], most: int) -> list[str]:
    """Returns up to `most` of the values, at equal distances."""
    if len(values) <= most:
        return list(values)
    return [values[i * len(values) // most] for i in range(max(0, most))]


def _in_threads(work: Callable[[str], Any], uris: Sequence[str]) -> list[Any]:
    if len(uris) < 8:
        return [work(uri) for uri in uris]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, uris, chunksize=1))


def _stat(uri: str) -> tuple[int, float] | None:
    """Returns the size of a file and the time of its last change."""
    try:
        found = os.stat(address(uri))
    except (OSError, ValueError):
        return None
    return found.st_size, max(found.st_mtime, found.st_ctime)


def is_store(uri: str) -> bool:
    """Returns whether an address is in an object store (not on a web server, where nothing is fetched unasked)."""
    return storage.is_remote(uri) and not is_web(uri) and storage.scheme_of(uri) != "tar"


def is_web(uri: str) -> bool:
    """Returns whether an address is on a web server."""
    return uri.lower().startswith(("http://", "https://", "ftp://"))


def _listings(uris: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the listing entries of files in object stores, by normalized address; lists each folder once.

    Raises:
        StoreUnavailable: the store does not respond.
    """
    folders: dict[str, dict[str, str]] = {}
    for uri in uris:
        place = address(uri)
        folders.setdefault(storage.parent(place), {})[posixpath.basename(place)] = place
    found: dict[str, dict[str, Any]] = {}
    for folder, names in folders.items():
        try:
            entries = storage.list_remote(folder)
        except StoreUnavailable:
            raise
        except Exception:  # whatever a library for another store raises
            continue
        for name, entry in entries.items():
            if name in names and entry.get("size") is not None:
                found[names[name]] = entry
    return found
