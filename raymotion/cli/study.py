"""`raymotion study`."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import cluster_option, progress_option, settings_from
from raymotion.study.settings import StudySettings


@click.group()
def study() -> None:
    """Search configurations of a model, stage by stage.

    \b
    Example:
      raymotion study run tune_spaces/emotic/ --embeddings embeddings/ --out study/
    """


@study.command(short_help="Run the stages and the joint search; the same command goes on.")
@settings_from(StudySettings, arguments=["spaces"], names={"stages": "stage"}, file=False)
@progress_option
@cluster_option
def run(settings: StudySettings, **where: Any) -> None:
    """Run the stages and the joint search of the folder SPACES; resume where an earlier run was interrupted.

    \b
    Examples:
      raymotion study run tune_spaces/emotic/ --embeddings embeddings/ --seeds 3 --out study/
      raymotion study run tune_spaces/emotic-small/ --embeddings embeddings/ --stage backbones \\
          --stage fusion --no-joint --epochs 10 --out trial/

    Every choice is made on validation, over seeds, and ties are determined by a paired bootstrap over images. The test
    split is scored once, at the end.
    """
    from raymotion.study.run import run_study

    run_study(settings, **where, say=click.echo)
    click.echo(f"wrote {settings.out}; show it: raymotion study report {settings.out}")


@study.command()
@click.argument("folder", metavar="STUDY")
@click.option(
    "--out",
    default="report",
    show_default=True,
    metavar="FOLDER",
    help="Folder for index.html, the tables as CSV and evaluation_metrics.txt; may be s3://.",
)
def report(folder: str, out: str) -> None:
    """Show a study as one HTML page that opens offline.

    STUDY is the folder that `raymotion study run` wrote; it may still be running. The page has the stages, every
    configuration with its seeds, the joint search, learning curves and the final configuration's test scores for each
    emotion. The tables are also written as CSV. If the spaces name a published study, its numbers are shown next to
    ours, and evaluation_metrics.txt is written in its format.

    \b
    Example:
      raymotion study report study/ --out report/
      raymotion study report s3://bucket/study --out s3://bucket/report
    """
    from raymotion.report.study import write_study_report

    summary = write_study_report(folder, out)
    click.secho(summary.headline, fg="red" if summary.state == "bad" else None, bold=True)
    for warning in summary.warnings:
        click.secho(warning, fg="red", err=True)
    for line in summary.lines:
        click.echo(line)
    click.echo(f"Page: {summary.out}")
