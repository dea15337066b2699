"""`raymotion features`: extracts features from images once, for repeated use."""

from __future__ import annotations

from typing import Any

import click

from raymotion.batch.embeddings import EmbeddingSettings
from raymotion.batch.feature_import import ImportSettings
from raymotion.batch.regions import RegionSettings
from raymotion.cli.options import cluster_option, progress_option, settings_from


@click.group()
def features() -> None:
    """Extract features from images, once.

    \b
    Example:
      raymotion features regions coco.parquet --out features/
    """


@features.command()
@settings_from(RegionSettings, arguments=["samples"])
@progress_option
@cluster_option
def regions(settings: RegionSettings, **where: Any) -> None:
    """Region features of every image: box-head features, boxes and scores of a Faster R-CNN.

    SAMPLES is a sample table from `raymotion data prepare`. After any interruption the same command resumes.

    \b
    Example:
      raymotion features regions coco.parquet --extractor fasterrcnn_mobilenet_v3_large_320_fpn --out features/
      raymotion features regions coco.parquet --extractor frcnn-vg-r101-c4 --out features-vg/
    """
    from raymotion.batch.regions import extract_regions
    from raymotion.cli.summary import print_job

    summary = extract_regions(settings, **where)
    print_job(summary, next_step=f"raymotion train teacher-visualbert-small --features {settings.out} ...")


@features.command()
@settings_from(EmbeddingSettings, arguments=["samples"])
@click.option(
    "--study",
    metavar="FOLDER",
    help="Also the backbones, levels and tokens that the spaces in FOLDER ask for (tune_spaces/emotic/).",
)
@progress_option
@cluster_option
def embeddings(settings: EmbeddingSettings, study: str | None, **where: Any) -> None:
    """Features of a person's three streams: the whole picture, the body, the face, by frozen backbones.

    SAMPLES is a sample table; body and face need its body_box and face_box. A BACKBONE is swin, deit, efficientnet_b7,
    mobilenet_v3, or any timm model. Every picture is decoded once for all streams and backbones, and the context is
    computed once for all persons in it. Validation and test are never augmented. After any interruption the same
    command resumes.

    \b
    Example:
      raymotion features embeddings emotic.parquet --out embeddings/ --context swin --body swin --face mobilenet_v3
      raymotion features embeddings emotic.parquet --out embeddings/ --study tune_spaces/emotic/ --views 4
      raymotion features embeddings oasis.parquet --out embeddings/ --context tf_efficientnet_lite2 \\
          --backbone-weights bundled:tf_efficientnet_lite2 --pooled-stages 3
    """
    from raymotion.batch.embeddings import describe, embed, with_needs
    from raymotion.cli.summary import print_job

    if study is not None:
        from raymotion.study.features import embedding_needs

        given = settings.model_dump(exclude_unset=True)
        settings = EmbeddingSettings.model_validate(with_needs(given, embedding_needs(study)))
    summary = embed(settings, **where)
    for line in describe(summary.record):
        click.echo(line)
    alone = settings.context and not settings.body and not settings.face
    learn = "train regressor" if _is_rated_alone(settings.samples) else "train mlp"
    use = f"{learn} --samples {settings.samples}" if alone else "study run tune_spaces/emotic/"
    print_job(summary, next_step=f"raymotion {use} --embeddings {settings.out}")


# Of options that every job has, those that this one has no use for.
_UNUSED = ("batch_size", "precision", "damaged", "gpus_per_worker", "decode_threads")


@features.command("import")
@settings_from(ImportSettings, arguments=["vectors"], without=_UNUSED)
@progress_option
@cluster_option
def import_(settings: ImportSettings, **where: Any) -> None:
    """Take over vectors that were made elsewhere, as if `features embeddings` had made them.

    VECTORS is a Parquet file with an id and a vector in each row. The ids are sample ids, with or without the data set
    in front, or names of pictures. --backbone says what made the vectors, so that a model that learns from them reads
    new pictures through the same network; vectors of another length are refused, a wrong name of the same length cannot
    be. Samples without a vector go into quarantine, and vectors without a sample are counted, as are those that were
    matched by file name alone.

    \b
    Example:
      raymotion features import vectors.parquet --samples flickr8k.parquet --out embeddings/ \\
          --backbone tf_efficientnet_lite0 --weights bundled:tf_efficientnet_lite0
    """
    from raymotion.batch.feature_import import describe, import_vectors
    from raymotion.cli.summary import print_job

    summary = import_vectors(settings, **where)
    for line in describe(summary.record):
        click.echo(line)
    print_job(summary, next_step=f"raymotion train RECIPE --samples {settings.samples} --embeddings {settings.out}")


def _is_rated_alone(samples: str) -> bool:
    """Returns whether a sample table has valence and no labels."""
    from raymotion import storage

    table = storage.read_table(samples)
    counts = {name: table.num_rows - table[name].null_count for name in table.column_names}
    return not counts.get("labels") and bool(counts.get("valence"))
