"""Pictures of synthetic scenes, drawn with Pillow, and where the people in them are.

Light and weather give the colours, moods give the faces; of the event a hint is drawn for some. Coordinates are pixels
of the picture that is returned. It is drawn at half its size, because the drawing is what takes the time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageEnhance

from raymotion.data.boxes import Box
from raymotion.data.synthetic.scenes import Scene

SIZES = ((640, 480), (640, 480), (640, 427), (500, 375), (480, 640))
HINT_SHARE = 0.35
_SCALE = 2

Colour = tuple[int, int, int]

_SKIES: dict[str, tuple[Colour, Colour]] = {  # top and bottom
    "clear": ((70, 140, 225), (190, 220, 250)),
    "cloudy": ((150, 158, 166), (205, 208, 210)),
    "rain": ((80, 92, 108), (128, 138, 148)),
    "storm": ((34, 36, 52), (84, 80, 100)),
    "snow": ((196, 204, 216), (236, 240, 246)),
}
_GROUNDS: dict[str, Colour] = {
    "beach": (228, 204, 148),
    "park": (92, 158, 72),
    "street": (120, 120, 124),
    "mountain": (112, 134, 96),
    "field": (158, 172, 82),
    "room": (152, 108, 74),
    "hall": (168, 160, 150),
}
_SUNSET: tuple[Colour, Colour] = ((206, 92, 88), (252, 190, 104))
_SKINS: tuple[Colour, ...] = ((246, 214, 184), (224, 172, 132), (176, 122, 84), (118, 78, 54))
_CLOTHES: tuple[Colour, ...] = (
    (196, 52, 52), (52, 92, 180), (60, 140, 84), (230, 200, 60), (120, 70, 140), (70, 70, 76),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """Something with a COCO category: its box (x1, y1, x2, y2) and, for a person, 17 times x, y and visibility."""

    category: str
    box: Box
    keypoints: tuple[float, ...] = ()


@dataclass
class _Canvas:
    """The picture at half size, and what was put into it."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    rng: random.Random
    scene: Scene
    horizon: float
    figures: list[Figure] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def add(self, category: str, box: Box, keypoints: tuple[float, ...] = ()) -> None:
        width, height = self.size
        x1, x2 = (min(max(v, 0.0), width) * _SCALE for v in (box[0], box[2]))
        y1, y2 = (min(max(v, 0.0), height) * _SCALE for v in (box[1], box[3]))
        if x2 - x1 >= 2 and y2 - y1 >= 2:
            self.figures.append(Figure(category, (x1, y1, x2, y2), keypoints))


def draw_picture(scene: Scene, rng: random.Random, *, grey: bool = False) -> tuple[Image.Image, list[Figure]]:
    """The picture of `scene`, RGB (or L for `grey`), and the persons and things in it."""
    width, height = rng.choice(SIZES)
    size = (width // _SCALE, height // _SCALE)
    image = Image.new("RGB", size)
    canvas = _Canvas(image, ImageDraw.Draw(image), rng, scene, size[1] * rng.uniform(0.42, 0.58))
    _backdrop(canvas)
    canvas.image = _lit(canvas.image, scene, rng)
    canvas.draw = ImageDraw.Draw(canvas.image)
    if not scene.indoors:
        _weather(canvas, (0, 0, *size))
    if rng.random() < HINT_SHARE and scene.event in _HINTS:
        _HINTS[scene.event](canvas)
    slots = [(k + 0.5) / max(scene.people, 1) for k in range(scene.people)]
    for slot in slots:
        _person(canvas, slot)
    _tone(canvas)
    picture = canvas.image.resize((width, height), Image.Resampling.BILINEAR)
    return (picture.convert("L") if grey else picture), canvas.figures


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def _varied(colour: Colour, rng: random.Random, by: int = 14) -> Colour:
    shift = rng.randint(-by, by)
    r, g, b = (min(max(v + shift + rng.randint(-6, 6), 0), 255) for v in colour)
    return r, g, b


def _sky(canvas: _Canvas, box: tuple[int, int, int, int]) -> None:
    scene, rng = canvas.scene, canvas.rng
    top, bottom = _SKIES[scene.weather]
    if scene.light == "sunset":
        share = 0.85 if scene.weather in ("clear", "cloudy") else 0.5
        top, bottom = _mixed(top, _SUNSET[0], share), _mixed(bottom, _SUNSET[1], share)
    top, bottom = _varied(top, rng), _varied(bottom, rng)
    x1, y1, x2, y2 = box
    for y in range(y1, y2):
        canvas.draw.line((x1, y, x2, y), fill=_mixed(top, bottom, (y - y1) / max(y2 - y1, 1)))
    cx, cy, r = rng.uniform(x1, x2), y1 + (y2 - y1) * rng.uniform(0.2, 0.5), (y2 - y1) * 0.12
    if scene.weather == "clear" or (scene.light == "sunset" and scene.weather == "cloudy"):
        sun = {"day": (255, 240, 150), "sunset": (255, 170, 70), "night": (250, 250, 240)}[scene.light]
        canvas.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=sun)
    if scene.weather in ("cloudy", "rain", "storm"):
        tone = _mixed(top, (255, 255, 255) if scene.weather == "cloudy" else (30, 30, 40), 0.3)
        for _ in range(4):
            cx, cy = rng.uniform(x1, x2), y1 + (y2 - y1) * rng.uniform(0.05, 0.5)
            w = (x2 - x1) * rng.uniform(0.12, 0.25)
            box_ = (max(cx - w, x1), cy - w * 0.25, min(cx + w, x2), cy + w * 0.25)
            if box_[2] > box_[0]:
                canvas.draw.ellipse(box_, fill=tone)


def _backdrop(canvas: _Canvas) -> None:
    scene, rng, draw = canvas.scene, canvas.rng, canvas.draw
    width, height = canvas.size
    horizon = int(canvas.horizon)
    ground = _varied(_GROUNDS[scene.place], rng)
    if scene.weather == "snow" and not scene.indoors:
        ground = _mixed(ground, (240, 244, 250), 0.75)
    if scene.indoors:
        wall = _varied((208, 190, 160) if scene.place == "room" else (186, 186, 190), rng, 20)
        draw.rectangle((0, 0, width, height), fill=wall)
        # A wide window: what is outside lights the room.
        left = int(width * rng.uniform(0.08, 0.2))
        window = (left, int(height * 0.06), left + int(width * 0.66), horizon - 8)
        _sky(canvas, window)
        _weather(canvas, window)
        draw.rectangle(window, outline=(90, 70, 50), width=3)
        middle = (window[0] + window[2]) // 2
        draw.line((middle, window[1], middle, window[3]), fill=(90, 70, 50), width=2)
    else:
        _sky(canvas, (0, 0, width, horizon + 1))
        _scenery(canvas)
    draw.rectangle((0, horizon, width, height), fill=ground)
    for _ in range(60):
        x, y = rng.uniform(0, width), rng.uniform(horizon, height)
        draw.line((x, y, x + rng.uniform(2, 9), y), fill=_varied(ground, rng, 20))


def _scenery(canvas: _Canvas) -> None:
    scene, rng, draw = canvas.scene, canvas.rng, canvas.draw
    width, height = canvas.size
    horizon = canvas.horizon
    if scene.place == "beach":
        draw.rectangle((0, horizon - height * 0.1, width, horizon), fill=(44, 104, 150))
    elif scene.place == "mountain":
        for _ in range(3):
            x, w, top = rng.uniform(0, width), width * rng.uniform(0.2, 0.4), horizon * rng.uniform(0.25, 0.6)
            draw.polygon(((x - w, horizon), (x, top), (x + w, horizon)), fill=_varied((110, 112, 128), rng))
            snow = top + (horizon - top) * 0.2
            draw.polygon(((x - w * 0.2, snow), (x, top), (x + w * 0.2, snow)), fill=(240, 244, 248))
    elif scene.place == "street":
        x = 0.0
        while x < width:
            w, top = rng.uniform(24, 54), horizon * rng.uniform(0.25, 0.75)
            draw.rectangle((x, top, x + w, horizon), fill=_varied((138, 116, 108), rng, 30))
            pane = (250, 220, 120) if scene.light == "night" else (120, 140, 160)
            for wy in range(int(top) + 5, int(horizon) - 6, 12):
                for wx in range(int(x) + 4, int(x + w) - 6, 10):
                    draw.rectangle((wx, wy, wx + 4, wy + 5), fill=pane)
            x += w + rng.uniform(0, 8)
    else:
        for _ in range(7 if scene.place == "park" else 2):
            x, r = rng.uniform(0, width), rng.uniform(10, 24)
            draw.rectangle((x - 2, horizon - r, x + 2, horizon), fill=(92, 66, 44))
            draw.ellipse((x - r, horizon - 2.6 * r, x + r, horizon - 0.6 * r), fill=_varied((52, 112, 54), rng))


def _lit(image: Image.Image, scene: Scene, rng: random.Random) -> Image.Image:
    """Darkness, warmth and strength of colour: what a camera makes of the light, people left out (a flash)."""
    if scene.light == "night":
        image = Image.blend(image, Image.new("RGB", image.size, (14, 18, 52)), rng.uniform(0.5, 0.66))
    elif scene.light == "sunset":
        image = Image.blend(image, Image.new("RGB", image.size, (250, 140, 60)), rng.uniform(0.18, 0.3))
    if scene.weather in ("rain", "storm", "cloudy"):
        image = ImageEnhance.Color(image).enhance({"cloudy": 0.75, "rain": 0.5, "storm": 0.55}[scene.weather])
        image = ImageEnhance.Brightness(image).enhance({"cloudy": 0.95, "rain": 0.82, "storm": 0.68}[scene.weather])
    return image


def _tone(canvas: _Canvas) -> None:
    """The photographer's colours, over everything and everyone."""
    tone, rng = canvas.scene.tone, canvas.rng
    if tone == "warm":
        image = ImageEnhance.Brightness(ImageEnhance.Color(canvas.image).enhance(1.25)).enhance(1.12)
        canvas.image = Image.blend(image, Image.new("RGB", image.size, (255, 214, 120)), rng.uniform(0.12, 0.24))
    elif tone == "cold":
        image = ImageEnhance.Brightness(ImageEnhance.Color(canvas.image).enhance(0.6)).enhance(0.85)
        canvas.image = Image.blend(image, Image.new("RGB", image.size, (70, 100, 150)), rng.uniform(0.16, 0.3))


def _weather(canvas: _Canvas, box: tuple[int, int, int, int]) -> None:
    weather, rng, draw = canvas.scene.weather, canvas.rng, canvas.draw
    x1, y1, x2, y2 = box
    drops = (x2 - x1) * (y2 - y1) // 500
    if weather in ("rain", "storm"):
        for _ in range(drops):
            x, y = rng.uniform(x1, x2), rng.uniform(y1, y2 - 8)
            draw.line((x, y, max(x - 3, x1), y + 8), fill=(176, 190, 208))
    if weather == "storm":
        x, y = rng.uniform(x1 + 10, x2 - 10), float(y1)
        points = [(x, y)]
        while y < y1 + (y2 - y1) * 0.5:
            x, y = min(max(x + rng.uniform(-14, 14), x1), x2), y + rng.uniform(8, 18)
            points.append((x, y))
        draw.line(points, fill=(255, 255, 210), width=2)
    elif weather == "snow":
        for _ in range(drops):
            x, y = rng.uniform(x1, x2 - 3), rng.uniform(y1, y2 - 3)
            draw.ellipse((x, y, x + 3, y + 3), fill=(255, 255, 255))


def _person(canvas: _Canvas, slot: float) -> None:
    rng, draw = canvas.rng, canvas.draw
    width, height = canvas.size
    r = min(width, height) * rng.uniform(0.085, 0.12)  # of the head
    x = width * slot + rng.uniform(-0.05, 0.05) * width
    y = height * rng.uniform(0.42, 0.5)
    cloth, skin = rng.choice(_CLOTHES), rng.choice(_SKINS)
    if canvas.scene.mood in ("frowning", "crying") and rng.random() < 0.4:
        cloth = _CLOTHES[-1]
    shoulder, hip, foot = y + 1.5 * r, y + 4.0 * r, y + 6.5 * r
    for side in (-1, 1):
        draw.line((x + side * 0.5 * r, hip, x + side * 0.7 * r, foot), fill=(50, 50, 66), width=max(int(r * 0.6), 2))
        draw.line((x + side * 1.1 * r, shoulder, x + side * 1.6 * r, hip), fill=cloth, width=max(int(r * 0.4), 2))
    draw.rounded_rectangle((x - 1.2 * r, shoulder - 0.4 * r, x + 1.2 * r, hip), radius=r * 0.4, fill=cloth)
    draw.ellipse((x - r, y - 1.15 * r, x + r, y + 1.2 * r), fill=skin)
    draw.chord((x - r, y - 1.25 * r, x + r, y + 0.6 * r), 190, 350, fill=_varied((60, 40, 30), rng, 30))
    _face(draw, canvas.scene.mood, x, y, r)
    parts = [
        (0.0, 0.2), (-0.4, -0.1), (0.4, -0.1), (-0.95, 0.05), (0.95, 0.05),  # nose, eyes, ears
        (-1.1, 1.5), (1.1, 1.5), (-1.4, 2.8), (1.4, 2.8), (-1.6, 4.0), (1.6, 4.0),  # shoulders, elbows, wrists
        (-0.5, 4.0), (0.5, 4.0), (-0.6, 5.2), (0.6, 5.2), (-0.7, 6.5), (0.7, 6.5),  # hips, knees, ankles
    ]  # fmt: skip
    keypoints: list[float] = []
    for dx, dy in parts:
        px, py = x + dx * r, y + dy * r
        inside = 0 <= px < width and 0 <= py < height
        keypoints += [round(px * _SCALE), round(py * _SCALE), 2] if inside else [0, 0, 0]
    canvas.add("person", (x - 1.8 * r, y - 1.25 * r, x + 1.8 * r, foot), tuple(keypoints))


def _face(draw: ImageDraw.ImageDraw, mood: str, x: float, y: float, r: float) -> None:
    dark, line = (30, 24, 24), max(int(r * 0.12), 1)
    wide = 0.2 if mood == "surprised" else 0.13
    for side in (-1, 1):
        ex, ey = x + side * 0.4 * r, y - 0.1 * r
        draw.ellipse((ex - wide * r, ey - wide * r, ex + wide * r, ey + wide * r), fill=dark)
        inner, outer = {"frowning": (-0.25, -0.55), "crying": (-0.55, -0.3)}.get(mood, (-0.42, -0.42))
        draw.line((x + side * 0.2 * r, y + inner * r, x + side * 0.65 * r, y + outer * r), fill=dark, width=line)
        if mood == "crying":
            draw.ellipse((ex - 0.1 * r, ey + 0.2 * r, ex + 0.1 * r, ey + 0.7 * r), fill=(90, 170, 240))
    mouth = (x - 0.5 * r, y + 0.3 * r, x + 0.5 * r, y + 0.9 * r)
    if mood == "smiling":
        draw.chord(mouth, 0, 180, fill=(250, 250, 250), outline=(150, 30, 40))
    elif mood == "surprised":
        draw.ellipse((x - 0.2 * r, y + 0.4 * r, x + 0.2 * r, y + 0.95 * r), fill=(120, 30, 40))
    elif mood == "calm":
        draw.line((x - 0.35 * r, y + 0.65 * r, x + 0.35 * r, y + 0.65 * r), fill=(130, 40, 40), width=line)
    else:
        down = (mouth[0], mouth[1] + 0.25 * r, mouth[2], mouth[3] + 0.25 * r)
        draw.arc(down, 180, 360, fill=(120, 30, 40), width=line + 1)


def _balloons(canvas: _Canvas) -> None:
    width, height = canvas.size
    for _ in range(5):
        x, y = canvas.rng.uniform(0, width), canvas.rng.uniform(0, height * 0.4)
        canvas.draw.line((x, y, x, y + 50), fill=(90, 90, 90))
        canvas.draw.ellipse((x - 10, y - 13, x + 10, y + 13), fill=canvas.rng.choice(_CLOTHES[:5]))


def _cake(canvas: _Canvas) -> None:
    _balloons(canvas)
    x, y = canvas.size[0] * canvas.rng.uniform(0.2, 0.7), canvas.size[1] * 0.84
    canvas.draw.rectangle((x, y, x + 44, y + 22), fill=(250, 226, 234), outline=(196, 110, 130), width=3)
    canvas.add("cake", (x, y, x + 44, y + 22))


def _flames(canvas: _Canvas) -> None:
    width = canvas.size[0]
    for _ in range(9):
        x, h = canvas.rng.uniform(0, width), canvas.rng.uniform(20, 60)
        base = canvas.horizon + 4
        colour = (255, canvas.rng.randint(90, 190), 20)
        canvas.draw.polygon(((x - 12, base), (x, base - h), (x + 12, base)), fill=colour)


def _dog(canvas: _Canvas) -> None:
    x, y = canvas.size[0] * canvas.rng.uniform(0.1, 0.7), canvas.size[1] * 0.84
    coat = canvas.rng.choice(((150, 104, 60), (90, 70, 56), (214, 190, 150)))
    canvas.draw.ellipse((x, y, x + 40, y + 20), fill=coat)
    canvas.draw.ellipse((x + 30, y - 12, x + 52, y + 8), fill=coat)
    for leg in (5, 14, 26, 34):
        canvas.draw.line((x + leg, y + 14, x + leg, y + 30), fill=coat, width=4)
    canvas.add("dog", (x, y - 12, x + 52, y + 30))


def _car(canvas: _Canvas) -> None:
    x, y = canvas.size[0] * canvas.rng.uniform(0.05, 0.6), canvas.horizon
    colour = canvas.rng.choice(_CLOTHES)
    canvas.draw.rectangle((x, y, x + 90, y + 26), fill=colour)
    roof = ((x + 14, y), (x + 28, y - 20), (x + 62, y - 20), (x + 76, y))
    canvas.draw.polygon(roof, fill=_mixed(colour, (255, 255, 255), 0.4))
    for wheel in (18, 70):
        canvas.draw.ellipse((x + wheel - 10, y + 16, x + wheel + 10, y + 36), fill=(24, 24, 24))
    canvas.add("car", (x, y - 20, x + 90, y + 36))


_HINTS: dict[str, Callable[[_Canvas], None]] = {
    "birthday": _cake,
    "wedding": _balloons,
    "victory": _balloons,
    "fire": _flames,
    "puppy": _dog,
    "accident": _car,
    "antique": _car,
}
