"""Files at http:// and https:// addresses, read with limits and without unsafe redirects.

The author of a table chooses its addresses, so a response may be endless, very slow, or a redirect into the reader's
private network. Allowed only on request (`--allow-http`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from urllib.parse import urljoin, urlsplit

# Limits for one file: total seconds, including redirects and retries; bytes; redirects.
SECONDS, MOST_BYTES, MOST_REDIRECTS = 60.0, 64 * 1024**2, 5
CONNECT_SECONDS = 10.0
FIRST_PAUSE = 0.5
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}


class WebError(OSError):
    """A file cannot be read: the server refuses, fails, or exceeds a limit. Affects only this address."""


class TooManyBytes(WebError):
    """The response exceeds the limit of bytes."""


def read(url: str, *, seconds: float | None = None, most_bytes: int | None = None) -> bytes:
    """Reads the bytes at `url`; retries transient failures for up to `seconds`.

    Raises:
        FileNotFoundError: the server answers 404 or 410.
        WebError: any other failure, including `TooManyBytes`.
    """
    from fsspec.asyn import get_loop, sync

    data: bytes = sync(get_loop(), _read, url, SECONDS if seconds is None else seconds, most_bytes or MOST_BYTES)
    return data


async def _read(url: str, seconds: float, most_bytes: int) -> bytes:
    last = "no answer"
    try:
        async with asyncio.timeout(seconds):
            pause = FIRST_PAUSE
            while True:
                try:
                    return await _follow(url, most_bytes)
                except _Passing as error:
                    last = str(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 10.0)
    except TimeoutError as error:
        raise WebError(f"{url}: not read within {seconds:g} s ({last})") from error


class _Passing(Exception):
    """A transient failure."""


async def _follow(url: str, most_bytes: int) -> bytes:
    """Makes one try and follows redirects."""
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    at = url
    try:
        async with aiohttp.ClientSession(timeout=limits, trust_env=True, auto_decompress=False) as session:
            for _ in range(MOST_REDIRECTS + 1):
                await _require_public(at, url)
                async with session.get(at, allow_redirects=False, headers={"User-Agent": "raymotion"}) as answer:
                    if answer.status in _REDIRECTS and (target := answer.headers.get("Location")):
                        at = urljoin(at, target)
                        if urlsplit(at).scheme.lower() not in ("http", "https"):
                            raise WebError(f"{url}: redirects to {at[:200]}, which is not http(s)")
                        if urlsplit(url).scheme.lower() == "https" and urlsplit(at).scheme.lower() == "http":
                            raise WebError(f"{url}: redirects from https to {at[:200]}")
                        continue
                    return await _body(answer, url, most_bytes)
    except (aiohttp.InvalidURL, ValueError) as error:
        raise WebError(f"{url}: is not a valid address ({error})") from error
    except aiohttp.ClientError as error:
        raise _Passing(str(error) or type(error).__name__) from error
    except (ConnectionError, TimeoutError) as error:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
        raise _Passing(str(error) or type(error).__name__) from error
    raise WebError(f"{url}: redirects more than {MOST_REDIRECTS} times")


async def _body(answer: object, url: str, most_bytes: int) -> bytes:
    import aiohttp

    assert isinstance(answer, aiohttp.ClientResponse)
    if answer.status in (404, 410):
        raise FileNotFoundError(2, f"the server answers {answer.status}", url)
    if answer.status in _PASSING:
        raise _Passing(f"the server answers {answer.status} {answer.reason}")
    if answer.status != 200:
        raise WebError(f"{url}: the server answers {answer.status} {answer.reason}")
    announced = answer.content_length
    if announced is not None and announced > most_bytes:
        raise TooManyBytes(f"{url}: {announced:,} bytes, and at most {most_bytes:,} are read")
    data = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > most_bytes:
            raise TooManyBytes(f"{url}: more than {most_bytes:,} bytes")
    if announced is not None and len(data) != announced:
        raise _Passing(f"{len(data)} bytes came, but {announced} were announced")
    return bytes(data)


async def _require_public(at: str, url: str) -> None:
    """Refuses link-local addresses, and redirects from a public server into a private network.

    The address in the table may be private, since images may be on internal servers. But a redirect from a public
    server to a private one is an attempt to make this machine fetch what that server cannot reach.
    """
    own, first = urlsplit(at).hostname, urlsplit(url).hostname
    if not own or not first:
        raise WebError(f"{url}: has no host")
    found = await _addresses(own)
    # 169.254.0.0/16 and fe80::/10, where the cloud's metadata service serves the machine's credentials.
    if any(ip.is_link_local for ip in found):
        raise WebError(f"{url}: {own} is a link-local address, which is not read")
    elsewhere = own != first and any(not ip.is_global for ip in found)
    if elsewhere and all(ip.is_global for ip in await _addresses(first)):
        raise WebError(f"{url}: redirects to {own}, which is on a private network")


async def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # behind a proxy, which resolves names itself
    found = [ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]
    return [getattr(ip, "ipv4_mapped", None) or ip for ip in found]
