"""COCO: captions, persons with boxes and faces, and the pictures' places.

The layout is the one of the published archives, 2014 and 2017 names alike:

    ROOT/annotations/captions_val2017.json             ROOT/val2017/000000000139.jpg
    ROOT/annotations/person_keypoints_val2014.json     ROOT/val2014/COCO_val2014_000000000042.jpg

Only what is asked for is parsed: the captions; for persons the keypoints too, or the instances where there are none.
A picture is known by its number, which both names carry, and which is the same in 2014 and 2017.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.errors import InputError

_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpe?g", re.IGNORECASE)
_SAMPLE_ID = re.compile(r"coco:(\d{12})(?::person:\d+)?")
_SPLIT = re.compile(r"([a-z]+)(\d{4})")

# Keypoints of a person in COCO's order: the first five are of the face.
_NOSE, _LEFT_EYE, _RIGHT_EYE, _LEFT_EAR, _RIGHT_EAR = range(5)
_VISIBLE = 2
# From the distance of two points of a face to its height, forehead to chin (about 19 cm in an adult: ears are 14 cm
# apart, eyes 6.3 cm, and in profile the nose is 12.5 cm from the ear).
_FACE_HEIGHTS = (
    (_LEFT_EAR, _RIGHT_EAR, 1.3),
    (_LEFT_EYE, _RIGHT_EYE, 3.0),
    (_NOSE, _LEFT_EAR, 1.5),
    (_NOSE, _RIGHT_EAR, 1.5),
)

Box = tuple[float, float, float, float]


@dataclass
class CocoReport:
    """Counts of what `read_coco` met.

    Attributes:
        rows, images, captions: rows of the table, distinct images and captions in it.
        no_entry: images on disk that no annotation file names (kept, without captions).
        no_image: entries whose image is not on disk (kept without an address if they have captions).
        dropped_entries: of `no_image`, those that have no caption either; they are left out.
        empty_captions: captions without a word, left out.
        other_files: files beside the images whose names carry no COCO number, left out.
        persons, faces: rows that are persons, and those of them with a face box.
        crowds, small_boxes, degenerate_boxes: person annotations left out, by reason.
        files: the annotation files that were read.
    """

    rows: int = 0
    images: int = 0
    captions: int = 0
    no_entry: int = 0
    no_image: int = 0
    dropped_entries: int = 0
    empty_captions: int = 0
    other_files: int = 0
    persons: int = 0
    faces: int = 0
    crowds: int = 0
    small_boxes: int = 0
    degenerate_boxes: int = 0
    files: list[str] = field(default_factory=list)


def coco_url(sample_id: str, split: str) -> str:
    """Public address of the picture of a COCO sample (or of a person in it).

    >>> coco_url("coco:000000000009", "train2017")
    'http://images.cocodataset.org/train2017/000000000009.jpg'
    """
    match, known = _SAMPLE_ID.fullmatch(sample_id), _SPLIT.fullmatch(split)
    if match is None:
        raise InputError(f"{sample_id!r} is not the id of a COCO sample", remedy="They look like coco:000000000139.")
    if known is None:
        raise InputError(f"{split!r} is not the name of a COCO split", remedy="They look like train2017.")
    prefix = f"COCO_{split}_" if known.group(2) == "2014" else ""
    return f"http://images.cocodataset.org/{split}/{prefix}{match.group(1)}.jpg"


def read_coco(
    root: storage.PathLike, split: str = "val2017", *, persons: bool = False, min_side: float = 32.0
) -> tuple[pa.Table, CocoReport]:
    """The images of one COCO split as a sample table, in the order of their numbers.

    Args:
        root: folder that holds `annotations/` and the split's image folder; each may be absent, but not both.
        split: COCO's name, `train2014`, `val2017` ...; it gives the split column (train, val or test).
        persons: one row per person instead of one per image: those that are no crowd, with `body_box` clipped to the
            image. `face_box` is a square around the nose, eyes and ears, if at least three of them are visible: it is
            as high as the largest estimate from ear to ear (x 1.3), eye to eye (x 3) and nose to ear (x 1.5), and its
            centre is the middle of the points across and their mean in height; clipped to the image.
        min_side: persons whose clipped box has a shorter side, in pixels, are left out.

    Returns:
        The table and the counts of what was met on the way.

    Raises:
        InputError: a file that is no COCO annotation file (with the entry, where one is at fault), nothing to read, or
            no person annotations.
    """
    if not storage.is_dir(root):
        raise InputError("no such folder", path=root, remedy="Give the folder that holds annotations/ and val2017/.")
    report = CocoReport()
    names = storage.list_names(storage.join(root, "annotations"))
    places = _images_on_disk(root, split, report)
    entries: dict[int, Mapping[str, Any]] = {}
    captions: dict[int, list[str]] = {}
    if f"captions_{split}.json" in names:
        document = _Document(root, f"captions_{split}.json", report)
        entries.update(document.images())
        captions = _captions(document, report)
    people: list[tuple[int, int, Mapping[str, Any], _Document]] = []
    if persons:
        document = _person_file(root, split, names, report)
        for number, entry in document.images().items():  # these have the sizes that boxes are clipped to
            entries[number] = {**entries.get(number, {}), **entry}
        people = list(_people(document, report))
    elif not entries:
        for name in (f"instances_{split}.json", f"image_info_{split}.json", f"person_keypoints_{split}.json"):
            if name in names:
                entries.update(_Document(root, name, report).images())
                break
    if not places and not entries and not captions:
        raise InputError(
            f"has neither images in {split}/ nor annotations/captions_{split}.json",
            path=root,
            remedy=f"Check --split; annotations/ holds {', '.join(names[:6]) or 'nothing'}.",
        )
    rows = _rows(split, entries, captions, places, people if persons else None, min_side, report)
    return table_from_rows(rows), _closed(report, rows)


class _Document:
    """One annotation file, checked as it is read: a fault is named with its file and entry."""

    def __init__(self, root: storage.PathLike, name: str, report: CocoReport) -> None:
        self.path = storage.join(root, "annotations", name)
        value = storage.read_json(self.path)
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise InputError(f"is a JSON {kind}, not an object with images and annotations", path=self.path)
        self.value = value
        report.files.append(name)

    def entries(self, key: str, required: Mapping[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of the list `key` with their positions; each has the `required` fields in the right type."""
        values = self.value.get(key)
        if not isinstance(values, list):
            raise InputError(f"has no list {key!r}", path=self.path, remedy="Is it a COCO annotation file?")
        for position, entry in enumerate(values):
            where = f"{key}[{position}]"
            if not isinstance(entry, dict):
                raise InputError("is not an object", path=self.path, row=where)
            for name, kind in required.items():
                if name not in entry:
                    raise InputError(f"lacks {name!r}", path=self.path, row=where)
                if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
                    text = json.dumps(entry[name])[:40]
                    raise InputError(f"{name} is {text}, which is not what COCO has there", path=self.path, row=where)
            yield position, entry

    def images(self) -> dict[int, dict[str, Any]]:
        return {entry["id"]: entry for _, entry in self.entries("images", {"id": int, "file_name": str})}


def _images_on_disk(root: storage.PathLike, split: str, report: CocoReport) -> dict[int, str]:
    places: dict[int, str] = {}
    folder = storage.join(storage.absolute(root), split)
    for name in storage.list_names(folder):
        match = _NAME.fullmatch(name)
        if match is None:
            report.other_files += 1
            continue
        places[int(match.group(1))] = storage.join(folder, name)
    return places


def _captions(document: _Document, report: CocoReport) -> dict[int, list[str]]:
    numbered: dict[int, list[tuple[int, str]]] = {}
    for _, entry in document.entries("annotations", {"id": int, "image_id": int, "caption": str}):
        text = " ".join(entry["caption"].split())
        if text:
            numbered.setdefault(entry["image_id"], []).append((entry["id"], text))
        else:
            report.empty_captions += 1
    return {image: [text for _, text in sorted(pairs)] for image, pairs in numbered.items()}


def _person_file(root: storage.PathLike, split: str, names: Sequence[str], report: CocoReport) -> _Document:
    for name in (f"person_keypoints_{split}.json", f"instances_{split}.json"):
        if name in names:
            return _Document(root, name, report)
    raise InputError(
        f"has neither annotations/person_keypoints_{split}.json nor instances_{split}.json",
        path=root,
        remedy="Persons need one of them; without --persons the captions do.",
    )


def _people(document: _Document, report: CocoReport) -> Iterator[tuple[int, int, Mapping[str, Any], _Document]]:
    categories = document.entries("categories", {"id": int, "name": str})
    person = {entry["id"] for _, entry in categories if entry["name"] == "person"}
    required = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    for position, entry in document.entries("annotations", required):
        if entry["category_id"] not in person:
            continue
        if entry.get("iscrowd"):
            report.crowds += 1
            continue
        for name, size in (("bbox", 4), ("keypoints", 51)):
            values = entry.get(name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != size or not all(_is_number(v) for v in values):
                raise InputError(f"{name} is not {size} numbers", path=document.path, row=f"annotations[{position}]")
        yield entry["image_id"], entry["id"], entry, document


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(
    split: str,
    entries: Mapping[int, Mapping[str, Any]],
    captions: Mapping[int, list[str]],
    places: Mapping[int, str],
    people: list[tuple[int, int, Mapping[str, Any], _Document]] | None,
    min_side: float,
    report: CocoReport,
) -> list[dict[str, Any]]:
    named = set(entries) | set(captions)
    report.no_entry = len(set(places) - named)
    report.no_image = len(named - set(places))
    report.dropped_entries = sum(1 for number in named if number not in places and not captions.get(number))
    known = _SPLIT.fullmatch(split)
    column = known.group(1) if known and known.group(1) in SPLITS else None

    def row(number: int) -> dict[str, Any]:
        return {
            "sample_id": f"coco:{number:012d}",
            "group_id": f"coco:{number:012d}",
            "image_uri": places.get(number),
            "captions": captions.get(number, []),
            "split": column,
            "source": "coco",
        }

    if people is None:
        return [row(number) for number in sorted(named | set(places)) if number in places or captions.get(number)]
    rows = []
    for number, annotation, entry, document in sorted(people, key=lambda item: item[:2]):
        if number not in places and not captions.get(number):
            continue
        size = entries.get(number, {})
        width, height = size.get("width"), size.get("height")
        if not isinstance(width, int) or not isinstance(height, int):
            raise InputError(
                f"image {number} has no width and height, to which boxes are clipped", path=document.path, row=number
            )
        x, y, w, h = (float(v) for v in entry["bbox"])
        body = clip_box((x, y, x + w, y + h), width, height)
        if body is None:
            report.degenerate_boxes += 1
            continue
        if min(body[2] - body[0], body[3] - body[1]) < min_side:
            report.small_boxes += 1
            continue
        points = entry.get("keypoints")
        face = face_from_keypoints(points, width, height) if points else None
        sample_id = f"coco:{number:012d}:person:{annotation}"
        rows.append({**row(number), "sample_id": sample_id, "body_box": body, "face_box": face})
    return rows


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """`box` (x1, y1, x2, y2 in pixels) within an image of `width` x `height`; None if less than a pixel is left."""
    if not all(math.isfinite(v) for v in box):
        return None
    x1, x2 = (min(max(v, 0.0), float(width)) for v in (box[0], box[2]))
    y1, y2 = (min(max(v, 0.0), float(height)) for v in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 - x1 >= 1.0 and y2 - y1 >= 1.0 else None


def face_from_keypoints(keypoints: Sequence[float], width: int, height: int) -> Box | None:
    """Face box from COCO keypoints (17 times x, y, visibility), by the rule in `read_coco`, or None."""
    points = {
        i: (float(keypoints[3 * i]), float(keypoints[3 * i + 1])) for i in range(5) if keypoints[3 * i + 2] == _VISIBLE
    }
    if len(points) < 3:
        return None
    # Any three of the five hold at least one of the pairs.
    side = max(math.dist(points[a], points[b]) * k for a, b, k in _FACE_HEIGHTS if a in points and b in points)
    across = [x for x, _ in points.values()]
    cx, cy = (min(across) + max(across)) / 2, sum(y for _, y in points.values()) / len(points)
    return clip_box((cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2), width, height)


def _closed(report: CocoReport, rows: Sequence[Mapping[str, Any]]) -> CocoReport:
    report.rows = len(rows)
    by_image = {row["group_id"]: row["captions"] for row in rows}
    report.images = len(by_image)
    report.captions = sum(map(len, by_image.values()))
    report.persons = sum(1 for row in rows if row.get("body_box"))
    report.faces = sum(1 for row in rows if row.get("face_box"))
    return report
