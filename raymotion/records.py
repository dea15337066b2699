"""Small JSON records with a seal, so that damage is detected.

A sealed record holds a digest of its own content under "seal". Reading one that was truncated, emptied, overwritten or
edited raises `Damaged`, and the caller decides what to do: redo the work, use a second copy, or stop the command. A
record without a seal was written by other software and is accepted as it is.
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
    """Returns a digest (16 hex digits) of a record's content in JSON."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `value` with its seal."""
    plain = {name: own for name, own in value.items() if name != SEAL}
    return {**plain, SEAL: seal_of(plain)}


def write_record(path: storage.PathLike, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes a sealed record, atomically."""
    storage.write_json(path, sealed(value), durable=durable)


def read_record(path: storage.PathLike, *, remedy: str | None = None, needs_seal: bool = False) -> dict[str, Any]:
    """Reads a record and removes its seal.

    Args:
        remedy: advice to the user if the record is damaged.
        needs_seal: treat a record without a seal as damaged, since only raymotion writes this file.

    Raises:
        Damaged: the record is empty, truncated, changed, or not a JSON mapping.
        InputError: there is no such file.
    """
    record, has_seal = _read(path, remedy)
    if needs_seal and not has_seal:
        raise Damaged("is damaged: it has no seal", path=path, remedy=remedy)
    return record


def _read(path: storage.PathLike, remedy: str | None) -> tuple[dict[str, Any], bool]:
    """Returns a record without its seal, and whether it had one; a seal that does not match raises `Damaged`."""
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
    except (ValueError, RecursionError):  # not written by raymotion: NaN, or nested too deeply
        fits = False
    if not fits:
        raise Damaged("is damaged: it is not what was written", path=path, remedy=remedy)
    return found, has_seal


def copy_of(path: storage.PathLike) -> str:
    """Returns the path of a record's second copy: next to it, hidden from readers of data."""
    text = str(path)
    return storage.join(storage.parent(text), f"_{text.rsplit('/', 1)[-1]}")


def write_twice(path: storage.PathLike, value: Mapping[str, Any]) -> None:
    """Writes a second copy of a sealed record and then the record, so that one of them is always intact."""
    write_record(copy_of(path), value)
    write_record(path, value)


def read_twice(path: storage.PathLike, *, remedy: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """Reads the record that `write_twice` wrote, or its copy if the record is damaged or missing.

    Returns:
        the record (None if there is neither), and the reason for using the copy, if it was used.

    Raises:
        Damaged: neither the record nor its copy can be read, and at least one exists.
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
    """Reads a file and checks its SHA-256 (hex) against the recorded one; None: not recorded, not checked.

    Raises:
        Damaged: the file differs from the recorded one, or is missing.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged("is missing", path=path, remedy=remedy) from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged("is damaged: it is not what was written", path=path, remedy=remedy)
    return data


def read_arrays(path: storage.PathLike, sha256: str | None, *, remedy: str | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of a safetensors file; see `read_bytes` for `sha256`.

    Raises:
        Damaged: the file differs from the recorded one, is missing, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_bytes(path, sha256, remedy=remedy)
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"is damaged ({error})", path=path, remedy=remedy) from error
