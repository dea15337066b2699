"""Evaluation of retrieval: which pictures a model finds for a caption, and which captions for a picture.

Each caption is a query and an item of its own: the text vector that is stored for a sample with five captions is their
mean, which is easier to tell apart than any of them. `expanded` gives each picture and each caption a row of its own,
which an ordinary labelling job predicts. A caption belongs to the picture of its group, whichever row holds it, and a
picture that several rows share (persons in it) counts once.

Outputs that are measured beside others, or whose sides are not a picture and its captions, are measured by their rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.data.captions import is_readable
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.metrics.retrieval import Ranks, evaluate_retrieval, rank_queries
from raymotion.learning.nearest import best_items
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.embedding import IMAGE, TEXT, Embedding

# Items of a query that are listed.
BEST = 5
# Vectors of one picture from two batches differ by less.
SAME = 1e-5
BELOW_IMAGE = "#caption-"


@dataclass(frozen=True)
class Direction:
    """The queries of one side, and their ranks among the items of the other.

    Attributes:
        query, item: names of the sides.
        evaluation: the metrics of `learning.metrics.retrieval`, beside chance.
        ranks: of the m queries.
        queries: (m,) their rows in the table of predictions.
        best: (m, c) rows of the items most similar to each query, c at most `BEST`.
        cosines: (m, c) of these.
        right: (m, c) bool, which of these belong to the query.
        left_out: queries without an item of their own.
    """

    query: str
    item: str
    evaluation: Evaluation
    ranks: Ranks
    queries: np.ndarray
    best: np.ndarray
    cosines: np.ndarray
    right: np.ndarray
    left_out: int

    @property
    def name(self) -> str:
        """E.g. `text_to_image`."""
        return f"{self.query}_to_{self.item}"


@dataclass(frozen=True)
class Retrieval:
    """Results of an output of vectors.

    Attributes:
        by_caption: whether each caption is a query of its own, rather than each row.
        rows: the table of predictions: sample_id, group_id, image_uri, captions.
        images: number of images that have queries.
        flat: says that the vectors of a side are nearly one direction; None if they are not.
    """

    output: str
    sides: tuple[str, str]
    by_caption: bool
    rows: pa.Table
    directions: tuple[Direction, ...]
    images: int
    flat: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values; those of a direction are named `text_to_image_recall_at_1`."""
        metrics = {
            f"{own.name}_{name}": value for own in self.directions for name, value in own.evaluation.metrics.items()
        }
        seed = self.directions[0].evaluation.seed
        return {
            "sides": list(self.sides),
            "queries_are": "captions and images" if self.by_caption else "rows",
            "images": self.images,
            **Evaluation(samples=self.images, metrics=metrics, seed=seed).to_dict(),
            "pools": {
                own.name: {
                    "queries": len(own.queries), "pool": own.ranks.pool, "left_out": own.left_out,
                    "chance": own.ranks.chance,
                }
                for own in self.directions
            },
            "flat": self.flat,
        }  # fmt: skip


def is_by_caption(outputs: Sequence[Output]) -> bool:
    """Returns whether a model is evaluated on `expanded` rows: it gives vectors of pictures and captions alone."""
    return all(isinstance(own, Embedding) and set(own.sides) == {IMAGE, TEXT} for own in outputs)


def expanded(table: pa.Table, *, cached: bool = False) -> pa.Table:
    """Returns a sample table with a row for each picture, without captions, and one for each caption, without picture.

    A picture keeps the sample_id of its first row, by which cached features are found; its captions are called
    `ID#caption-K`. Captions that several rows of a group share count once.

    Args:
        cached: whether rows without an image_uri are pictures too, because their features are cached.
    """
    uris, groups = table.column("image_uri").to_pylist(), table.column("group_id").to_pylist()
    ids, captions = table.column("sample_id").to_pylist(), table.column("captions").to_pylist()
    pictures: set[tuple[str, str]] = set()
    said: set[tuple[str, str]] = set()
    sources: list[int] = []
    names: list[str] = []
    texts: list[str | None] = []
    for row, (uri, group) in enumerate(zip(uris, groups, strict=True)):
        # Rows without an address may share a picture too; their vectors will tell.
        key = (group, uri if uri is not None else f"\n{row}")
        if (uri is not None or cached) and key not in pictures:
            pictures.add(key)
            sources.append(row)
            names.append(ids[row])
            texts.append(None)
        for number, text in enumerate(captions[row]):
            if text is not None and is_readable(text) and (group, text) not in said:
                said.add((group, text))
                sources.append(row)
                names.append(f"{ids[row]}{BELOW_IMAGE}{number}")
                texts.append(text)
    found = table.take(pa.array(sources, pa.int64()))
    is_text = np.array([text is not None for text in texts], dtype=bool)
    given: dict[str, list[Any]] = {
        "sample_id": names,
        "captions": [[] if text is None else [text] for text in texts],
    }
    for name in ("image_uri", "body_box", "face_box"):
        values = found.column(name).to_pylist()
        given[name] = [None if text else value for text, value in zip(is_text, values, strict=True)]
    for name, values in given.items():
        field = found.schema.field(name)
        found = found.set_column(found.schema.get_field_index(name), field, pa.array(values, field.type))
    return found


def measure_retrieval(
    output: Embedding,
    values: np.ndarray,
    rows: pa.Table,
    *,
    by_caption: bool,
    bootstrap: int = 1000,
    seed: int = 0,
    notices: list[str] | None = None,
) -> Retrieval | None:
    """Ranks each side for the other, over all rows.

    Args:
        values: (n, 2 D) of the output.
        rows: n rows with sample_id, group_id, image_uri and captions; rows of one group belong together.
        by_caption: whether `rows` are `expanded`.
        notices: gets a sentence on queries that are left out.

    Returns:
        None, with a notice, if no row of a side has a partner.
    """
    notices = [] if notices is None else notices
    groups = np.array(rows.column("group_id").to_pylist(), dtype=str)
    sides = dict(zip(output.sides, output.split(values), strict=True))
    places = {}
    for side, own in sides.items():
        there = np.flatnonzero((own != 0).any(axis=1))
        # Captions are distinct by their text: if a model says the same of all, each still counts.
        places[side] = there if by_caption and side == TEXT else _distinct(own, groups, there)
    directions = []
    for query, item in (output.sides[::-1], output.sides):
        items, asked = places[item], places[query]
        queries = asked[np.isin(groups[asked], groups[items])]
        left_out = len(asked) - len(queries)
        if left_out:
            notices.append(
                f"{left_out:,} of {len(asked):,} {query} queries are left out: nothing of their {item} side could be "
                "predicted."
            )
        if not len(queries):
            notices.append(f"No {query} has an {item} of its own: retrieval by {output.name} was not measured.")
            return None
        own, pool = sides[query][queries], sides[item][items]
        ranks = rank_queries(own, pool, groups[queries], groups[items])
        best, similar = best_items(own, pool, BEST)
        evaluation = evaluate_retrieval(ranks, groups=groups[queries].tolist(), bootstrap=bootstrap, seed=seed)
        right = groups[items][best] == groups[queries][:, None]
        directions.append(
            Direction(query, item, evaluation, ranks, queries, items[best], similar, right, left_out)
        )  # fmt: skip
    images = len(set(groups[directions[0].queries]) | set(groups[directions[1].queries]))
    return Retrieval(
        output.name, (output.sides[0], output.sides[1]), by_caption, rows, tuple(directions), images,
        output.spread_notice(values, {}),
    )  # fmt: skip


def _distinct(vectors: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows without those whose vector another row of the same group has: rows of persons in one picture."""
    kept: dict[str, list[int]] = {}
    for row in rows.tolist():
        own = kept.setdefault(groups[row], [])
        if not any(np.abs(vectors[row] - vectors[other]).max() < SAME for other in own):
            own.append(row)
    return np.array(sorted(row for own in kept.values() for row in own), dtype=np.int64)


def queries_csv(own: Retrieval) -> str:
    """Returns a row for each query: its id, direction, rank, pool, and the ids of the items most similar to it."""
    ids, groups = (own.rows.column(name).to_pylist() for name in ("sample_id", "group_id"))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["direction", "query", "group", "rank", "pool", *(f"best_{i + 1}" for i in range(BEST))])
    for direction in own.directions:
        for query, rank, best in zip(direction.queries, direction.ranks.ranks, direction.best, strict=True):
            found = [ids[row] for row in best]
            writer.writerow(
                [direction.name, ids[query], groups[query], int(rank), direction.ranks.pool,
                 *found, *[""] * (BEST - len(found))]
            )  # fmt: skip
    return buffer.getvalue()


@dataclass(frozen=True)
class ShownQuery:
    """A query to show: its number in the direction, and why."""

    number: int
    why: str


def shown_queries(own: Direction, *, each: int, seed: int) -> list[ShownQuery]:
    """Chooses queries: the best ones (by how far their own item is ahead), the worst, and others at random.

    Args:
        each: how many of each sort, at most; none is shown twice.
    """
    ranks, similar, right = own.ranks.ranks, own.cosines, own.right
    lead = np.where(right, similar, -2.0).max(axis=1) - np.where(right, -2.0, similar).max(axis=1)
    order = np.lexsort((np.arange(len(ranks)), -lead, ranks)).tolist()
    best = [i for i in order[:each] if ranks[i] == 1]
    worst = [i for i in order[::-1] if i not in set(best)][:each]
    rest = sorted(set(order) - {*best, *worst})
    drawn = np.random.default_rng(seed).permutation(len(rest))[:each]
    return [
        *(ShownQuery(rest[i], "picked at random") for i in sorted(drawn.tolist())),
        *(ShownQuery(i, "among the best") for i in best),
        *(ShownQuery(i, "among the worst") for i in worst),
    ]


def r1_text(results: Mapping[str, Any]) -> str:
    """Returns R@1 of both directions beside chance, from the record of `Retrieval.to_dict`."""
    told = []
    for name, pool in results["pools"].items():
        value = results["metrics"][f"{name}_recall_at_1"]["value"]
        told.append(f"{name.replace('_', ' ')} {value:.3f} (chance {pool['chance']['recall_at_1']:.3f})")
    return ", ".join(told)
