"""Finds pictures with the same content, which belong to one group: in two splits, one would give the other away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from raymotion import storage
from raymotion.data.images.marks import THREADS, address
from raymotion.errors import RaymotionError, StoreUnavailable

QUIET = 2_000  # so many local files are read within a second or two


def content_digests(uris: Sequence[str]) -> list[str | None]:
    """Computes 32 hex digits of the BLAKE2b digest of each file, or None for one that cannot be read.

    Files are read a part at a time, in several threads, each address once. Progress is shown on a terminal.

    Raises:
        StoreUnavailable: the store does not respond, so the content is unknown.
    """
    from tqdm import tqdm

    distinct = list(dict.fromkeys(uris))
    hidden = True if len(distinct) <= QUIET else None  # None: unless it is not a terminal
    pool = ThreadPoolExecutor(THREADS)
    try:
        read = tqdm(pool.map(_digest, distinct), "comparing", len(distinct), unit=" pictures", disable=hidden)
        found = dict(zip(distinct, read, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the files that are left
    return [found[uri] for uri in uris]


def _digest(uri: str) -> str | None:
    try:
        with storage.open_input(address(uri)) as file:
            digest = hashlib.blake2b(digest_size=16)
            while part := file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
    except StoreUnavailable:
        raise
    except (OSError, RaymotionError, ValueError):
        return None


def joined_groups(groups: Sequence[str], contents: Iterable[str | None]) -> list[str]:
    """Returns the group of each row, after joining groups with a content in common: the first by name stands for all.

    Args:
        groups: group of each row. contents: digest of each row's picture, or None.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(set(groups))
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[group], content) for group, content in zip(groups, contents, strict=True) if content is not None]
    for _, content in pairs:
        place.setdefault(f"\0{content}", len(place))
    edges = np.array([(group, place[f"\0{content}"]) for group, content in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(place), len(place)))
    _, parts = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for number, name in enumerate(names):
        first.setdefault(int(parts[number]), name)
    return [first[int(parts[place[group]])] for group in groups]
