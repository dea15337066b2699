"""`raymotion study report`: a study as one page, and its verdict on the terminal."""

from __future__ import annotations

import click


@click.command(
    epilog="""
\b
Example:
  raymotion study report study/ --out report/
  raymotion study report s3://bucket/study --out s3://bucket/report
"""
)
@click.argument("study", metavar="STUDY")
@click.option(
    "--out",
    default="report",
    show_default=True,
    metavar="DIR",
    help="Folder for index.html, the tables as CSV and evaluation_metrics.txt; may be s3://.",
)
def report(study: str, out: str) -> None:
    """Show a study as one HTML page that opens offline.

    STUDY is the folder that `raymotion study run` wrote; it may still be running. The page has the stages, every
    configuration with its seeds, the joint search, learning curves and the final configuration's test scores for each
    emotion. Beside it: the tables as CSV. Where the spaces name a published study, its numbers stand beside ours, and
    evaluation_metrics.txt is written as that study writes it.
    """
    from raymotion.report.study import write_study_report

    summary = write_study_report(study, out)
    click.secho(summary.headline, fg="red" if summary.state == "bad" else None, bold=True)
    for warning in summary.warnings:
        click.secho(warning, fg="red", err=True)
    for line in summary.lines:
        click.echo(line)
    click.echo(f"Page: {summary.out}")
