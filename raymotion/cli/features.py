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


@features.command()
@click.argument("samples", required=False)
@click.option("--out", metavar="DIR", help="Folder or address of the features.")
@click.option("--context", multiple=True, metavar="BACKBONE", help="Backbone of the whole picture (repeatable).")
@click.option("--body", multiple=True, metavar="BACKBONE", help="Backbone of the body's crop (repeatable).")
@click.option("--face", multiple=True, metavar="BACKBONE", help="Backbone of the face's crop (repeatable).")
@click.option(
    "--study",
    metavar="DIR",
    help="Also the backbones, levels and tokens that the spaces in DIR ask for (tune_spaces/emotic/).",
)
@click.option(
    "--augment",
    multiple=True,
    type=click.Choice(["basic", "full"]),
    help="Level of augmentation, besides none, for the split train (repeatable).  [default: none alone]",
)
@click.option("--views", type=click.IntRange(1), help="Views of each level of augmentation.  [default: 4]")
@click.option(
    "--tokens",
    type=click.IntRange(0),
    help="Side G of a grid of G x G spatial tokens, for attention fusion; 0: pooled features alone.  "
    "[default: 0; with --study 2 where its spaces use tokens]",
)
@click.option(
    "--backbone-weights",
    multiple=True,
    metavar="[NAME=]WHAT",
    help="'default' (timm's published weights), a state dict (.safetensors, .pth), a hub id, or 'random:SEED'; "
    "for all backbones, or for NAME (repeatable).  [default: default]",
)
@click.option(
    "--size",
    multiple=True,
    metavar="[NAME=]PIXELS",
    help="Side of the square that backbones read; for all, or for NAME (repeatable).  [default: each one's own]",
)
@click.option("--seed", type=int, help="Of the augmented views.  [default: 0]")
@job_options
@cluster_option
@settings_options
def embeddings(**options: Any) -> None:
    """Features of a person's three streams: the whole picture, the body, the face, by frozen backbones.

    SAMPLES is a sample table with body_box (and face_box). A BACKBONE is swin, deit, efficientnet_b7, mobilenet_v3, or
    any name of timm's. Every picture is decoded once for all streams and backbones, and the context is computed once
    for all persons in it. Validation and test are never augmented. After any interruption the same command goes on.

    \b
    Example:
      raymotion features embeddings emotic.parquet --out embeddings/ --context swin --body swin --face mobilenet_v3
      raymotion features embeddings emotic.parquet --out embeddings/ --study tune_spaces/emotic/ --views 4
      raymotion features embeddings emotic.parquet --out small/ --body test_resnet --backbone-weights random:0
    """
    from raymotion.batch.embeddings import EmbeddingSettings, describe, embed
    from raymotion.cli.summary import print_job
    from raymotion.config import load_settings

    file, assignments = options.pop("config_file"), options.pop("assignments")
    address, progress, study = options.pop("address"), options.pop("progress"), options.pop("study")
    if study is not None:
        from raymotion.batch.embeddings import with_needs
        from raymotion.study.features import embedding_needs

        options = with_needs(options, embedding_needs(study))
    # An option that may be repeated is () where it was not given.
    given = {name: None if value == () else value for name, value in options.items()}
    settings = load_settings(EmbeddingSettings, file=file, options=given, assignments=assignments)
    summary = embed(settings, address=address, progress=progress)
    for line in describe(summary.record):
        click.echo(line)
    print_job(summary, next_step=f"raymotion study run tune_spaces/emotic/ --embeddings {settings.out}")
