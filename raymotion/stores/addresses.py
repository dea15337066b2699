"""Parsing of paths and addresses, without any access: local or remote, parent and child, supported schemes.

Addresses are taken literally: no slash is dropped from a key, and nothing in a name is syntax except `?versionId=` at
the end of an s3:// address.
"""

from __future__ import annotations

import functools
import os
import re
from urllib.parse import unquote

from raymotion.errors import AddressRefused
from raymotion.stores import access, tar

PathLike = str | os.PathLike[str]

# A scheme has at least two characters, so `C:` is not one. `file://` is a local path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BARE_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)::?")
# Suffix of an S3 address that names one version of an object.
VERSION = re.compile(r"\?versionId=([^?&/\s]+)$")

S3_SCHEMES = ("s3", "s3a")
HTTP_SCHEMES = ("http", "https")
# Read through fsspec with the libraries for them, if installed.
OTHER_SCHEMES = ("gs", "gcs", "az", "abfs", "abfss")


def scheme_of(path: PathLike) -> str | None:
    """Returns the scheme of an address in lower case, such as `s3` or `file`; None for a local path."""
    found = _SCHEME.match(str(path))
    return found.group(1).lower() if found else None


def is_remote(path: PathLike) -> bool:
    """Returns whether `path` is an address with a scheme other than `file`."""
    return scheme_of(path) not in (None, "file")


def is_http(path: PathLike) -> bool:
    """Returns whether `path` is an http:// or https:// address."""
    return scheme_of(path) in HTTP_SCHEMES


def require_allowed(path: PathLike) -> None:
    """Checks that raymotion may open an address.

    Raises:
        AddressRefused: the scheme is not supported, or it is http(s) without `--allow-http`.
    """
    scheme = scheme_of(path)
    if scheme in (None, "file", *S3_SCHEMES, *OTHER_SCHEMES):
        return
    if scheme == tar.SCHEME:
        inner = tar.place_of(str(path)).file
        if scheme_of(inner) in (None, *S3_SCHEMES, *OTHER_SCHEMES):
            return
        raise AddressRefused(
            "a tar is read from a disk or an object store only", path=_shown(path), remedy="Copy it to one of them."
        )
    if scheme not in HTTP_SCHEMES:
        raise AddressRefused(
            f"addresses that begin with {scheme}: are not supported",
            path=_shown(path),
            remedy="Use a local path or an s3:// address.",
        )
    if not access.current().allow_http:
        raise AddressRefused(
            "http(s) addresses are read only with --allow-http",
            path=_shown(path),
            remedy=f"Pass --allow-http (or set {access.ALLOW_HTTP}=1), or copy the files to a folder or a bucket.",
        )


def require_allowed_in_table(uri: str) -> None:
    """Checks an address from a table like `require_allowed`, and also refuses `file:`, `data:` and similar schemes.

    Tables may come from untrusted sources. They must name local files by path.
    """
    require_allowed(uri)
    scheme = scheme_of(uri)
    bare = _BARE_SCHEME.match(uri) if scheme is None else None
    if scheme == "file" or (bare and bare.group(1).lower() in _known_schemes() and not os.path.lexists(uri)):
        name = scheme or bare.group(1).lower()  # type: ignore[union-attr]
        raise AddressRefused(
            f"addresses that begin with {name}: are not allowed in a table",
            path=_shown(uri),
            remedy="Use a local path or an s3:// address.",
        )


@functools.cache
def _known_schemes() -> frozenset[str]:
    from fsspec.registry import known_implementations

    return frozenset(known_implementations) | {"data", "file", "http", "https", "s3", "urn", "mailto"}


def _shown(path: PathLike) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:200]}..."


def absolute(path: PathLike) -> str:
    """Makes a local path absolute, so that it means the same in every process; keeps addresses.

    A single slash at the end of an address is dropped, but not a double one: `s3://b/a//` is the parent of
    `s3://b/a//x`.
    """
    text = str(path)
    if is_remote(text):
        return text if text.endswith("//") else text.removesuffix("/")
    if scheme_of(text) == "file":
        return _path_of_file_address(text)
    return os.path.abspath(os.path.expanduser(text))


def _path_of_file_address(address: str) -> str:
    """Returns the local path of a file:// address, percent-decoded (RFC 8089) unless only the literal path exists."""
    rest = address.split("://", 1)[1]
    host = rest.split("/", 1)[0]
    if rest.startswith("localhost/"):
        rest = rest.removeprefix("localhost")
    elif host and not os.path.exists(os.path.abspath(rest)):
        raise AddressRefused(
            f"names a file of the host {host}", path=address, remedy="Write file:///path, or the path."
        )
    decoded = os.path.abspath(unquote(rest))
    spelled = os.path.abspath(rest)
    return spelled if not os.path.lexists(decoded) and os.path.lexists(spelled) else decoded


def join(base: PathLike, *parts: str) -> str:
    """Joins paths like `os.path.join`: an absolute part, or one that is an address, discards what precedes it.

    After an address, a part with a leading slash is appended as it is. For names from a listing use `child`.
    """
    result = str(base)
    for part in parts:
        if is_remote(part):
            result = part
        elif is_remote(result):
            result = child(result, part)
        else:
            result = os.path.join(result, part)
    return result


def child(folder: PathLike, name: str) -> str:
    """Returns the path of an entry in a listing of `folder`; `name` is never taken for a path or an address."""
    text = str(folder)
    if is_remote(text):
        return f"{text}{name}" if text.endswith("/") else f"{text}/{name}"
    return os.path.join(text, name)


def parent(path: PathLike) -> str:
    """Returns the folder of `path`; `child(parent(path), name)` restores `path`, including its slashes."""
    text = str(path)
    if not is_remote(text):
        return os.path.dirname(text)
    scheme, _, rest = text.partition("://")
    version = VERSION.search(rest)
    folder, slash, _ = (rest[: version.start()] if version else rest).rpartition("/")
    if not slash:
        return text
    return f"{scheme}://{folder}/" if folder.endswith("/") else f"{scheme}://{folder}"


def suffix(path: PathLike) -> str:
    """Returns the extension of a file in lower case, with its dot; ignores `?versionId=...`."""
    text = str(path)
    return os.path.splitext(VERSION.sub("", text) if is_remote(text) else text)[1].lower()
