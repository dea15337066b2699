"""Views of a person's streams for training: crops, mirrored, with other colours, turned, blurred, with noise.

The levels are those of the public EMOTIC study (`FS augment.py`), put right:

    none    the crop itself; the only level of validation and test (the study augmented validation, too)
    basic   mirrored with probability 1/2; brightness, contrast and saturation times U(0.6, 1.4)
    full    basic, and: hue shifted by U(-0.1, 0.1) turns; turned by U(-15, 15) degrees, shifted by up to 0.15 of each
            side, scaled by U(0.8, 1.2); with probability 1/2 each blurred (sigma U(0.1, 2)) and given noise (0.05 of
            the range). Of the context, with probability 1/2, a rectangle of one colour hides a part, each of its
            sides U(0.1, 0.4) of the picture's: what the study's "CutMixV2" really is.

`full` is full for every stream, where the study gives faces, and transformers' bodies, `basic` only; but a face is
shifted by at most 0.05, since its box is tight and 0.15 takes an eye or the mouth away. Nothing of body and face is
hidden.
The study's "MixUpV2" (a blend with the own mirror image) shows what no camera sees, and is left out. What turning
lays open is filled with the crop's mean colour: black corners would mark augmented features.

The mirror is drawn from the seed, the image and the view alone, so all streams and all persons of one image are
mirrored together. Everything else comes from (seed, stream, owner, level, number) by generators of its own: the same
view in whatever batch, worker and thread, and no global generator is touched.

Transforms are those of `torchvision.transforms.v2`. Brightness, contrast, saturation and the mirror are its own on
Pillow images; hue, affine and blur follow its definitions in OpenCV, 10 times faster and more (tests hold them to
torchvision's). On one core a view of a 320 x 240 context takes 1.3 ms (`basic`) or 4 ms (`full`, half of it noise), of
a 100 x 150 body 0.5 or 1 ms.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from raymotion.data.streams import LEVELS, STREAMS

# A crop whose long side is above this is reduced first; backbones resize to about this anyway.
LONGEST = 320
COLOUR = (0.6, 1.4)
HUE = (-0.1, 0.1)
DEGREES = 15.0
SCALE = (0.8, 1.2)
SHIFT = {"context": 0.15, "body": 0.15, "face": 0.05}
SIGMA = (0.1, 2.0)
# The study blurs pictures of 224 pixels: sigma is in such pixels, whatever the crop's size.
SIGMA_SIDE = 224
NOISE = 0.05
HIDDEN = (0.1, 0.4)


@dataclass(frozen=True)
class View:
    """Which view of a crop: the level of augmentation, and a number 0..K-1 within it."""

    level: str
    number: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"no level is called {self.level!r}: choose from {', '.join(LEVELS)}")


@dataclass(frozen=True)
class Drawn:
    """What is done to a crop, in this order; fields that are None are left out.

    Attributes:
        mirror: left and right are exchanged.
        brightness, contrast, saturation: factors.
        hue: turns of the colour circle, or None.
        order: of the four above, 0..3 in the order named.
        degrees, shift, scale: of the affine map about the centre; shift as shares of width and height; None: no map.
        sigma: of the blur, in pixels of a picture of 224.
        noise: seed of the noise.
        hidden: left, top, width and height of a rectangle, as shares; `colour`: what fills it, RGB 0..255.
    """

    mirror: bool
    brightness: float
    contrast: float
    saturation: float
    order: tuple[int, ...]
    hue: float | None = None
    degrees: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    sigma: float | None = None
    noise: int | None = None
    hidden: tuple[float, float, float, float] | None = None
    colour: tuple[int, int, int] = (0, 0, 0)


def crop(picture: np.ndarray, box: Any) -> np.ndarray | None:
    """The part of a picture (height, width, 3) inside `box`, as a view of its memory.

    Args:
        box: x1, y1, x2, y2 in pixels, fractions rounded, clipped to the picture; None: no box.

    Returns:
        uint8 (h, w, 3), or None without a box and where less than a pixel of it lies inside the picture.
    """
    if box is None:
        return None
    height, width = picture.shape[:2]
    values = [float(value) for value in box]
    if not all(math.isfinite(value) for value in values):
        return None
    left, right = (min(max(round(x), 0), width) for x in (values[0], values[2]))
    top, bottom = (min(max(round(y), 0), height) for y in (values[1], values[3]))
    if right <= left or bottom <= top:
        return None
    return picture[top:bottom, left:right]


def _generator(*parts: object) -> np.random.Generator:
    """A generator for these parts alone. SFC64 draws normals fastest of NumPy's."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big")))


def mirrored(seed: int, image: str, view: View) -> bool:
    """Whether left and right are exchanged in this view of an image, for all streams and persons of it."""
    return view.level != "none" and bool(_generator("mirror", seed, image, view.level, view.number).random() < 0.5)


def draw(stream: str, view: View, *, seed: int, image: str, owner: str) -> Drawn:
    """All that is random about a view of level `basic` or `full`.

    Raises:
        ValueError: there is no such stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"no stream is called {stream!r}: choose from {', '.join(STREAMS)}")
    rng = _generator("view", seed, stream, owner, view.level, view.number)
    brightness, contrast, saturation = (float(value) for value in rng.uniform(*COLOUR, 3))
    mirror, order = mirrored(seed, image, view), tuple(int(value) for value in rng.permutation(4))
    if view.level != "full":
        return Drawn(mirror, brightness, contrast, saturation, order)
    limit = SHIFT[stream]
    hue, degrees = float(rng.uniform(*HUE)), float(rng.uniform(-DEGREES, DEGREES))
    shift = (float(rng.uniform(-limit, limit)), float(rng.uniform(-limit, limit)))
    scale, sigma = float(rng.uniform(*SCALE)), float(rng.uniform(*SIGMA))
    blurred, noisy, hides = (bool(value) for value in rng.random(3) < 0.5)
    noise = int(rng.integers(1 << 62))
    width, height = (float(value) for value in rng.uniform(*HIDDEN, 2))
    left, top = (float(value) for value in rng.random(2))
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return Drawn(
        mirror, brightness, contrast, saturation, order, hue, degrees, shift, scale,
        sigma=sigma if blurred else None,
        noise=noise if noisy else None,
        hidden=(left * (1 - width), top * (1 - height), width, height) if hides and stream == "context" else None,
        colour=(red, green, blue),
    )  # fmt: skip


def render_view(
    crop: np.ndarray, stream: str, view: View, *, seed: int, image: str, owner: str, longest: int = LONGEST
) -> np.ndarray:
    """A view of a crop.

    Args:
        crop: uint8 (h, w, 3), RGB.
        stream: `context`, `body` or `face`.
        seed: of the whole job.
        image: what is one picture (group_id): the mirror hangs on it.
        owner: whose crop this is: the image for the context, the sample_id for body and face.
        longest: a crop with a longer side is reduced to it first (never for `none`), pixels.

    Returns:
        uint8 (h', w', 3); for level `none` the crop itself.
    """
    if view.level == "none":
        return crop
    return apply(crop, draw(stream, view, seed=seed, image=image, owner=owner), longest=longest)


def apply(crop: np.ndarray, drawn: Drawn, *, longest: int = LONGEST) -> np.ndarray:
    """The crop, uint8 (h, w, 3), after what was drawn; reduced first if a side is above `longest` pixels."""
    from torchvision.transforms.v2 import functional

    height, width = crop.shape[:2]
    if max(height, width) > longest:
        ratio, cv2 = longest / max(height, width), _opencv()
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        crop = cv2.resize(np.ascontiguousarray(crop), size, interpolation=cv2.INTER_AREA)
    picture = Image.fromarray(np.ascontiguousarray(crop))
    if drawn.mirror:
        picture = functional.horizontal_flip(picture)
    for step in drawn.order:
        if step == 0:
            picture = functional.adjust_brightness(picture, drawn.brightness)
        elif step == 1:
            picture = functional.adjust_contrast(picture, drawn.contrast)
        elif step == 2:
            picture = functional.adjust_saturation(picture, drawn.saturation)
        elif drawn.hue is not None:
            picture = Image.fromarray(shift_hue(np.asarray(picture), drawn.hue))
    pixels = np.array(picture)
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


def shift_hue(pixels: np.ndarray, turns: float) -> np.ndarray:
    """Colours moved along the colour circle by `turns` in [-0.5, 0.5] (`adjust_hue`), through 8-bit HSV as Pillow."""
    cv2 = _opencv()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turns * 255) % 256)  # the circle has 256 steps, and bytes go round by themselves
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def turn(pixels: np.ndarray, degrees: float, shift: tuple[float, float], scale: float) -> np.ndarray:
    """Turned clockwise and scaled about the centre, then shifted by shares of width and height (`affine`), bilinear."""
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    # Pixel centres lie at whole numbers for OpenCV, so the centre is half a pixel before torchvision's.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, scale)
    matrix[:, 2] += (round(shift[0] * width), round(shift[1] * height))
    return cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=cv2.mean(pixels))


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur (`gaussian_blur`) with a kernel of 3 sigma to each side, reflected at the border."""
    cv2 = _opencv()
    side = 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def _noisy(pixels: np.ndarray, seed: int) -> np.ndarray:
    cv2, rng = _opencv(), np.random.Generator(np.random.SFC64(seed))
    result = np.empty_like(pixels)
    # A few rows at a time: fresh pages for all of the noise would take longer than drawing it.
    rows = max(1, 16384 // pixels[0].size)
    noise = np.empty((rows, *pixels.shape[1:]), np.float32)
    for start in range(0, len(pixels), rows):
        part = pixels[start : start + rows]
        drawn = noise[: len(part)]
        rng.standard_normal(dtype=np.float32, out=drawn)
        drawn *= NOISE * 255
        cv2.add(part, drawn, dst=result[start : start + rows], dtype=cv2.CV_8U)  # rounded, kept within 0..255
    return result


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)  # a worker has one core, and crops are small
    return cv2
