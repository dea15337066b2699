"""Sizes of pictures from their headers alone, many at a time: on disk in microseconds, from a store in one request."""

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
    """Width and height of the upright picture in pixels, and its EXIF orientation (1: stored upright)."""

    width: int
    height: int
    orientation: int = 1

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the pixels as stored; EXIF orientations 5 to 8 lay the picture on its side."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def frame_of(self, annotated: tuple[float, float]) -> Literal["stored", "upright"] | None:
        """In which pixels a picture of the size `annotated` (width, height) was annotated; None: another picture.

        Where both sizes are the same, these are the stored pixels: orientations 2 to 4 leave the size alone, and the
        tools with which COCO and EMOTIC were made and are read (browsers of their time, MATLAB's imread, pycocotools)
        take no notice of EXIF.
        """
        if annotated == self.stored:
            return "stored"
        return "upright" if annotated == (self.width, self.height) else None

    def contradicts(self, box: tuple[float, float, float, float], frame: Literal["stored", "upright"]) -> bool:
        """Whether `box` reaches beyond the pixels in which it was annotated, and would fit into the other ones."""
        upright = (self.width, self.height)
        own, other = (self.stored, upright) if frame == "stored" else (upright, self.stored)
        beyond = box[2] > own[0] + 1 or box[3] > own[1] + 1
        return self.orientation >= 5 and beyond and box[2] <= other[0] + 1 and box[3] <= other[1] + 1

    def upright(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (x1, y1, x2, y2) of the stored pixels as a box of the upright picture.

        EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 lie.
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
    """The size of the picture at `uri`, from its header.

    Raises:
        ImageError: there is no file (`ImageMissing`), or it is not a picture that raymotion reads.
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
    """Sizes of many pictures by address, or what is wrong with each; the addresses are read by threads."""
    addresses = list(dict.fromkeys(uris))

    def one(uri: str) -> PictureSize | ImageError:
        try:
            return read_size(uri)
        except ImageError as error:
            return error

    # On a disk threads only fight over the interpreter; from a store they hide its latency.
    threads = _THREADS if any(storage.is_remote(uri) for uri in addresses[:1]) else 4
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def _head(uri: str) -> bytes:
    if storage.is_http(uri):  # few servers read ranges, and all of them are held to the limits of `fetch`
        return fetch(uri)
    try:
        return storage.read_head(uri, _HEAD)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ImageMissing(f"no file at {uri}") from error


def _measure(file: BinaryIO) -> PictureSize | None:
    """From a plain header at the file's begin, or None: it is long, damaged, or no picture's."""
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
