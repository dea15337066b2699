"""`raymotion train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from raymotion.cli.options import access_options, cluster_option, progress_option, set_option

# Options for the most common settings: option -> setting of the recipe, metavar, help. All others, and those of a
# single kind of model, are given with --set.
SHORT: dict[str, tuple[str, Any, str | None, str]] = {
    "samples": ("data.samples", str, "FILE", "Sample table with targets and splits"),
    "labels": ("data.labels", str, "FOLDER", "Pseudo-labels of `raymotion label` to learn from, in place of --samples"),
    "features": ("data.features", str, "FOLDER", "Region features of the same samples"),
    "embeddings": ("data.embeddings", str, "FOLDER", "Embeddings of the same samples (repeatable)"),
    "holdout_domain": (
        "data.holdout_domain",
        str,
        "COLUMN=VALUE",
        "Domain of the table that is not trained on, but is the test split (repeatable)",
    ),
    "epochs": ("optimiser.epochs", int, None, "Most epochs"),
    "seed": ("seed", int, None, "Seed of everything random"),
    "workers": ("workers", int, None, "Workers that train together; 0: this process, without Ray"),
}


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (setting, kind, metavar, text) in reversed(SHORT.items()):
        several = name in ("embeddings", "holdout_domain")
        told = f"{text} ({setting}).  [default: the recipe's]"
        command = click.option(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, multiple=several, help=told)(
            command
        )
    return command


@click.command()
@click.argument("recipe")
@click.option("--out", required=True, metavar="FOLDER", help="Folder of the checkpoint; may be an s3:// address.")
@_recipe_options
@set_option
@access_options
@progress_option
@cluster_option
def train(
    recipe: str, out: str, assignments: tuple[str, ...], progress: Any, address: str | None, **given: Any
) -> None:
    """Train a model from RECIPE, a YAML file or the name of one that comes with raymotion.

    \b
    Examples:
      raymotion train teacher-visualbert-small --samples socratis.parquet --out teacher/
      raymotion train recipes/teacher-visualbert.yaml --set data.samples=s.parquet \\
          --features features/ --set optimiser.epochs=30 --out s3://bucket/teacher
      raymotion train student-gru-cnn --labels labels/ --workers 2 --out student/
      raymotion train fusion-emotic --samples emotic.parquet --embeddings embeddings/ \\
          --set backbones.context=swin --set backbones.face=efficientnet_b7 --out fusion/

    The best epoch is chosen on the validation split; the test split is scored once, at the end. With --holdout-domain
    source=my-set the test split is that domain, which tells how the model carries over. The same command resumes an
    interrupted run, and does nothing if the run is finished. Each epoch is logged to TensorBoard, MLflow or Weights &
    Biases with --set loggers=[tensorboard].
    """
    from raymotion.train.recipe import load_recipe

    options: dict[str, Any] = {}
    for name, (setting, *_) in SHORT.items():
        if given[name] not in (None, ()):
            *group, last = setting.split(".")
            inner = options.setdefault(group[0], {}) if group else options
            inner[last] = list(given[name]) if isinstance(given[name], tuple) else given[name]
    settings = load_recipe(recipe, options=options, assignments=assignments)

    from raymotion.models.card import held_out_text, served_weights
    from raymotion.train.fit import fit
    from raymotion.train.progress import TrainingProgress
    from raymotion.train.source import label_warnings

    for warning in label_warnings(settings):
        click.secho(f"warning: {warning}", fg="red", err=True)
    with TrainingProgress(progress) as shown:
        shown.waiting("starting")
        result = fit(settings, out, address=address, progress=shown.epoch_ended, stepped=shown.stepped, warn=shown.warn)
    info = result.info
    if result.already_done:
        click.echo(f"{out} is finished already, with these settings ({info.fingerprint}): nothing to do")
    elif result.resumed_from:
        click.echo(f"went on after epoch {result.resumed_from}", err=True)
    data = info.training["data"]
    left_out = {name: n for name, n in data["counts"].items() if name != "rows" and n}
    splits = ", ".join(f"{n} {name}" for name, n in data["splits"].items())
    click.echo(
        f"samples: {data['counts']['rows']} ({splits}" + "".join(f", {n} {k}" for k, n in left_out.items()) + ")"
    )
    if unreadable := info.training["history"][-1].get("unreadable_images"):
        click.echo(f"{unreadable} picture{'' if unreadable == 1 else 's'} could not be read: the model did without")
    click.echo(f"reads: {', '.join(info.reads)}; best epoch: {info.training['best_epoch']}")
    if served := served_weights(info.training):
        click.echo(f"weights: {served}")
    imitates = (info.training.get("targets") or {}).get("kind") == "pseudo-labels"
    if imitates:
        click.echo("The figures measure agreement with the teacher's labels, not with people's.")
    if held := held_out_text(info.training):
        click.echo(held)
    for split in ("validation", "test"):
        for own in info.outputs:
            if evaluation := info.facts(own.name).get(split):
                _print_table(split if len(info.outputs) == 1 else f"{split}, {own.name}", evaluation)
    if not result.already_done:
        click.echo(f"wrote {info.folder} (fingerprint {info.fingerprint}, {result.seconds:.0f} s)")


def _print_table(split: str, evaluation: Mapping[str, Any]) -> None:
    from raymotion.models.card import interpolated_map, metric_table
    from raymotion.text_table import table_lines

    head, rows = metric_table(evaluation)
    for line in ("", *table_lines((f"{split}, n = {evaluation['samples']}", *head[1:]), rows)):
        click.echo(line)
    if interpolated := interpolated_map(evaluation):
        click.echo(interpolated)
