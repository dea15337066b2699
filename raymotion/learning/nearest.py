"""Exact search among vectors: the items with the highest cosines, in an order that does not depend on block sizes."""

from __future__ import annotations

import numpy as np

# Cosines are compared at this many decimals: sums of the same products differ in the last bits, by the order of adding.
DECIMALS = 9
# Similarities held at a time: 64 MB.
BLOCK = 8_000_000


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors (n, D) as float64 of length 1; zeros, which have no direction, stay."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths == 0, 1.0, lengths))


def cosines(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns the cosine of each query (m, D) and each item (n, D), float64 (m, n)."""
    return np.round(unit(queries) @ unit(items).T, DECIMALS)


def best_items(queries: np.ndarray, items: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the items most similar to each query; of equal ones, those that come first.

    Args:
        queries: (m, D). items: (n, D).

    Returns:
        their positions in `items`, int64 (m, c), and their cosines (m, c), the highest first; c is `count`, or n if
        there are fewer items.
    """
    count = min(count, len(items))
    places = np.zeros((len(queries), count), dtype=np.int64)
    found = np.zeros((len(queries), count))
    wide = unit(items)
    rows = max(1, BLOCK // max(1, len(items)))
    for start in range(0, len(queries), rows):
        similar = np.round(unit(queries[start : start + rows]) @ wide.T, DECIMALS)
        if count < len(items):
            order = np.argpartition(-similar, count - 1, axis=1)[:, :count]
            least = np.take_along_axis(similar, order, axis=1).min(axis=1, keepdims=True)
            # Where more items equal the last value than there is room for, the first ones are taken.
            tied = np.flatnonzero((similar >= least).sum(axis=1) > count)
            behind = np.where(similar[tied] > least[tied], 0, np.where(similar[tied] == least[tied], 1, 2))
            order[tied] = np.argsort(behind.astype(np.int8), axis=1, kind="stable")[:, :count]
        else:
            order = np.broadcast_to(np.arange(count), similar.shape)
        values = np.take_along_axis(similar, order, axis=1)
        inner = np.lexsort((order, -values), axis=1)
        places[start : start + rows] = np.take_along_axis(order, inner, axis=1)
        found[start : start + rows] = np.take_along_axis(values, inner, axis=1)
    return places, found
