"""`raymotion finetune`: compares transfer from a student trained on pseudo-labels with its controls."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import access_options, cluster_option, no_ray_option, progress_option, set_option


@click.command()
@click.argument("model")
@click.option("--samples", required=True, metavar="FILE", help="Sample table with human labels and splits.")
@click.option("--out", required=True, metavar="FOLDER", help="Folder for the table, its plot, and every checkpoint.")
@click.option(
    "--recipe",
    default="finetune-student",
    show_default=True,
    metavar="RECIPE",
    help="Data and optimiser settings of the runs: a YAML file, or the name of one that comes with raymotion.",
)
@click.option(
    "--depth",
    "depths",
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    help="Layers that are copied, from the input on (repeatable).  [default: all but the head]",
)
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each kind: seeds 0, 1, ..."
)
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    type=click.Choice(["AnB", "AnB+", "BnB", "BnB+"]),
    help="Only these, and training from scratch (repeatable).  [default: all]",
)
@no_ray_option
@set_option
@access_options
@progress_option
@cluster_option
def finetune(
    model: str,
    samples: str,
    out: str,
    recipe: str,
    depths: tuple[int, ...],
    seeds: int,
    conditions: tuple[str, ...],
    no_ray: bool,
    assignments: tuple[str, ...],
    progress: Any,
    address: str | None,
) -> None:
    """Fine-tune a student on human labels with all transfer methods, and compare them over seeds.

    MODEL (A) is a student trained on pseudo-labels; --samples (B) have human labels. AnB copies the first n layers from
    A and freezes them, AnB+ fine-tunes them; BnB and BnB+ do the same with a network trained on B (Yosinski et al.
    2014); scratch trains from random weights. The table shows mean and spread over seeds on the test split, with the
    class prior and the constant prediction. After an interruption the same command resumes.

    \b
    Examples:
      raymotion finetune student/ --samples socratis.parquet --out finetune/
      raymotion finetune student/ --samples socratis.parquet --depth 1 --depth 3 --seeds 5 --out finetune/
    """
    from raymotion.train.recipe import load_recipe

    settings = load_recipe(recipe, options={"data": {"samples": samples}}, assignments=assignments)
    if "transfer" not in type(settings).model_fields:
        raise click.UsageError(f"{recipe} is a recipe for a {settings.kind}, whose layers cannot be copied")

    from raymotion.models.checkpoint import read_checkpoint_info
    from raymotion.report.transfer import comparison_lines, write_figure
    from raymotion.train.source import doubts_about
    from raymotion.train.transfer import CONDITIONS, compare

    for warning in doubts_about(read_checkpoint_info(model).training.get("targets") or {}):
        click.secho(f"warning: {model}: {warning}", fg="red", err=True)
    result = compare(
        settings,
        model,
        out,
        depths=depths,
        seeds=range(seeds),
        conditions=conditions or CONDITIONS,
        address=address,
        parallel=not no_ray,
        say=lambda line: click.echo(line, err=True),
        progress=progress,
    )
    write_figure(result)
    for line in comparison_lines(result):
        click.echo(line)
