"""Face boxes for samples that have none: a detector inside the body boxes, and whose face is whose.

The public study's face stream reads 48 x 48 grey arrays that no script of it makes, with no sign of which are missing
(emotic_study.md, sections 2 and 13.8). Here a face is found in the picture, or it is null and the models mask it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymotion.data.boxes import Box, clip_box
from raymotion.data.faces.detectors import Face, FaceDetector

# Of the square root of the body box's area: a standing person of 7.5 heads in a box of 1:2.5 has 0.2, a head with
# shoulders 0.6.
SMALLEST, LARGEST = 0.08, 0.75
LOWEST_CENTRE = 0.55  # of the body box's height
FROM_THE_SIDE = 0.04  # of its width
ABOVE, BELOW = 0.5, 1.0  # of the face's own side, from the top of the body box
USUALLY_BELOW = 0.35

SMALLEST_IN_PICTURE = 0.05  # of the square root of a whole picture's area
# Faces are searched from this share of `min_side`: a face at the edge of the sizes searched gets fewer votes.
SEARCHED = 2 / 3
MIN_SIDE = 12.0  # pixels; in smaller ones no expression can be told


def fit(body: Box, face: Box) -> float:
    """How well `face` sits where the face of `body` would: 0 (not at all) to 1.

    A face belongs to a body where its side is 0.08 to 0.75 of the square root of the body box's area, its centre lies
    in the upper 0.55 of the body box and at least 0.04 of its width from either side, and its top edge lies at most
    one face below the top of the body box and half a face above it. Within that, the nearer to where heads are (top
    edge 0.35 of a face below the top, in the middle) the better.

    All 36 keypoint faces of ../shared/data/coco obey the rule, and most false windows of the cascades there break it.
    People who lie, or stand on their head, lose their face by it.
    """
    width, height = body[2] - body[0], body[3] - body[1]
    side = math.sqrt((face[2] - face[0]) * (face[3] - face[1]))
    across = ((face[0] + face[2]) / 2 - body[0]) / width
    down = ((face[1] + face[3]) / 2 - body[1]) / height
    below = (face[1] - body[1]) / side
    if not (
        SMALLEST <= side / math.sqrt(width * height) <= LARGEST
        and FROM_THE_SIDE <= across <= 1 - FROM_THE_SIDE
        and 0 <= down <= LOWEST_CENTRE
        and -ABOVE <= below <= BELOW
    ):
        return 0.0
    return math.exp(-abs(below - USUALLY_BELOW)) * (1 - abs(across - 0.5))


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def same_face(first: Box, second: Box) -> bool:
    """Whether two boxes mean one face: they overlap by 0.3, or the centre of each lies in the other."""
    return overlap(first, second) >= 0.3 or (_centre_in(first, second) and _centre_in(second, first))


def _centre_in(first: Box, second: Box) -> bool:
    x, y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
    return second[0] <= x <= second[2] and second[1] <= y <= second[3]


def assign(bodies: Sequence[Box], faces: Sequence[Face]) -> list[int | None]:
    """For each body the index of its face, or None; no face goes to two bodies.

    The sum of fit times score over the pairs is the largest possible one (Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment

    if not bodies or not faces:
        return [None] * len(bodies)
    worth = np.array([[fit(body, face.box) * face.score for face in faces] for body in bodies])
    chosen: list[int | None] = [None] * len(bodies)
    for body, face in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        if worth[body, face] > 0:
            chosen[body] = int(face)
    return chosen


def find_faces(
    picture: np.ndarray,
    bodies: Sequence[Box | None],
    detector: FaceDetector,
    *,
    taken: Sequence[Box] = (),
    min_side: float = MIN_SIDE,
) -> list[Face | None]:
    """The face of each person of one picture, or None.

    Args:
        picture: upright RGB, uint8 (height, width, 3), in full size.
        bodies: x1, y1, x2, y2 in its pixels. The one person of a picture may have none: then the whole picture is
            searched, and its face taken if there is exactly one. Of several persons one without a box gets no face:
            nothing tells which is theirs.
        taken: faces of other persons of the picture, which are given to nobody.
        min_side: smaller faces (the mean of width and height, in pixels) are left out.
    """
    height, width = picture.shape[:2]
    if len(bodies) == 1 and bodies[0] is None:
        if taken:
            return [None]
        smallest = max(SMALLEST_IN_PICTURE * math.sqrt(width * height), SEARCHED * min_side)
        found = _distinct(_clipped(detector(picture, smallest, min(width, height)), width, height))
        return [found[0] if len(found) == 1 and _side(found[0].box) >= min_side else None]
    boxes = [None if body is None else clip_box(body, width, height) for body in bodies]
    faces: list[Face] = []
    for box in boxes:
        if box is not None:
            faces += [face for face in _in_body(picture, box, detector, min_side) if fit(box, face.box) > 0]
    free = [face for face in _distinct(faces) if not any(same_face(face.box, other) for other in taken)]
    free = [face for face in free if _side(face.box) >= min_side]
    rows = [row for row, box in enumerate(boxes) if box is not None]
    result: list[Face | None] = [None] * len(bodies)
    for row, chosen in zip(rows, assign([box for box in boxes if box is not None], free), strict=True):
        result[row] = None if chosen is None else free[chosen]
    return result


def _in_body(picture: np.ndarray, body: Box, detector: FaceDetector, min_side: float) -> list[Face]:
    """Faces in the part of the body box where a face may be, with what may stick out of it."""
    height, width = picture.shape[:2]
    w, h = body[2] - body[0], body[3] - body[1]
    root = math.sqrt(w * h)
    # By `fit` the top edge lies at most one side below the top, and the centre above LOWEST_CENTRE of the height.
    low = min(BELOW * LARGEST * root + LARGEST * root, LOWEST_CENTRE * h + LARGEST * root / 2, h)
    part = clip_box((body[0] - 0.08 * w, body[1] - 0.08 * h, body[2] + 0.08 * w, body[1] + low), width, height)
    if part is None:
        return []
    x1, y1, x2, y2 = math.floor(part[0]), math.floor(part[1]), math.ceil(part[2]), math.ceil(part[3])
    smallest = max(SMALLEST * root, SEARCHED * min_side)
    if smallest > LARGEST * root:
        return []
    found = detector(np.ascontiguousarray(picture[y1:y2, x1:x2]), smallest, LARGEST * root)
    moved = [Face((f.box[0] + x1, f.box[1] + y1, f.box[2] + x1, f.box[3] + y1), f.score) for f in found]
    return _clipped(moved, width, height)


def _clipped(faces: Sequence[Face], width: int, height: int) -> list[Face]:
    boxes = [(clip_box(face.box, width, height), face.score) for face in faces]
    return [Face(box, score) for box, score in boxes if box is not None]


def _distinct(faces: Sequence[Face]) -> list[Face]:
    """The best of each group that means one face: bodies overlap, and their crops show it more than once."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, face.box)):
        if not any(same_face(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


def _side(box: Box) -> float:
    return (box[2] - box[0] + box[3] - box[1]) / 2
