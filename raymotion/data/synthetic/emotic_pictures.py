"""Pictures of a synthetic EMOTIC: a scene, one to four persons, their faces.

Each stream shows a trait of its own, four numbers in -1 .. 1: the scene its light, colours and texture, the body the
colour and pattern of a coat, the face its flush and expression. Colours and coarse patterns, because those survive in
an untrained network; and nothing in one stream tells of another's trait, beyond what lies inside of it: a body holds a
small face, and the scene holds small persons.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from raymotion.data.boxes import Box

WIDTH, HEIGHT = 320, 240
TRAITS = 4

Colour = tuple[int, int, int]

_SKINS: tuple[Colour, ...] = ((236, 200, 172), (214, 168, 132), (176, 128, 96), (140, 98, 74))
_HAIR: tuple[Colour, ...] = ((40, 30, 26), (92, 62, 40), (170, 140, 90), (120, 120, 124))
_SHOES: Colour = (44, 44, 52)


@dataclass(frozen=True)
class DrawnPerson:
    """Where a person is in the picture: the body box, and the face box or None for a face that cannot be seen."""

    body: Box
    face: Box | None


def draw_traits(rng: random.Random) -> tuple[float, ...]:
    """The numbers that one stream shows, each between -1 and 1."""
    return tuple(rng.uniform(-1.0, 1.0) for _ in range(TRAITS))


def draw_picture(
    scene: Sequence[float],
    persons: Sequence[tuple[Sequence[float], Sequence[float], bool]],
    rng: random.Random,
) -> tuple[Image.Image, list[DrawnPerson]]:
    """The picture (RGB, 320 x 240) and where everyone is in it.

    Args:
        scene: trait of the context.
        persons: trait of the body, trait of the face, and whether the face can be seen; from left to right.
    """
    image = _backdrop(scene, rng)
    draw = ImageDraw.Draw(image)
    slot = WIDTH / len(persons)
    drawn = []
    for k, (body, face, visible) in enumerate(persons):
        height = min(rng.uniform(0.64, 0.8) * HEIGHT, slot / 0.46)
        half = 0.22 * height
        x = min(max(slot * (k + rng.uniform(0.3, 0.7)), half + 2), WIDTH - half - 2)
        top = rng.uniform(0.1, 0.9) * (HEIGHT - height - 4) + 2
        drawn.append(_person(draw, x, top, height, body, face, visible, rng))
    return image, drawn


def _coloured(trait: Sequence[float], rng: random.Random, *, by: float = 44.0) -> np.ndarray:
    """Light, red against green, yellow against blue: what the first three numbers of a trait are seen by."""
    light, red, yellow = (by * value for value in trait[:3])
    colour = np.array([128 + light + red + yellow / 2, 128 + light - red + yellow / 2, 128 + light - yellow])
    return colour + rng.uniform(-7, 7)


def _rgb(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _backdrop(trait: Sequence[float], rng: random.Random) -> Image.Image:
    """A wall and a ground of one light, with patches whose contrast is the trait's fourth number."""
    colour = _coloured(trait, rng)
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, (HEIGHT // 24, WIDTH // 20, 1))
    grid = colour + noise * (22 + 20 * trait[3])
    grid[int(rng.uniform(0.5, 0.75) * len(grid)) :] *= 0.82
    small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def _person(
    draw: ImageDraw.ImageDraw,
    x: float,
    top: float,
    height: float,
    body: Sequence[float],
    face: Sequence[float],
    visible: bool,
    rng: random.Random,
) -> DrawnPerson:
    coat, hair = _coloured(body, rng), rng.choice(_HAIR)
    contrast = 26 + 26 * body[3]
    neck, hem, half = top + 0.25 * height, top + 0.9 * height, 0.2 * height
    raised = rng.random() < 0.4
    for side in (-1, 1):  # arms, up beside the head or hanging down
        hand = top + (0.04 if raised else 0.66) * height
        ends = (x + side * 0.15 * height, neck + 0.04 * height, x + side * 0.2 * height, hand)
        draw.line(ends, fill=_rgb(coat), width=max(int(0.05 * height), 2))
        draw.rectangle((x + side * 0.1 * height - 5, hem, x + side * 0.1 * height + 5, top + height), fill=_SHOES)
    bands = 8
    step = (hem - neck) / bands
    for band in range(bands):
        shade = coat + (contrast if band % 2 else -contrast)
        wide = half * (0.86 + 0.14 * band / (bands - 1))
        low = neck + step * band
        draw.rectangle((x - wide, low, x + wide, low + step), fill=_rgb(shade))
    centre, r = top + 0.13 * height, 0.125 * height
    draw.ellipse((x - 1.1 * r, centre - r, x + 1.1 * r, centre + 1.1 * r), fill=hair)
    edge = 0.22 * height
    box = tuple(
        float(round(v)) for v in (max(x - edge, 0), max(top - 1, 0), min(x + edge, WIDTH), min(top + height, HEIGHT))
    )
    where: Box = (box[0], box[1], box[2], box[3])
    if not visible:
        if rng.random() < 0.5:  # covered, not turned away
            grey = rng.randint(60, 190)
            draw.ellipse((x - 0.9 * r, centre - 0.5 * r, x + 0.9 * r, centre + 1.0 * r), fill=(grey, grey, grey))
        return DrawnPerson(where, None)
    return DrawnPerson(where, _face(draw, x, centre, r, face, rng))


def _face(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, trait: Sequence[float], rng: random.Random) -> Box:
    skin = 0.25 * np.array(rng.choice(_SKINS)) + 0.75 * _coloured(trait, rng, by=50.0)
    dark = _rgb(skin * 0.25)
    wide, low, high = 0.92 * r, y - 0.86 * r, y + 1.0 * r
    draw.ellipse((x - wide, low, x + wide, high), fill=_rgb(skin))
    opened = 0.5 + 0.5 * trait[3]  # eyes and mouth
    for side in (-1, 1):
        ex, ey, size = x + side * 0.38 * r, y - 0.15 * r, (0.1 + 0.13 * opened) * r
        draw.ellipse((ex - size, ey - size, ex + size, ey + size), fill=dark)
    tall = (0.06 + 0.3 * opened) * r
    draw.ellipse((x - 0.45 * r, y + 0.52 * r - tall, x + 0.45 * r, y + 0.52 * r + tall), fill=dark)
    return float(round(x - wide)), float(round(low)), float(round(x + wide)), float(round(high))
