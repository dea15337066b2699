"""Augmented views of a person's streams: mirror, colours, affine map, blur and noise.

The levels are those of the public EMOTIC study (`FS augment.py`), with corrections:

    none    the crop itself; the only level for validation and test (the study also augmented validation)
    basic   mirrored with probability 1/2; brightness, contrast and saturation times U(0.6, 1.4)
    full    basic, and: hue shifted by U(-0.1, 0.1) turns; rotated by U(-15, 15) degrees, shifted by up to 0.15 of each
            side, scaled by U(0.8, 1.2); blurred (sigma U(0.1, 2)) and noisy (0.05 of the range), with probability 1/2
            each. In the context, with probability 1/2, a rectangle of one colour with sides U(0.1, 0.4) of the image's
            hides a part, which is what the study's "CutMixV2" really does.

`full` applies to every stream, whereas the study uses only `basic` for faces and for bodies of transformers. A face is
shifted by at most 0.05, since its box is tight and 0.15 would remove an eye or the mouth. Nothing in body and face is
hidden. The study's "MixUpV2" (a blend with the image's own mirror image) is left out, since no camera produces it.
Areas uncovered by rotation get the crop's mean colour: black corners would mark augmented features.

Mirroring depends only on the seed, the image and the view, so all streams and persons of an image are mirrored
together. Everything else is drawn by a generator seeded with (seed, stream, owner, level, number), so a view does not
depend on batch, worker or thread, and no global generator is used.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.data.streams import LEVELS, STREAMS
from raymotion.data.views.render import Drawn, apply

# Crops with a longer side are reduced first; backbones resize to about this anyway.
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
    """Identifies a view of a crop: the level of augmentation, and a number 0..K-1 within it."""

    level: str
    number: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"no level is called {self.level!r}: choose from {', '.join(LEVELS)}")


def crop(picture: np.ndarray, box: Any) -> np.ndarray | None:
    """Crops an image (height, width, 3) to `box`; the result shares its memory.

    Args:
        box: x1, y1, x2, y2 in pixels; rounded and clipped to the image. None: no box.

    Returns:
        uint8 (h, w, 3), or None without a box or if less than a pixel of it lies inside the image.
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
    """Returns a generator seeded with these parts. SFC64 is NumPy's fastest for normals."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big")))


def mirrored(seed: int, image: str, view: View) -> bool:
    """Returns whether this view of an image is mirrored, for all its streams and persons."""
    return view.level != "none" and bool(_generator("mirror", seed, image, view.level, view.number).random() < 0.5)


def draw(stream: str, view: View, *, seed: int, image: str, owner: str) -> Drawn:
    """Draws the random parameters of a view of level `basic` or `full`.

    Raises:
        ValueError: `stream` is unknown.
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
    """Renders a view of a crop.

    Args:
        crop: uint8 (h, w, 3), RGB.
        stream: `context`, `body` or `face`.
        seed: seed of the job.
        image: id of the image (group_id), which determines mirroring.
        owner: owner of the crop: the image for the context, the sample_id for body and face.
        longest: reduce crops with a longer side to this many pixels first (never for `none`).

    Returns:
        uint8 (h', w', 3); for level `none` the crop itself.
    """
    if view.level == "none":
        return crop
    return apply(crop, draw(stream, view, seed=seed, image=image, owner=owner), longest=longest)
