"""Files on disk and in object stores, behind one set of functions.

A path is a local path or any fsspec address (`s3://bucket/key`). Writes are atomic: a local file is written under a
temporary name beside its place, flushed to disk and renamed; an object store's PUT is atomic by itself. Endpoint and
credentials of S3 come from the usual AWS variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_PROFILE` ...).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raymotion.errors import AccessDenied, Damaged, InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem

PathLike = str | os.PathLike[str]


def is_remote(path: PathLike) -> bool:
    """Whether `path` is the address of an object store (or of anything else that fsspec opens), not of a local file."""
    return "://" in str(path) and not str(path).startswith("file://")


def absolute(path: PathLike) -> str:
    """`path` in a form that means the same in every process: local paths made absolute, addresses as they are."""
    text = str(path)
    if is_remote(text):
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def join(base: PathLike, *parts: str) -> str:
    """`base` and `parts` as one path; an absolute last part or an address wins, as with `os.path.join`."""
    result = str(base)
    for part in parts:
        if is_remote(part):
            result = part
        elif is_remote(result):
            result = posixpath.join(result, part)
        else:
            result = os.path.join(result, part)
    return result


def parent(path: PathLike) -> str:
    """The folder that holds `path`."""
    return posixpath.dirname(str(path)) if is_remote(path) else os.path.dirname(str(path))


def filesystem(path: PathLike) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of `path`, and the path within it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(absolute(path))
    except (ValueError, ImportError) as error:
        raise InputError(str(error), path=path, remedy="Use a local path or an s3:// address.") from error


@contextlib.contextmanager
def explained(path: PathLike, action: str) -> Iterator[None]:
    """Turns refusals into `AccessDenied` and a store that does not answer into a ConnectionError.

    A missing file stays a FileNotFoundError.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise AccessDenied(
                f"may not {action} ({getattr(error, 'strerror', None) or error or 'permission denied'})",
                path=path,
                remedy="Check the permissions of the folder, or the credentials for the bucket.",
            ) from error
        # Told by name: botocore's errors are no OSErrors, and importing it for local files would cost a second.
        if type(error).__module__.startswith("botocore"):
            if "Credential" in type(error).__name__:
                raise AccessDenied(
                    f"may not {action} ({str(error).rstrip('.')})",
                    path=path,
                    remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
                ) from error
            raise ConnectionError(f"{path}: {error}") from error
        raise


def exists(path: PathLike) -> bool:
    with explained(path, "look at it"):
        if not is_remote(path):
            try:  # os.path.exists hides a refused permission as "no"
                os.stat(absolute(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True
        fs, inner = filesystem(path)
        return bool(fs.exists(inner))


def is_dir(path: PathLike) -> bool:
    with explained(path, "look at it"):
        fs, inner = filesystem(path)
        return bool(fs.isdir(inner))


def require_folder(path: PathLike) -> None:
    """Raises unless `path` is a folder whose files may be looked up (listing it is not needed)."""
    with explained(path, "look into the folder"):
        if is_remote(path):
            found = is_dir(path)
        else:
            found = os.path.isdir(absolute(path))
            if not found:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.stat(absolute(path))  # tells a closed parent from an absent folder
            elif not os.access(absolute(path), os.X_OK):
                raise PermissionError(13, "Permission denied")
    if not found:
        raise InputError("no such folder", path=path, remedy="Check where the files are.")


def list_names(folder: PathLike) -> list[str]:
    """Sorted names of the files directly in `folder`, fresh from the store; an absent folder is empty."""
    with explained(folder, "list it"):
        if not is_remote(folder):
            try:
                return sorted(entry.name for entry in os.scandir(absolute(folder)) if entry.is_file())
            except FileNotFoundError:
                return []
            except NotADirectoryError as error:
                raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
        fs, inner = filesystem(folder)
        try:
            entries = fs.ls(inner, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file")


def list_sizes(folder: PathLike) -> dict[str, int]:
    """Bytes of the files directly in `folder` by name, fresh from the store; an absent folder is empty."""
    with explained(folder, "list it"):
        if not is_remote(folder):
            try:
                return {entry.name: entry.stat().st_size for entry in os.scandir(absolute(folder)) if entry.is_file()}
            except FileNotFoundError:
                return {}
            except NotADirectoryError as error:
                raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
        fs, inner = filesystem(folder)
        try:
            entries = fs.ls(inner, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {
            posixpath.basename(entry["name"]): int(entry["size"] or 0) for entry in entries if entry["type"] == "file"
        }


def make_dir(folder: PathLike) -> None:
    """Makes a local folder with its parents; object stores need none."""
    if not is_remote(folder):
        with explained(folder, "make the folder"), _placed(folder):
            os.makedirs(absolute(folder), exist_ok=True)


def read_bytes(path: PathLike) -> bytes:
    with explained(path, "read it"):
        if not is_remote(path):
            return Path(absolute(path)).read_bytes()
        fs, inner = filesystem(path)
        return bytes(fs.cat_file(inner))


def read_text(path: PathLike) -> str:
    """The file as UTF-8 text; anything else is an `InputError` that says at which byte."""
    data = require(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})", path=path, remedy="Save it as UTF-8.") from error


def require(path: PathLike) -> bytes:
    """`read_bytes`, with a missing file explained to the user."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("no such file", path=path, remedy="Check the path.") from error
    except IsADirectoryError as error:
        raise InputError("is a folder, not a file", path=path) from error


@contextlib.contextmanager
def _placed(path: PathLike) -> Iterator[None]:
    """Explains a place where nothing can be written because something else is there, or nothing at all."""
    try:
        yield
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise InputError(
            f"can not be written: {error.filename or 'a part of the path'} is "
            + ("a folder" if isinstance(error, IsADirectoryError) else "a file, not a folder"),
            path=path,
            remedy="Choose another path.",
        ) from error
    except FileNotFoundError as error:
        if not is_remote(path):
            raise
        raise InputError("there is no such bucket", path=path, remedy="Make it, or check its name.") from error


def write_bytes(path: PathLike, data: bytes, *, durable: bool = True) -> None:
    """Writes the whole file or nothing. `durable`: it survives a power cut too, not only the end of the process."""
    with explained(path, "write it"), _placed(path):
        if is_remote(path):
            fs, inner = filesystem(path)
            fs.pipe_file(inner, data)
            return
        target = Path(absolute(path))
        if target.is_dir():
            raise InputError("is a folder, not a file", path=path, remedy="Name a file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, so that no listing of data files ever shows one that a crash left behind.
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
    write_bytes(path, text.encode(), durable=durable)


def read_json(path: PathLike) -> Any:
    """The file as JSON.

    Raises:
        InputError: no such file, no UTF-8 text, no JSON, nested too deeply, or a number of thousands of digits.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"line {error.lineno}: {error.msg}" if text.strip() else "it is empty"
        raise InputError(f"is not JSON ({what})", path=path) from error
    except RecursionError as error:
        raise InputError("is not JSON that can be read (nested too deeply)", path=path) from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise InputError("is not JSON that can be read (a number has too many digits)", path=path) from error


def write_json(path: PathLike, value: Any, *, durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def parquet_bytes(table: pa.Table) -> bytes:
    """`table` as Parquet; the same table gives the same bytes, whichever run wrote it."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    # With a checksum in each page, which `open_parquet` compares: zstd itself decodes many a flipped bit.
    pq.write_table(table, buffer, compression="zstd", store_schema=True, write_page_checksum=True)
    return buffer.getvalue()


def write_table(path: PathLike, table: pa.Table) -> tuple[str, int]:
    """Writes `table` as Parquet, atomically; returns the sha256 of the file and its size in bytes."""
    data = parquet_bytes(table)
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest(), len(data)


def read_table(path: PathLike, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table; anything else there is an `InputError`."""
    with open_parquet(path) as file:
        return file.read(columns=columns)


@contextlib.contextmanager
def open_parquet(
    path: PathLike, data: bytes | None = None, *, remedy: str = "Prepare it again."
) -> Iterator[pq.ParquetFile]:
    """A Parquet file for reading within the block; checksums of its pages, where it has them, are compared.

    Args:
        data: what is in the file, where it has been read already.

    Raises:
        InputError: there is no such file. Damaged: it is no Parquet file, or what is read of it is damaged.
    """
    import pyarrow.parquet as pq

    with open_input(path) if data is None else io.BytesIO(data) as file, parquet_explained(path, remedy=remedy):
        yield pq.ParquetFile(file, page_checksum_verification=True)


@contextlib.contextmanager
def parquet_explained(path: PathLike, *, remedy: str) -> Iterator[None]:
    """Turns what Arrow raises over a damaged file into `Damaged`; what disks and stores raise passes."""
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
    """An open, seekable file for reading."""
    with explained(path, "read it"):
        fs, inner = filesystem(path)
        try:
            file = fs.open(inner, "rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError("no such file", path=path, remedy="Check the path.") from error
        except IsADirectoryError as error:
            raise InputError("is a folder, not a file", path=path) from error
    with file:
        yield file


def remove(path: PathLike) -> None:
    """Removes a file if it is there."""
    with explained(path, "remove it"), contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            fs, inner = filesystem(path)
            fs.rm_file(inner)
        else:
            os.unlink(absolute(path))


def remove_tree(folder: PathLike) -> None:
    """Removes a folder and all that is in it, if it is there."""
    with explained(folder, "remove it"), contextlib.suppress(FileNotFoundError):
        if is_remote(folder):
            fs, inner = filesystem(folder)
            fs.rm(inner, recursive=True)
        else:
            shutil.rmtree(absolute(folder))


def probe_writable(folder: PathLike) -> None:
    """Raises `AccessDenied` unless a file can be written to and removed from `folder`."""
    probe = join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"")
    remove(probe)


def read_from(path: PathLike, start: int) -> bytes:
    """The bytes of a file from `start` to its end."""
    with explained(path, "read it"):
        if not is_remote(path):
            with open(absolute(path), "rb") as file:
                file.seek(start)
                return file.read()
        fs, inner = filesystem(path)
        return bytes(fs.cat_file(inner, start=start))


def sha256_file(path: PathLike) -> str:
    """Hex digest of the file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
