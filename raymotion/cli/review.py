"""`raymotion review`: writes a folder in which people review labels in a browser."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options, progress_option


@click.command()
@click.argument("labels")
@click.option("--out", required=True, metavar="FOLDER", help="Folder to write to (local path or s3://).")
@click.option(
    "--most", default=20_000, show_default=True, type=click.IntRange(1, 100_000), help="Most rows on the page."
)
@click.option(
    "--truth", metavar="SAMPLES", help="Sample table with people's labels, which the page compares with these."
)
@click.option("--all", "everything", is_flag=True, help="Show the rows that the selection did not take too.")
@progress_option
@access_options
def review(labels: str, out: str, most: int, truth: str | None, everything: bool, progress: Any) -> None:
    """Make a folder in which people look labels through, in a browser and without a network.

    LABELS is the folder that `raymotion label` or `raymotion select` wrote; its selected rows are shown. The page
    filters by emotion and probability, sorts by uncertainty and margin (with --truth also by disagreement), shows what
    is in quarantine, and saves marks (keep, or the right labels) as corrections.csv, which `raymotion data prepare
    corrections` turns into training labels. A second call goes on with the thumbnails.

    \b
    Example:
      raymotion review labels/ --out review/
      raymotion data prepare corrections corrections.csv coco.parquet review/vocabulary.json \\
          --out corrected.parquet
    """
    from raymotion.batch.progress import Progress
    from raymotion.report.review import summary_lines, write_review

    with Progress(progress, total=None, done=0, title="thumbnails") as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.advance(done - bar.done, 0)

        summary = write_review(labels, out, most=most, everything=everything, truth=truth, told=told)
    for line in summary_lines(summary):
        click.echo(line)
