"""Renders augmented views of images and crops: crop, mirror, colours, affine map, blur and noise.

The parameters are drawn in `views.pictures` for whole images and in `views.streams` for the streams of a person.
Transforms are those of `torchvision.transforms.v2`, but torch is not imported, so that processes that decode images
start in half a second instead of five. Brightness, contrast, saturation and mirroring match torchvision on Pillow
images; hue, affine map and blur follow its definitions in OpenCV and are at least 10 times faster (tests compare them
with torchvision). On one core, a view of a 320 x 240 context takes 1.3 ms (`basic`) or 4 ms (`full`, half of it noise),
of a 100 x 150 body 0.5 or 1 ms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

# The study blurs images of 224 pixels; sigma is in pixels of that size, whatever the crop's size.
SIGMA_SIDE = 224
NOISE = 0.05


@dataclass(frozen=True)
class Drawn:
    """Parameters of the transforms, applied in this order; None skips one. The default leaves the image unchanged.

    Attributes:
        box: crop as left, top, right, bottom in (fractional) pixels; None: the whole image.
        mirror: swap left and right.
        brightness, contrast, saturation: factors.
        hue: shift in turns of the colour circle, or None.
        order: order of the four colour transforms, 0..3 as listed above.
        degrees, shift, scale: affine map about the centre, with shift in shares of width and height; no map if
            `degrees` is None.
        sigma: width of the blur, in pixels of an image of side `SIGMA_SIDE`.
        noise: seed of the noise; its standard deviation is `NOISE` of the range.
        hidden: rectangle to fill: left, top, width and height, as shares of the image.
        colour: fill colour, RGB 0..255.
    """

    box: tuple[float, float, float, float] | None = None
    mirror: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    order: tuple[int, ...] = (0, 1, 2, 3)
    hue: float | None = None
    degrees: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    sigma: float | None = None
    noise: int | None = None
    hidden: tuple[float, float, float, float] | None = None
    colour: tuple[int, int, int] = (0, 0, 0)


def apply(picture: np.ndarray, drawn: Drawn, *, size: int | None = None, longest: int | None = None) -> np.ndarray:
    """Applies the transforms to an image, uint8 (h, w, 3).

    Args:
        size: side of the square to which the box is resized first, without keeping the aspect ratio; None: keep the
            shape and ignore the box.
        longest: without `size`, first reduce the longer side to this many pixels.
    """
    if size is not None:
        image = Image.fromarray(picture)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=drawn.box, reducing_gap=2.0)
    else:
        image = Image.fromarray(np.ascontiguousarray(_reduced(picture, longest)))
    if drawn.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factors = (drawn.brightness, drawn.contrast, drawn.saturation)
    for step in drawn.order:
        if step == 3:
            if drawn.hue is not None:
                image = Image.fromarray(shift_hue(np.asarray(image), drawn.hue))
        elif factors[step] != 1.0:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            image = enhance(image).enhance(factors[step])
    pixels = np.array(image)
    if drawn.degrees is not None:
        pixels = turn(pixels, drawn.degrees, drawn.shift, drawn.scale)
    if drawn.sigma is not None:
        pixels = blur(pixels, drawn.sigma * max(pixels.shape[:2]) / SIGMA_SIDE)
    if drawn.noise is not None:
        pixels = _noisy(pixels, drawn.noise)
    if drawn.hidden is not None:
        height, width = pixels.shape[:2]
        left, top, wide, high = drawn.hidden
        x, y = int(left * width), int(top * height)
        pixels[y : y + max(1, round(high * height)), x : x + max(1, round(wide * width))] = drawn.colour
    return pixels


def _reduced(picture: np.ndarray, longest: int | None) -> np.ndarray:
    height, width = picture.shape[:2]
    if longest is None or max(height, width) <= longest:
        return picture
    ratio, cv2 = longest / max(height, width), _opencv()
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    reduced: np.ndarray = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    return reduced


def shift_hue(pixels: np.ndarray, turns: float) -> np.ndarray:
    """Shifts the hue by `turns` in [-0.5, 0.5] of the colour circle (`adjust_hue`), in 8-bit HSV like Pillow."""
    cv2 = _opencv()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turns * 255) % 256)  # the circle has 256 steps, and bytes wrap around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def turn(pixels: np.ndarray, degrees: float, shift: tuple[float, float], scale: float) -> np.ndarray:
    """Rotates clockwise and scales about the centre, then shifts by shares of width and height (`affine`), bilinear."""
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    # OpenCV puts pixel centres at whole numbers, so its image centre is half a pixel before torchvision's.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, scale)
    matrix[:, 2] += (round(shift[0] * width), round(shift[1] * height))
    return cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=cv2.mean(pixels))


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Applies Gaussian blur (`gaussian_blur`) with a kernel of 3 sigma to each side, reflected at the border."""
    cv2 = _opencv()
    side = 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def _noisy(pixels: np.ndarray, seed: int) -> np.ndarray:
    cv2, rng = _opencv(), np.random.Generator(np.random.SFC64(seed))
    result = np.empty_like(pixels)
    # A few rows at a time: allocating memory for all the noise would take longer than drawing it.
    rows = max(1, 16384 // pixels[0].size)
    noise = np.empty((rows, *pixels.shape[1:]), np.float32)
    for start in range(0, len(pixels), rows):
        part = pixels[start : start + rows]
        drawn = noise[: len(part)]
        rng.standard_normal(dtype=np.float32, out=drawn)
        drawn *= NOISE * 255
        cv2.add(part, drawn, dst=result[start : start + rows], dtype=cv2.CV_8U)  # rounded and clipped to 0..255
    return result


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)  # a worker has one core, and crops are small
    return cv2
