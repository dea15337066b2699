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
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.data.streams import LEVELS, STREAMS
from raymotion.data.views.render import Drawn, apply

# A crop whose long side is above this is reduced first; backbones resize to about this anyway.
LONGEST = 320
COLOUR = (0.6, 1.4)
HUE = (-0.1, 0.1)
DEGREES = 15.0
SCALE = (0.8, 1.2)
SHIFT = {"context": 0.15, "body": 0.15, "face": 0.05}
SIGMA = (0.1, 2.0)
HIDDEN = (0.1, 0.4)


@dataclass(frozen=True)
class View:
    """Which view of a crop: the level of augmentation, and a number 0..K-1 within it."""

    level: str
    number: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"no level is called {self.level!r}: choose from {', '.join(LEVELS)}")


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
        return Drawn(None, mirror, brightness, contrast, saturation, order)
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
        None, mirror, brightness, contrast, saturation, order, hue, degrees, shift, scale,
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
