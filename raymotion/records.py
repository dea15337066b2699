"""Small JSON files that raymotion writes and reads back: sealed, so that damage is noticed and never acted on.

A sealed record carries a digest of its own content under "seal". One that was cut, emptied, overwritten or edited since
it was written raises `Damaged`, and the caller decides what that means: work that is not done, a second copy, or the
end of the command with one line. A record without a seal was written by something else; it is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.errors import AccessDenied, Damaged, InputError

if TYPE_CHECKING:
    import numpy as np

SEAL = "seal"


def seal_of(value: Mapping[str, Any]) -> str:
    """16 hex digits of a record's content, as JSON holds it."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with its seal."""
    plain = {name: own for name, own in value.items() if name != SEAL}
    return {**plain, SEAL: seal_of(plain)}


def write_record(path: storage.PathLike, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes a sealed record, atomically."""
    storage.write_json(path, sealed(value), durable=durable)


def read_record(path: storage.PathLike, *, remedy: str | None = None, needs_seal: bool = False) -> dict[str, Any]:
    """A record without its seal.

    Args:
        remedy: what the user can do about a damaged one.
        needs_seal: nothing but raymotion writes this file, so one without a seal is damaged too.

    Raises:
        Damaged: it is empty, cut off, no JSON, no mapping, or not what was written.
        InputError: there is no such file.
    """
    record, has_seal = _read(path, remedy)
    if needs_seal and not has_seal:
        raise Damaged("is damaged: it has no seal", path=path, remedy=remedy)
    return record


def _read(path: storage.PathLike, remedy: str | None) -> tuple[dict[str, Any], bool]:
    """A record without its seal, and whether it had one, which fits then."""
    try:
        found = storage.read_json(path)
    except AccessDenied:
        raise
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise Damaged(f"is damaged: it {error.reason}", path=path, remedy=remedy) from error
    if not isinstance(found, dict):
        raise Damaged("is damaged: it holds no mapping", path=path, remedy=remedy)
    has_seal = SEAL in found
    seal = found.pop(SEAL, None)
    try:
        fits = not has_seal or seal == seal_of(found)
    except (ValueError, RecursionError):  # no JSON of ours: numbers that are none, or nested without end
        fits = False
    if not fits:
        raise Damaged("is damaged: it is not what was written", path=path, remedy=remedy)
    return found, has_seal


def copy_of(path: storage.PathLike) -> str:
    """Where the second copy of a record stands: beside it, hidden from readers of data."""
    text = str(path)
    return storage.join(storage.parent(text), f"_{text.rsplit('/', 1)[-1]}")


def write_twice(path: storage.PathLike, value: Mapping[str, Any]) -> None:
    """Writes a sealed record and, before it, a second copy: whatever happens, one of them is whole."""
    write_record(copy_of(path), value)
    write_record(path, value)


def read_twice(path: storage.PathLike, *, remedy: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """What `write_twice` wrote: the record, or its copy where that is damaged or gone; None where there is neither.

    Returns:
        the record, and why it had to be taken from the copy, if it had.

    Raises:
        Damaged: there is a record, and neither it nor the copy can be read.
    """
    reason = "is missing"
    try:
        record, has_seal = _read(path, remedy)
        if has_seal or not storage.exists(copy_of(path)):
            return record, None
        reason = "is damaged: it has no seal"
    except Damaged as error:
        reason = error.reason
    except AccessDenied:
        raise
    except InputError:
        if not storage.exists(copy_of(path)):
            return None, None
    try:
        return read_record(copy_of(path), needs_seal=True), reason
    except AccessDenied:
        raise
    except InputError as error:
        raise Damaged(f"{reason}, and there is no good copy of it", path=path, remedy=remedy) from error


def read_bytes(path: storage.PathLike, sha256: str | None, *, remedy: str | None = None) -> bytes:
    """A file whose SHA-256 (hex) stands in a record; None: it was not recorded.

    Raises:
        Damaged: the file is not the one that was recorded, or there is none.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged("is missing", path=path, remedy=remedy) from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged("is damaged: it is not what was written", path=path, remedy=remedy)
    return data


def read_arrays(path: storage.PathLike, sha256: str | None, *, remedy: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose SHA-256 stands in a record; None: it was not recorded.

    Raises:
        Damaged: the file is not the one that was recorded, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_bytes(path, sha256, remedy=remedy)
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"is damaged ({error})", path=path, remedy=remedy) from error
