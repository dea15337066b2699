"""`raymotion label`, `select` and `export`: create, select and export pseudo-labels."""

from __future__ import annotations

from typing import Any

import click

from raymotion.batch.labels import LabelSettings
from raymotion.batch.uncertain import SelectSettings
from raymotion.cli.options import cluster_option, progress_option, settings_from


@click.command()
@settings_from(LabelSettings, arguments=["samples"], part="selection")
@progress_option
@cluster_option
def label(settings: LabelSettings, **where: Any) -> None:
    """Label every image of a sample table with a model.

    SAMPLES is a sample table from `raymotion data prepare`. Region features are computed in the same pass with the
    extractor that the model was trained with, and features of a fusion head with its backbones: it labels persons by
    their body_box and face_box, and missing streams are masked. After any interruption the same command resumes where
    it stopped.

    \b
    Example:
      raymotion label coco.parquet --model teacher/ --out labels/
      raymotion label s3://bucket/coco.parquet --model teacher/ --out s3://bucket/labels \\
          --policy top-per-class --count 2000 --address auto
      raymotion label coco.parquet --model teacher/ --out labels/ --adapt-rates
      raymotion label persons.parquet --model fusion/ --weights swin=swin.safetensors --out labels/
    """
    from raymotion.batch.labels import label as run
    from raymotion.cli.summary import print_job
    from raymotion.models.outputs.embedding import Embedding

    summary = run(settings, **where)
    show = f"report {settings.out} --out report.html"
    if not summary.record.get("vocabulary"):  # there are no labels for the report to show
        kinds = {own.get("type") for own in (summary.record.get("model") or {}).get("outputs") or ()}
        show = f"export {settings.out} --format full-csv --out labels.csv"
        if Embedding.kind_of_output in kinds:
            show = f'search "..." --index {settings.out}'
    print_job(summary, next_step=f"raymotion {show}")


@click.command()
@click.argument("labels")
@click.option("--out", required=True, metavar="FOLDER", help="Folder or address of the new data set.")
@settings_from(SelectSettings)
def select(settings: SelectSettings, labels: str, out: str) -> None:
    """Choose labels again from the probabilities of a labelled data set, or rows to look at, without running a model.

    \b
    Example:
      raymotion select labels/ --policy top-per-class --count 500 --out labels-balanced/
      raymotion select labels/ --policy uncertain --count 200 --out ask/
      raymotion select labels/ --policy uncertain --count 200 --against labels-seed1/ --out ask/
    """
    from raymotion.batch.choice import select as run
    from raymotion.cli.summary import print_rates, print_verdict

    record = run(labels, out, settings)
    choice = record["choice"]
    print_verdict(record["collapse"])
    if not choice["labels"]:
        click.echo("warning: no image got a label: the threshold or minimum is above every probability")
    click.echo(
        f"{choice['selected']} of {record['counts']['good']} images selected, {choice['labels']} labels -> {out}"
    )
    print_rates(record)
    if settings.is_uncertain:
        click.echo(f"next: raymotion review {out} --out review/, or raymotion data export label-studio {out} ...")


@click.command()
@click.argument("labels")
@click.option("--out", required=True, metavar="FILE", help="File or address to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["full-csv", "csv", "coco-json"]),
    default="full-csv",
    show_default=True,
    help="full-csv: id, address, captions and labels as JSON, and a column p_LABEL with each label's probability. csv: "
    "coco_url, captions and one 0/1 column a label, as the public system wrote it. coco-json: COCO's layout.",
)
@click.option(
    "--coco-split",
    metavar="NAME",
    help="Where COCO publishes the pictures (val2017), for rows whose own address does not say.",
)
def export(labels: str, out: str, kind: str, coco_split: str | None) -> None:
    """Write the selected rows of a labelled data set as csv or COCO-style json.

    \b
    Example:
      raymotion export labels/ --out labels.csv
      raymotion export labels/ --format csv --coco-split val2017 --out coco_predictions.csv
    """
    from raymotion.batch.export import export as run

    done = run(labels, out, kind, coco_split=coco_split)
    if done.without_address:
        click.echo(
            f"warning: {done.without_address:,} of {done.rows:,} rows have no address for their picture", err=True
        )
    click.echo(f"{done.rows} images -> {out}")
