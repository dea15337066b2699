"""`raymotion label`, `select` and `export`: pseudo-labels, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from raymotion.cli.options import cluster_option, job_options, settings_options

F = TypeVar("F", bound=Callable[..., Any])
POLICIES = ("top-per-image", "threshold", "class-thresholds", "top-per-class")


def policy_options(command: F) -> F:
    """How labels are chosen from probabilities."""
    for option in reversed(
        (
            click.option(
                "--policy",
                type=click.Choice(POLICIES),
                help="top-per-image: the --count most probable labels of each image. threshold: all of at least "
                "--threshold. class-thresholds: each label's own threshold, fitted on the teacher's validation split. "
                "top-per-class: the --count images most typical of each label, over the whole set.  "
                "[default: top-per-image]",
            ),
            click.option(
                "--count", type=click.IntRange(1), help="Labels per image, or images per class.  [default: 4]"
            ),
            click.option("--threshold", type=click.FloatRange(0, 1), help="For --policy threshold.  [default: 0.5]"),
            click.option(
                "--minimum", type=click.FloatRange(0, 1), help="Least probability for top-per-class.  [default: 0]"
            ),
            click.option(
                "--sample-fraction", type=click.FloatRange(0, 1, min_open=True), help="Select a share.  [default: 1]"
            ),
            click.option("--seed", type=int, help="Seed of the sampled share.  [default: 0]"),
        )
    ):
        command = option(command)
    return command


def _policy(options: dict[str, Any]) -> dict[str, Any]:
    names = ("policy", "count", "threshold", "minimum", "sample_fraction", "seed")
    given = {name: options.pop(name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


@click.command()
@click.argument("samples", required=False)
@click.option(
    "--model", "teacher", metavar="MODEL", help="Checkpoint of a teacher, a student or a fusion head: a folder or address."
)
@click.option("--out", metavar="DIR", help="Folder or address of the labelled data set.")
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
@policy_options
@job_options
@cluster_option
@settings_options
def label(**options: Any) -> None:
    """Label every image of a sample table with a teacher.

    SAMPLES is a sample table from `raymotion data prepare`. Region features are computed in the same stream with the
    extractor that the teacher was trained with, those of a fusion head with its backbones: it labels persons by their
    body_box and face_box, and a stream that a person lacks is masked. After any interruption the same command goes on
    where it stopped.

    \b
    Example:
      raymotion label coco.parquet --model teacher/ --out labels/
      raymotion label s3://bucket/coco.parquet --model teacher/ --out s3://bucket/labels \\
          --policy top-per-class --count 2000 --address auto
      raymotion label persons.parquet --model fusion/ --weights swin=swin.safetensors --out labels/
    """
    from raymotion.batch.labels import LabelSettings
    from raymotion.batch.labels import label as run
    from raymotion.cli.summary import print_job
    from raymotion.config import load_settings

    file, assignments = options.pop("config_file"), options.pop("assignments")
    address, progress = options.pop("address"), options.pop("progress")
    options["weights"] = options["weights"] or None
    selection = _policy(options)
    settings = load_settings(
        LabelSettings, file=file, options={**options, "selection": selection or None}, assignments=assignments
    )
    summary = run(settings, address=address, progress=progress)
    print_job(summary, next_step=f"raymotion report {settings.out} --out report.html")


@click.command()
@click.argument("labels")
@click.option("--out", required=True, metavar="DIR", help="Folder or address of the new data set.")
@policy_options
@settings_options
def select(labels: str, out: str, **options: Any) -> None:
    """Choose labels anew from the probabilities of a labelled data set: no model runs.

    \b
    Example:
      raymotion select labels/ --policy top-per-class --count 500 --out labels-balanced/
    """
    from raymotion.batch.choice import select as run
    from raymotion.cli.summary import print_verdict
    from raymotion.config import load_settings
    from raymotion.learning.selection import SelectionPolicy

    file, assignments = options.pop("config_file"), options.pop("assignments")
    policy = load_settings(SelectionPolicy, file=file, options=_policy(options), assignments=assignments)
    record = run(labels, out, policy)
    choice = record["choice"]
    print_verdict(record["collapse"])
    if not choice["labels"]:
        click.echo("warning: no image got a label: the threshold or minimum is above every probability")
    click.echo(
        f"{choice['selected']} of {record['counts']['good']} images selected, {choice['labels']} labels -> {out}"
    )


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
