"""`raymotion search`: finds pictures of a labelled folder by a sentence or by a picture."""

from __future__ import annotations

from typing import Literal

import click

from raymotion.cli.options import access_options


@click.command()
@click.argument("text", required=False)
@click.option("--image", metavar="FILE", help="Search by this picture (a path or an address) instead of a text.")
@click.option(
    "--index", required=True, metavar="DIR", help="Folder that `raymotion label` wrote with a model of vectors."
)
@click.option("--model", metavar="MODEL", help="Where that model lies now.  [default: where it lay when it labelled]")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1, 10_000), help="How many are found.")
@click.option("--side", metavar="NAME", help="What is searched: image or text, the captions.  [default: the pictures]")
@click.option(
    "--engine",
    type=click.Choice(["numpy", "faiss"]),
    default="numpy",
    show_default=True,
    help="Both are exact. faiss has to be installed, and holds all vectors in memory.",
)
@click.option("--html", metavar="PAGE", help="Also write a page with what was found, which opens offline.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 ...")
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights file of the model's backbones, if it was trained with one; NAME=FILE for one of several "
    "(repeatable).",
)
@access_options
def search(
    text: str | None,
    image: str | None,
    index: str,
    model: str | None,
    top: int,
    side: str | None,
    engine: Literal["numpy", "faiss"],
    html: str | None,
    as_json: bool,
    device: str,
    weights: tuple[str, ...],
) -> None:
    """Find pictures by a sentence, or by another picture.

    TEXT is a sentence such as a caption. The pictures are the rows of a folder that `raymotion label` wrote with a
    model of pictures and captions in one space; the query goes through the same model. They are compared by the cosine
    of their vectors, all of them: the search is exact.

    \b
    Example:
      raymotion label photos.parquet --model joint/ --out index/
      raymotion search "a dog at sunset" --index index/ --html dogs.html
      raymotion search --image photo.jpg --index index/ --top 20
    """
    from raymotion.batch.search import SearchIndex
    from raymotion.report.search_page import require_page, write_page

    if html is not None:
        require_page(html)
    found = SearchIndex(index, model=model, engine=engine, device=device, weights=weights)
    result = found.search(text, image=image, top=top, side=side)
    if html is not None:
        write_page(result, html)
    for warning in result.warnings():
        click.secho(f"warning: {warning}", fg="red", err=True)
    if as_json:
        click.echo(result.to_json())
        return
    for line in result.lines():
        click.echo(line)
    if html is not None:
        click.echo(f"page: {html}")
