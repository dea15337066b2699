"""Views of a training picture: a random crop, mirrored or not, with other colours.

Pillow and NumPy alone, no torch: the processes that decode pictures start in half a second instead of five.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

AugmentationKind = Literal["none", "basic", "full"]
RATIO = (3 / 4, 4 / 3)
COLOUR = 0.2


@dataclass(frozen=True)
class View:
    """How a picture is shown.

    Attributes:
        box: left, top, right, bottom in pixels, possibly fractions of one; None: all of it.
        mirror: left and right are exchanged.
        colour: factors on brightness, contrast and saturation.
    """

    box: tuple[float, float, float, float] | None = None
    mirror: bool = False
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)


WHOLE = View()


def draw_view(
    rng: np.random.Generator, width: int, height: int, kind: AugmentationKind, *, smallest_crop: float = 0.5
) -> View:
    """A random view of a picture of `width` x `height` pixels.

    The crop is that of `torchvision.transforms.RandomResizedCrop` (Szegedy et al. 2015): a share of the area, uniform
    from `smallest_crop` to 1, and a side ratio, log-uniform from 3/4 to 4/3; ten tries, then the whole picture.
    Colours (`full`) vary by 20 %.
    """
    if kind == "none":
        return WHOLE
    box: tuple[float, float, float, float] | None = None
    for _ in range(10):
        area = rng.uniform(smallest_crop, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        left, top = rng.random(2)
        if box is None and w <= width and h <= height:
            x, y = float(left * (width - w)), float(top * (height - h))
            box = (x, y, min(x + w, float(width)), min(y + h, float(height)))
            break
    mirror = bool(rng.random() < 0.5)
    low, high = 1 - COLOUR, 1 + COLOUR
    colour = (
        (float(rng.uniform(low, high)), float(rng.uniform(low, high)), float(rng.uniform(low, high)))
        if kind == "full"
        else (1.0, 1.0, 1.0)
    )
    return View(box, mirror, colour)


def render(picture: np.ndarray, size: int, view: View = WHOLE) -> np.ndarray:
    """A view of a picture (height, width, 3) uint8 as (size, size, 3) uint8.

    The sides are resized each on its own, as the public system did: nothing at the border is cut off.
    """
    image = Image.fromarray(picture)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=view.box, reducing_gap=2.0)
    if view.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), view.colour, strict=True
    ):
        if factor != 1.0:
            image = enhance(image).enhance(factor)
    return np.asarray(image)
