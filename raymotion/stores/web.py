"""Files at http:// and https:// addresses: read with limits, and never from where a redirect has no business.

Whoever wrote a table chooses its addresses, so an answer may be endless, may drip, or may lead into the network of the
machine that reads. Allowed only where the user says so (`--allow-http`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from urllib.parse import urljoin, urlsplit

# Of one file: seconds in all, with redirects and repetitions; bytes; redirects.
SECONDS, MOST_BYTES, MOST_REDIRECTS = 60.0, 64 * 1024**2, 5
CONNECT_SECONDS = 10.0
FIRST_PAUSE = 0.5
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}


class WebError(OSError):
    """The file at an address cannot be had: the server refuses, fails, or breaks a limit. A fault of that address."""


class TooManyBytes(WebError):
    """The answer is longer than is read."""


def read(url: str, *, seconds: float | None = None, most_bytes: int | None = None) -> bytes:
    """The bytes at `url`, asked for again where a try fails, until `seconds` are over.

    Raises:
        FileNotFoundError: the server says that there is no such file (404, 410).
        WebError: everything else, `TooManyBytes` among it.
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
    """A try that failed, where the next may not."""


async def _follow(url: str, most_bytes: int) -> bytes:
    """One try, redirects followed."""
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
    """Refuses a redirect into a private network, and addresses that only a machine's own services have.

    The address that the table names may be private: pictures lie on internal servers. A redirect of a public server
    to one of those is an attempt to have this machine fetch what the server itself cannot reach.
    """
    own, first = urlsplit(at).hostname, urlsplit(url).hostname
    if not own or not first:
        raise WebError(f"{url}: has no host")
    found = await _addresses(own)
    # 169.254.0.0/16 and fe80::/10: the cloud's metadata service, with the machine's credentials, is there.
    if any(ip.is_link_local for ip in found):
        raise WebError(f"{url}: {own} is a link-local address, which is not read")
    elsewhere = own != first and any(not ip.is_global for ip in found)
    if elsewhere and all(ip.is_global for ip in await _addresses(first)):
        raise WebError(f"{url}: redirects to {own}, which is on a private network")


async def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # behind a proxy names are resolved there
    found = [ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]
    return [getattr(ip, "ipv4_mapped", None) or ip for ip in found]
