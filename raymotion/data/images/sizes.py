"""Reads image sizes from file headers, many at a time: in microseconds from disk, in one request from a store."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Literal

from PIL import Image

from raymotion import storage
from raymotion.data.images.decode import FORMATS, ImageEmpty, ImageError, ImageMissing, fetch, open_picture, orientation
from raymotion.errors import AccessDenied, InputError

# JPEG puts the size after its EXIF block, which can hold a preview of up to 64 KB.
_HEAD = 1 << 17
_THREADS = 32


@dataclass(frozen=True)
class PictureSize:
    """Width and height of the upright image in pixels, and its EXIF orientation (1: stored upright)."""

    width: int
    height: int
    orientation: int = 1

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height as stored; EXIF orientations 5 to 8 swap them."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def frame_of(self, annotated: tuple[float, float]) -> Literal["stored", "upright"] | None:
        """Returns the frame in which an image was annotated, given its `annotated` (width, height); None: no match.

        If both sizes are the same (orientations 2 to 4 keep the size), the frame is "stored": the tools that made and
        read COCO and EMOTIC (browsers of their time, MATLAB's imread, pycocotools) ignore EXIF.
        """
        if annotated == self.stored:
            return "stored"
        return "upright" if annotated == (self.width, self.height) else None

    def contradicts(self, box: tuple[float, float, float, float], frame: Literal["stored", "upright"]) -> bool:
        """Returns whether `box` exceeds the frame in which it was annotated, but fits into the other one."""
        upright = (self.width, self.height)
        own, other = (self.stored, upright) if frame == "stored" else (upright, self.stored)
        beyond = box[2] > own[0] + 1 or box[3] > own[1] + 1
        return self.orientation >= 5 and beyond and box[2] <= other[0] + 1 and box[3] <= other[1] + 1

    def upright(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Converts a box (x1, y1, x2, y2) from stored to upright pixels.

        EXIF 2.3, tag 0x0112, defines the position of the stored row 0 and column 0.
        """
        width, height = self.stored
        x1, y1, x2, y2 = box
        if self.orientation in (2, 3):
            x1, x2 = width - x2, width - x1
        if self.orientation in (3, 4):
            y1, y2 = height - y2, height - y1
        if self.orientation in (6, 7):  # the stored bottom is the left side
            y1, y2 = height - y2, height - y1
        if self.orientation in (7, 8):  # the stored right is the top
            x1, x2 = width - x2, width - x1
        return (y1, x1, y2, x2) if self.orientation >= 5 else (x1, y1, x2, y2)


def read_size(uri: str) -> PictureSize:
    """Reads the size of the image at `uri` from its header.

    Raises:
        ImageError: the file does not exist (`ImageMissing`), or is not an image that raymotion reads.
        AccessDenied: the file may not be read.
    """
    storage.require_allowed_in_table(uri)
    if storage.is_remote(uri):
        head = _head(uri)
        return _measure(io.BytesIO(head)) or _measure_whole(fetch(uri) if len(head) >= _HEAD else head)
    try:
        with storage.open_input(uri) as file:
            size = _measure(file)
            if size is None:
                file.seek(0)
                size = _measure_whole(file.read())
            return size
    except AccessDenied:
        raise
    except InputError as error:
        raise ImageMissing(f"no file at {uri}") from error


def read_sizes(uris: Iterable[str]) -> dict[str, PictureSize | ImageError]:
    """Returns the size of each image, or its error, by address; reads in threads."""
    addresses = list(dict.fromkeys(uris))

    def one(uri: str) -> PictureSize | ImageError:
        try:
            return read_size(uri)
        except ImageError as error:
            return error

    # On a disk, many threads only contend for the interpreter; with a store, they hide its latency.
    threads = _THREADS if any(storage.is_remote(uri) for uri in addresses[:1]) else 4
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def _head(uri: str) -> bytes:
    if storage.is_http(uri):  # few servers support ranges, and `fetch` enforces its limits
        return fetch(uri)
    try:
        return storage.read_head(uri, _HEAD)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ImageMissing(f"no file at {uri}") from error


def _measure(file: BinaryIO) -> PictureSize | None:
    """Reads the size from the start of a file; None if the header is too long, damaged, or not of an image."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _size_of(image)
    except Exception:  # a damaged header fails in as many ways as there are plugins
        return None


def _measure_whole(data: bytes) -> PictureSize:
    if not data:
        raise ImageEmpty("the file is empty")
    return _size_of(open_picture(data))


def _size_of(image: Image.Image) -> PictureSize:
    (width, height), turned = image.size, orientation(image)
    turned = turned if 1 <= turned <= 8 else 1
    return PictureSize(*((height, width) if turned >= 5 else (width, height)), turned)
