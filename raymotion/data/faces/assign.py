"""Finds face boxes for samples without them: detects faces inside body boxes and assigns them to persons.

The public study's face stream reads 48 x 48 grey arrays that none of its scripts produce, without marking missing ones
(emotic_study.md, sections 2 and 13.8). Here, a face that is not found is null, and the models mask it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymotion.data.boxes import Box, clip_box
from raymotion.data.faces.detectors import Face, FaceDetector

# Side of the face relative to the square root of the body box's area: about 0.2 for a standing person of 7.5 heads in a
# box of 1:2.5, 0.6 for head and shoulders.
SMALLEST, LARGEST = 0.08, 0.75
LOWEST_CENTRE = 0.55  # of the body box's height
FROM_THE_SIDE = 0.04  # of its width
ABOVE, BELOW = 0.5, 1.0  # of the face's own side, from the top of the body box
USUALLY_BELOW = 0.35

SMALLEST_IN_PICTURE = 0.05  # of the square root of a whole picture's area
# The search starts at this share of `min_side`, since faces at the edge of the searched sizes get fewer votes.
SEARCHED = 2 / 3
MIN_SIDE = 12.0  # pixels; smaller faces show no expression


def fit(body: Box, face: Box) -> float:
    """Scores how well the position of `face` fits `body`: 0 (not at all) to 1.

    A face fits if its side is 0.08 to 0.75 of the square root of the body box's area, its centre lies in the upper 0.55
    of the body box and at least 0.04 of its width from either side, and its top edge lies at most one face below and
    half a face above the top of the body box. The score is highest at the usual position of heads (top edge 0.35 of a
    face below the top, in the middle).

    All 36 keypoint faces of ../shared/data/coco satisfy the rule; most false detections of the cascades there do not.
    The faces of people who lie or stand on their head are lost.
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
    """Computes the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def same_face(first: Box, second: Box) -> bool:
    """Returns whether two boxes show the same face: IoU of at least 0.3, or each contains the other's centre."""
    return overlap(first, second) >= 0.3 or (_centre_in(first, second) and _centre_in(second, first))


def _centre_in(first: Box, second: Box) -> bool:
    x, y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
    return second[0] <= x <= second[2] and second[1] <= y <= second[3]


def assign(bodies: Sequence[Box], faces: Sequence[Face]) -> list[int | None]:
    """Returns the index of the face of each body, or None; no face is assigned twice.

    Maximizes the sum of fit times score over the pairs (Hungarian method).
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
    """Returns the face of each person in an image, or None.

    Args:
        picture: upright RGB, uint8 (height, width, 3), in full size.
        bodies: x1, y1, x2, y2 in its pixels. If a single person has no box, the whole image is searched, and a face is
            accepted if it is the only one. With several persons, one without a box gets no face.
        taken: faces of other persons in the image, which are not assigned.
        min_side: smaller faces (mean of width and height, in pixels) are left out.
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
    """Detects faces in the part of the body box that may contain them, plus a margin."""
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
    """Keeps the best detection of each face; crops of overlapping bodies show a face more than once."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, face.box)):
        if not any(same_face(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


def _side(box: Box) -> float:
    return (box[2] - box[0] + box[3] - box[1]) / 2
