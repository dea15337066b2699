"""Checks that matched rows have the same pictures, since two pictures may share an id or a file name.

Rows matched by `sample_id` must have the same bytes (`data.provenance`). Rows matched by image name may be copies in
another encoding or size, so if the bytes differ the decoded pictures are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.data.images.decode import ImageError, decode_rgb
from raymotion.data.images.marks import Picture, PictureMark, address, evenly, mark_of
from raymotion.data.provenance import Difference, Pair, compare_pictures
from raymotion.errors import InputError, RaymotionError, StoreUnavailable
from raymotion.evaluation.matching import Match, image_key

# Maximum number of pairs with different bytes that are decoded and compared.
MOST_SEEN = 64
# Side of the compared grey thumbnails, and the tolerances for the same picture: mean grey level (of 255), and log of
# the ratio of the aspect ratios.
SIDE, LEVELS, RATIO = 32, 4.0, 0.05
SAMPLES = "Give samples of the pictures that were labelled."
REMEDY = f"{SAMPLES} Copies of them in another encoding are compared with --on image-name."


def check_matched(
    found: Match,
    pictures: Sequence[Picture],
    truth: pa.Table,
    *,
    where: object,
    since: float | None,
    remedy: str = REMEDY,
) -> list[str]:
    """Raises unless the matched rows have the same pictures; returns notes on pairs that could not be compared.

    Args:
        found: the match of the labelled rows with `truth`.
        pictures: the pictures that were labelled.
        where: location of `truth`, for messages.
        since: start of the labelling, in seconds since the epoch.
        remedy: shown if pictures of one sample_id differ.

    Raises:
        InputError: names the first row whose pictures differ, and both pictures.
    """
    uris, truth_ids = truth.column("image_uri").to_pylist(), truth.column("sample_id").to_pylist()
    pairs = [
        Pair(truth_ids[other], Picture(uris[other]), pictures[row])
        for row, own in zip(found.rows.tolist(), found.truth_rows, strict=True)
        for other in own
    ]
    by_id = found.key == "sample"
    result = compare_pictures(pairs, since=since, need_address=False, first=by_id)
    if by_id:
        for difference in result.differences[:1]:
            raise _refusal(difference, where, remedy)
        return result.notes()
    notes = result.notes()
    unreadable = sum(difference.unreadable for difference in result.differences)
    if unreadable:
        notes.append(f"{unreadable:,} pairs were matched by name alone: their pictures could not be read to compare.")
    return notes + _look(pairs, [own for own in result.differences if not own.unreadable], where)


def looks_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two pictures, uint8 (h, w, 3), are the same in different encodings or sizes."""
    ratios = [pixels.shape[1] / pixels.shape[0] for pixels in (a, b)]
    if abs(np.log(ratios[0] / ratios[1])) > RATIO:
        return False
    small = [_thumbnail(pixels) for pixels in (a, b)]
    if np.abs(small[0] - small[1]).mean() > LEVELS:
        return False
    spread = [float(values.std()) for values in small]
    if max(spread) < 2.0:  # both are uniform
        return True
    return min(spread) > 0 and float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1]) >= 0.95


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float32)


def _look(pairs: Sequence[Pair], differences: Sequence[Difference], where: object) -> list[str]:
    """Returns notes on pairs with different bytes that look alike; raises for a pair that does not."""
    if not differences:
        return []
    seen = 0
    for place in evenly([str(number) for number in range(len(differences))], MOST_SEEN):
        difference = differences[int(place)]
        pair = pairs[difference.row]
        shown = [_decoded(side) for side in (pair.now, pair.then)]
        if shown[0] is not None and shown[1] is not None:
            if not looks_alike(shown[0], shown[1]):
                raise _refusal(difference, where, SAMPLES)
            seen += 1
        elif not str(image_key(pair.now.uri, pair.sample_id)).startswith("coco:"):
            raise _refusal(difference, where, f"{SAMPLES} Or put the pictures back, to compare them.")
    return [
        f"{len(differences):,} matched pairs are pictures of other bytes: copies in another encoding or size. "
        f"{seen:,} of them were looked at, and show the same."
    ]


def _decoded(side: Picture) -> np.ndarray | None:
    """Decodes the picture; None if it cannot be read or has changed since it was recorded.

    Raises:
        StoreUnavailable: its store does not answer.
    """
    assert side.uri is not None
    try:
        data = storage.read_bytes(address(side.uri))
        expected: PictureMark | None = side.mark
        if expected is not None and mark_of(data) != expected:
            return None
        return decode_rgb(data, min_side=4 * SIDE)
    except StoreUnavailable:
        raise
    except (OSError, ValueError, ImageError, RaymotionError):
        return None


def _refusal(difference: Difference, where: object, remedy: str) -> InputError:
    return InputError(
        f"{difference.sample_id} is of another {difference.what}: the labels are of {difference.then}, "
        f"this sample is of {difference.now}",
        path=where,
        remedy=remedy,
    )
