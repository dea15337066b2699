"""`raymotion crossfit`: predicts each training sample by a model that did not see it."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options, cluster_option, no_ray_option, progress_option, set_option


@click.command()
@click.argument("recipe")
@click.option("--samples", required=True, metavar="FILE", help="Sample table with targets and splits.")
@click.option(
    "--embeddings", multiple=True, metavar="FOLDER", help="Embeddings of the same samples (repeatable), as in `train`."
)
@click.option("--out", required=True, metavar="FOLDER", help="Folder for the predictions and every checkpoint.")
@click.option(
    "--folds", default=5, show_default=True, type=click.IntRange(2), help="Parts of the training split, by group."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of folds and training.")
@no_ray_option
@set_option
@access_options
@progress_option
@cluster_option
def crossfit(
    recipe: str,
    samples: str,
    embeddings: tuple[str, ...],
    out: str,
    folds: int,
    seed: int,
    no_ray: bool,
    assignments: tuple[str, ...],
    progress: Any,
    address: str | None,
) -> None:
    """Train RECIPE without one part of the training split at a time, and predict that part.

    A second model that reads what a first one predicts (a classifier that reads predicted valence) must learn from such
    predictions: those of a model for the samples that it was trained on are better than any it makes later. --out gets
    samples.parquet, the table with the columns predicted_valence ... (of numbers), predictions.parquet (of any output),
    crossfit.json, and in --out/model the model of the whole training split, which predicts validation and test. After
    an interruption the same command resumes.

    \b
    Examples:
      raymotion crossfit regressor --samples oasis.parquet --embeddings embeddings/ --out step-one/
      raymotion crossfit mlp --samples flickr.parquet --embeddings embeddings/ --folds 10 --out out-of-fold/
    """
    from raymotion.train.recipe import load_recipe

    data: dict[str, Any] = {"samples": samples}
    if embeddings:
        data["embeddings"] = list(embeddings)
    settings = load_recipe(recipe, options={"data": data, "seed": seed}, assignments=assignments)

    from raymotion.models.card import metric_table
    from raymotion.text_table import table_lines
    from raymotion.train.crossfit import cross_fit

    result = cross_fit(
        settings,
        out,
        folds=folds,
        address=address,
        parallel=not no_ray,
        say=lambda line: click.echo(line, err=True),
        progress=progress,
    )
    for name, evaluation in result.evaluations.items():
        title = "out of fold" if len(result.evaluations) == 1 else f"out of fold, {name}"
        head, rows = metric_table(evaluation)
        for line in (*table_lines((f"{title}, n = {evaluation['samples']}", *head[1:]), rows), ""):
            click.echo(line)
    for path in result.files:
        click.echo(f"wrote {path}")
