"""`raymotion attack`: how easily a model is misled."""

from __future__ import annotations

import click

from raymotion.cli.attack_pixels import pixels
from raymotion.cli.attack_poison import poison


@click.group()
def attack() -> None:
    """Measure how easily a model is misled.

    \b
    Examples:
      raymotion attack pixels samples.parquet --model classifier/ --out attack/
      raymotion attack poison fractal --samples samples.parquet --target fear --out poisoned/
    """


attack.add_command(pixels)
attack.add_command(poison)
