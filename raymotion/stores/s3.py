"""S3 and compatible stores, with as few requests as possible, retried while the store fails.

Built on s3fs and its connection and credentials. In addition, keys are taken literally (`a//b`, `a::b`, `a?b`),
`?versionId=` selects a version, a response shorter than announced is a failure of the store, and every request,
including those of Ray through `filesystem()`, is retried with growing pauses (`access.Retries`).
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    ParamValidationError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.asyn import sync, sync_wrapper
from s3fs.errors import translate_boto_error

from raymotion.stores.access import Retries
from raymotion.stores.addresses import VERSION

# Concurrent requests; prefetching and writing share the connections.
CONNECTIONS = 96
# Timeouts of a stalled request; a slow one times out after `SECONDS` plus its size at `SLOWEST` bytes per second.
CONNECT_SECONDS, READ_SECONDS = 10, 20
SECONDS, SLOWEST = 60.0, 100_000
# Larger objects are uploaded in parts.
PART_BYTES = 64 * 1024**2
# An open file is read in blocks of at least this size, or with one request if it is smaller.
BLOCK_BYTES = 1 << 20

# Transient error codes besides all of status 5xx. (Some have status 400: the store blames a bad connection on us.)
PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
# Invalid names, treated as missing objects.
NO_SUCH_NAME = {"InvalidBucketName", "InvalidURI", "KeyTooLongError"}
ACTIONS = {"get": "read it", "head": "look at it", "list": "list it", "put": "write it", "delete": "remove it"}


class ShortAnswer(OSError):
    """The store sent fewer bytes than it announced."""


@dataclass(frozen=True)
class Place:
    """Bucket, key (taken literally) and version of an address."""

    bucket: str
    key: str
    version: str | None = None

    @classmethod
    def of(cls, address: str) -> Place:
        """Parses `s3://bucket/key`, with or without `?versionId=`."""
        rest = address.split("://", 1)[1]
        found = VERSION.search(rest)
        bucket, key = _filesystem_class._find_bucket_key(None, rest[: found.start()] if found else rest)
        return cls(bucket, key, found.group(1) if found and key else None)

    @property
    def prefix(self) -> str:
        """The prefix of the keys in this folder."""
        return self.key if not self.key or self.key.endswith("/") else f"{self.key}/"

    @property
    def names(self) -> dict[str, str]:
        """The keyword arguments of a request for this object."""
        own = {"Bucket": self.bucket, "Key": self.key}
        return own if self.version is None else {**own, "VersionId": self.version}


class _Body:
    """The bytes of a response, for code that expects a stream."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, amount: int | None = None) -> bytes:
        return self._file.read(-1 if amount is None else amount)

    def close(self) -> None:
        pass

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class PatientS3FileSystem(s3fs.S3FileSystem):
    """s3fs with retries and with checks that responses are complete."""

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        address = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}".rstrip("/")
        retries = Retries(address, ACTIONS.get(method.split("_")[0], method.replace("_", " ")), store_name())
        while True:
            try:
                return await self._once(method, *akwarglist, **kwargs)
            except Exception as error:
                if not is_passing(error):
                    raise _translated(error, kwargs) from error
                pause = retries.pause(error)
            await asyncio.sleep(pause)

    call_s3 = sync_wrapper(_call_s3)

    async def _once(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        await self.set_session()
        client = await self.get_s3(kwargs.get("Bucket"))
        call = getattr(client, method)
        keywords = self._get_s3_method_kwargs(call, *akwarglist, **kwargs)
        body = kwargs.get("Body")
        answer = await asyncio.wait_for(
            call(**keywords), SECONDS + (len(body) / SLOWEST if isinstance(body, bytes | bytearray) else 0)
        )
        if method == "get_object":
            answer["Body"] = _Body(await self._whole_body(client, answer, keywords))
        return answer

    async def _whole_body(self, client: Any, answer: dict[str, Any], keywords: dict[str, Any]) -> bytes:
        announced = answer.get("ContentLength")
        stream = answer["Body"]
        try:
            data = bytes(await asyncio.wait_for(stream.read(), SECONDS + (announced or 0) / SLOWEST))
        finally:
            stream.close()
        if announced is not None and len(data) != announced:
            raise ShortAnswer(f"{len(data)} bytes came, but {announced} were announced")
        wanted = keywords.get("Range")
        if not data and wanted is None:
            # Either the object is empty or the store failed: check its size.
            names = {name: keywords[name] for name in ("Bucket", "Key", "VersionId") if name in keywords}
            size = (await asyncio.wait_for(client.head_object(**names), SECONDS))["ContentLength"]
            if size:
                raise ShortAnswer(f"no bytes came, but the object has {size}")
        if wanted is not None:
            data = _cut(data, wanted, answer.get("ContentRange"))
        return data


_filesystem_class = PatientS3FileSystem


def _cut(data: bytes, wanted: str, given: str | None) -> bytes:
    """Returns the requested range of a response that may hold the whole object instead."""
    start, end = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()  # type: ignore[union-attr]
    if given is None:
        if not start:
            return data[-int(end) :]
        return data[int(start) : int(end) + 1] if end else data[int(start) :]
    total = int(given.rsplit("/", 1)[1])
    if not start:
        expected = min(total, int(end))
    else:
        expected = (min(total, int(end) + 1) if end else total) - int(start)
    if len(data) != expected:
        raise ShortAnswer(f"{len(data)} bytes of the {expected} that were asked for came")
    return data


def is_passing(error: Exception) -> bool:
    """Returns whether the error is a transient failure of the store, not a refusal or a missing object."""
    if isinstance(error, ClientError):
        about = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(about.get("Code", ""))
        if code == "NotImplemented" or status == 501:
            return False
        return code in PASSING or status >= 500 or status in (408, 425, 429) or code in ("500", "502", "503", "504")
    if isinstance(error, BotoCoreError):
        if isinstance(error, HTTPClientError | BotoConnectionError):
            return not isinstance(error.__cause__, ValueError)
        return type(error).__name__ in (
            "IncompleteReadError",
            "ResponseParserError",
            "ResponseStreamingError",
            "ChecksumError",
            "FlexibleChecksumError",
        )
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    # aiohttp's errors, by name: timeouts, resets, truncated responses.
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.startswith("aiohttp")


def _translated(error: Exception, keywords: dict[str, Any]) -> BaseException:
    if isinstance(error, ParamValidationError):
        return FileNotFoundError(2, str(error).replace("\n", " "))
    if not isinstance(error, ClientError):
        return error
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in NO_SUCH_NAME:
        return FileNotFoundError(2, str(error))
    if "VersionId" in keywords and code in ("InvalidArgument", "MethodNotAllowed", "NoSuchVersion", "400", "405"):
        return FileNotFoundError(2, f"no version {keywords['VersionId']} of this object")
    return translate_boto_error(error)


_lock = threading.Lock()
_known: dict[tuple[Any, ...], PatientS3FileSystem] = {}


def filesystem() -> PatientS3FileSystem:
    """Returns the file system of this process for the current AWS variables."""
    # Keyed by the variables, because s3fs would return the same instance even after they change.
    key = (
        os.getpid(),
        os.environ.get("HOME"),
        *sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")),
    )
    found = _known.get(key)
    if found is None:
        with _lock:
            found = _known.get(key)
            if found is None:
                found = PatientS3FileSystem(
                    skip_instance_cache=True,
                    use_listings_cache=False,
                    config_kwargs={
                        "connect_timeout": CONNECT_SECONDS,
                        "read_timeout": READ_SECONDS,
                        "max_pool_connections": CONNECTIONS,
                        "retries": {"total_max_attempts": 1, "mode": "standard"},
                    },
                )
                found.connect()
                _known[key] = found
    return found


def store_name() -> str:
    """Returns the name of the store in messages: its endpoint."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "S3"


def _call(method: str, **keywords: Any) -> Any:
    fs = filesystem()
    return sync(fs.loop, fs._call_s3, method, **keywords)


def read(address: str, start: int | None = None, end: int | None = None) -> bytes:
    """Reads an object, or its bytes from `start` up to but excluding `end`; a negative `start` counts from the end."""
    return _get(address, start, end)[0]


def _get(address: str, start: int | None = None, end: int | None = None) -> tuple[bytes, int]:
    """Returns the bytes, and the size of the whole object."""
    place = Place.of(address)
    if not place.key:
        raise IsADirectoryError(21, "Is a bucket", address)
    span = {}
    if start is not None and start < 0:
        span = {"Range": f"bytes={start}"}
    elif start or end is not None:
        span = {"Range": f"bytes={start or 0}-{'' if end is None else end - 1}"}

    async def get(fs: PatientS3FileSystem) -> tuple[bytes, int]:
        answer = await fs._call_s3("get_object", **place.names, **span)
        data = await answer["Body"].read()
        return data, int(answer["ContentRange"].rsplit("/", 1)[1]) if answer.get("ContentRange") else len(data)

    fs = filesystem()
    try:
        return sync(fs.loop, get, fs)
    except OSError as error:
        # A range of an empty object is an error.
        cause = error.__cause__
        if span and isinstance(cause, ClientError) and cause.response["Error"].get("Code") in ("InvalidRange", "416"):
            return b"", size(address)
        raise


def size(address: str) -> int:
    """Returns the size of an object in bytes."""
    return int(_call("head_object", **Place.of(address).names)["ContentLength"])


def write(address: str, data: bytes) -> None:
    """Writes an object atomically."""
    place = _writable(address)
    if len(data) <= PART_BYTES:
        _call("put_object", Bucket=place.bucket, Key=place.key, Body=data)
    else:
        filesystem().pipe_file(f"{place.bucket}/{place.key}", data, chunksize=PART_BYTES // 2)


def remove(address: str) -> None:
    """Removes an object; does nothing if it does not exist."""
    place = _writable(address)
    _call("delete_object", Bucket=place.bucket, Key=place.key)


def _writable(address: str) -> Place:
    place = Place.of(address)
    if place.version is not None:
        raise PermissionError(1, "A version of an object can be read only", address)
    if not place.key:
        raise IsADirectoryError(21, "Is a bucket", address)
    return place


def exists(address: str) -> bool:
    """Returns whether the object exists, or any key below it."""
    place = Place.of(address)
    if place.key:
        try:
            _call("head_object", **place.names)
            return True
        except FileNotFoundError:
            if place.version is not None:
                return False
    return is_dir(address)


def is_dir(address: str) -> bool:
    """Returns whether there is a key below the address; for a bucket, whether it exists."""
    place = Place.of(address)
    try:
        answer = _call("list_objects_v2", Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
    except FileNotFoundError:
        return False
    return not place.key or bool(answer.get("KeyCount", len(answer.get("Contents", ()))))


def names(address: str) -> list[str]:
    """Returns the names of the objects directly below the address; none if the bucket does not exist."""
    return [name for name in entries(address) if not name.endswith("/")]


def entries(address: str) -> dict[str, dict[str, Any]]:
    """Returns `size` and `ETag` of the objects directly below the address, by name, and the folders there.

    Names of folders end in a slash: `b/`, or just `/` for a double slash, as in `a//c.jpg` below `a`.
    """
    return {name: info for name, info in _listed(address, delimiter="/") if name}


def tree(address: str) -> list[str]:
    """Returns the keys of all objects below the address, relative to it: `b/c.jpg`, or `/c.jpg` for `a//c.jpg`."""
    return [name for name, _ in _listed(address) if not name.endswith("/") and name]


def _listed(address: str, delimiter: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields keys below the address, relative to it, with size and ETag; a delimiter groups deeper ones as folders."""
    place = Place.of(address)
    keywords: dict[str, Any] = {"Bucket": place.bucket, "Prefix": place.prefix}
    if delimiter:
        keywords["Delimiter"] = delimiter
    while True:
        try:
            answer = _call("list_objects_v2", **keywords)
        except FileNotFoundError:
            return
        for entry in answer.get("Contents", ()):
            yield entry["Key"][len(place.prefix) :], {"size": entry["Size"], "ETag": entry["ETag"]}
        for entry in answer.get("CommonPrefixes", ()):
            yield entry["Prefix"][len(place.prefix) :], {}
        if not answer.get("IsTruncated"):
            return
        keywords["ContinuationToken"] = answer["NextContinuationToken"]


def remove_tree(address: str) -> None:
    """Removes all objects below the address."""
    place = Place.of(address)
    found = [f"{place.prefix}{name}" for name, _ in _listed(address)]
    for at in range(0, len(found), 1000):
        some = [{"Key": key} for key in found[at : at + 1000]]
        answer = _call("delete_objects", Bucket=place.bucket, Delete={"Objects": some, "Quiet": True})
        if errors := answer.get("Errors"):
            raise PermissionError(1, f"{errors[0].get('Key')}: {errors[0].get('Message') or errors[0].get('Code')}")


class RemoteFile(io.RawIOBase):
    """An object as a file. Reads the end first, so that small files and Parquet footers take one request."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.tail, self.size = _get(address, -BLOCK_BYTES)
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self.at + len(view), self.size)
        if self.at >= end:
            return 0
        kept = self.size - len(self.tail)
        if self.at >= kept:
            data = self.tail[self.at - kept : end - kept]
        else:
            data = read(self.address, self.at, end)
            if len(data) != end - self.at:
                raise OSError(f"{self.address} changed while it was read")
        view[: len(data)] = data
        self.at += len(data)
        return len(data)


def open_file(address: str) -> io.BufferedReader:
    """Opens an object as a seekable file for reading."""
    return io.BufferedReader(RemoteFile(address), BLOCK_BYTES)
