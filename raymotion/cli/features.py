"""`raymotion features`: what is computed from images once, and read many times."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import cluster_option, job_options, settings_options


@click.group()
def features() -> None:
    """Extract features from images, once.

    \b
    Example:
      raymotion features regions coco.parquet --out features/
    """


@features.command()
@click.argument("samples", required=False)
@click.option("--out", metavar="DIR", help="Folder or address of the features.")
@click.option(
    "--extractor",
    help="frcnn-vg-r101-c4 (VisualBERT's, 2,048 numbers a region), fasterrcnn_resnet50_fpn_v2, "
    "fasterrcnn_resnet50_fpn, fasterrcnn_mobilenet_v3_large_fpn or fasterrcnn_mobilenet_v3_large_320_fpn (1,024).  "
    "[default: fasterrcnn_resnet50_fpn_v2]",
)
@click.option(
    "--weights",
    help="'default' (the published weights), a state dict (.safetensors, .pth), or 'random:SEED'. For frcnn-vg-r101-c4 "
    "also a folder with config.yaml and pytorch_model.bin, or a hub id (OWNER/NAME).  [default: default]",
)
@click.option("--count", type=click.IntRange(1), help="Regions per image.  [default: 36]")
@job_options
@cluster_option
@settings_options
def regions(**options: Any) -> None:
    """Region features of every image: box-head features, boxes and scores of a Faster R-CNN.

    SAMPLES is a sample table from `raymotion data prepare`. After any interruption the same command goes on.

    \b
    Example:
      raymotion features regions coco.parquet --extractor fasterrcnn_mobilenet_v3_large_320_fpn --out features/
      raymotion features regions coco.parquet --extractor frcnn-vg-r101-c4 --out features-vg/
    """
    from raymotion.batch.regions import RegionSettings, extract_regions
    from raymotion.cli.summary import print_job
    from raymotion.config import load_settings

    file, assignments = options.pop("config_file"), options.pop("assignments")
    address, progress = options.pop("address"), options.pop("progress")
    settings = load_settings(RegionSettings, file=file, options=options, assignments=assignments)
    summary = extract_regions(settings, address=address, progress=progress)
    print_job(summary, next_step=f"raymotion train teacher-visualbert-small --features {settings.out} ...")
