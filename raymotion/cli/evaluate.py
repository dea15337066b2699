"""`raymotion evaluate`: a checkpoint on labelled samples, beside its baselines."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import cluster_option, job_options, settings_options


@click.command()
@click.argument("checkpoint", metavar="[MODEL]", required=False)
@click.argument("samples", required=False)
@click.option("--out", metavar="DIR", help="Folder or address of the evaluation.")
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train", "all"]),
    help="Samples to score.  [default: test where the table names splits, else all]",
)
@click.option(
    "--features",
    metavar="DIR",
    help="Region features (a fusion head: embeddings) made before, instead of extracting in the same stream.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights file of the region extractor or the backbones, if the checkpoint was trained with one; NAME=FILE for "
    "one of several backbones (repeatable).",
)
@click.option(
    "--ablation",
    metavar="NAME",
    help="A fusion head: the streams it may look at: all, context, body, face, face_body, face_context, body_context.  "
    "[default: those it was trained with]",
)
@click.option(
    "--soft", is_flag=True, default=None, help="Measure the BCE against the share of annotators (label_weights)."
)
@click.option("--bootstrap", type=click.IntRange(0), help="Resamples of the 95 % intervals; 0: none.  [default: 1000]")
@click.option("--bins", type=click.IntRange(1, 1000), help="Bins of the calibration.  [default: 10]")
@click.option("--seed", type=int, help="Seed of the resamples.  [default: 0]")
@job_options
@cluster_option
@settings_options
def evaluate(**options: Any) -> None:
    """Score a checkpoint on the labelled samples of a table.

    MODEL is a checkpoint that `raymotion train` wrote, SAMPLES a sample table with labels. Every number stands beside
    the class prior and the best constant answer, with its 95 % interval. DIR gets evaluation.json, evaluation.html,
    predictions.parquet, per_class.csv and the plots. After any interruption the same command goes on.

    \b
    Example:
      raymotion evaluate teacher/ socratis.parquet --out evaluation/
      raymotion evaluate s3://bucket/student s3://bucket/emotic.parquet --split val \\
          --out s3://bucket/evaluation --address auto
      raymotion evaluate fusion/ emotic.parquet --features embeddings/ --ablation face_body \\
          --out without-context/
    """
    from raymotion.config import load_settings
    from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
    from raymotion.report.evaluation_page import verdict, warnings_of
    from raymotion.report.evaluation_terminal import summary_lines

    file, assignments = options.pop("config_file"), options.pop("assignments")
    address, progress = options.pop("address"), options.pop("progress")
    options["weights"] = options["weights"] or None
    settings = load_settings(EvaluateSettings, file=file, options=options, assignments=assignments)
    summary = evaluate_checkpoint(settings, address=address, progress=progress)
    first, *rest = summary_lines(summary)
    state = verdict(summary.measured, warnings_of(summary.record)).state
    click.secho(first, fg="red" if state == "bad" else None, bold=True)
    for line in rest:
        click.echo(line)
