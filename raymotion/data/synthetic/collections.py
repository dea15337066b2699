"""Small data sets in the on-disk formats of COCO and Socratis, for demos, tests and benchmarks.

The same seed gives the same data, and image number 7 is the same picture however many are made. Scenes, pictures,
captions and annotators are in `scenes`, `pictures` and `captions`; this file writes.
"""

from __future__ import annotations

import csv
import io
import json
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from raymotion import storage
from raymotion.data.readers.reader import report_line
from raymotion.data.readers.socratis import COLUMNS, clean_words
from raymotion.data.synthetic.captions import write_caption
from raymotion.data.synthetic.pictures import Figure, draw_picture
from raymotion.data.synthetic.scenes import Scene, draw_annotators, draw_answer, draw_scene, emotion_scores
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.vocabulary import SOCRATIS_29

RAW_NAME = "imCaptionEmotionExplanation_formatted.json"
CSV_NAME = "cleaned_data.csv"
CORRUPT_NAME = "corrupt.json"
GREY_SHARE = 0.03
QUALITY = 85

# Kinds of damage, and the code that `raymotion.data.images.decode` gives for each.
DAMAGES: Mapping[str, str] = {
    "truncated": "image_truncated",
    "text": "image_not_an_image",
    "empty": "image_empty",
    "bomb": "image_too_large",
    "1x1": "image_too_small",
}

_CATEGORIES = (  # COCO's own numbers
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "food", "id": 61, "name": "cake"},
)
_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
_SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)  # fmt: skip
_NEWS_SOURCES = (("guardian", 0.42), ("usa_today", 0.15), ("bbc", 0.12), ("washington_post", 0.09))
_JUNK = ("none", "None", "not entered", "a bit sad", "agry", "h", "mixed feelings", "not sure", "amuzed")


@dataclass
class SyntheticReport:
    """What was written: counts, and the files beside the images."""

    images: int
    captions: int
    corrupt: int
    files: list[str]

    def lines(self) -> list[str]:
        """What `raymotion data synth` prints."""
        return [
            report_line("images", f"{self.images:,}", self.corrupt, f"damaged, listed in {CORRUPT_NAME}"),
            report_line("captions", self.captions),
            report_line("files", ", ".join(self.files)),
        ]


@one_writer_of("out")
def write_coco(
    out: storage.PathLike, images: int, seed: int = 0, *, split: str = "val2017", corrupt: float = 0.0
) -> SyntheticReport:
    """Writes `images` pictures to `out/<split>/` and COCO's three annotation files to `out/annotations/`.

    Each image has 5 captions, some 6 or 7; persons have boxes and keypoints; some pictures are grey.

    Args:
        out: folder or s3:// address; it may hold other splits.
        seed: same seed, same data.
        split: COCO's name for it.
        corrupt: share of the image files to damage, 0 to 1; `out/corrupt.json` lists them with the kind of damage.

    Raises:
        InputError: a number out of range, or pictures in the folder that are not from here.
    """
    _check(images, corrupt, most=500_000)
    claim_dataset(
        out,
        f"coco-{split}",
        {"images": images, "seed": seed, "split": split, "corrupt": corrupt},
        folders=[split],
        files=[f"annotations/{name}_{split}.json" for name in ("instances", "person_keypoints", "captions")],
    )
    # Numbered by a seeded walk through COCO's range, so that more images keep the numbers of fewer.
    walk = random.Random(f"{seed}/numbers").choices(range(1, 600_000), k=4 * images + 10)
    numbers = list(dict.fromkeys(walk))[:images]
    year = split[-4:]
    damaged = _damaged(images, seed, corrupt)
    entries, captions, boxes, poses = [], [], [], []
    broken: list[dict[str, str]] = []
    for i, number in enumerate(numbers):
        rng = random.Random(f"{seed}/coco/{i}")
        scene = draw_scene(rng)
        picture, figures = draw_picture(scene, rng, grey=rng.random() < GREY_SHARE)
        name = f"COCO_{split}_{number:012d}.jpg" if year == "2014" else f"{number:012d}.jpg"
        _write_picture(out, f"{split}/{name}", picture, damaged.get(i), broken)
        entries.append(_coco_entry(split, name, number, picture.size))
        for k in range(rng.choices((5, 6, 7), (0.85, 0.1, 0.05))[0]):
            captions.append({"image_id": number, "id": 10 * i + k + 1, "caption": write_caption(scene, rng)})
        for k, figure in enumerate(figures):
            box = _coco_box(figure, number, 100_000 + 10 * i + k)
            boxes.append(box)
            if figure.keypoints:
                seen = sum(1 for visibility in figure.keypoints[2::3] if visibility)
                poses.append({**box, "keypoints": list(figure.keypoints), "num_keypoints": seen})
    info = {"description": f"Synthetic scenes in the format of COCO, seed {seed}", "version": "1.0", "year": year}
    head = {"info": info, "licenses": [{"id": 1, "name": "CC0", "url": ""}], "images": entries}
    person = {**_CATEGORIES[0], "keypoints": list(_KEYPOINTS), "skeleton": [list(pair) for pair in _SKELETON]}
    contents: dict[str, dict[str, Any]] = {
        f"annotations/instances_{split}.json": {**head, "annotations": boxes, "categories": list(_CATEGORIES)},
        f"annotations/person_keypoints_{split}.json": {**head, "annotations": poses, "categories": [person]},
        f"annotations/captions_{split}.json": {**head, "annotations": captions},
    }
    _write_damage_list(out, split, broken)
    for name, value in contents.items():
        storage.write_text(storage.join(out, name), json.dumps(value))
    return SyntheticReport(images, len(captions), len(broken), sorted(contents))


@one_writer_of("out")
def write_socratis(out: storage.PathLike, images: int, seed: int = 0, *, corrupt: float = 0.0) -> SyntheticReport:
    """Writes `images` pictures to `out/images/`, Socratis' raw json with its annotators, and the cleaned csv.

    The csv has the labels of Socratis' 29 that anyone named; the published rule (at least 100 images per label) would
    leave a small set with few. The json has what people typed, with its misspellings and its 'none's.

    Args:
        out: folder or s3:// address.
        seed: same seed, same data.
        corrupt: as in `write_coco`.

    Raises:
        InputError: as in `write_coco`.
    """
    _check(images, corrupt, most=100_000)
    claim_dataset(
        out,
        "socratis",
        {"images": images, "seed": seed, "corrupt": corrupt},
        folders=["images"],
        files=[RAW_NAME, CSV_NAME],
    )
    annotators = draw_annotators(random.Random(f"{seed}/annotators"))
    damaged = _damaged(images, seed, corrupt)
    raw: dict[str, list[Any]] = {}
    broken: list[dict[str, str]] = []
    for i in range(images):
        rng = random.Random(f"{seed}/socratis/{i}")
        scene = draw_scene(rng)
        picture, _ = draw_picture(scene, rng, grey=rng.random() < GREY_SHARE)
        name = _socratis_name(i, rng)
        _write_picture(out, f"images/{name}", picture, damaged.get(i), broken)
        caption = write_caption(scene, rng, news=name.startswith("visualnews"))
        scores = emotion_scores(scene)
        raw[f"{i:05d}"] = [
            _answer(name, caption, scene, draw_answer(scores, annotator, rng), annotator, rng)
            for annotator in rng.sample(annotators, rng.choices((4, 5, 6, 7, 8), (1, 2, 6, 2, 1))[0])
        ]
    rows = sorted(filter(None, (_csv_row(answers) for answers in raw.values())))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    _write_damage_list(out, "images", broken)
    storage.write_text(storage.join(out, RAW_NAME), json.dumps(raw))
    storage.write_text(storage.join(out, CSV_NAME), text.getvalue())
    return SyntheticReport(images, images, len(broken), [RAW_NAME, CSV_NAME])


def damage(kind: str, data: bytes) -> bytes:
    """The bytes of a picture file made useless in one of the ways of `DAMAGES`."""
    if kind == "truncated":
        return data[: len(data) * 2 // 5]
    if kind == "text":
        return b"This is not a picture, whatever its name says.\n"
    if kind == "empty":
        return b""
    if kind == "1x1":
        return jpeg(Image.new("RGB", (1, 1), (200, 80, 40)))
    if kind == "bomb":
        # A PNG of 3.6 thousand million pixels by its header, in a hundred bytes.
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
        )
    raise InputError(f"no damage is called {kind!r}", remedy=f"Choose from {', '.join(DAMAGES)}.")


def _check(images: int, corrupt: float, *, most: int) -> None:
    if not 1 <= images <= most:
        raise InputError(f"{images} images cannot be made", remedy=f"Choose from 1 to {most:,}.")
    if not 0.0 <= corrupt <= 1.0:
        raise InputError(f"the share of corrupt images is {corrupt}", remedy="Choose from 0 to 1.")


def claim_dataset(
    out: storage.PathLike, kind: str, settings: Mapping[str, Any], *, folders: Sequence[str], files: Sequence[str]
) -> None:
    """Takes `out` for new synthetic data, and removes the pictures of an earlier call of the same kind.

    A mark tells that they are from here: without it nothing is removed and nothing overwritten.

    Args:
        folders, files: of `out`, that the data set is made of.

    Raises:
        InputError: one of them is there already, and not from here.
    """
    mark = storage.join(out, f"synthetic-{kind}.json")
    made_by = f"raymotion data synth {kind}"
    found = storage.read_json(mark) if storage.exists(mark) else None
    there = [name for name in folders if storage.list_entries(storage.join(out, name))]
    if not (isinstance(found, dict) and found.get("made_by") == made_by):
        entries = storage.list_names(out)
        # All synthetic sets in a folder share the list of damaged files.
        shared = [] if any(name.startswith("synthetic-") for name in entries) else [CORRUPT_NAME]
        strange = there + [name for name in [*files, *shared] if storage.exists(storage.join(out, name))]
        if strange or found is not None:
            raise InputError(
                "exists already and is not synthetic data",
                path=storage.join(out, strange[0]) if strange else mark,
                remedy="Choose another --out folder.",
            )
    storage.write_json(mark, {"made_by": made_by, **settings})
    for name in there:
        storage.remove_tree(storage.join(out, name))


def _damaged(images: int, seed: int, share: float) -> dict[int, str]:
    """Which images to damage and how: all kinds in turn."""
    count = min(images, max(1, round(images * share))) if share else 0
    chosen = random.Random(f"{seed}/damage").sample(range(images), count)
    return {i: list(DAMAGES)[k % len(DAMAGES)] for k, i in enumerate(chosen)}


def jpeg(picture: Image.Image) -> bytes:
    """Returns a picture as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _write_picture(
    out: storage.PathLike, name: str, picture: Image.Image, kind: str | None, broken: list[dict[str, str]]
) -> None:
    data = jpeg(picture)
    if kind is not None:
        data = damage(kind, data)
        broken.append({"file": name, "kind": kind, "reason": DAMAGES[kind]})
    storage.write_bytes(storage.join(out, name), data)


def _write_damage_list(out: storage.PathLike, folder: str, broken: Sequence[Mapping[str, str]]) -> None:
    """`corrupt.json`: the damaged files of all splits in `out`; those of `folder` are replaced."""
    path = storage.join(out, CORRUPT_NAME)
    found = storage.read_json(path) if storage.exists(path) else []
    others = [
        entry
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("file"), str)
    ]
    entries = [entry for entry in others if not entry["file"].startswith(f"{folder}/")] + list(broken)
    if entries:
        storage.write_json(path, sorted(entries, key=lambda entry: str(entry["file"])))
    else:
        storage.remove(path)


def _coco_entry(split: str, name: str, number: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/{split}/{name}",
        "height": size[1],
        "width": size[0],
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": "",
        "id": number,
    }


def _coco_box(figure: Figure, image: int, number: int) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(v, 2) for v in figure.box)
    return {
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "area": round((x2 - x1) * (y2 - y1), 2),
        "iscrowd": 0,
        "image_id": image,
        "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
        "category_id": next(entry["id"] for entry in _CATEGORIES if entry["name"] == figure.category),
        "id": number,
    }


def _socratis_name(i: int, rng: random.Random) -> str:
    draw = rng.random()
    for source, share in _NEWS_SOURCES:
        if draw < share:
            return f"visualnews__{source}_images_{i:05d}_{rng.randint(1, 999):03d}.jpg"
        draw -= share
    return f"conceptualcaptions__{rng.getrandbits(128):032x}--{i:05d}.jpg"


def _answer(name: str, caption: str, scene: Scene, words: list[str], annotator: Any, rng: random.Random) -> list[Any]:
    """One annotator's entry of the raw json: up to three words, typed by a person."""
    typed = []
    for word in words:
        draw = rng.random()
        typed.append(
            word.capitalize() if draw < 0.1 else f'"{word}"' if draw < 0.13 else f"{word}(!)" if draw < 0.15 else word
        )
    if len(typed) < 3 and rng.random() < 0.12:
        typed.append(rng.choice(_JUNK))
    reasons: list[str | None] = [f"because of the {scene.event}" for _ in typed]
    padding = 3 - len(typed)
    about = {
        "age": annotator.age,
        "gender": annotator.gender,
        "education": annotator.education,
        "ethnicity": [[annotator.ethnicity, "true"]],
    }
    return [name, caption, typed + [""] * padding, reasons + [None] * padding, about]


def _csv_row(answers: Sequence[Any]) -> tuple[str, str, str] | None:
    words = clean_words(word for answer in answers for word in answer[2])
    labels = [word for word in words if word in SOCRATIS_29]
    return (answers[0][0], answers[0][1], repr(labels)) if labels else None
