"""Image files -> upright RGB pixels, or a typed reason why not."""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from raymotion import storage, web
from raymotion.access import Retries
from raymotion.errors import RaymotionError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# 100 million pixels are 300 MB of RGB: larger than any photograph of COCO or EMOTIC by a factor of 20.
MAX_PIXELS = 100_000_000
MIN_SIDE = 2

# Seconds before a file of a disk is asked for again.
PAUSES = (0.2, 1.0, 4.0)

# A truncated file is an error here, never a picture whose lower half is grey.
ImageFile.LOAD_TRUNCATED_IMAGES = False

# Pillow warns of damaged EXIF blocks and of more than 89 million pixels; what is wrong with a picture is said here by
# an error. Set once: `warnings.catch_warnings` around each picture is not safe where several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """One image can not be used. `reason` is a short code that counts and quarantine files carry."""

    reason = "image_error"


class ImageMissing(ImageError):
    """There is no file at the address."""

    reason = "image_missing"


class ImageEmpty(ImageError):
    """The file has no bytes."""

    reason = "image_empty"


class ImageNotAnImage(ImageError):
    """The bytes are of no picture format that raymotion reads, whatever the file is called."""

    reason = "image_not_an_image"


class ImageTruncated(ImageError):
    """The file starts as a picture, but ends early or is damaged."""

    reason = "image_truncated"


class ImageTooLarge(ImageError):
    """More pixels than allowed (a decompression bomb), told from the header before anything is decoded."""

    reason = "image_too_large"


class ImageTooSmall(ImageError):
    """A side is shorter than `MIN_SIDE`: nothing can be seen in it."""

    reason = "image_too_small"


class ImageUnreachable(ImageError):
    """The disk or the web server did not give the file, also when asked again."""

    reason = "image_unreachable"


def fetch(uri: str, *, attempts: int = 3) -> bytes:
    """The bytes at `uri`, an address of a sample table.

    Raises:
        ImageMissing, ImageUnreachable, ImageTooLarge: the file is not there; a disk failed `attempts` times; a web
            server refused, failed or broke a limit (`raymotion.web`). Each is the fault of that address.
        AddressRefused: an address of a kind that is not read.
        AccessDenied, StoreUnavailable: never the fault of one row, so they are no `ImageError`.
    """
    storage.require_allowed_in_table(uri)
    if storage.is_http(uri):
        return _from_the_web(uri)
    for attempt in range(1, attempts + 1):
        try:
            return storage.read_bytes(uri)
        except RaymotionError:  # a store was asked again already, for as long as its user wants
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageMissing(f"no file at {uri}") from error
        except IsADirectoryError as error:
            raise ImageMissing(f"{uri} is a folder") from error
        except OSError as error:
            if attempt == attempts:
                raise ImageUnreachable(f"{uri}: {error}") from error
            time.sleep(PAUSES[min(attempt, len(PAUSES)) - 1])
    raise AssertionError("unreachable")


def _from_the_web(uri: str) -> bytes:
    try:
        return web.read(uri)
    except FileNotFoundError as error:
        raise ImageMissing(f"no file at {uri} ({error.strerror})") from error
    except web.TooManyBytes as error:
        raise ImageTooLarge(str(error)) from error
    except OSError as error:
        raise ImageUnreachable(str(error)) from error


def read_picture(uri: str, *, fetch: Callable[[str], bytes] = fetch, **how: Any) -> tuple[bytes, np.ndarray]:
    """The bytes at `uri` and the pixels in them. Before a picture of a store is called bad, its length is checked.

    Args:
        fetch: gives the bytes.
        how: keywords of `decode_rgb`.

    Raises:
        ImageError, AddressRefused, AccessDenied, StoreUnavailable: as `fetch` and `decode_rgb`.
    """
    data = fetch(uri)
    try:
        return data, decode_rgb(data, **how)
    except ImageError:
        whole = _fetched_whole(uri, data)
        if whole is None:
            raise
    return whole, decode_rgb(whole, **how)


def _fetched_whole(uri: str, data: bytes) -> bytes | None:
    """The object's bytes, if it has more or fewer than came; None: the store sent what it has."""
    if not storage.is_remote(uri) or storage.is_http(uri):
        return None
    retries = None
    while (size := storage.size_of(uri)) != len(data):
        retries = retries or Retries(uri, "read it", storage.store_of(uri))
        time.sleep(retries.pause(OSError(f"{len(data)} bytes came, and the object has {size}")))
        data = fetch(uri)
    return data if retries else None


def decode_rgb(data: bytes, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of a picture, uint8 of shape (height, width, 3), upright and in RGB.

    Grey, palette, CMYK, 16-bit and alpha (over white) pictures are converted; the EXIF orientation is applied.

    Args:
        min_side: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at
            least this long. The DCT does the scaling, so this is faster, and as sharp as a resize.
        max_pixels: larger pictures are refused from their header.

    Raises:
        ImageError: one of its subclasses says what is wrong.
    """
    if not data:
        raise ImageEmpty("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageNotAnImage(_describe_unknown(data)) from error
    except Exception as error:  # a damaged header fails in as many ways as there are plugins
        raise ImageTruncated(f"damaged header: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}x{height} pixels are more than {max_pixels:,}")
    if min(width, height) < MIN_SIDE:
        raise ImageTooSmall(f"{width}x{height} pixels")
    try:
        if min_side and image.format == "JPEG" and min(width, height) >= 2 * min_side:
            short = min(width, height)
            image.draft("RGB", (width * min_side // short, height * min_side // short))
        image.load()
        # A download that stopped in a file of reserved length leaves zeros, which libjpeg decodes to grey, silently.
        if data.startswith(b"\xff\xd8") and data.endswith(b"\0") and not _jpeg_ends(data):
            raise ImageTruncated("the JPEG data stop before the picture's end")
        return upright_rgb(image)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # truncated data: OSError, SyntaxError, struct.error, zlib.error, by plugin
        raise ImageTruncated(str(error) or type(error).__name__) from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow picture of any mode as uint8 (height, width, 3), its EXIF orientation applied."""
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    # A copy, because Pillow's own buffer is read-only.
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG's segments lead to an end marker."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found.group()[1], found.end()
        if marker == 0xD9:
            return True
        if marker != 0x01:  # all others carry their length
            at += int.from_bytes(data[at : at + 2], "big")
    return False


# 0xFF and anything that is not stuffing, a restart marker or a fill byte: within a scan's data, its end.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. A damaged EXIF block does not make a picture unreadable: 1."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as many kinds as there are damages
        return 1


# What brings a picture of this EXIF orientation upright. (ImageOps.exif_transpose also writes the EXIF block anew, and
# fails where that is damaged.)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        # Pillow would clip 16-bit values at 255, which turns most of the picture white.
        values = np.asarray(image).astype(np.float32)  # in float64 a large picture takes gigabytes
        top = 65535.0 if image.mode != "F" or values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _describe_unknown(data: bytes) -> str:
    if data[:4] == b"GIF8":
        return "a GIF file; JPEG, PNG, WebP and BMP are read"
    if data[:2] in (b"II", b"MM"):
        return "a TIFF file; JPEG, PNG, WebP and BMP are read"
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "an HTML page, perhaps an error page saved by a downloader"
    try:
        data[:256].decode("utf-8")
    except UnicodeDecodeError:
        return f"starts with the bytes {data[:8].hex(' ')}, which no JPEG, PNG, WebP or BMP does"
    return "a text file"
