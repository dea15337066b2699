"""Retrieval on an evaluation's page and in a terminal: both ways beside chance, and queries with what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymotion.batch.label_dataset import read_rows
from raymotion.evaluation.retrieval import Direction, Retrieval, shown_queries
from raymotion.learning.metrics.multilabel import interval_text, metric_text
from raymotion.learning.significance import Headline, headline
from raymotion.models.outputs.embedding import TEXT
from raymotion.report.cards import thumbnail
from raymotion.text_table import table_lines

TITLES = {
    "recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "mrr": "MRR (mean of 1 / rank)",
    "median_rank": "Median rank (lower is better)", "mean_rank": "Mean rank (lower is better)",
}  # fmt: skip
HEADS = ("direction", "metric", "value", "95 % interval", "chance", "queries", "pool", "against chance")
# Queries of each sort (best, worst, at random) on the page.
EACH = 4


@dataclass(frozen=True)
class ShownItem:
    """What a query or a found item looks like.

    Attributes:
        picture: data URL; None with `problem`, or for a caption.
        text: its caption or captions.
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
                    direction.name.replace("_", " "), TITLES[name], metric_text(metric.value),
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
    rows = [
        {"cells": row[:-1], "verdict": row[-1], "first": i % len(TITLES) == 0}
        for i, row in enumerate(retrieval_rows(own))
    ]  # fmt: skip
    chosen = {direction.name: shown_queries(direction, each=EACH, seed=seed) for direction in own.directions}
    wanted = sorted(
        {
            int(row)
            for direction in own.directions
            for query in chosen[direction.name]
            for row in (direction.queries[query.number], *direction.best[query.number])
        }
    )
    found = _items(own, wanted, predictions)
    queries = [
        (
            direction,
            [_card(direction, query.number, query.why, found) for query in chosen[direction.name]],
        )
        for direction in own.directions
    ]
    return {"heads": HEADS, "rows": rows, "queries": queries}


def _card(direction: Direction, number: int, why: str, found: Mapping[int, ShownItem]) -> ShownQueryCard:
    rank = f"rank {int(direction.ranks.ranks[number]):,} of {direction.ranks.pool:,}"
    items = [
        ShownItem(**{**vars(found[row]), "cosine": float(cosine), "right": bool(right)})
        for row, cosine, right in zip(
            direction.best[number].tolist(), direction.cosines[number], direction.right[number], strict=True
        )
    ]
    return ShownQueryCard(f"{rank}, {why}", found[int(direction.queries[number])], items)


def _items(own: Retrieval, wanted: Sequence[int], predictions: str | None) -> dict[int, ShownItem]:
    """Returns rows of the table of predictions as they are shown; each picture is read once."""
    ids, uris, captions = (
        own.rows.column(name).take(list(wanted)).to_pylist() for name in ("sample_id", "image_uri", "captions")
    )  # fmt: skip
    labelled = [None] * len(wanted) if predictions is None else read_rows(predictions, wanted)
    shown = {}
    thumbnails: dict[str | None, tuple[str | None, str]] = {}
    for row, name, uri, texts, one in zip(wanted, ids, uris, captions, labelled, strict=True):
        is_text = own.by_caption and bool(texts)
        picture, problem = None, ""
        if not is_text:
            if uri not in thumbnails:
                thumbnails[uri] = (None, "no image") if one is None else thumbnail(uri, one.mark)
            picture, problem = thumbnails[uri]
        shown[row] = ShownItem(name, picture, problem, " / ".join(text for text in texts if text), is_text)
    return shown
