"""A page with the pictures that a search found; it opens from a disk, without a network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from raymotion import storage
from raymotion.batch.label_dataset import LabelledRow
from raymotion.batch.search import SearchResult
from raymotion.folders import outputs
from raymotion.report.cards import make_card, thumbnail
from raymotion.report.rendering import template

THREADS = 8


def require_page(path: storage.PathLike) -> None:
    """Raises an `InputError` if `path` exists and is no page of raymotion."""
    outputs.require_replaceable(path, "a page of raymotion", outputs.is_page)


def write_page(result: SearchResult, path: storage.PathLike) -> None:
    """Writes the page of a search, with a thumbnail of each picture.

    Raises:
        InputError: the file exists and is no page of raymotion.
    """
    require_page(path)
    with ThreadPoolExecutor(THREADS) as pool:
        cards = list(
            pool.map(
                lambda hit: make_card(
                    LabelledRow(hit.sample_id, hit.image_uri, hit.captions, hit.mark),
                    f"{hit.rank}: cosine {hit.cosine:.3f}",
                ),
                result.hits,
            )
        )
    query, problem = (None, "") if result.image is None else thumbnail(result.image)
    storage.write_text(
        path, template("search.html.j2").render(result=result, cards=cards, query=query, problem=problem)
    )
