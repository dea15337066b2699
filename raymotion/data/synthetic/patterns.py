"""Pictures of colours and patterns, from which a small network learns an emotion or a valence within a minute.

Colour alone does not decide: hues overlap between emotions that differ in pattern, and brightness varies in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from raymotion.vocabulary import MIKELS_8

Field = np.ndarray

_PATTERNS: Mapping[str, Callable[[Field, Field, float], Field]] = {
    # Of coordinates in [-1, 1], turned and shifted, and the number of periods: values in [-1, 1].
    "stripes": lambda x, y, periods: np.sin(np.pi * periods * x),
    "dots": lambda x, y, periods: 2 * (np.sin(np.pi * periods * x) * np.sin(np.pi * periods * y) > 0.35) - 1.0,
    "rings": lambda x, y, periods: np.sin(np.pi * periods * np.hypot(x, y)),
    "checks": lambda x, y, periods: np.sign(np.sin(np.pi * periods * x) * np.sin(np.pi * periods * y)),
    "rays": lambda x, y, periods: np.sin(2 * round(periods) * np.arctan2(y, x)),
    "plain": lambda x, y, periods: np.clip(y, -1, 1),
}

# Emotion -> hue, saturation, brightness (0 to 1), pattern, periods, angle in degrees.
_LOOKS: Mapping[str, tuple[float, float, float, str, float, float]] = {
    "amusement": (0.13, 0.75, 0.75, "dots", 3.0, 20),
    "anger": (0.00, 0.80, 0.55, "stripes", 5.0, 45),
    "awe": (0.58, 0.65, 0.70, "rings", 3.0, 0),
    "contentment": (0.33, 0.50, 0.65, "stripes", 2.0, 90),
    "disgust": (0.20, 0.55, 0.40, "dots", 5.0, 0),
    "excitement": (0.07, 0.80, 0.75, "rays", 4.0, 0),
    "fear": (0.72, 0.50, 0.30, "checks", 4.0, 10),
    "sadness": (0.60, 0.25, 0.45, "plain", 1.0, 0),
}


def draw_emotion(emotion: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draws a picture of `size` by `size` pixels that looks like one of the eight emotions of Mikels."""
    hue, saturation, brightness, pattern, periods, angle = _LOOKS[MIKELS_8.labels[MIKELS_8.index(emotion)]]
    return _draw(
        rng,
        size,
        hue=hue + rng.normal(0, 0.04),
        saturation=saturation + rng.normal(0, 0.12),
        brightness=brightness + rng.normal(0, 0.1),
        contrast=rng.uniform(0.1, 0.25),
        pattern=pattern,
        periods=periods * rng.uniform(0.85, 1.2),
        angle=angle + rng.normal(0, 10),
    )


def draw_feeling(valence: float, arousal: float, rng: np.random.Generator, size: int, subject: int = 0) -> Image.Image:
    """Draws a picture of `size` by `size` pixels whose colour tells valence, and whose pattern arousal (each 0 to 1).

    Args:
        subject: pictures of one subject have the same pattern, whatever they feel like.
    """
    return _draw(
        rng,
        size,
        hue=0.75 - 0.63 * valence + rng.normal(0, 0.03),
        saturation=0.35 + 0.4 * abs(valence - 0.5) + rng.normal(0, 0.05),
        brightness=0.3 + 0.45 * valence + rng.normal(0, 0.05),
        contrast=0.05 + 0.25 * arousal,
        pattern=tuple(_PATTERNS)[subject % (len(_PATTERNS) - 1)],
        periods=1.5 + 4.0 * arousal + rng.normal(0, 0.2),
        angle=rng.uniform(0, 180),
    )


def _draw(
    rng: np.random.Generator,
    size: int,
    *,
    hue: float,
    saturation: float,
    brightness: float,
    contrast: float,
    pattern: str,
    periods: float,
    angle: float,
) -> Image.Image:
    steps = np.linspace(-1, 1, size)
    across, down = np.meshgrid(steps + rng.uniform(-0.4, 0.4), steps + rng.uniform(-0.4, 0.4))
    turn = np.radians(angle)
    x, y = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
    values = _PATTERNS[pattern](x, y, periods)
    planes = np.stack([
        np.mod(hue + 0.02 * values + np.zeros_like(values), 1.0),
        np.clip(saturation + rng.normal(0, 0.05, values.shape), 0, 1),
        np.clip(brightness + contrast * values + rng.normal(0, 0.05, values.shape), 0, 1),
    ], axis=-1)  # fmt: skip
    return Image.fromarray((planes * 255).astype(np.uint8), "HSV").convert("RGB")
