"""`raymotion demo`: the whole pipeline on small synthetic data."""

from __future__ import annotations

import click

from raymotion.cli.options import cluster_option


@click.command()
@click.option("--out", default="demo", show_default=True, metavar="FOLDER", help="Folder for everything.")
@click.option("--seed", default=0, show_default=True, help="Seed of data and training.")
@click.option("--socratis-images", default=600, show_default=True, type=click.IntRange(60), help="Images to train on.")
@click.option("--coco-images", default=300, show_default=True, type=click.IntRange(1), help="Images to label.")
@cluster_option
def demo(out: str, seed: int, socratis_images: int, coco_images: int, address: str | None) -> None:
    """Run the whole pipeline on small synthetic data: generate it, train a teacher, label, report, train students.

    Prints the command of every step. Some images are damaged deliberately, to show the quarantine.

    \b
    Example:
      raymotion demo --out demo
    """
    from raymotion.demo import run_demo
    from raymotion.report.page import summary_lines
    from raymotion.report.transfer import comparison_lines

    result = run_demo(
        out, seed=seed, socratis_images=socratis_images, coco_images=coco_images, address=address, say=click.echo
    )
    click.echo("")
    for notice in result.labels.record["notices"]:
        click.echo(f"note: {notice}")
    click.secho(result.report.headline, bold=True)
    for line in summary_lines(result.report):
        click.echo(line)
    click.echo("")
    for line in comparison_lines(result.comparison):
        click.echo(line)
    click.echo("")
    click.echo("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items()))
    click.echo(f"open {result.report_file} in a browser")
