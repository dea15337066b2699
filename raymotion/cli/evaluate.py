"""`raymotion evaluate`: scores a model on labelled samples, with baselines."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from raymotion.cli.options import cluster_option, progress_option, settings_from
from raymotion.evaluation.evaluate import EvaluateSettings


@click.command()
@settings_from(EvaluateSettings, arguments=["model", "samples"])
@click.option(
    "--review", metavar="FOLDER", help="Also write the folder of `raymotion review`, and link numbers to its pictures."
)
@progress_option
@cluster_option
def evaluate(settings: EvaluateSettings, review: str | None, **where: Any) -> None:
    """Score a model on the labelled samples of a table.

    MODEL is a checkpoint that `raymotion train` wrote, SAMPLES a sample table with labels. Every metric is reported
    with its 95 % interval, the class prior and the best constant prediction. evaluation.json, evaluation.html,
    predictions.parquet, per_class.csv (of one label a sample also confusion.csv), with --by by.csv, and the plots are
    written to --out.
    A model of pictures and captions in one space is scored by retrieval instead: which picture each caption finds, and
    which captions each picture finds, beside chance; retrieval.csv has a row for each query.
    After any interruption the same command resumes.

    \b
    Example:
      raymotion evaluate teacher/ socratis.parquet --out evaluation/
      raymotion evaluate s3://bucket/student s3://bucket/emotic.parquet --split val \\
          --out s3://bucket/evaluation --address auto
      raymotion evaluate fusion/ emotic.parquet --features embeddings/ --ablation face_body \\
          --out without-context/
      raymotion evaluate teacher/ others.parquet --holdout-domain source=news --by source --out news/

    --holdout-domain scores one domain of the table, --by each value of a column, from the same predictions.
    """
    from raymotion.evaluation.evaluate import evaluate_checkpoint
    from raymotion.report.evaluation_page import summary_lines, verdict_of, write

    summary = evaluate_checkpoint(settings, **where, write_page=partial(write, review=review))
    if review is not None and summary.labels is None and not summary.classes:
        what = "vectors" if summary.retrieval and not summary.numbers else "numbers"
        click.echo(f"note: the model predicts {what}, no labels: no review was written", err=True)
    first, *rest = summary_lines(summary)
    click.secho(first, fg="red" if verdict_of(summary).state == "bad" else None, bold=True)
    for line in rest:
        click.echo(line)
