"""`raymotion audit`: checks pseudo-labels against human labels, human labels against predictions, or a selection."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options


@click.command()
@click.argument("labels")
@click.option("--truth", metavar="SAMPLES", help="Sample table with human labels for the same images.")
@click.option(
    "--predictions",
    metavar="FOLDER",
    help="LABELS is a sample table with human labels: doubt them by this folder of `raymotion label` or `evaluate`.",
)
@click.option("--out", required=True, metavar="FOLDER", help="Folder or address of the audit.")
@click.option(
    "--mapping", metavar="FILE", help="What means what, where the vocabularies differ: a file or a shipped name."
)
@click.option(
    "--on",
    type=click.Choice(["auto", "sample", "image-name"]),
    default="auto",
    show_default=True,
    help="Join by sample_id, or by the image's file name. auto: by sample_id if any is in both.",
)
@click.option(
    "--persons",
    type=click.Choice(["union", "share"]),
    default="union",
    show_default=True,
    help="Where an image shows several labelled people: it carries what one of them does, or what half of them do "
    "(and the calibration is measured against the share).",
)
@click.option(
    "--examples", type=click.IntRange(0, 500), default=24, show_default=True, help="Disagreements on the page."
)
@click.option(
    "--bootstrap", type=click.IntRange(0), default=1000, show_default=True, help="Resamples of the intervals."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the resamples.")
@click.option(
    "--review", metavar="FOLDER", help="Also write the folder of `raymotion review`, and link emotions to its pictures."
)
@access_options
def audit(labels: str, truth: str | None, predictions: str | None, out: str, **options: Any) -> None:
    """Check pseudo-labels against human labels, or against themselves.

    \b
    LABELS --truth SAMPLES       are the pseudo-labels what people say?
    SAMPLES --predictions FOLDER which human labels are doubtful?
    LABELS                       where do choices and probabilities part ways?

    LABELS is the folder of `raymotion label`. The last form checks only the selection: it cannot find errors of the
    model, whose probabilities would be compared with themselves.

    \b
    Example:
      raymotion audit labels/ --truth emotic.parquet --mapping socratis-29-to-emotic-26 --out audit/
      raymotion audit socratis.parquet --predictions evaluation/ --out audit/
    """
    if truth is not None and predictions is not None:
        raise click.UsageError("--truth and --predictions answer different questions: give one of them.")
    from raymotion.report.audit import AuditSettings, audit_against_truth, audit_choices, audit_samples
    from raymotion.report.audit_page import lines

    settings = AuditSettings(**options)
    if truth is not None:
        done = audit_against_truth(labels, truth, out, settings)
    elif predictions is not None:
        done = audit_samples(labels, predictions, out, settings)
    else:
        done = audit_choices(labels, out, settings)
    for line in lines(done.record):
        click.echo(line)
    click.echo(f"audit: {', '.join(done.files)}")
