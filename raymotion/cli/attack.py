"""`raymotion attack`: how easily a model is misled."""

from __future__ import annotations

import click

from raymotion.cli.attack_pixels import pixels


@click.group()
def attack() -> None:
    """Measure how easily a model is misled.

    \b
    Example:
      raymotion attack pixels samples.parquet --model classifier/ --out attack/
    """


attack.add_command(pixels)
