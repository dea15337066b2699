"""Augmented views of whole images: random crop, mirroring and colour changes."""

from __future__ import annotations

import math

import numpy as np

from raymotion.data.streams import Level
from raymotion.data.views.render import Drawn, apply

RATIO = (3 / 4, 4 / 3)
COLOUR = 0.2
WHOLE = Drawn()


def draw_view(rng: np.random.Generator, width: int, height: int, level: Level, *, smallest_crop: float = 0.5) -> Drawn:
    """Draws a random view of an image of `width` x `height` pixels.

    The crop follows `torchvision.transforms.RandomResizedCrop` (Szegedy et al. 2015): area share uniform from
    `smallest_crop` to 1, aspect ratio log-uniform from 3/4 to 4/3; after ten failed tries, the whole image. With
    `full`, colours vary by 20 %.
    """
    if level == "none":
        return WHOLE
    box: tuple[float, float, float, float] | None = None
    for _ in range(10):
        area = rng.uniform(smallest_crop, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        left, top = rng.random(2)
        if w <= width and h <= height:
            x, y = float(left * (width - w)), float(top * (height - h))
            box = (x, y, min(x + w, float(width)), min(y + h, float(height)))
            break
    mirror = bool(rng.random() < 0.5)
    if level != "full":
        return Drawn(box, mirror)
    brightness, contrast, saturation = (float(rng.uniform(1 - COLOUR, 1 + COLOUR)) for _ in range(3))
    return Drawn(box, mirror, brightness, contrast, saturation)


def render(picture: np.ndarray, size: int, view: Drawn = WHOLE) -> np.ndarray:
    """Renders a view of an image (height, width, 3) uint8 as (size, size, 3) uint8.

    The aspect ratio is not kept, as in the public system, so nothing at the border is cut off.
    """
    return apply(picture, view, size=size)
