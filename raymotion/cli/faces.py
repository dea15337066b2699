"""`raymotion data faces`: face boxes for samples that have none."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import cluster_option, job_options, settings_options

# A detector runs on the CPU, on one body after the other, in one precision.
NOT_OURS = ("precision", "gpus_per_worker", "batch_size")


@click.command()
@click.argument("samples", required=False)
@click.option("--out", metavar="FILE", help="Sample table to write (Parquet; local path or s3://).")
@click.option(
    "--detector",
    help="cascade (OpenCV's Haar cascades, which come with it: upright faces, from the front or the side) or yunet "
    "(a small network; needs --weights).  [default: cascade]",
)
@click.option("--weights", metavar="FILE", help="Of yunet: face_detection_yunet_2023mar.onnx (local path or s3://).")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    help="Leave out faces of a lower score. Lower it to find more, of which more are none.  "
    "[default: 0.7 for cascade, 0.6 for yunet]",
)
@click.option("--min-side", type=click.FloatRange(1), metavar="PIXELS", help="Leave smaller faces out.  [default: 12]")
@click.option(
    "--overwrite-boxes", is_flag=True, default=None, help="Search for all samples, and forget the face boxes there are."
)
@job_options
@cluster_option
@settings_options
def faces(**options: Any) -> None:
    """Find the faces of samples that have no face box, and write the sample table anew.

    Faces are searched inside the body boxes; no face is given to two persons of a picture. A face that is not found
    stays null, and the models mask it. Rows whose picture cannot be read stay as they are, and are counted. After any
    interruption the same command goes on.

    \b
    Example:
      raymotion data faces emotic.parquet --out emotic-faces.parquet
      raymotion data faces emotic.parquet --detector yunet --weights yunet.onnx --out faces.parquet
    """
    from raymotion.batch.faces import FaceSettings, detect_faces
    from raymotion.config import load_settings

    file, assignments = options.pop("config_file"), options.pop("assignments")
    address, progress = options.pop("address"), options.pop("progress")
    settings = load_settings(FaceSettings, file=file, options=options, assignments=assignments)
    report = detect_faces(settings, address=address, progress=progress)
    _say(
        "detector", f"{report.detector.name} ({report.detector.weights}), score at least {report.detector.min_score:g}"
    )
    _say("found", f"{report.found:,} faces")
    _say("there", f"{report.kept:,} had a face box already")
    _say("none", f"{report.none:,} in whose picture no face of theirs was found (null: masked)")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.by_reason.items())
    if report.unreadable:
        _say("unreadable", f"{report.unreadable:,} rows, kept as they are ({reasons})")
    if report.no_image:
        _say("no image", f"{report.no_image:,} rows without an image_uri")
    _say("wrote", settings.out)


faces.params = [parameter for parameter in faces.params if parameter.name not in NOT_OURS]


def _say(name: str, text: str) -> None:
    click.echo(f"{name:<11}{text}")
