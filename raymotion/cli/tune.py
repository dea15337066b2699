"""`raymotion tune`."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options, cluster_option, progress_option, settings_from
from raymotion.study.settings import TuneSettings


@click.command()
@settings_from(TuneSettings, arguments=["recipe"], file=False)
@access_options
@progress_option
@cluster_option
def tune(settings: TuneSettings, **where: Any) -> None:
    """Search settings of RECIPE, for any kind of model: all combinations of a file's choices, or a random sample.

    \b
    Examples:
      raymotion tune teacher-visualbert-small --space tune_spaces/teacher-small.yaml \\
          --samples socratis.parquet --set select_by=macro_ap --out search/
      raymotion train search/winner.yaml --out teacher/
      raymotion study report search/ --out report/

    The file has a `grid`, setting -> choices, and optionally `samples`, the number of configurations to draw.
    Configurations are compared on validation by the recipe's own metric (`select_by`), over seeds. Of those that
    validation cannot distinguish from the best, the smallest is chosen. The winner is scored on test once, at the end.
    After an interruption the same command resumes.
    """
    from raymotion.report.study import configuration_lines
    from raymotion.study.run import run_study

    record = run_study(settings.as_study(), **where, say=click.echo)
    for line in configuration_lines(record, record.stages[0]):
        click.echo(line)
    winner = f"{settings.out.rstrip('/')}/winner.yaml"
    click.echo(f"wrote {settings.out}; train the winner: raymotion train {winner} --out FOLDER")
