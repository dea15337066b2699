"""`raymotion attack pixels`."""

from __future__ import annotations

from typing import Any

import click

from raymotion.cli.options import cluster_option, progress_option, settings_from
from raymotion.robustness.pixel_attack import PixelAttackSettings


@click.command()
@settings_from(PixelAttackSettings, arguments=["samples"], part="aim")
@progress_option
@cluster_option
def pixels(settings: PixelAttackSettings, **where: Any) -> None:
    """Mislead a model by one or a few changed pixels of its pictures.

    SAMPLES is a sample table with the labels or ratings that the model predicts. Pictures that the model has right are
    changed in 1, 3 and 5 pixels of the original file, found by differential evolution that only sees predictions (Su
    et al. 2019), beside random pixels and, for networks with gradients in their pixels, a reference that knows these,
    with at most 80 queries of its own. attack.html, attack.json, attack.csv, pictures/ (PNG) and attacks/ (Parquet) are
    written to --out. After any interruption the same command resumes.

    \b
    Example:
      raymotion attack pixels flickr.parquet --model fractal/ --out attack/
      raymotion attack pixels flickr.parquet --model fractal/ --target fear --pixels 1 --out fear/
      raymotion attack pixels coco.parquet --model student/ --label happy --queries 5000 --out happy/
      raymotion attack pixels oasis.parquet --model regressor/ --dimension valence --push down --by 0.5 \\
          --images 50 --out lower/
    """
    from raymotion.report.attack_page import lines, write
    from raymotion.robustness.pixel_attack import attack_pixels

    summary = attack_pixels(settings, **where, write_page=write)
    first, *rest = lines(summary.record)
    click.secho(first, bold=True)
    for line in rest:
        click.echo(line)
    click.echo(f"attack: {settings.out}")
