"""What a path or an address means: local or not, its folder, its files, and whether raymotion opens its kind at all.

Nothing is read here. Addresses are taken as they are spelled: no slash is dropped from a key, and nothing in a name is
taken for syntax but `?versionId=` at the end of an s3:// address.
"""

from __future__ import annotations

import functools
import os
import re
from urllib.parse import unquote

from raymotion.errors import AddressRefused
from raymotion.stores import access

PathLike = str | os.PathLike[str]

# A scheme has two characters at least: `C:` is none. `file://` is a local path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BARE_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)::?")
# What stands behind the key of an object in S3 where an address names one of its versions.
VERSION = re.compile(r"\?versionId=([^?&/\s]+)$")

S3_SCHEMES = ("s3", "s3a")
HTTP_SCHEMES = ("http", "https")
# Read with the libraries that fsspec knows for them, where those are installed.
OTHER_SCHEMES = ("gs", "gcs", "az", "abfs", "abfss")


def scheme_of(path: PathLike) -> str | None:
    """The scheme of an address in lower case, `s3`; None for a local path, `file` for one that is written so."""
    found = _SCHEME.match(str(path))
    return found.group(1).lower() if found else None


def is_remote(path: PathLike) -> bool:
    """Whether `path` is the address of an object store (or of anything else behind a scheme), not of a local file."""
    return scheme_of(path) not in (None, "file")


def is_http(path: PathLike) -> bool:
    """Whether `path` is an http:// or https:// address."""
    return scheme_of(path) in HTTP_SCHEMES


def require_allowed(path: PathLike) -> None:
    """Refuses an address that raymotion does not open, or only where the user asks for it.

    Raises:
        AddressRefused: a scheme that is not read; http(s) without `--allow-http`.
    """
    scheme = scheme_of(path)
    if scheme in (None, "file", *S3_SCHEMES, *OTHER_SCHEMES):
        return
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
    """`require_allowed` for an address that stands in a table: there `file:`, `data:` and their like are refused too.

    A table may come from somebody else. A local file is named by its path.
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
    """`path` in a form that means the same in every process: local paths made absolute, addresses as they are.

    A slash at the end of an address is dropped, unless it is one of two: `s3://b/a//` is the folder of `s3://b/a//x`.
    """
    text = str(path)
    if is_remote(text):
        return text if text.endswith("//") else text.removesuffix("/")
    if scheme_of(text) == "file":
        return _path_of_file_address(text)
    return os.path.abspath(os.path.expanduser(text))


def _path_of_file_address(address: str) -> str:
    """The local path that a file:// address names: percent-encoded as in RFC 8089, or else taken as it is spelled."""
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
    """`base` and `parts` as one path; an absolute last part or an address wins, as with `os.path.join`.

    Below an address a part that begins with a slash is a key of its own: use `child` for names from a listing.
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
    """The file of a listing of `folder`: whatever its name looks like, it is below the folder, no slash lost."""
    text = str(folder)
    if is_remote(text):
        return f"{text}{name}" if text.endswith("/") else f"{text}/{name}"
    return os.path.join(text, name)


def parent(path: PathLike) -> str:
    """The folder that holds `path`; `child(parent(path), name)` gives `path` back, its slashes included."""
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
    """The extension of a file's name in lower case, with its dot; `?versionId=...` is no part of the name."""
    text = str(path)
    return os.path.splitext(VERSION.sub("", text) if is_remote(text) else text)[1].lower()
