"""What a picture is known by without its pixels: the size and the digest of its bytes, wherever it lies."""

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

# Pictures whose bytes are read for one comparison: 2,000 photographs are some 300 MB.
LOCAL_DIGESTS, REMOTE_DIGESTS = 2_000, 16
# Folders of an object store that are listed for the sizes of their files.
REMOTE_FOLDERS = 32
THREADS = 16


@dataclass(frozen=True)
class PictureMark:
    """What the bytes of a picture are known by: how many there are, and 16 hex digits of their BLAKE2b digest."""

    size: int
    digest: str


def mark_of(data: bytes) -> PictureMark:
    """The mark of a picture's bytes; 0.2 ms for a photograph."""
    return PictureMark(len(data), hashlib.blake2b(data, digest_size=8).hexdigest())


@dataclass(frozen=True)
class Picture:
    """A picture as one side of a join knows it: its address, and its mark if its bytes were read and recorded."""

    uri: str | None
    mark: PictureMark | None = None


def address(uri: str) -> str:
    """`uri` in the form in which two of the same file are equal."""
    if uri.startswith("/") and "//" not in uri and "/." not in uri and not uri.endswith("/"):
        return uri  # most are, and there may be a hundred thousand
    return storage.absolute(uri)


def stamps(uris: Sequence[str | None]) -> list[list[object]]:
    """What changes when the file at an address does, without reading it: size and times, or a store's entity tag.

    For names of caches. An address whose file cannot be looked at stands for itself.
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
    """What the picture of each row is known by in a fingerprint of data, wherever it lies: name, size and digest.

    The digest is the recorded one, or that of the file, for an even sample of the files; None of those that were not
    read. A folder that was moved gives the same.
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
    """The last part of a path or an address; Windows paths included."""
    return uri.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def read_mark(uri: str) -> PictureMark | None:
    """The mark of the file at `uri`; None if it cannot be read.

    Raises:
        StoreUnavailable: its store does not answer, which says nothing of the file.
    """
    try:
        return mark_of(storage.read_bytes(address(uri)))
    except StoreUnavailable:
        raise
    except (OSError, RaymotionError, ValueError):
        return None


class Files:
    """Files at addresses: their sizes, and the marks of those that were read.

    Attributes:
        sizes: by address as given; an address whose file cannot be looked at is not in it, one of a store's folder
            that was not listed has None.
        marks: by normal address, of the files that `read` has read.
        failed: normal addresses of the files that could not be read.
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
        """Reads the marks of `uris`, or of as many as one comparison may read."""
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
    """`most` of the values at equal distances, or all."""
    if len(values) <= most:
        return list(values)
    return [values[i * len(values) // most] for i in range(max(0, most))]


def _in_threads(work: Callable[[str], Any], uris: Sequence[str]) -> list[Any]:
    if len(uris) < 8:
        return [work(uri) for uri in uris]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, uris, chunksize=1))


def _stat(uri: str) -> tuple[int, float] | None:
    """Size, and when the file last changed."""
    try:
        found = os.stat(address(uri))
    except (OSError, ValueError):
        return None
    return found.st_size, max(found.st_mtime, found.st_ctime)


def is_store(uri: str) -> bool:
    """Whether an address is of an object store. Of a web server nothing is fetched that nobody asked for."""
    return storage.is_remote(uri) and not is_web(uri)


def is_web(uri: str) -> bool:
    """Whether an address is of a web server."""
    return uri.lower().startswith(("http://", "https://", "ftp://"))


def _listings(uris: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What an object store's listings say of files, by normal address; one listing for each folder.

    Raises:
        StoreUnavailable: the store does not answer.
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
