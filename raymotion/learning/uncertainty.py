"""Uncertainty of predicted labels, and the choice of rows that a person should look at first.

Uncertainty sampling goes back to Lewis and Gale, "A sequential algorithm for training text classifiers" (SIGIR 1994);
Settles, "Active learning literature survey" (2009), sections 3.1 and 3.2, defines the measures below for one label of
several: entropies are those of the distribution over the labels. Where labels apply independently, each is a question
of its own, and entropies are means over the labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from raymotion.errors import InputError

# Measures of a single model.
OF_ONE_MODEL = ("entropy", "margin")
# Rows converted to float64 at a time.
CHUNK_ROWS = 65_536


def entropy(probabilities: np.ndarray, *, one_label: bool = False) -> np.ndarray:
    """Returns the entropy of each prediction in bits, (n,) float64, from (n, L) in [0, 1].

    Args:
        one_label: exactly one label applies, and each row sums to 1: the entropy of the distribution, in [0, log2 L].
            Otherwise labels are independent: the mean of their entropies, each of a yes or no, in [0, 1].
    """
    p = _matrix(probabilities)
    found = np.empty(len(p))
    for start in range(0, len(p), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        found[rows] = _entropy(p[rows].astype(np.float64), one_label)
    return found


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Returns 1 minus the gap between the two most probable labels of each row: (n,) in [0, 1], from (n, L).

    The margin of Scheffer, Decomain and Wrobel, "Active hidden Markov models for information extraction" (IDA 2001),
    turned round, so that large means uncertain. The gap of a single label is that between it and its absence.
    """
    p = _matrix(probabilities).astype(np.float64)
    if p.shape[1] == 1:
        p = np.concatenate([p, 1.0 - p], axis=1)
    two = np.partition(p, -2, axis=1)
    return np.asarray(1.0 - (two[:, -1] - two[:, -2]))


def disagreement(committee: Sequence[np.ndarray], *, one_label: bool = False) -> np.ndarray:
    """Returns how much several models disagree about each row, in bits: (n,), 0 if not at all.

    The entropy of the mean prediction less the mean of the entropies, which is the mean Kullback-Leibler divergence to
    the mean (McCallum and Nigam, "Employing EM in pool-based active learning for text classification", ICML 1998).
    Unlike entropy it is 0 where all are equally unsure.

    Args:
        committee: at least two matrices (n, L) of the same rows and labels.
        one_label: see `entropy`.
    """
    matrices = [_matrix(own).astype(np.float64) for own in committee]
    if len(matrices) < 2 or len({own.shape for own in matrices}) != 1:
        raise InputError(f"probabilities of shapes {[own.shape for own in matrices]} are not those of several models")
    inner = np.mean([_entropy(own, one_label) for own in matrices], axis=0)
    return np.asarray(np.maximum(_entropy(np.mean(matrices, axis=0), one_label) - inner, 0.0))


def pick_rows(
    scores: np.ndarray,
    mask: np.ndarray,
    sample_ids: Sequence[str],
    groups: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    among: np.ndarray | None = None,
    without: Collection[str] = (),
) -> list[int]:
    """Returns up to `count` rows with high scores, balanced over the labels, at most one of each group, in turn.

    In each turn the label with the fewest picked rows takes the row with the highest score of those that have it; of
    several such labels, the one on the fewest rows. A row counts for each of its labels. Rows without a label are
    treated as a label of their own. Equal scores are ordered by a seeded hash of the id, so the order of rows does not
    matter.

    Args:
        scores: (n,), large for uncertain.
        mask: (n, L) bool, the chosen labels.
        groups: (n) names; of a picture, for example.
        among: (n,) bool, the rows to pick from; None: all.
        without: groups to leave out.
    """
    key = seed.to_bytes(16, "big", signed=True)
    drawn = [int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8, key=key).digest(), "big") for i in sample_ids]
    order = np.lexsort((np.array(drawn, dtype=np.uint64), -np.asarray(scores, dtype=np.float64)))
    if among is not None:
        order = order[among[order]]
    columns = np.concatenate([mask, ~mask.any(axis=1, keepdims=True)], axis=1)
    queues = [order[columns[order, j]] for j in range(columns.shape[1])]
    places, picked_of = [0] * len(queues), np.zeros(len(queues), dtype=np.int64)
    taken, picked = set(without), list[int]()
    alive = [j for j, queue in enumerate(queues) if len(queue)]
    while alive and len(picked) < count:
        label = min(alive, key=lambda j: (picked_of[j], len(queues[j]), j))
        queue, place = queues[label], places[label]
        while place < len(queue) and groups[queue[place]] in taken:
            place += 1
        places[label] = place
        if place == len(queue):
            alive.remove(label)
            continue
        row = int(queue[place])
        picked.append(row)
        taken.add(groups[row])
        picked_of += columns[row]
    return picked


def _entropy(p: np.ndarray, one_label: bool) -> np.ndarray:
    """Returns the entropy of rows (n, L) float64; see `entropy`."""
    if one_label:
        return np.asarray(_bits(p).sum(axis=1))
    return np.asarray((_bits(p) + _bits(1.0 - p)).mean(axis=1))


def _bits(p: np.ndarray) -> np.ndarray:
    """Returns what each probability adds to an entropy, -p log2 p, with 0 log 0 = 0."""
    return np.asarray(-p * np.log2(np.where(p > 0, p, 1.0)))


def _matrix(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities)
    if p.ndim != 2 or p.shape[1] == 0:
        raise InputError(f"probabilities of shape {p.shape} are not images x labels")
    return p
