"""Retrieval on an evaluation's page and in a terminal: both ways beside chance, and queries with what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymotion.batch.label_dataset import read_rows
from raymotion.evaluation.retrieval import Direction, Retrieval, shown_queries
from raymotion.learning.metrics.multilabel import interval_text, metric_text, metric_title
from raymotion.learning.significance import Headline, headline
from raymotion.models.outputs.embedding import TEXT
from raymotion.report.cards import thumbnail
from raymotion.text_table import table_lines

HEADS = ("direction", "metric", "value", "95 % interval", "chance", "queries", "pool", "against chance")
# Queries of each sort (best, worst, at random) on the page.
EACH = 4


@dataclass(frozen=True)
class ShownItem:
    """What a query or a found item looks like.

    Attributes:
        picture: data URL; None with `problem`, or for a caption.
        text: its caption; of a picture that cannot be shown, a caption of its group.
        cosine: with the query; None for the query itself.
        right: whether it belongs to the query.
    """

    name: str
    picture: str | None
    problem: str
    text: str
    is_text: bool
    cosine: float | None = None
    right: bool = False


@dataclass(frozen=True)
class ShownQueryCard:
    """A query with the items that are most similar to it."""

    why: str
    query: ShownItem
    items: Sequence[ShownItem]


def retrieval_rows(own: Retrieval) -> list[tuple[str, ...]]:
    """Returns the texts of the table of both directions, in the columns of `HEADS`."""
    rows: list[tuple[str, ...]] = []
    for direction in own.directions:
        for name, metric in direction.evaluation.metrics.items():
            rows.append(
                (
                    direction.name.replace("_", " "), metric_title(name), metric_text(metric.value),
                    interval_text(metric.low, metric.high), metric_text(metric.constant),
                    f"{len(direction.queries):,}", f"{direction.ranks.pool:,}", metric.verdict,
                )
            )  # fmt: skip
    return rows


def retrieval_lines(own: Retrieval, first: str) -> list[str]:
    """Returns the lines for a terminal.

    Args:
        first: the headline, which is not said twice.
    """
    lines = [] if own.flat in (None, first) else [f"  - {own.flat}"]
    what = "each caption for itself" if own.by_caption else "by rows; a row's captions are one query"
    if not own.by_caption and TEXT not in own.sides:
        what = "by rows"
    lines += ["", f"{own.output}: {' and '.join(own.sides)} of {own.images:,} images find each other, {what}"]
    return [*lines, *table_lines(HEADS, retrieval_rows(own), left=(0, 1, len(HEADS) - 1))]


def verdict_of_retrieval(own: Retrieval, warnings: Sequence[str]) -> Headline:
    """Returns the headline: whether both directions beat chance, by the mean reciprocal rank."""
    told = ", ".join(
        f"{direction.name.replace('_', ' ')} {metric_text(direction.evaluation['recall_at_1'].value)} "
        f"(chance {metric_text(direction.evaluation['recall_at_1'].constant)} of {direction.ranks.pool:,})"
        for direction in own.directions
    )
    verdicts = {direction.name: direction.evaluation["mrr"].verdict for direction in own.directions}
    doubtful = " and ".join(name.replace("_", " ") for name, word in verdicts.items() if word == "unclear")
    worse = " and ".join(name.replace("_", " ") for name, word in verdicts.items() if word == "worse")
    return headline(
        verdicts,
        {
            "bad": own.flat or f"Retrieval is worse than chance ({worse}): R@1 {told}.",
            "unsure": f"Retrieval may be no better than chance ({doubtful}): R@1 {told}.",
            "reserved": f"Retrieval beats chance both ways: R@1 {told}",
            "good": f"Retrieval beats chance both ways: R@1 {told}.",
        },
        failures=[] if own.flat is None else [own.flat],
        warnings=list(warnings),
    )


def shown_retrieval(own: Retrieval, predictions: str | None, *, seed: int = 0) -> Mapping[str, Any]:
    """Returns what the template evaluation_retrieval.html.j2 shows.

    Args:
        predictions: folder of the labelling job, for the pictures; None: names and captions alone.
    """
    rows = [{"cells": row[:-1], "verdict": row[-1]} for row in retrieval_rows(own)]
    chosen = {direction.name: shown_queries(direction, each=EACH, seed=seed) for direction in own.directions}
    wanted: set[tuple[int, str]] = set()
    for direction in own.directions:
        for query in chosen[direction.name]:
            wanted.add((int(direction.queries[query.number]), direction.query))
            wanted |= {(row, direction.item) for row in direction.best[query.number].tolist()}
    found = _items(own, sorted(wanted), predictions)
    queries = [
        (own_way, [_card(own_way, query.number, query.why, found) for query in chosen[own_way.name]])
        for own_way in own.directions
    ]
    return {"heads": HEADS, "rows": rows, "queries": queries}


def _card(direction: Direction, number: int, why: str, found: Mapping[tuple[int, str], ShownItem]) -> ShownQueryCard:
    rank = f"rank {int(direction.ranks.ranks[number]):,} of {direction.ranks.pool:,}"
    best = zip(direction.best[number].tolist(), direction.cosines[number], direction.right[number], strict=True)
    items = [
        replace(found[row, direction.item], cosine=float(cosine), right=bool(right)) for row, cosine, right in best
    ]
    return ShownQueryCard(f"{rank}, {why}", found[int(direction.queries[number]), direction.query], items)


def _items(
    own: Retrieval, wanted: Sequence[tuple[int, str]], predictions: str | None
) -> dict[tuple[int, str], ShownItem]:
    """Returns rows of the table of predictions, by a side, as they are shown; each picture is read once."""
    ids, groups, captions = (own.rows.column(name).to_pylist() for name in ("sample_id", "group_id", "captions"))
    said: dict[str, str] = {}  # a picture that cannot be shown is told apart by a caption of its group
    for group, texts in zip(groups, captions, strict=True):
        for text in texts:
            said.setdefault(group, text)
    rows = sorted({row for row, side in wanted if side != TEXT})
    labelled = {} if predictions is None else dict(zip(rows, read_rows(predictions, rows), strict=True))
    thumbnails: dict[str | None, tuple[str | None, str]] = {}
    shown = {}
    for row, side in wanted:
        if side == TEXT:
            text = " / ".join(filter(None, captions[row]))
            shown[row, side] = ShownItem(ids[row], None, "", text, is_text=True)
            continue
        one = labelled.get(row)
        uri = None if one is None else one.image_uri
        if uri not in thumbnails:
            thumbnails[uri] = (None, "no image") if one is None else thumbnail(uri, one.mark)
        picture, problem = thumbnails[uri]
        text = said.get(groups[row], "") if picture is None else ""
        shown[row, side] = ShownItem(ids[row], picture, problem, text, is_text=False)
    return shown
