"""Reads and writes files on disk and in object stores.

A path is a local path or an address (`s3://bucket/key`; `_remote` lists the stores). Names are taken literally: `a//b`,
`a::b`, `a#b` and `a%20b` are four different keys. Writes are atomic: a local file is written under a temporary name in
the same folder, flushed and renamed; a PUT to an object store is atomic. Requests to a failing store are repeated
(`access.Retries`). Endpoint and credentials of S3 come from the usual AWS variables (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_PROFILE` ...).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from raymotion.errors import AccessDenied, Damaged, InputError, NotFinite, RaymotionError
from raymotion.stores import tar
from raymotion.stores.addresses import (
    HTTP_SCHEMES,
    S3_SCHEMES,
    PathLike,
    absolute,
    child,
    is_http,
    is_remote,
    join,
    parent,
    require_allowed,
    require_allowed_in_table,
    scheme_of,
    suffix,
)
from raymotion.stores.local_files import disk_full, file_to_write, is_full
from raymotion.stores.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem

__all__ = [
    "LOCK",
    "MARK",
    "PathLike",
    "absolute",
    "arrow_filesystem",
    "child",
    "exists",
    "explained",
    "filesystem",
    "first_not_finite",
    "is_dir",
    "is_http",
    "is_remote",
    "join",
    "json_text",
    "list_entries",
    "list_names",
    "list_remote",
    "list_sizes",
    "list_tree",
    "make_dir",
    "open_input",
    "parent",
    "parquet_bytes",
    "probe_writable",
    "read_bytes",
    "read_from",
    "read_head",
    "read_json",
    "read_table",
    "read_text",
    "remove",
    "remove_tree",
    "require",
    "require_allowed",
    "require_allowed_in_table",
    "require_folder",
    "scheme_of",
    "sha256_file",
    "size_of",
    "store_of",
    "suffix",
    "write_bytes",
    "write_json",
    "write_table",
    "write_text",
]

# Hidden names of raymotion: the lock of a folder (`folders.lock`), and a folder of working files.
LOCK, MARK = ".raymotion.lock", ".raymotion.json"
# Matches a number in JSON that may exceed the range of a float.
_LARGE_EXPONENT = re.compile(r"\d[eE]\+?\d{3}")


def filesystem(path: PathLike) -> tuple[AbstractFileSystem, str]:
    """Returns the fsspec file system of `path` and the path within it, for libraries that need one."""
    import fsspec

    require_allowed(path)
    text = absolute(path)
    scheme = scheme_of(text)
    if scheme is None:
        return fsspec.filesystem("file"), text
    if scheme in S3_SCHEMES:
        from raymotion.stores import s3

        return s3.filesystem(), text.split("://", 1)[1]
    # By scheme, not with `url_to_fs`, which interprets `::` in a name as a chain of file systems.
    try:
        return fsspec.filesystem(scheme), text.split("://", 1)[1]
    except (ValueError, ImportError) as error:
        raise InputError(str(error), path=path, remedy="Use a local path or an s3:// address.") from error


def arrow_filesystem(path: PathLike) -> tuple[Any, str]:
    """Returns a file system for Ray, None for a local path. It uses the same AWS variables, through fsspec."""
    if not is_remote(path):
        return None, str(path)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, inner = filesystem(path)
    return PyFileSystem(FSSpecHandler(fs)), inner


def _remote(path: PathLike) -> Store:
    """Returns the store of an address."""
    require_allowed(path)
    scheme = scheme_of(path)
    if scheme in S3_SCHEMES:
        from raymotion.stores import s3

        return cast(Store, s3)
    if scheme == tar.SCHEME:
        return tar.Tar(_read_range, exists)
    from raymotion.stores import fsspec_stores as other_stores

    return other_stores.Web() if scheme in HTTP_SCHEMES else other_stores.Generic(*filesystem(path))


def _read_range(path: str, start: int, end: int) -> bytes:
    """Reads the bytes of a file from `start` up to but excluding `end`."""
    if is_remote(path):
        return _remote(path).read(path, start, end)
    with open(absolute(path), "rb") as file:
        file.seek(start)
        return file.read(end - start)


@contextlib.contextmanager
def explained(path: PathLike, action: str) -> Iterator[None]:
    """Converts denied permissions to `AccessDenied`, full disks to `DiskFull`, and a store's other refusals to
    `InputError`.

    A missing file remains a FileNotFoundError; a failing store raises `StoreUnavailable` itself.
    """
    try:
        yield
    except RaymotionError:
        raise
    except Exception as error:
        if is_full(error):
            raise disk_full(path, error) from error
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise AccessDenied(
                f"may not {action} ({getattr(error, 'strerror', None) or error or 'permission denied'})",
                path=path,
                remedy="Check the permissions of the folder, or the credentials for the bucket.",
            ) from error
        # Recognized by name: botocore's errors are not OSErrors, and importing it for local files would take a second.
        if type(error).__module__.startswith("botocore"):
            if "Credential" in type(error).__name__:
                raise AccessDenied(
                    f"may not {action} ({str(error).rstrip('.')})",
                    path=path,
                    remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
                ) from error
            raise InputError(f"may not {action} ({str(error).rstrip('.')})", path=path) from error
        if is_remote(path) and isinstance(error, OSError) and not isinstance(error, _ABOUT_THE_FILE):
            reason = (error.strerror or str(error)).rstrip(".")
            raise InputError(f"the store refuses to {action} ({reason})", path=path) from error
        raise


# Errors for a missing file or the wrong type of file, which callers handle.
_ABOUT_THE_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


def exists(path: PathLike) -> bool:
    """Returns whether a file or folder exists; raises `AccessDenied` if that may not be known."""
    with explained(path, "look at it"):
        if not is_remote(path):
            try:  # os.path.exists returns False if permission is denied
                os.stat(absolute(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True
        return _remote(path).exists(absolute(path))


def is_dir(path: PathLike) -> bool:
    """Returns whether the path is a folder; in a store, whether files lie below it."""
    with explained(path, "look at it"):
        return _remote(path).is_dir(absolute(path)) if is_remote(path) else os.path.isdir(absolute(path))


def require_folder(path: PathLike) -> None:
    """Raises unless `path` is a folder whose files may be opened (it need not be listable)."""
    with explained(path, "look into the folder"):
        if is_remote(path):
            found = is_dir(path)
        else:
            found = os.path.isdir(absolute(path))
            if not found:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.stat(absolute(path))  # raises if the parent may not be entered
            elif not os.access(absolute(path), os.X_OK):
                raise PermissionError(13, "Permission denied")
    if not found:
        raise InputError("no such folder", path=path, remedy="Check where the files are.")


def list_names(folder: PathLike) -> list[str]:
    """Returns the sorted names of the files directly in `folder`, uncached; [] if it does not exist."""
    with explained(folder, "list it"):
        if not is_remote(folder):
            try:
                return sorted(entry.name for entry in os.scandir(absolute(folder)) if entry.is_file())
            except FileNotFoundError:
                return []
            except NotADirectoryError as error:
                raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
        return sorted(_remote(folder).names(absolute(folder)))


def list_tree(folder: PathLike) -> list[str]:
    """Returns the names of all files below a folder's address, relative to it (see `child`)."""
    with explained(folder, "list it"):
        return _remote(folder).tree(absolute(folder))


def list_remote(folder: PathLike) -> dict[str, dict[str, Any]]:
    """Returns a store's metadata of the files directly below a folder's address, by name, uncached: `size` and a value
    that changes with the content (`ETag` in S3). Also lists folders, whose names end in a slash."""
    with explained(folder, "list it"):
        return _remote(folder).entries(absolute(folder))


def list_entries(folder: PathLike) -> list[str]:
    """Returns the sorted names of the files and folders directly in `folder`, except raymotion's lock, mark and
    temporary files; [] if it does not exist."""
    with explained(folder, "list it"):
        try:
            if not is_remote(folder):
                names = os.listdir(absolute(folder))
            else:
                names = list({name.removesuffix("/") or name for name in list_remote(folder)})
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
    return sorted(name for name in names if name and not _is_passing(name))


def _is_passing(name: str) -> bool:
    return name in (LOCK, MARK) or (name.startswith(".") and name.endswith(".tmp"))


def list_sizes(folder: PathLike) -> dict[str, int]:
    """Returns the sizes of the files directly in `folder` by name, uncached; {} if it does not exist."""
    with explained(folder, "list it"):
        if not is_remote(folder):
            try:
                return {entry.name: entry.stat().st_size for entry in os.scandir(absolute(folder)) if entry.is_file()}
            except FileNotFoundError:
                return {}
            except NotADirectoryError as error:
                raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
        found = list_remote(folder)
        return {name: int(info["size"] or 0) for name, info in found.items() if not name.endswith("/")}


def make_dir(folder: PathLike) -> None:
    """Creates a local folder with its parents; object stores need none."""
    if not is_remote(folder):
        with explained(folder, "make the folder"), _placed(folder):
            # For a link to a missing folder, create its target.
            os.makedirs(os.path.realpath(absolute(folder)), exist_ok=True)


def read_bytes(path: PathLike) -> bytes:
    """Reads a whole file; see `explained` for the errors."""
    with explained(path, "read it"):
        if not is_remote(path):
            return Path(absolute(path)).read_bytes()
        return _remote(path).read(str(path))


def read_head(path: PathLike, length: int) -> bytes:
    """Reads the first `length` bytes of a file, or all of a shorter one."""
    with explained(path, "read it"):
        if is_remote(path):
            return _remote(path).read(str(path), 0, length)
        with open(absolute(path), "rb") as file:
            return file.read(length)


def store_of(path: PathLike) -> str:
    """Returns the name of the store of an address, for messages."""
    if scheme_of(path) in S3_SCHEMES:
        from raymotion.stores import s3

        return s3.store_name()
    return scheme_of(path) or "this machine"


def size_of(path: PathLike) -> int:
    """Returns the size of a file in bytes."""
    with explained(path, "look at it"):
        return _remote(path).size(str(path)) if is_remote(path) else os.path.getsize(absolute(path))


def read_text(path: PathLike) -> str:
    """Reads a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        InputError: it is neither; the message names the first invalid byte.
    """
    data = require(path)
    encoding, name = (
        ("utf-16", "UTF-16") if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ("utf-8-sig", "UTF-8")
    )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"is not {name} text (byte {error.start})", path=path, remedy="Save it as UTF-8.") from error


def require(path: PathLike) -> bytes:
    """Reads a whole file; raises an `InputError` with a remedy if it is missing."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("no such file", path=path, remedy="Check the path.") from error
    except IsADirectoryError as error:
        raise InputError("is a folder, not a file", path=path) from error


@contextlib.contextmanager
def _placed(path: PathLike) -> Iterator[None]:
    """Explains errors of a path that cannot be written because something else, or nothing, is there."""
    try:
        yield
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise InputError(
            f"cannot be written: {error.filename or 'a part of the path'} is "
            + ("a folder" if isinstance(error, IsADirectoryError) else "a file, not a folder"),
            path=path,
            remedy="Choose another path.",
        ) from error
    except FileNotFoundError as error:
        if not is_remote(path):
            raise
        raise InputError("there is no such bucket", path=path, remedy="Make it, or check its name.") from error


def write_bytes(path: PathLike, data: bytes, *, durable: bool = True) -> None:
    """Writes a file atomically. `durable` files also survive a power failure, not only the end of the process."""
    with explained(path, "write it"), _placed(path):
        if is_remote(path):
            _remote(path).write(str(path), data)
            return
        target = Path(file_to_write(path, absolute(path)))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, so that one left by a crash never appears in a listing of data files.
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: PathLike, text: str, *, durable: bool = True) -> None:
    """Writes a text in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode(), durable=durable)


def read_json(path: PathLike) -> Any:
    """Reads the value in a JSON file.

    Raises:
        InputError: the file is not valid JSON. NaN and Infinity are not valid, although Python would read them.
    """

    def refuse(name: str) -> None:
        raise InputError(f"is not JSON (it holds {name})", path=path)

    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        what = f"line {error.lineno}: {error.msg}" if text.strip() else "it is empty"
        raise InputError(f"is not JSON ({what})", path=path) from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise InputError(f"is not JSON ({str(error).splitlines()[0]})", path=path) from error
    except RecursionError as error:
        raise InputError("is not JSON that can be read (it is nested too deeply)", path=path) from error
    if _LARGE_EXPONENT.search(text) and (found := _not_finite(value, "")):  # Python reads 1e999 as infinity
        raise InputError(f"is not JSON ({found[0]} is more than a number can hold)", path=path)
    return value


def write_json(path: PathLike, value: Any, *, durable: bool = True) -> None:
    """Writes `value` as JSON.

    Raises:
        NotFinite: it contains NaN or infinity. The message names the key; nothing is written.
    """
    write_text(path, json_text(value, path), durable=durable)


def json_text(value: Any, path: object) -> str:
    """Returns `value` as the text of a JSON file; `path` is for the message of `NotFinite`."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        found = _not_finite(value, "")
        if found is None:
            raise
        raise NotFinite(
            f"{path}: {found[0] or 'the value'} is {found[1]}, and only finite numbers are written"
        ) from error


def _not_finite(value: Any, where: str) -> tuple[str, float] | None:
    """Returns key and value of the first number in nested lists and mappings that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, value)
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inner = ((f"{where}.{key}" if where else str(key), one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        inner = ((f"{where}[{i}]", one) for i, one in enumerate(value))
    return next((found for key, one in inner if (found := _not_finite(one, key))), None)


def parquet_bytes(table: pa.Table) -> bytes:
    """Returns `table` as Parquet; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    # With a checksum per page, verified by `open_parquet`, because zstd alone does not detect every flipped bit.
    pq.write_table(table, buffer, compression="zstd", store_schema=True, write_page_checksum=True)
    return buffer.getvalue()


def first_not_finite(column: pa.ChunkedArray) -> int | None:
    """Returns the first row of a column of numbers, or of lists of numbers, with NaN or infinity. Null is neither."""
    start = 0
    for chunk in column.chunks:
        if not _all_finite(chunk):
            return start + next(i for i in range(len(chunk)) if not _all_finite(chunk.slice(i, 1)))
        start += len(chunk)
    return None


def _all_finite(values: pa.Array) -> bool:
    import numpy as np
    import pyarrow as pa

    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()  # omits the values of null lists
    if not pa.types.is_floating(values.type):
        return True
    present = values.drop_null() if values.null_count else values
    return bool(np.isfinite(present.to_numpy(zero_copy_only=False)).all())


def write_table(path: PathLike, table: pa.Table) -> tuple[str, int]:
    """Writes `table` as Parquet, atomically; returns the SHA-256 and the size of the file.

    Raises:
        NotFinite: it contains NaN or infinity. The message names column and row; nothing is written.
    """
    data = finite_parquet(path, table)
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest(), len(data)


def finite_parquet(path: PathLike, table: pa.Table) -> bytes:
    """Returns `parquet_bytes` of a table for `path`; raises `NotFinite` like `write_table`."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        row = first_not_finite(column)
        if row is not None:
            raise NotFinite(f"{path}, row {row}: {name} holds NaN or infinity, and only finite numbers are written")
    return parquet_bytes(table)


def read_table(path: PathLike, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file as a table; raises an `InputError` for any other file."""
    # The whole file: one request to a store instead of one for each column of each row group.
    data = require(path) if columns is None and is_remote(path) else None
    with open_parquet(path, data) as file:
        return file.read(columns=columns)


@contextlib.contextmanager
def open_parquet(
    path: PathLike, data: bytes | None = None, *, remedy: str = "Prepare it again."
) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading within the block, and verifies the checksums of its pages, if any.

    Args:
        data: contents of the file, if read already.

    Raises:
        InputError: the file does not exist.
        Damaged: it is not a Parquet file, or a part that is read is damaged.
    """
    import pyarrow.parquet as pq

    with open_input(path) if data is None else io.BytesIO(data) as file, parquet_explained(path, remedy=remedy):
        yield pq.ParquetFile(file, page_checksum_verification=True)


@contextlib.contextmanager
def parquet_explained(path: PathLike, *, remedy: str) -> Iterator[None]:
    """Converts Arrow's errors on a damaged file to `Damaged`; errors of disks and stores pass through."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow reports damaged pages as an OSError without a number; those of disks and stores have one.
        if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) is not None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Damaged(f"is not a readable Parquet file ({reason})", path=path, remedy=remedy) from error


@contextlib.contextmanager
def open_input(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a seekable file for reading."""
    with explained(path, "read it"):
        try:
            if is_remote(path):
                file = _remote(path).open_file(str(path))
            else:
                file = open(absolute(path), "rb")  # noqa: SIM115 - closed below
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError("no such file", path=path, remedy="Check the path.") from error
        except IsADirectoryError as error:
            raise InputError("is a folder, not a file", path=path) from error
    with file:
        yield file


def remove(path: PathLike) -> None:
    """Removes a file, if it exists."""
    with explained(path, "remove it"), contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            _remote(path).remove(str(path))
        else:
            os.unlink(absolute(path))


def remove_tree(folder: PathLike) -> None:
    """Removes a folder with its contents, if it exists."""
    with explained(folder, "remove it"), contextlib.suppress(FileNotFoundError):
        if is_remote(folder):
            _remote(folder).remove_tree(absolute(folder))
        else:
            shutil.rmtree(absolute(folder))


def probe_writable(folder: PathLike) -> None:
    """Raises `AccessDenied` unless a file can be written to `folder` and removed."""
    probe = join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    remove(probe)


def read_from(path: PathLike, start: int) -> bytes:
    """Reads a file from the byte `start` to its end."""
    with explained(path, "read it"):
        if is_remote(path):
            return _remote(path).read(str(path), start)
        with open(absolute(path), "rb") as file:
            file.seek(start)
            return file.read()


def sha256_file(path: PathLike) -> str:
    """Returns the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
