"""`raymotion carryover`: tells how a recipe does on domains that it was not trained on."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options, cluster_option, no_ray_option, progress_option, set_option


@click.command()
@click.argument("recipe")
@click.option("--samples", required=True, metavar="FILE", help="Sample table with labels, splits and several domains.")
@click.option("--out", required=True, metavar="FOLDER", help="Folder for the table, its page, and every checkpoint.")
@click.option(
    "--domain",
    "column",
    default="source",
    show_default=True,
    metavar="COLUMN",
    help="Text column of the table; each of its values is a domain.",
)
@click.option(
    "--value", "values", multiple=True, metavar="VALUE", help="Hold out only these (repeatable).  [default: all]"
)
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each kind: seeds 0, 1, ..."
)
@no_ray_option
@set_option
@access_options
@progress_option
@cluster_option
def carryover(
    recipe: str,
    samples: str,
    out: str,
    column: str,
    values: tuple[str, ...],
    seeds: int,
    no_ray: bool,
    assignments: tuple[str, ...],
    progress: Any,
    address: str | None,
) -> None:
    """Train RECIPE without one domain of a table at a time, and test it on that domain.

    The table shows, for each domain that was held out, how well its samples are ranked, beside the same recipe on the
    table's own splits and a logistic regression on its frozen features. carryover.json, .csv and .html are written to
    --out, and in --out/model the model that was trained on all domains, whose card holds these figures. After an
    interruption the same command resumes.

    \b
    Examples:
      raymotion carryover teacher-minilm --samples socratis.parquet --out carryover/
      raymotion carryover student-gru-cnn --samples all.parquet --domain source --seeds 5 --no-ray --out carryover/
    """
    from raymotion.train.recipe import load_recipe

    settings = load_recipe(recipe, options={"data": {"samples": samples}}, assignments=assignments)

    from raymotion.report.carryover import carryover_lines, verdict, write_page
    from raymotion.train.carryover import carry_over

    result = carry_over(
        settings,
        column,
        out,
        values=values,
        seeds=range(seeds),
        address=address,
        parallel=not no_ray,
        say=lambda line: click.echo(line, err=True),
        progress=progress,
    )
    write_page(result)
    first, *rest = carryover_lines(result)
    click.secho(first, fg="red" if verdict(result).state == "bad" else None, bold=True)
    for line in rest:
        click.echo(line)
