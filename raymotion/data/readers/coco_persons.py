"""Persons of COCO with their boxes: body and face, in pixels of the upright picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymotion import storage
from raymotion.data.images.sizes import PictureSize, read_sizes
from raymotion.data.readers.coco_files import Document
from raymotion.data.readers.coco_report import CocoReport
from raymotion.errors import InputError

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


def person_file(root: storage.PathLike, split: str, names: Sequence[str], report: CocoReport) -> Document:
    for name in (f"person_keypoints_{split}.json", f"instances_{split}.json"):
        if name in names:
            return Document(root, name, report)
    raise InputError(
        f"has neither annotations/person_keypoints_{split}.json nor instances_{split}.json",
        path=root,
        remedy="Persons need one of them; without --persons the captions do.",
    )


def people_in(document: Document, report: CocoReport) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Image id, annotation id and annotation of each person that is no crowd."""
    categories = {entry["id"]: entry["name"] for _, entry in document.entries("categories", {"id": int, "name": str})}
    person = {number for number, name in categories.items() if name == "person"}
    if not person:
        others = ", ".join(repr(name) for name in list(categories.values())[:5]) or "none"
        raise InputError(
            f"has no category 'person' (its categories: {others})",
            path=document.path,
            remedy="Name the category of persons 'person'.",
        )
    required = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    seen: dict[int, int] = {}
    for position, entry in document.entries("annotations", required):
        if entry["category_id"] not in person:
            report.other_objects += 1
            continue
        where = f"annotations[{position}]"
        if seen.setdefault(entry["id"], position) != position:
            raise InputError(
                f"id {entry['id']} appears twice, first in annotations[{seen[entry['id']]}]",
                path=document.path,
                row=where,
                remedy="An annotation's id is unique.",
            )
        if entry.get("iscrowd"):
            report.crowds += 1
            continue
        for name, size in (("bbox", 4), ("keypoints", 51)):
            values = entry.get(name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != size or not all(_is_number(v) for v in values):
                raise InputError(f"{name} is not {size} numbers", path=document.path, row=where)
        if entry["image_id"] not in document.images:
            report.stray_persons += 1
            continue
        yield entry["image_id"], entry["id"], entry


def _is_number(value: object) -> bool:
    """Whether JSON's value is a number that a float holds."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)


def person_rows(
    people: Sequence[tuple[int, int, Mapping[str, Any]]],
    images: Mapping[int | str, Mapping[str, Any]],
    document: Document,
    min_side: float,
    report: CocoReport,
) -> list[dict[str, Any]]:
    """A row for each person, by image and annotation, its boxes in pixels of the upright picture."""
    used = sorted({number for number, *_ in people})
    sizes = read_sizes(uri for number in used if (uri := images[number]["image_uri"]))
    rows = []
    for number, annotation, entry in sorted(people, key=lambda item: item[:2]):
        image = images[number]
        if not image["image_uri"] and not image["captions"]:
            report.no_image_persons += 1
            continue
        read = sizes.get(image["image_uri"] or "")
        size = read if isinstance(read, PictureSize) else None
        width, height = _annotated_size(number, document, size)
        x, y, w, h = (float(v) for v in entry["bbox"])
        body = clip_box((x, y, x + w, y + h), width, height)
        if body is None:
            report.degenerate_boxes += 1
            continue
        points = entry.get("keypoints")
        face = face_from_keypoints(points, width, height) if points else None
        frame = "upright" if size is None else size.frame_of((width, height))
        if frame is None:
            report.other_size_boxes += 1
            body = face = None
        elif (body[2] - body[0]) * (body[3] - body[1]) < w * h / 2 or (
            size is not None and size.contradicts((x, y, x + w, y + h), frame)
        ):
            report.outside_boxes += 1
            body = face = None
        elif min(body[2] - body[0], body[3] - body[1]) < min_side:
            report.small_boxes += 1
            continue
        else:
            report.unchecked_boxes += size is None
            report.clipped_boxes += max(abs(a - b) for a, b in zip(body, (x, y, x + w, y + h), strict=True)) > 1.0
            if size is not None and frame == "stored" and size.orientation != 1:
                report.turned_boxes += 1
                body = size.upright(body)
                face = None if face is None else size.upright(face)
        sample_id = f"coco:{number:012d}:person:{annotation}"
        rows.append({**image, "sample_id": sample_id, "body_box": body, "face_box": face})
    report.persons = len(rows)
    return rows


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) and value == int(value) else None


def _annotated_size(number: int, document: Document, size: PictureSize | None) -> tuple[int, int]:
    """Width and height of the image as annotated; without them, of a picture that no EXIF turns."""
    width, height = (_whole(document.images[number].get(name)) for name in ("width", "height"))
    if width is None and height is None and size is not None and size.orientation == 1:
        return size.stored
    if width is None or height is None:
        raise InputError(
            f"image {number} has no width and height to clip boxes to",
            path=document.path,
            row=f"images, id {number}",
        )
    return width, height


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
