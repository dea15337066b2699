"""Face detectors by name. A detector takes a crop and a range of face sizes, and returns boxes with scores.

`cascade` needs no download: OpenCV 4 includes its Haar cascades (frontal and profile). It finds upright faces that look
towards the camera or to one side. `yunet` is a small network (Wu et al., 2023) for `cv2.FaceDetectorYN`; the user
provides the ONNX file (`face_detection_yunet_2023mar.onnx` from OpenCV's model zoo).

A detector is built once per process, which imports OpenCV.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raymotion import storage
from raymotion.errors import InputError

# Maximum enlargement of a crop; more would add no detail for the detector.
MOST_ENLARGED = 4.0


@dataclass(frozen=True)
class Face:
    """A face: `box` is x1, y1, x2, y2 in pixels, `score` in [0, 1) or [0, 1] by detector."""

    box: tuple[float, float, float, float]
    score: float


class FaceDetector(Protocol):
    """Interface of detectors for `find_faces`."""

    def __call__(self, picture: np.ndarray, smallest: float, largest: float) -> list[Face]:
        """Detects faces in `picture`, uint8 RGB (height, width, 3), with sides between the two sizes in pixels."""


@dataclass(frozen=True)
class DetectorIdentity:
    """Settings that determine which faces are found.

    Attributes:
        name: one of `DETECTORS`.
        weights: "opencv:VERSION" for weights included in OpenCV, "sha256:16 hex digits" for a file.
        min_score: faces with a lower score are left out.
    """

    name: str
    weights: str
    min_score: float


def identify(name: str, weights: str | None = None, min_score: float | None = None) -> DetectorIdentity:
    """Returns the identity of the detector with these options, after building it to check the weights.

    Raises:
        InputError: the detector is unknown; or its weights are missing, not accepted, or of another network.
    """
    if name not in DETECTORS:
        raise InputError(f"no face detector is called {name!r}", remedy=f"There are {', '.join(DETECTORS)}.")
    kind = DETECTORS[name]
    _check_opencv()
    if kind.own_weights and weights is not None:
        raise InputError(
            f"the detector {name} takes no weights: they come with OpenCV", remedy="Leave --weights out, or use yunet."
        )
    if not kind.own_weights and weights is None:
        raise InputError(
            f"the detector {name} needs a file of weights",
            remedy="Give --weights face_detection_yunet_2023mar.onnx, from OpenCV's model zoo.",
        )
    score = kind.min_score if min_score is None else min_score
    if not 0.0 <= score <= 1.0:
        raise InputError(f"min_score {score:g} is not between 0 and 1")
    return kind(weights, score).identity


def build(identity: DetectorIdentity, weights: str | None = None) -> FaceDetector:
    """Builds the detector of `identity`; raises an `InputError` if the weights have changed."""
    detector = DETECTORS[identity.name](weights, identity.min_score)
    if detector.identity != identity:
        raise InputError(
            f"the weights are {detector.identity.weights} here, and were {identity.weights} when the job began",
            path=weights,
            remedy="Give every node the same OpenCV and the same file, and leave it alone while the job runs.",
        )
    return detector


def _check_opencv() -> None:
    if importlib.util.find_spec("cv2") is None:
        raise InputError("OpenCV is not installed", remedy="pip install opencv-python-headless.")


class CascadeDetector:
    """Viola and Jones' detector, with OpenCV's own cascades: two frontal ones, and the profile one both ways.

    The windows that the four passes report, ungrouped, are grouped together, so that they vote for one another; the
    score of a face of v windows is v / (v + 5). (A single cascade with OpenCV's own grouping found 8 of the 28 faces
    below at the price of 28 to 37 bodies with a false or unknown one.)

    Measured on ../shared/data/coco (110 persons whose box has sides of at least 20 pixels, 36 of them with a face by
    keypoints, 28 of these at least 20 pixels large), in `find_faces` with its defaults: 7 of the 28 found (recall
    0.25: the others look down, aside, or lie in the shade of a hat); 15 faces in all, of which all 10 in persons with
    keypoint faces hit these, and the other 5, in persons without, are faces by eye. With min_score 0.5 it is 8 of the
    28, and 11 of the 13 in persons with keypoint faces hit. So few pictures tell a good detector from a bad one, no
    more; and the parameters were chosen on them.

    A crop is enlarged (at most `MOST_ENLARGED` times) or reduced until its smallest plausible face has `WINDOW` pixels,
    the size of the windows that the cascades were trained on.
    """

    own_weights = True
    min_score = 0.7
    FILES = ("frontalface_alt2", "frontalface_default", "profileface")
    WINDOW = 24

    def __init__(self, weights: str | None = None, min_score: float | None = None) -> None:
        import cv2

        score = self.min_score if min_score is None else min_score
        self.identity = DetectorIdentity("cascade", f"opencv:{cv2.__version__}", score)
        self._cascades = [_cascade(name) for name in self.FILES]

    def __call__(self, picture: np.ndarray, smallest: float, largest: float) -> list[Face]:
        import cv2

        scale = min(self.WINDOW / max(smallest, 1.0), MOST_ENLARGED)
        grey = _resized(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), scale)
        sides = tuple(max(self.WINDOW - 4, round(side * scale)) for side in (smallest, largest))
        if min(grey.shape) < sides[0]:
            return []
        windows: list[list[int]] = []
        for name, cascade in zip(self.FILES, self._cascades, strict=True):
            found = [_windows(cascade, grey, sides)]
            if name == "profileface":  # trained on faces that look one way
                other = _windows(cascade, np.ascontiguousarray(grey[:, ::-1]), sides)
                found.append([[grey.shape[1] - x - w, y, w, h] for x, y, w, h in other])
            windows += [window for windows_ in found for window in windows_]
        boxes, votes = _grouped(windows)
        faces = []
        for (x, y, w, h), count in zip(boxes, votes, strict=True):
            face = Face((x / scale, y / scale, (x + w) / scale, (y + h) / scale), count / (count + 5.0))
            if face.score >= self.identity.min_score:
                faces.append(face)
        return faces


def _windows(cascade: Any, grey: np.ndarray, sides: tuple[int, ...]) -> list[list[int]]:
    """Returns all windows, without OpenCV's grouping, which would drop windows confirmed only by another cascade."""
    small, large = sides
    found = cascade.detectMultiScale(
        grey, scaleFactor=1.1, minNeighbors=0, minSize=(small, small), maxSize=(large, large)
    )
    return [[int(v) for v in window] for window in found]


def _grouped(windows: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Merges windows of the same face into their mean, with their number; single windows are dropped as noise."""
    import cv2

    if not windows:
        return [], []
    boxes, votes = cv2.groupRectangles(windows, 1, 0.2)
    return [[int(v) for v in box] for box in boxes], [int(v) for v in np.ravel(votes)]


@cache
def _cascade(name: str) -> Any:
    import cv2

    path = Path(cv2.data.haarcascades) / f"haarcascade_{name}.xml"  # type: ignore[attr-defined]
    if not path.exists():  # OpenCV 5 no longer includes them
        raise InputError(f"OpenCV {cv2.__version__} comes without its cascades", remedy="Install OpenCV 4.")
    return cv2.CascadeClassifier(str(path))


class YuNetDetector:
    """YuNet in `cv2.FaceDetectorYN`; scores are the network's, 0 to 1.

    It finds faces of about 10 to 300 pixels; crops are scaled so that the smallest plausible face has 16.
    """

    own_weights = False
    min_score = 0.6
    WINDOW = 16
    NMS = 0.3

    def __init__(self, weights: str | None, min_score: float | None = None) -> None:
        import cv2

        score = self.min_score if min_score is None else min_score
        if weights is None:
            raise InputError("the detector yunet needs a file of weights", remedy="Give --weights FILE.onnx.")
        data = storage.require(weights)
        self.identity = DetectorIdentity("yunet", f"sha256:{hashlib.sha256(data).hexdigest()[:16]}", score)
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            buffer = np.frombuffer(data, np.uint8)
            none = np.zeros(0, np.uint8)
            self._net = cv2.FaceDetectorYN.create("onnx", buffer, none, (64, 64), score, self.NMS, 200)
            self._net.detect(np.zeros((64, 64, 3), np.uint8))  # networks other than YuNet fail here
        except (cv2.error, SystemError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f"is no YuNet model that OpenCV reads ({reason})",
                path=weights,
                remedy="Give face_detection_yunet_2023mar.onnx, from OpenCV's model zoo.",
            ) from error
        finally:
            cv2.utils.logging.setLogLevel(level)

    def __call__(self, picture: np.ndarray, smallest: float, largest: float) -> list[Face]:
        import cv2

        scale = min(self.WINDOW / max(smallest, 1.0), MOST_ENLARGED)
        image = _resized(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), scale)
        self._net.setInputSize((image.shape[1], image.shape[0]))
        faces = faces_of_rows(self._net.detect(image)[1], scale)
        return [f for f in faces if smallest <= (f.box[2] - f.box[0] + f.box[3] - f.box[1]) / 2 <= largest]


def faces_of_rows(rows: np.ndarray | None, scale: float = 1.0) -> list[Face]:
    """Converts YuNet's rows to faces, in pixels of the image before it was scaled by `scale`.

    Args:
        rows: float32 (n, 15): x, y, width, height, five landmarks (x, y), score; None if there is no face.
    """
    faces = []
    for row in np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64):
        x, y, w, h, score = (float(v) for v in (*row[:4], row[14]))
        if w > 0 and h > 0 and np.isfinite(row).all():
            faces.append(Face((x / scale, y / scale, (x + w) / scale, (y + h) / scale), score))
    return faces


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    import cv2

    size = tuple(max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA))


DETECTORS: Mapping[str, type[CascadeDetector] | type[YuNetDetector]] = {
    "cascade": CascadeDetector,
    "yunet": YuNetDetector,
}
