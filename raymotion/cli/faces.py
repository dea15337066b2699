"""`raymotion data faces`: detects face boxes for samples without one."""

from __future__ import annotations

from typing import Any

import click

from raymotion.batch.faces import FaceSettings
from raymotion.cli.options import cluster_option, progress_option, settings_from


# Detectors run on the CPU, on one body at a time, in one precision.
@click.command()
@settings_from(FaceSettings, arguments=["samples"], without=["precision", "gpus_per_worker", "batch_size"])
@progress_option
@cluster_option
def faces(settings: FaceSettings, **where: Any) -> None:
    """Detect the faces of samples without a face box, and write a new sample table.

    Faces are searched inside the body boxes; no face is assigned to two persons of a picture. A face that is not found
    stays null, and the models mask it. Rows whose picture cannot be read are left unchanged and counted. After any
    interruption the same command resumes.

    \b
    Example:
      raymotion data faces emotic.parquet --out emotic-faces.parquet
      raymotion data faces emotic.parquet --detector yunet --weights yunet.onnx --out faces.parquet
    """
    from raymotion.batch.faces import detect_faces

    report = detect_faces(settings, **where)
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


def _say(name: str, text: str) -> None:
    click.echo(f"{name:<11}{text}")
