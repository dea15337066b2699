"""`raymotion attack poison`: what poisoned training samples do to a model."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import (
    access_options,
    cluster_option,
    config_option,
    no_ray_option,
    progress_option,
    set_option,
)
from raymotion.cli.settings_options import options_from
from raymotion.config import load_settings
from raymotion.robustness.poison_settings import PoisonSettings


@click.command()
@click.argument("recipe")
@click.option("--samples", required=True, metavar="FILE", help="Sample table with labels and splits.")
@click.option(
    "--embeddings", multiple=True, metavar="FOLDER", help="Embeddings of the same samples (repeatable), as in `train`."
)
@click.option("--out", required=True, metavar="FOLDER", help="Folder for the page, the poisons, and every checkpoint.")
@options_from(PoisonSettings)
@config_option
@no_ray_option
@set_option
@access_options
@progress_option
@cluster_option
def poison(
    recipe: str,
    samples: str,
    embeddings: tuple[str, ...],
    out: str,
    config: str | None,
    no_ray: bool,
    assignments: tuple[str, ...],
    progress: Any,
    address: str | None,
    **options: Any,
) -> None:
    """Train RECIPE on clean and on poisoned samples, and score both on the same test set.

    Poisons replace rows of the training split; validation and test stay as they are. The table shows, for each poison
    rate, what the model lost, how often the attacker gets the target label, and how many of the poisons three defences
    find. --out gets poison.json, .csv and .html, and the poisoned tables and pictures of each rate and seed. The runs
    are trials of Ray Tune. After an interruption the same command resumes. --config is a file of the attack's settings,
    --set overrides one of the recipe.

    \b
    Examples:
      raymotion attack poison fractal --samples flickr.parquet --target fear --out poisoned/
      raymotion attack poison mlp --samples flickr.parquet --embeddings embeddings/ --attack flip --target awe \\
          --source fear --out flipped/
      raymotion attack poison fractal --samples flickr.parquet --config recipes/attacks/poison-collision.yaml \\
          --no-ray --out collided/
    """
    from raymotion.train.recipe import load_recipe

    data: dict[str, Any] = {"samples": samples}
    if embeddings:
        data["embeddings"] = list(embeddings)
    attack = load_settings(PoisonSettings, file=config, options=options)
    settings = load_recipe(recipe, options={"data": data}, assignments=assignments)

    from raymotion.report.poison import poison_lines, verdict, write_page
    from raymotion.robustness.poison import poison as run

    result = run(
        settings,
        attack,
        out,
        address=address,
        parallel=not no_ray,
        say=lambda line: click.echo(line, err=True),
        progress=progress,
    )
    write_page(result)
    first, *rest = poison_lines(result)
    click.secho(first, fg="red" if verdict(result).state == "bad" else None, bold=True)
    for line in rest:
        click.echo(line)
