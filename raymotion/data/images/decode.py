"""Decodes image files to upright RGB pixels, or raises a typed error."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from raymotion import storage
from raymotion.data.images.damage import (
    DamagedPolicy,
    Fault,
    PngParts,
    bare_jpeg,
    bmp_fault,
    jpeg_ends,
    jpeg_fault,
    jpeg_kind,
    read_png,
    webp_fault,
    webp_probe,
)
from raymotion.data.images.file_kinds import describe_file, is_text
from raymotion.errors import RaymotionError
from raymotion.stores import web
from raymotion.stores.access import Retries

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# 100 million pixels are 300 MB of RGB: larger than any photograph of COCO or EMOTIC by a factor of 20.
MAX_PIXELS = 100_000_000
MIN_SIDE = 2

# Seconds before reading a file from disk is retried.
PAUSES = (0.2, 1.0, 4.0)

# A truncated file is an error, not an image with a grey lower half.
ImageFile.LOAD_TRUNCATED_IMAGES = False

# Pillow warns of damaged EXIF blocks and of more than 89 million pixels; this module raises errors instead. Set once,
# since `warnings.catch_warnings` around each image is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """An image cannot be used. `reason` is a short code for counts and quarantine files."""

    reason = "image_error"


class ImageMissing(ImageError):
    """There is no file at the address."""

    reason = "image_missing"


class ImageEmpty(ImageError):
    """The file has no bytes."""

    reason = "image_empty"


class ImageNotAnImage(ImageError):
    """The content is not in an image format that raymotion reads, whatever the file name."""

    reason = "image_not_an_image"


class ImageTruncated(ImageError):
    """The file ends before the image is complete."""

    reason = "image_truncated"


class ImageDamaged(ImageError):
    """The file is corrupt, according to a checksum, a length or the decoder."""

    reason = "image_damaged"


class ImageTooLarge(ImageError):
    """The header declares more pixels than allowed (a decompression bomb); nothing was decoded."""

    reason = "image_too_large"


class ImageTooSmall(ImageError):
    """A side is shorter than `MIN_SIDE`, so the image shows nothing."""

    reason = "image_too_small"


class ImageUnreachable(ImageError):
    """The disk (after retries) or the web server failed to return the file."""

    reason = "image_unreachable"


def fetch(uri: str, *, attempts: int = 3) -> bytes:
    """Reads the bytes at `uri`, an address in a sample table.

    Raises:
        ImageMissing, ImageUnreachable, ImageTooLarge: the file does not exist; a disk failed `attempts` times; a web
            server refused, failed or exceeded a limit (`raymotion.stores.web`). They concern this address only.
        AddressRefused: an address of a kind that is not read.
        AccessDenied, StoreUnavailable: not an `ImageError`, since the cause is never a single row.
    """
    storage.require_allowed_in_table(uri)
    if storage.is_http(uri):
        return _from_the_web(uri)
    for attempt in range(1, attempts + 1):
        try:
            if not storage.is_remote(uri) and not stat.S_ISREG(os.stat(storage.absolute(uri)).st_mode):
                # Reading a pipe could block forever.
                raise ImageMissing(f"{uri} is a folder, a pipe or a device, not a file")
            return storage.read_bytes(uri)
        except RaymotionError:  # reads from a store have been retried already
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


def read_picture(
    uri: str,
    *,
    fetch: Callable[[str], bytes] = fetch,
    on_kept: Callable[[ImageError], None] | None = None,
    **how: Any,
) -> tuple[bytes, np.ndarray]:
    """Reads and decodes the image at `uri`. Before an object of a store is called damaged, its length is checked.

    Args:
        fetch: reads the bytes.
        on_kept, how: keywords of `decode_rgb`.

    Raises:
        ImageError, AddressRefused, AccessDenied, StoreUnavailable: as `fetch` and `decode_rgb`.
    """
    data = fetch(uri)
    kept: list[ImageError] = []
    try:
        pixels = decode_rgb(data, on_kept=kept.append, **how)
    except ImageError:
        whole = _fetched_whole(uri, data)
        if whole is None:
            raise
    else:
        whole = _fetched_whole(uri, data) if kept else None
        if whole is None:
            for error in kept if on_kept is not None else ():
                on_kept(error)  # type: ignore[misc]
            return data, pixels
    return whole, decode_rgb(whole, on_kept=on_kept, **how)


def _fetched_whole(uri: str, data: bytes) -> bytes | None:
    """Reads an object again if `data` has the wrong length; returns None if `data` is complete."""
    if not storage.is_remote(uri) or storage.is_http(uri):
        return None
    retries = None
    while (size := storage.size_of(uri)) != len(data):
        retries = retries or Retries(uri, "read it", storage.store_of(uri))
        time.sleep(retries.pause(OSError(f"{len(data)} bytes came, but the object has {size}")))
        data = fetch(uri)
    return data if retries else None


def decode_rgb(
    data: bytes,
    *,
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    damaged: DamagedPolicy = "quarantine",
    on_kept: Callable[[ImageError], None] | None = None,
) -> np.ndarray:
    """Decodes an image to upright RGB pixels, uint8 of shape (height, width, 3).

    Grey, palette, CMYK, 16-bit and transparent (over white) images are converted; the EXIF orientation is applied.

    Args:
        min_side: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at
            least this long. The DCT does the scaling, so this is faster, and as sharp as a resize.
        max_pixels: larger images are rejected from their header.
        damaged: policy for corrupt images that can still be decoded. "quarantine" raises; "keep" returns the decoder's
            output and calls `on_kept`. Images that cannot be decoded at all raise either way.
        on_kept: called with the error that "quarantine" would have raised.

    Raises:
        ImageError: the subclass gives the reason.
    """
    if not data:
        raise ImageEmpty("the file is empty")
    if data.startswith(_JPEG):
        pixels, fault = _decode_jpeg(data, min_side, max_pixels, damaged)
    else:
        pixels, fault = _decode_other(data, max_pixels)
    if fault is not None:
        error = _error_of(fault)
        if damaged == "quarantine" or pixels is None:
            raise error
        if on_kept is not None:
            on_kept(error)
    assert pixels is not None
    return pixels


_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


def open_picture(data: bytes) -> Image.Image:
    """Reads the header of an image, but not its pixels; damaged metadata may be dropped.

    Raises:
        ImageError: it is not an image (`ImageNotAnImage`), too large, or its header is damaged.
    """
    if data.startswith(_JPEG):
        return _open_jpeg(data)
    if data.startswith(_PNG):
        return _open_png(data)[0]
    return _open(data)


def upright_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of an image as it is shown, from its header; see `open_picture` for errors."""
    image = open_picture(data)
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith((_JPEG, _PNG)) or _is_webp(data):
            raise ImageDamaged("the header is damaged") from error
        raise ImageNotAnImage(describe_file(data)) from error
    except Exception as error:  # a damaged header fails in as many ways as there are plugins
        if data.startswith(b"BM") and is_text(data):
            raise ImageNotAnImage(describe_file(data)) from error
        if str(error).startswith("Unsupported BMP"):
            raise ImageNotAnImage(f"a BMP of a kind that is not read: {error}") from error
        if _is_webp(data) and (fault := webp_fault(data)) is not None:
            raise _error_of(fault) from error
        raise _error_of(
            Fault(f"the header is damaged: {error}", truncated="truncated" in str(error).lower())
        ) from error


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}x{height} pixels are more than {max_pixels:,}")
    if min(width, height) < MIN_SIDE:
        raise ImageTooSmall(f"{width}x{height} pixels")


def _error_of(fault: Fault) -> ImageError:
    return (ImageTruncated if fault.truncated else ImageDamaged)(fault.message)


def _decode_other(data: bytes, max_pixels: int) -> tuple[np.ndarray | None, Fault | None]:
    """Decodes a PNG, WebP or BMP; returns the pixels, None if the decoder fails, and the fault, if any."""
    png = None
    if data.startswith(_PNG):
        image, png = _open_png(data)
    else:
        image = _open(data)
    _check_size(image.size, max_pixels)
    if png is not None:
        fault = png.fault
    elif image.format == "WEBP":
        fault = webp_fault(data) or _webp_leaves_bytes(data)
    else:
        fault = bmp_fault(data)
    try:
        image.load()
        clear = None if png is None or png.transparent is None else _transparent_pixels(image, png)
        return upright_rgb(image, clear), fault
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, by plugin
        message = str(error) or type(error).__name__
        return None, fault or Fault(message, truncated="truncated" in message)


def _webp_leaves_bytes(data: bytes) -> Fault | None:
    probe = webp_probe(data)
    if probe is None:
        return None
    try:
        Image.open(io.BytesIO(probe), formats=("WEBP",)).load()
    except MemoryError:
        raise
    except Exception:
        return None
    return Fault("the picture uses fewer bytes than are stored for it: some of them are wrong")


def _open_png(data: bytes) -> tuple[Image.Image, PngParts]:
    png = read_png(data)
    if data[12:16] == b"CgBI":
        raise ImageNotAnImage("a PNG in Apple's own variant (CgBI), which only iOS reads")
    try:
        return _open(png.data), png
    except ImageDamaged as error:
        raise (_error_of(png.fault) if png.fault else error) from error


def _transparent_pixels(image: Image.Image, png: PngParts) -> np.ndarray | None:
    """Returns the mask of a grey or RGB image's pixels with the transparent colour of its tRNS chunk, (height, width).

    Pillow compares that colour with samples scaled to 8 bits, so it never matches at other depths.
    """
    values = png.transparent or b""
    grey, rgb = png.colour == 0 and len(values) >= 2, png.colour == 2 and len(values) >= 6
    if not (grey or rgb):
        return None  # a palette: Pillow has applied it
    image.info.pop("transparency", None)
    colour = np.frombuffer(values, ">u2", count=3 if rgb else 1)
    if grey:
        pixels = np.asarray(image)
        if png.depth < 16:
            return np.asarray(pixels.astype(np.uint8) == colour[0] * (255 // (2**png.depth - 1)))
        return np.asarray(pixels == colour[0])
    if png.depth == 8:
        return np.asarray((np.asarray(image) == colour).all(axis=-1))
    import cv2

    # The full 16 bits, which Pillow does not keep for RGB.
    deep: np.ndarray = np.asarray(cv2.imdecode(np.frombuffer(png.data, np.uint8), cv2.IMREAD_UNCHANGED))
    return np.asarray((deep[..., 2::-1] == colour).all(axis=-1))


def _open_jpeg(data: bytes) -> Image.Image:
    try:
        return _open(data)
    except ImageDamaged as first:
        error: ImageError = first
    if (bare := bare_jpeg(data)) != data:
        with contextlib.suppress(ImageDamaged):
            return _open(bare)
    if (kind := jpeg_kind(data)) is not None:
        error = ImageNotAnImage(f"{kind}, which is not read")
    elif not jpeg_ends(data):
        error = ImageTruncated("the file ends within its header")
    raise error


def _decode_jpeg(
    data: bytes, min_side: int | None, max_pixels: int, damaged: DamagedPolicy
) -> tuple[np.ndarray | None, Fault | None]:
    """Decodes a JPEG; returns the pixels, None if decoding fails, and the fault, if any.

    Uses libjpeg-turbo, as Pillow does, and gives the same pixels, but does not ignore its warnings.
    """
    image = _open_jpeg(data)
    _check_size(image.size, max_pixels)
    scale = _jpeg_scale(image.size, min_side)
    pixels, fault = _decode_strictly(data, image, scale)
    if pixels is None and (bare := bare_jpeg(data)) != data:
        pixels, _ = _decode_strictly(bare, image, scale)
    if pixels is None and not jpeg_ends(data):
        # If only the end marker is missing, the image is complete.
        pixels, _ = _decode_strictly(data + _END, image, scale)
    if pixels is None and (kind := jpeg_kind(data)) is not None:
        raise ImageNotAnImage(f"{kind}, which is not read")
    if pixels is not None:
        fault = jpeg_fault(data)
    elif damaged == "keep":
        pixels = _decode_leniently(data, image, scale)
    if pixels is None:
        return None, fault
    turn = _TURNS.get(orientation(image))
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn)), fault


_END = b"\xff\xd9"

# Warnings of libjpeg that do not concern the pixels. Some cameras write the SOS parameters of another kind of JPEG, or
# pad to an even address before the end marker.
_HARMLESS = re.compile(r"Invalid SOS parameters|unknown JFIF revision|Unknown Adobe color transform|bad ICC marker")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MOST_EXTRANEOUS = 16


def _jpeg_scale(size: tuple[int, int], min_side: int | None) -> int:
    """Returns the largest factor by which a JPEG can be scaled down: 1, 2, 4 or 8 (chosen as by `Image.draft`)."""
    short = min(size)
    if not min_side or short < 2 * min_side:
        return 1
    room = min(side // max(1, side * min_side // short) for side in size)
    return next(scale for scale in (8, 4, 2, 1) if room >= scale)


def _decode_strictly(data: bytes, image: Image.Image, scale: int) -> tuple[np.ndarray | None, Fault | None]:
    """Returns the pixels as stored, or None and libjpeg's warning as a fault."""
    inks = image.mode == "CMYK"
    least = {} if scale == 1 else {"min_width": -(-image.width // scale), "min_height": -(-image.height // scale)}

    def decode(strict: bool) -> np.ndarray:
        return simplejpeg.decode_jpeg(data, "CMYK" if inks else "RGB", strict=strict, **least)

    try:
        pixels = decode(strict=True)
    except ValueError as error:
        message = str(error)
        if "subsampling" in message:  # a rare pattern that TurboJPEG's interface does not support
            lenient = _decode_leniently(data, image, scale)
            return lenient, None if lenient is not None else Fault(message)
        extraneous = _EXTRANEOUS.search(message)
        if not (_HARMLESS.search(message) or (extraneous and int(extraneous[1]) <= _MOST_EXTRANEOUS)):
            return None, Fault(message, truncated=not jpeg_ends(data))
        try:
            pixels = decode(strict=False)
        except ValueError:  # a warning about the header, which is given either way
            return None, Fault(message)
    # CMYK was decoded only to detect damage; Pillow knows whether the values are stored inverted.
    return (_decode_leniently(data, image, scale) if inks else pixels), None


def _decode_leniently(data: bytes, header: Image.Image, scale: int) -> np.ndarray | None:
    """Decodes a JPEG with Pillow, which fills missing parts with grey; returns None if that fails."""
    try:
        image = _open_jpeg(data if jpeg_ends(data) else data + _END)
        if scale > 1:
            image.draft("RGB", (header.width // scale, header.height // scale))
        image.load()
        return np.array(_to_rgb(image))
    except MemoryError:
        raise
    except Exception:
        return None


def upright_rgb(image: Image.Image, clear: np.ndarray | None = None) -> np.ndarray:
    """Converts a Pillow image of any mode to uint8 (height, width, 3) and applies its EXIF orientation.

    Args:
        clear: bool (height, width), additional transparent pixels, in the stored orientation.
    """
    turn = _TURNS.get(orientation(image))
    rgb = _to_rgb(image)
    if clear is not None:
        rgb = rgb.copy()
        rgb.paste((255, 255, 255), mask=Image.fromarray(clear))
    # A copy, because Pillow's own buffer is read-only.
    return np.array(rgb if turn is None else rgb.transpose(turn))


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 (upright) if it is missing or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged blocks raise many kinds of errors
        return 1


# EXIF orientation -> operation that turns the image upright. (ImageOps.exif_transpose also rewrites the EXIF block, and
# fails if that is damaged.)
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
        # Pillow would clip 16-bit values at 255, which turns most of the image white.
        values = np.asarray(image).astype(np.float32)  # in float64 a large picture takes gigabytes
        top = 65535.0 if image.mode != "F" or values.max(initial=0) > 255 else 255.0
        if isinstance(clear := image.info.get("transparency"), int):
            values[values == clear] = top
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "RGBA" and image.format == "BMP" and not image.getchannel("A").getbbox():
        return image.convert("RGB")  # the fourth byte of a BMP is unused by most programs that write it
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
