"""`raymotion report`: writes an HTML page about a labelled data set, and prints its verdict."""

from __future__ import annotations

import click

from raymotion.cli.options import access_options


@click.command(
    epilog="""
\b
Example:
  raymotion report labels/ --out report.html
  raymotion report s3://bucket/labels --out s3://bucket/report.html --examples 60
"""
)
@click.argument("labels", metavar="LABELS")
@click.option(
    "--out", default="report.html", show_default=True, metavar="FILE", help="Where the page is written; may be s3://."
)
@click.option(
    "--examples", default=24, show_default=True, type=click.IntRange(0, 500), help="Images shown, with their emotions."
)
@click.option(
    "--review", metavar="FOLDER", help="Also write the folder of `raymotion review`, and link numbers to its pictures."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the images that are picked at random.")
@access_options
def report(labels: str, out: str, examples: int, review: str | None, seed: int) -> None:
    """Show a labelled data set as one HTML page that opens offline.

    LABELS is the folder that `raymotion label` wrote. The first line printed is the verdict of the collapse check:
    whether the labels vary from image to image, and whether the teacher beats a constant answer.
    """
    from raymotion.report.page import summary_lines, write_report

    summary = write_report(labels, out, samples_shown=examples, seed=seed, review=review)
    click.secho(summary.headline, fg="red" if summary.collapse.collapsed else None, bold=True)
    for line in summary_lines(summary):
        click.echo(line)
