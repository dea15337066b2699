"""Changes of a few pixels of a picture, and the PNG files that hold the changed pictures.

A change is int (K, 5): column x, row y, red, green, blue of each pixel (Su, Vargas, Sakurai 2019, "One pixel attack for
fooling deep neural networks"). It is of the original picture: uint8, upright, before any resizing and normalising.
Of two entries for one pixel the later one counts, so a change never touches more than K pixels.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from raymotion.data.images.decode import decode_rgb

# Numbers of one pixel in a change.
NUMBERS = 5
# Su et al. draw the first colours from a normal distribution of this mean and deviation. A third of them lie beyond the
# ends of the range, where they become 0 or 255.
COLOUR_MEAN, COLOUR_SD = 128.0, 127.0
# Candidates may have colours beyond the ends of the range, which become 0 or 255. The strongest changes are there, and
# SciPy puts a number that leaves its bounds back at random.
COLOUR_BOUNDS = (-128.0, 384.0)
# Colours of a candidate that become 0 and 255: in the middle of the room beyond the ends, so that a small step in the
# search leaves them there.
EXTREMES = (-64.0, 320.0)


def bounds(width: int, height: int, pixels: int) -> list[tuple[float, float]]:
    """Returns the ends of the 5 * `pixels` numbers of a candidate."""
    return [(0.0, float(width)), (0.0, float(height)), *[COLOUR_BOUNDS] * 3] * pixels


def to_changes(candidates: np.ndarray, width: int, height: int) -> np.ndarray:
    """Converts candidates, float (n, 5 * K), to changes, int (n, K, 5), inside the picture."""
    highest = np.array([width - 1, height - 1, 255, 255, 255])
    whole = np.floor(candidates.reshape(len(candidates), -1, NUMBERS)).astype(np.int64)
    return np.asarray(np.clip(whole, 0, highest))


def draw_candidates(rng: np.random.Generator, n: int, pixels: int, width: int, height: int) -> np.ndarray:
    """Draws n candidates, float (n, 5 * pixels): places uniformly, each colour channel 0 or 255.

    Random pixels mislead most often with these, so they are the baseline, and the search begins with them.
    """
    return _placed(rng, rng.choice(EXTREMES, (n, pixels, 3)), width, height)


def draw_as_published(rng: np.random.Generator, n: int, pixels: int, width: int, height: int) -> np.ndarray:
    """Draws n candidates, float (n, 5 * pixels): places uniformly, colours from a normal distribution (Su et al.)."""
    colours = np.clip(rng.normal(COLOUR_MEAN, COLOUR_SD, (n, pixels, 3)), *COLOUR_BOUNDS)
    return _placed(rng, colours, width, height)


def _placed(rng: np.random.Generator, colours: np.ndarray, width: int, height: int) -> np.ndarray:
    places = rng.uniform(0.0, 1.0, (*colours.shape[:2], 2)) * (width, height)
    return np.concatenate([places, colours], axis=2).reshape(len(colours), -1)


def apply_change(picture: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Returns a copy of a picture, uint8 (height, width, 3), with the pixels of a change, (K, 5)."""
    result = picture.copy()
    for x, y, *colour in change.tolist():
        result[y, x] = colour
    return result


def differing_pixels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the pixels in which two pictures differ, as the change int (m, 5) that makes the second of the first.

    Raises:
        ValueError: the pictures differ in size.
    """
    if before.shape != after.shape:
        raise ValueError(f"pictures of shape {before.shape} and {after.shape} cannot be compared")
    rows, columns = np.nonzero((before != after).any(axis=2))
    return np.column_stack([columns, rows, after[rows, columns].astype(np.int64)]).reshape(-1, NUMBERS)


def png_bytes(picture: np.ndarray) -> bytes:
    """Encodes a picture, uint8 (height, width, 3), as PNG: a JPEG would change all pixels around the few."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(data: bytes) -> np.ndarray:
    """Decodes a picture as every model's pictures are decoded, uint8 (height, width, 3)."""
    return decode_rgb(data)
