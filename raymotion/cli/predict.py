"""`raymotion predict`: predicts the emotions of one image and its caption."""

from __future__ import annotations

from typing import Literal

import click

from raymotion.cli.options import access_options


@click.command()
@click.argument("model")
@click.argument("image", required=False)
@click.option("--caption", "captions", multiple=True, metavar="TEXT", help="A caption of the image (repeatable).")
@click.option(
    "--body-box", metavar="X1,Y1,X2,Y2", help="A fusion head: where the person is, in pixels. Default: context alone."
)
@click.option(
    "--face-box", metavar="X1,Y1,X2,Y2", help="A fusion head: where the face is, in pixels. Default: it is masked."
)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="Weights file of the region extractor or the backbones, if the model was trained with one; NAME=FILE for one "
    "of several backbones (repeatable).",
)
@click.option(
    "--damaged",
    type=click.Choice(["quarantine", "keep"]),
    default="quarantine",
    show_default=True,
    help="A picture that decodes, but not to what was stored: refuse it, or read it as it decodes, with a note.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="How many emotions are shown.")
@click.option("--all", "everything", is_flag=True, help="Show every emotion.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every emotion, for programs.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 ...")
@access_options
def predict(
    model: str,
    image: str | None,
    captions: tuple[str, ...],
    body_box: str | None,
    face_box: str | None,
    weights: tuple[str, ...],
    damaged: Literal["quarantine", "keep"],
    top: int,
    everything: bool,
    as_json: bool,
    device: str,
) -> None:
    """Emotions of one image and its caption, with the frequency of each in training.

    MODEL is a checkpoint and IMAGE a picture, each a path or an address; IMAGE may be omitted if a caption is given.
    For checkpoints with thresholds, an emotion is chosen if its probability reaches the threshold fitted on validation.
    Of a model of one label, the most probable is chosen.

    \b
    Example:
      raymotion predict teacher/ photo.jpg --caption "A man laughs."
      raymotion predict teacher/ --caption "A man laughs." --all
      raymotion predict fusion/ photo.jpg --body-box 40,10,220,400 --face-box 90,20,150,95
    """
    from raymotion.pipeline.prediction import explain, parse_box

    given = (("body", body_box), ("face", face_box))
    boxes = {name: parse_box(text, f"--{name}-box") for name, text in given if text is not None}
    prediction = explain(model, image, captions, device=device, weights=weights, boxes=boxes, damaged=damaged)
    if as_json:
        click.echo(prediction.to_json())
        return
    for line in prediction.lines(None if everything else top):
        click.echo(line)
