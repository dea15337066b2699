"""Boxes in images: x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import math

Box = tuple[float, float, float, float]


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """Clips `box` to an image of `width` x `height` pixels; None if a side becomes shorter than a pixel."""
    if not all(math.isfinite(v) for v in box):
        return None
    x1, x2 = (min(max(v, 0.0), float(width)) for v in (box[0], box[2]))
    y1, y2 = (min(max(v, 0.0), float(height)) for v in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 - x1 >= 1.0 and y2 - y1 >= 1.0 else None


def area(box: Box) -> float:
    """Returns the area in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])
