"""Metrics of retrieval: at which rank a query finds an item of its own group, e.g. a caption its picture.

The rank of a query is 1 + the number of items of *other* groups that are at least as similar as the most similar item
of its own. Equal similarities count against the model, so that a model that says the same of everything is last, and
other items of the own group do not count: a picture with five captions has found one of them if any is first.

* `recall_at_K`: share of the queries whose rank is K or less. K stands for 1, 5 and 10.
* `median_rank`, `mean_rank`: of all queries.
* `mrr`: mean of 1 / rank.

The baseline is chance, the expectation of a random order. It depends on the size of the pool: figures of different
pools are not comparable, which is how the public study took a larger pool for an effect of its attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.bootstrap import make_metric, resampled, sampling_units
from raymotion.learning.metrics.multilabel import Evaluation

RECALLS = (1, 5, 10)
RETRIEVAL_METRICS = (*(f"recall_at_{k}" for k in RECALLS), "mrr", "median_rank", "mean_rank")
LOWER_IS_BETTER = frozenset({"median_rank", "mean_rank"})
# Cosines that differ by less are equal: the same vector may give two results in the last bits.
TIE = 1e-7
# Similarities held at a time: 64 MB.
BLOCK = 8_000_000


@dataclass(frozen=True)
class Ranks:
    """Ranks of m queries in a pool of items.

    Attributes:
        ranks: (m,) int64, from 1.
        pool: number of items.
        own: (m,) number of items of each query's own group, at least 1.
    """

    ranks: np.ndarray
    pool: int
    own: np.ndarray

    @property
    def chance(self) -> dict[str, float]:
        """The expectation of each metric of a random order; of `median_rank`, the median of all queries' ranks."""
        odds = {own: rank_odds(int(own), self.pool) for own in np.unique(self.own)}
        mean_odds = np.zeros(self.pool)
        for own, count in zip(*np.unique(self.own, return_counts=True), strict=True):
            mean_odds[: len(odds[own])] += odds[own] * count / len(self.own)
        places = np.arange(1, self.pool + 1)
        found = {f"recall_at_{k}": float(mean_odds[:k].sum()) for k in RECALLS}
        found["mrr"] = float((mean_odds / places).sum())
        found["median_rank"] = float(places[int(np.searchsorted(np.cumsum(mean_odds), 0.5 - 1e-12))])
        found["mean_rank"] = float((mean_odds * places).sum())
        return found


def rank_odds(own: int, pool: int) -> np.ndarray:
    """Returns the probability of each rank from 1 on, (pool - own + 1,), for a random order of `pool` items.

    The first of `own` items is at rank r with probability C(pool - r, own - 1) / C(pool, own).
    """
    ranks = np.arange(1, pool - own + 2)
    logs = [
        math.lgamma(pool - r + 1) - math.lgamma(own) - math.lgamma(pool - r - own + 2)
        - (math.lgamma(pool + 1) - math.lgamma(own + 1) - math.lgamma(pool - own + 1))
        for r in ranks.tolist()
    ]  # fmt: skip
    return np.exp(logs)


def rank_queries(queries: np.ndarray, items: np.ndarray, query_groups: np.ndarray, item_groups: np.ndarray) -> Ranks:
    """Ranks the items for each query by their cosine.

    Args:
        queries: (m, D) unit vectors. items: (k, D) unit vectors.
        query_groups, item_groups: (m,) and (k,), comparable values; each query's group has an item.

    Raises:
        InputError: shapes that do not match, values that are not finite, or a query without an item of its own.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise InputError(f"queries of shape {queries.shape} cannot be compared with items of {items.shape}")
    if query_groups.shape != queries.shape[:1] or item_groups.shape != items.shape[:1]:
        raise InputError("queries and items need a group each")
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise InputError("vectors to compare are not all finite")
    names, numbers = np.unique(item_groups, return_inverse=True)
    place = np.searchsorted(names, query_groups)
    found = np.minimum(place, max(0, len(names) - 1))
    if not len(names) or not (names[found] == query_groups).all():
        raise InputError("a query has no item of its own group in the pool")
    ranks = np.zeros(len(queries), dtype=np.int64)
    wide = items.astype(np.float64)
    rows = max(1, BLOCK // max(1, len(items)))
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        similar = queries[some].astype(np.float64) @ wide.T
        own = numbers[None, :] == place[some, None]
        best = np.where(own, similar, -np.inf).max(axis=1)
        ranks[some] = 1 + ((similar >= best[:, None] - TIE) & ~own).sum(axis=1)
    return Ranks(ranks, len(items), np.bincount(numbers, minlength=len(names))[place])


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Returns the metrics of `RETRIEVAL_METRICS` for ranks (m,); NaN without queries."""
    if not len(ranks):
        return dict.fromkeys(RETRIEVAL_METRICS, math.nan)
    found = weighed_retrieval(ranks, np.zeros(len(ranks), np.int64))(np.ones((1, 1)))
    return {name: float(own[0]) for name, own in found.items()}


def weighed_retrieval(ranks: np.ndarray, units: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function that computes the metrics from how often each unit is drawn.

    The pool stays as it is: what is drawn are queries.

    Args:
        ranks: (m,), one at least. units: (m,) the unit of each query, from 0.

    Returns:
        A function from counts (B, units) to the metrics of `RETRIEVAL_METRICS`, (B,) each.
    """
    columns = [np.ones(len(ranks)), *((ranks <= k).astype(np.float64) for k in RECALLS), 1.0 / ranks, ranks]
    sums = np.zeros((int(units.max()) + 1, len(columns)))
    np.add.at(sums, units, np.stack(columns, axis=1).astype(np.float64))
    order = np.argsort(ranks, kind="stable")

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        totals = counts @ sums
        many = np.maximum(totals[:, 0], 1e-12)
        found = {f"recall_at_{k}": totals[:, 1 + i] / many for i, k in enumerate(RECALLS)}
        found["mrr"] = totals[:, 1 + len(RECALLS)] / many
        found["median_rank"] = _weighed_medians(ranks[order], counts[:, units[order]])
        found["mean_rank"] = totals[:, 2 + len(RECALLS)] / many
        return found

    return measure


def _weighed_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the median (B,) of ascending values (m,), each of which occurs `weights` (B, m) times."""
    so_far = np.cumsum(weights, axis=1)
    total = so_far[:, -1]
    # Of an even number the mean of the two in the middle, as NumPy's median.
    low = np.argmax(so_far >= np.floor((total + 1) / 2)[:, None], axis=1)
    high = np.argmax(so_far >= np.ceil((total + 1) / 2)[:, None], axis=1)
    return np.asarray((values[low] + values[high]) / 2, dtype=np.float64)


def evaluate_retrieval(
    ranks: Ranks, *, groups: Sequence[str] | np.ndarray | None = None, bootstrap: int = 1000, seed: int = 0
) -> Evaluation:
    """Computes all metrics of one direction with 95 % intervals, beside chance.

    Both baselines of an `Evaluation` are chance here: a constant order is a random one to most queries.

    Args:
        groups: m names; queries of one name (captions of a picture) are drawn together.
    """
    units = sampling_units(groups, len(ranks.ranks))
    measure = weighed_retrieval(ranks.ranks, units)

    def all_metrics(counts: np.ndarray) -> np.ndarray:
        found = measure(counts)
        return np.stack([found[name] for name in RETRIEVAL_METRICS], axis=1)

    chance = ranks.chance
    point, drawn = resampled(
        all_metrics, int(units.max()) + 1, resamples=bootstrap, seed=seed, numbers=len(ranks.ranks)
    )  # fmt: skip
    metrics = {}
    for i, name in enumerate(RETRIEVAL_METRICS):
        own = np.full((len(drawn), 3), chance[name])
        own[:, 0] = drawn[:, i]
        metrics[name] = make_metric(
            name, [point[i], chance[name], chance[name]], own, higher_is_better=name not in LOWER_IS_BETTER,
            samples=int(units.max()) + 1,
        )  # fmt: skip
    return Evaluation(samples=len(ranks.ranks), metrics=metrics, seed=seed)
