"""`raymotion predict`: the emotions of one image and its caption."""

from __future__ import annotations

import click


@click.command()
@click.argument("image", required=False)
@click.option("--caption", "captions", multiple=True, metavar="TEXT", help="A caption of the image (repeatable).")
@click.option("--model", required=True, metavar="CKPT", help="Checkpoint: a folder or an address.")
@click.option(
    "--weights", metavar="FILE", help="The region extractor's weights file, if the model was trained with one."
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="How many emotions are shown.")
@click.option("--all", "everything", is_flag=True, help="Show every emotion.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every emotion, for programs.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 ...")
def predict(
    image: str | None,
    captions: tuple[str, ...],
    model: str,
    weights: str | None,
    top: int,
    everything: bool,
    as_json: bool,
    device: str,
) -> None:
    """Emotions of one image and its caption, beside how often the model saw each in training.

    IMAGE is a path or an address; it may be left out where a caption is given. An emotion is chosen if its probability
    reaches the threshold that was fitted on validation, for checkpoints that have thresholds.

    \b
    Example:
      raymotion predict photo.jpg --caption "A man laughs." --model teacher/
      raymotion predict --caption "A man laughs." --model teacher/ --all
    """
    from raymotion.models.prediction import explain

    prediction = explain(model, image, captions, device=device, weights=weights)
    if as_json:
        click.echo(prediction.to_json())
        return
    for line in prediction.lines(None if everything else top):
        click.echo(line)
