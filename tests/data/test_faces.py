"""Faces: whose is whose, the detectors on drawn and on real faces, and weights that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.faces.assign import assign, find_faces, fit, overlap, same_face
from raymotion.data.faces.detectors import CascadeDetector, Face, YuNetDetector, build, faces_of_rows, identify
from raymotion.data.images.decode import decode_rgb, fetch
from raymotion.data.readers.coco import CocoReader
from raymotion.errors import InputError

BODY = (100.0, 100.0, 200.0, 350.0)  # standing: its face is about 30 pixels, at the top, in the middle


def drawn_face(side: int) -> np.ndarray:
    """A face from the front, plain enough to be drawn and face enough for a detector: (side, side, 3)."""
    image, scale = np.full((side, side, 3), 110, np.uint8), side / 100

    def ellipse(x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        centre, axes = (round(x * scale), round(y * scale)), (round(width * scale), round(height * scale))
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    ellipse(50, 42, 40, 46, (60, 45, 40))
    ellipse(50, 52, 34, 45, (205, 165, 140))
    for x in (35, 65):
        ellipse(x, 45, 11, 6, (140, 100, 85))
        ellipse(x, 46, 8, 4, (235, 230, 225))
        ellipse(x, 46, 4, 4, (30, 25, 25))
        ellipse(x, 37, 11, 2.5, (60, 40, 30))
    ellipse(50, 56, 4, 13, (220, 185, 160))
    ellipse(50, 68, 8, 3, (150, 105, 90))
    ellipse(50, 80, 14, 4, (140, 60, 60))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(0.5, side / 120)))


def picture_with(*places: tuple[int, int, int], size: tuple[int, int] = (400, 400)) -> np.ndarray:
    """Noise with drawn faces at (x, y, side)."""
    picture = np.random.default_rng(0).integers(140, 160, (size[1], size[0], 3), dtype=np.uint8)
    for x, y, side in places:
        picture[y : y + side, x : x + side] = drawn_face(side)
    return picture


class Planted:
    """A detector that knows where the faces are: what is tested is what is made of its answers."""

    def __init__(self, *faces: tuple[float, float, float, float], scores: tuple[float, ...] = ()) -> None:
        self.faces, self.scores = faces, scores or (0.9,) * len(faces)

    def __call__(self, picture: np.ndarray, smallest: float, largest: float) -> list[Face]:
        # The crop's origin is coded into its pixels: see `coordinates`.
        x0, y0 = (int(v) for v in picture[0, 0, :2])
        height, width = picture.shape[:2]
        return [
            Face((x1 - x0, y1 - y0, x2 - x0, y2 - y0), score)
            for (x1, y1, x2, y2), score in zip(self.faces, self.scores, strict=True)
            if x1 >= x0 and y1 >= y0 and x2 <= x0 + width and y2 <= y0 + height
        ]


def coordinates(size: int = 250) -> np.ndarray:
    """A picture whose pixels say where they are."""
    down, across = np.mgrid[:size, :size].astype(np.uint8)
    return np.stack([across, down, down], axis=-1)


@pytest.mark.parametrize(
    ("face", "belongs"),
    [
        ((135, 110, 165, 140), True),
        ((135, 92, 165, 122), True),  # a hat, or a tight box: it sticks out at the top
        ((135, 250, 165, 280), False),  # a belt
        ((135, 60, 165, 90), False),  # whoever stands behind
        ((95, 110, 125, 140), True),
        ((80, 110, 110, 140), False),  # the neighbour, at the edge
        ((145, 110, 151, 116), False),  # a button
        ((90, 100, 225, 235), False),  # larger than the body allows
    ],
)
def test_a_face_sits_where_heads_are(face: tuple[float, float, float, float], belongs: bool) -> None:
    assert (fit(BODY, face) > 0) is belongs


@given(st.integers(1, 60), st.floats(0.2, 5), st.integers(-300, 300), st.integers(-300, 300))
def test_the_rule_knows_no_scale_and_no_place(side: int, scale: float, dx: int, dy: int) -> None:
    face = (140.0, 112.0, 140.0 + side, 112.0 + side)

    def moved(box: tuple[float, ...]) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = box
        return (x1 * scale + dx, y1 * scale + dy, x2 * scale + dx, y2 * scale + dy)

    before, after = fit(BODY, face), fit(moved(BODY), moved(face))
    assert after == pytest.approx(before, abs=1e-6) or min(before, after) == 0.0


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0
    assert same_face((0, 0, 10, 10), (2, 2, 8, 8)) and not same_face((0, 0, 10, 10), (0, 0, 3, 3))


def test_one_face_is_never_given_to_two_persons() -> None:
    left, right = (40.0, 50.0, 140.0, 240.0), (80.0, 50.0, 180.0, 240.0)
    face = (75.0, 60.0, 105.0, 90.0)  # within both boxes, in the middle of the left one
    found = find_faces(coordinates(), [right, left], Planted(face))
    assert [None if f is None else f.box for f in found] == [None, face]
    # With a second face each gets the own one, in either order of the persons.
    other = (120.0, 60.0, 150.0, 90.0)
    for bodies in ([left, right], [right, left]):
        got = find_faces(coordinates(), bodies, Planted(other, face))
        assert [f.box for f in got if f] == ([face, other] if bodies[0] is left else [other, face])


def test_the_best_assignment_is_the_best_of_all() -> None:
    """Against every assignment there is."""
    from itertools import permutations

    rng = np.random.default_rng(3)
    for _ in range(20):
        bodies = [(x, 50.0, x + 100, 300.0) for x in rng.uniform(0, 150, 3)]
        corners = rng.uniform((0, 40), (200, 80), (4, 2))
        faces = [Face((x, y, x + 30, y + 30), float(s)) for (x, y), s in zip(corners, rng.random(4), strict=True)]
        worth = np.array([[fit(b, f.box) * f.score for f in faces] for b in bodies])
        best = max(sum(worth[b, f] for b, f in enumerate(order)) for order in permutations(range(4), 3))
        got = assign(bodies, faces)
        assert sum(worth[b, f] for b, f in enumerate(got) if f is not None) == pytest.approx(best)
        taken = [f for f in got if f is not None]
        assert len(set(taken)) == len(taken)
    assert assign([], faces) == [] and assign(bodies, []) == [None, None, None]


def test_a_face_that_someone_has_is_not_found_again() -> None:
    body, face = (40.0, 50.0, 140.0, 240.0), (75.0, 60.0, 105.0, 90.0)
    assert find_faces(coordinates(), [body], Planted(face), taken=[(76, 62, 108, 94)]) == [None]
    assert find_faces(coordinates(), [body], Planted(face), taken=[(10, 62, 30, 94)]) == [Face(face, 0.9)]


def test_without_a_body_box_a_face_is_told_only_if_nothing_else_could_be_meant() -> None:
    one, two = (75.0, 60.0, 105.0, 90.0), (20.0, 60.0, 50.0, 90.0)
    body = (40.0, 50.0, 140.0, 240.0)
    assert find_faces(coordinates(), [None], Planted(one)) == [Face(one, 0.9)]
    assert find_faces(coordinates(), [None], Planted(one, two)) == [None]
    assert find_faces(coordinates(), [None], Planted()) == [None]
    assert find_faces(coordinates(), [None], Planted(one), taken=[two]) == [None]
    assert find_faces(coordinates(), [None, body], Planted(two, one)) == [None, Face(one, 0.9)]


def test_small_faces_are_left_out() -> None:
    body, face = (40.0, 50.0, 140.0, 240.0), (80.0, 60.0, 99.0, 79.0)
    assert find_faces(coordinates(), [body], Planted(face), min_side=20) == [None]
    assert find_faces(coordinates(), [body], Planted(face), min_side=19) == [Face(face, 0.9)]


@pytest.mark.parametrize("side", [16, 40, 110])
def test_the_cascade_finds_a_drawn_face_whatever_its_size(side: int) -> None:
    """16 pixels are fewer than the cascade's windows have: small bodies are enlarged, and boxes are scaled back."""
    x, y = 150, 60
    body = (x - 0.9 * side, y - 0.3 * side, x + 1.9 * side, y + 5.0 * side)
    picture = picture_with((x, y, side), size=(600, 620))
    (face,) = find_faces(picture, [body], CascadeDetector())
    assert face is not None and overlap(face.box, (x, y, x + side, y + side)) > 0.6
    assert find_faces(picture_with(), [body], CascadeDetector()) == [None]


def test_min_score_is_heeded() -> None:
    picture = picture_with((150, 60, 40))
    (face,) = CascadeDetector()(picture[:200], 24, 100)
    assert 0.7 <= face.score < 0.999
    assert CascadeDetector(min_score=0.999)(picture[:200], 24, 100) == []


def test_yunet_rows_are_read_in_the_order_of_opencv() -> None:
    """x, y, width, height, five landmarks, score (OpenCV, FaceDetectorYN::detect), on a picture twice as large."""
    good = [10, 20, 30, 40, *range(10), 0.75]
    rows = np.array([good, [0, 0, 0, 5, *range(10), 0.9], [*good[:3], np.nan, *good[4:]]], np.float32)
    assert faces_of_rows(rows, 2.0) == [Face((5.0, 10.0, 20.0, 30.0), 0.75)]
    assert faces_of_rows(None) == []


@pytest.mark.parametrize("content", [b"", b"this is no network", b"\x08\x07\x12\x04test" * 50])
def test_a_file_that_is_no_yunet_model_is_told_in_one_line(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"yunet\.onnx: .*YuNet") as caught:
        YuNetDetector(str(path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retina",), "no face detector is called 'retina'. There are cascade, yunet"),
        (("yunet",), "needs a file of weights"),
        (("yunet", "/nowhere/yunet.onnx"), "/nowhere/yunet.onnx: no such file"),
        (("cascade", "yunet.onnx"), "takes no weights"),
        (("cascade", None, 1.5), "min_score 1.5 is not between 0 and 1"),
    ],
)
def test_detectors_that_can_not_be_had_say_why(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        identify(*arguments)  # type: ignore[arg-type]


def test_other_weights_than_at_the_beginning_are_refused() -> None:
    from dataclasses import replace

    own = identify("cascade")
    assert own.weights == f"opencv:{cv2.__version__}"
    build(own)
    with pytest.raises(InputError, match=r"are opencv:.* here, and were opencv:3\.0"):
        build(replace(own, weights="opencv:3.0"))


def test_readers_do_not_pay_for_opencv() -> None:
    code = (
        "import sys, raymotion.data.faces.assign; "
        "print([m for m in ('cv2', 'scipy', 'ray', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow
def test_recall_and_precision_on_real_pictures(shared_data: Path) -> None:
    """Persons of the coco folder with a keypoint face of at least 20 pixels; see the docstring of CascadeDetector.

    Keypoint faces look down, away, or hide under hats; the floor is what was measured less a margin. It would catch a
    crop in the wrong place, a mixed-up channel or a cascade that is not asked.
    """
    detector = CascadeDetector()
    large = found = right = wrong = 0
    for split in ("val2017", "train2017"):
        people: dict[str, list[dict]] = {}
        for row in CocoReader(root=shared_data / "coco", split=split, persons=True, min_side=20).read()[0].to_pylist():
            people.setdefault(row["image_uri"], []).append(row)
        for uri, rows in people.items():
            rows = [row for row in rows if row["face_box"]]
            faces = find_faces(decode_rgb(fetch(uri)), [row["body_box"] for row in rows], detector) if rows else []
            for row, face in zip(rows, faces, strict=True):
                known = row["face_box"]
                centre = ((known[0] + known[2]) / 2, (known[1] + known[3]) / 2)
                hit = face is not None and (
                    overlap(known, face.box) >= 0.3
                    or (face.box[0] <= centre[0] <= face.box[2] and face.box[1] <= centre[1] <= face.box[3])
                )
                large += known[2] - known[0] >= 20
                found += hit and known[2] - known[0] >= 20
                right, wrong = right + hit, wrong + (face is not None and not hit)
    assert large >= 25
    assert found / large >= 0.18, f"{found} of {large}"
    assert right / (right + wrong) >= 0.75, f"{right} right, {wrong} wrong"
