"""A lease: a lock for stores without locks. Its owner renews a record, and others may take over one that is stale.

On S3 the record is written conditionally (`If-None-Match`, `If-Match`), so that only one of several writers succeeds.
On other stores it is created, exclusively if possible, and read back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from raymotion import storage
from raymotion.errors import InputError
from raymotion.folders.owner import Owner

# Seconds between two renewals, and seconds without one after which a lock may be taken over.
BEAT, STALE = 5.0, 60.0


def refusal(owner: Owner | None, folder: storage.PathLike) -> InputError:
    """Returns the error for a second writer of a folder."""
    who = owner.describe() if owner is not None else "another process"
    return InputError(
        f"is being written by {who}",
        path=folder,
        remedy="Wait until it has ended, or end it; then run this command again.",
    )


def await_silence(owner: Owner, folder: storage.PathLike, stamp: Callable[[], str | None], age: float) -> None:
    """Waits until `owner` is dead or stale; raises as soon as it is known to be alive.

    Args:
        stamp: returns a value that changes with each renewal; None if the record is gone.
        age: seconds since the last renewal, if known.
    """
    lives = owner.lives()
    if lives:
        raise refusal(owner, folder)
    first, until = stamp(), time.monotonic() + STALE - age
    while lives is None and time.monotonic() < until:
        time.sleep(min(1.0, BEAT / 4))
        if stamp() != first:
            raise refusal(owner, folder)


class Cell(Protocol):
    """A small object with compare-and-swap; `stamp` identifies its version."""

    def read(self) -> tuple[bytes, str, float] | None:
        """Returns content, stamp and age in seconds (0 if unknown); None if the object does not exist."""

    def create(self, data: bytes) -> str | None:
        """Returns the new stamp; None if the object already exists."""

    def replace(self, data: bytes, stamp: str) -> str | None:
        """Returns the new stamp; None if the object has changed since `stamp`."""

    def remove(self) -> None: ...


class Lease:
    """A lock as a record in a store, renewed by its owner."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.owner, self.beats, self.stamp = cell, Owner.here(), 0, ""
        self.released = False

    def _data(self) -> bytes:
        # Each renewal differs, since a store's stamp may be a digest of the content.
        return json.dumps({**asdict(self.owner), "beats": self.beats}).encode()

    def take(self, folder: storage.PathLike) -> Lease:
        while True:
            stamp = self.cell.create(self._data())
            if stamp is None:
                found = self.cell.read()
                if found is None:
                    continue
                data, seen, age = found
                owner = Owner.read(data)
                if owner is None:
                    owner = Owner("", "unknown", "", "", 1, None, "an unreadable record", time.time())
                if owner.token == self.owner.token:  # the response to our own request was lost
                    stamp = seen
                else:
                    await_silence(owner, folder, self._stamp_now, age)
                    stamp = self.cell.replace(self._data(), seen)
            if stamp is not None and self._is_mine():
                self.stamp = stamp
                return self

    def _stamp_now(self) -> str | None:
        found = self.cell.read()
        return None if found is None else found[1]

    def _is_mine(self) -> bool:
        found = self.cell.read()
        owner = None if found is None else Owner.read(found[0])
        return owner is not None and owner.token == self.owner.token

    def renew(self) -> bool:
        self.beats += 1
        stamp = self.cell.replace(self._data(), self.stamp)
        if stamp is None:
            found = self.cell.read()
            if found is None and not self.released:  # removed by hand: recreate it, unless another process was faster
                stamp = self.cell.create(self._data())
            elif found and (owner := Owner.read(found[0])) is not None and owner.token == self.owner.token:
                stamp = found[1]  # the response to an earlier renewal was lost
        if stamp is None:
            return False
        self.stamp = stamp
        if self.released:  # released meanwhile: this renewal may have recreated the record
            self._remove()
        return True

    def release(self) -> None:
        """Removes the record, even if another thread is renewing it."""
        self.released = True
        self._remove()

    def _remove(self) -> None:
        if self._is_mine():
            self.cell.remove()


def cell_at(path: str) -> Cell:
    """Returns the cell of an address, using compare-and-swap if its store supports it."""
    fs, inner = storage.filesystem(path)
    return _S3Cell(fs, path) if hasattr(fs, "call_s3") else _PlainCell(fs, inner, remote=storage.is_remote(path))


class _S3Cell:
    """An object in S3. Its age is measured by the server's clock only."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs, self.path = fs, path
        self.bucket, self.key, _ = fs.split_path(path)
        self.conditional = True

    def _put(self, data: bytes, **condition: str) -> str | None:
        if not self.conditional:
            condition = {}
        # A failed condition is a result, not an error for `explained`.
        with storage.explained(self.path, "write it"):
            try:
                answer = self.fs.call_s3("put_object", Bucket=self.bucket, Key=self.key, Body=data, **condition)
            except FileExistsError:
                return None
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise InputError(
                        "there is no such bucket", path=self.path, remedy="Make it, or check its name."
                    ) from error
                return None  # If-Match on a removed object
            except OSError as error:
                if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    return None
                if not (condition and (error.errno == errno.ENOSYS or _code(error) in ("NotImplemented", "501"))):
                    raise
            else:
                self.fs.invalidate_cache(self.path)
                return str(answer["ETag"])
        self.conditional = False
        if self.read() is not None and "IfNoneMatch" in condition:
            return None
        return self._put(data)

    def create(self, data: bytes) -> str | None:
        return self._put(data, IfNoneMatch="*")

    def replace(self, data: bytes, stamp: str) -> str | None:
        return self._put(data, IfMatch=stamp)

    def read(self) -> tuple[bytes, str, float] | None:
        from email.utils import parsedate_to_datetime

        try:
            with storage.explained(self.path, "read it"):
                head = self.fs.call_s3("head_object", Bucket=self.bucket, Key=self.key)
                data = self.fs.cat_file(self.path)
        except FileNotFoundError:
            return None
        age = 0.0
        with contextlib.suppress(KeyError, TypeError, ValueError):
            now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
            # Both are in whole seconds, so their difference may overstate the age by almost one second.
            age = max(0.0, (now - head["LastModified"]).total_seconds() - 1.0)
        return bytes(data), str(head["ETag"]), age

    def remove(self) -> None:
        self.fs.rm_file(self.path)


def _code(error: BaseException) -> str:
    return str(((getattr(error.__cause__, "response", None) or {}).get("Error") or {}).get("Code", ""))


class _PlainCell:
    """A file in another store, or on a disk without locks; created exclusively if the store supports it."""

    def __init__(self, fs: Any, path: str, *, remote: bool) -> None:
        self.fs, self.path, self.remote = fs, path, remote

    def create(self, data: bytes) -> str | None:
        if self.fs.exists(self.path):
            return None
        try:
            with self.fs.open(self.path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return None
        except (ValueError, NotImplementedError):  # a store that cannot create exclusively
            self.fs.pipe_file(self.path, data)
        return data.decode()

    def replace(self, data: bytes, stamp: str) -> str | None:
        found = self.read()
        if found is None or found[1] != stamp:
            return None
        if self.remote:
            self.fs.pipe_file(self.path, data)
        else:  # atomically, since others read it during a renewal
            storage.write_bytes(self.path, data, durable=False)
        return data.decode()

    def read(self) -> tuple[bytes, str, float] | None:
        try:
            data = bytes(self.fs.cat_file(self.path))
        except FileNotFoundError:
            return None
        return data, data.decode(errors="replace"), 0.0

    def remove(self) -> None:
        self.fs.rm_file(self.path)
