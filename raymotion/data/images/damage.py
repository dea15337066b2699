"""Detects damage in JPEG, PNG, WebP and BMP files that decoders ignore.

Decoders fill missing parts with grey, black or the last known colour. The formats allow these checks:

    PNG   the checksum and length of every chunk, the end chunk
    JPEG  the end marker; libjpeg's warnings of a Huffman code out of step; the list of scans of a progressive image
    WebP  the lengths of the file and its chunks; no checksum, but corrupt data decode to too few or too many bytes
    BMP   the size of the pixel array; nothing inside it
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Policy for corrupt images that can still be decoded.
DamagedPolicy = Literal["quarantine", "keep"]

# Maximum unpacked size of a text chunk. Only the orientation is read from it.
_MOST_TEXT = 1 << 18
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Text chunks in which some programs store the orientation.
_ORIENTATION_TEXTS = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class Fault:
    """Damage of an image file; `truncated`: the file ends before the image is complete."""

    message: str
    truncated: bool = False


@dataclass(frozen=True)
class PngParts:
    """A PNG reduced to the chunks that a decoder needs.

    Attributes:
        data: the file with only the chunks for pixels and orientation.
        fault: None if all these chunks are intact.
        depth, colour: bits per sample and colour type, as in the header; 0 if there is none.
        transparent: content of the tRNS chunk.
    """

    data: bytes
    fault: Fault | None
    depth: int = 0
    colour: int = 0
    transparent: bytes | None = None


def read_png(data: bytes) -> PngParts:
    """Checks the chunks of a PNG and drops those that the decoder does not need.

    Texts, colour profiles and times may be large, damaged, or bombs; they are no reason to reject the image. Only the
    first frame of an animated PNG is kept.
    """
    parts: list[bytes | memoryview] = [_SIGNATURE]
    view, at, fault = memoryview(data), len(_SIGNATURE), None
    header = transparent = None
    complete, whole = False, True
    while not complete:
        if at + 8 > len(data):
            fault = fault or Fault("the file ends before the picture's end chunk", truncated=True)
            break
        length, name = struct.unpack_from(">I4s", data, at)
        if not name.isalpha():
            fault = fault or Fault(f"no PNG chunk begins at byte {at:,}")
            break
        body, end = view[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data):
            fault = fault or Fault(
                f"chunk {name.decode()} has {length:,} bytes, and the file ends after {len(body):,}", truncated=True
            )
            break
        checksum = zlib.crc32(view[at + 4 : end - 4])
        matches = checksum == int.from_bytes(view[end - 4 : end], "big")
        if name[0] & 0x20 == 0 or name == b"tRNS":  # a chunk that the pixels depend on
            if not matches:
                fault = fault or Fault(f"the checksum of chunk {name.decode()} at byte {at:,} does not match")
            # The checksum is rewritten, so that the decoder accepts the chunk.
            parts += [view[at : end - 4], checksum.to_bytes(4, "big")]
            if name == b"IHDR" and length == 13:
                header = bytes(body)
            elif name == b"tRNS":
                transparent = bytes(body)
        elif matches and _tells_orientation(name, body):
            parts.append(view[at:end])
        else:
            whole = False
        complete, at = name == b"IEND", end
    unchanged = whole and fault is None and at == len(data)
    depth, colour = (header[8], header[9]) if header else (0, 0)
    return PngParts(data if unchanged else b"".join(parts), fault, depth, colour, transparent)


def _tells_orientation(name: bytes, body: memoryview) -> bool:
    if name == b"eXIf":
        return True
    if name not in (b"tEXt", b"zTXt", b"iTXt") or len(body) > _MOST_TEXT:
        return False
    keyword, _, rest = bytes(body).partition(b"\0")
    if keyword not in _ORIENTATION_TEXTS:
        return False
    if name == b"iTXt":
        packed, rest = rest[:1] == b"\1", b"\0".join(rest[2:].split(b"\0", 2)[2:])
    else:
        packed, rest = name == b"zTXt", rest[1:]
    if not packed:
        return True
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(rest, _MOST_TEXT)
    except zlib.error:
        return False
    return inflate.eof


@dataclass(frozen=True)
class _Segment:
    """A JPEG segment: its marker's second byte, and the range of its content (without the length) in the file."""

    marker: int
    start: int
    end: int


# 0xFF and a byte that is not stuffing, a restart marker or a fill byte. Ends the data of a scan.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SOS, _EOI, _DHT, _APP0, _APP1, _APP14 = 0xDA, 0xD9, 0xC4, 0xE0, 0xE1, 0xEE
# Start of frame: each kind of JPEG has its own marker.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xCA)
_KINDS = {
    0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xCB: "lossless",
    0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical",
}  # fmt: skip
# A run of zeros that is too long for image data, see `_zeros_in_scan`.
_ZEROS = bytes(64)


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yields the segments after the start marker, up to the end marker or the last segment found."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found.group()[1], found.end()
        if marker in (_EOI, 0x01):  # these have no content
            yield _Segment(marker, at, at)
            if marker == _EOI:
                return
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        yield _Segment(marker, at + 2, end)
        at = end


def jpeg_ends(data: bytes) -> bool:
    """Returns whether a JPEG's segments lead to an end marker."""
    return any(segment.marker == _EOI for segment in _segments(data))


def jpeg_kind(data: bytes) -> str | None:
    """Describes the kind of JPEG if few programs can read it; otherwise returns None."""
    for segment in _segments(data):
        if segment.marker in _FRAMES:
            depth = data[segment.start] if segment.start < len(data) else 8
            if depth != 8:
                return f"a JPEG with {depth} bits for each sample"
            kind = _KINDS.get(segment.marker)
            return f"a JPEG of the {kind} kind" if kind else None
    return None


def bare_jpeg(data: bytes) -> bytes:
    """Returns a JPEG with only the segments for pixels and orientation, and without bytes between segments.

    A damaged profile, thumbnail or preview is no reason to reject the image.
    """
    parts = [data[:2]]
    for segment in _segments(data):
        if segment.marker == _SOS:
            return b"".join([*parts, data[segment.start - 4 :]])
        content = data[segment.start : segment.end]
        if segment.marker == _APP0:
            # Only its presence matters: without it, decoders guess the colour space differently.
            keep = content.startswith(b"JFIF\0")
            content = b"JFIF\0\1\1\0\0\1\0\1\0\0"
        elif segment.marker == _APP1:
            keep = content.startswith(b"Exif\0\0")
        elif segment.marker == _APP14:
            keep = content.startswith(b"Adobe") and len(content) >= 12
        else:
            keep = segment.marker < 0xE0  # neither another application's data nor a comment
        if keep:
            parts.append(struct.pack(">BBH", 0xFF, segment.marker, len(content) + 2) + content)
    return data


def jpeg_fault(data: bytes) -> Fault | None:
    """Finds damage in a JPEG that libjpeg decodes without a warning."""
    first_scan = len(data)
    components: list[int] = []
    progressive = False
    # Per component: number of low bits still unknown of each coefficient 0..63; 16: nothing was sent.
    known: dict[int, list[int]] = {}
    tables: dict[int, int] = {}  # class and number of a Huffman table -> the symbol whose code is all zeros
    for segment in _segments(data):
        content = data[segment.start : segment.end]
        if segment.marker in _FRAMES:
            progressive = segment.marker in _PROGRESSIVE
            components = (
                [content[6 + 3 * i] for i in range(content[5])]
                if len(content) > 5 and len(content) >= 6 + 3 * content[5]
                else []
            )
            known = {component: [16] * 64 for component in components}
        elif segment.marker == _DHT:
            tables.update(_first_symbols(content))
        elif segment.marker == _SOS and content and len(content) >= 4 + 2 * content[0]:
            first_scan = min(first_scan, segment.start)
            count = content[0]
            own = [(content[1 + 2 * i], content[2 + 2 * i]) for i in range(count)]
            low, high, bits = content[1 + 2 * count : 4 + 2 * count]
            if not progressive:
                low, high, bits = 0, 63, 0
            for component, _ in own:
                if component in known:
                    known[component][low : high + 1] = [bits & 15] * (min(high, 63) + 1 - low)
            if data.find(_ZEROS, segment.end) >= 0 and bits >> 4 == 0 and high:
                never = [number for _, number in own if not _ends_block(tables.get(0x10 | number & 15))]
                if never and (at := _zeros_in_scan(data, segment.end)) is not None:
                    return Fault(f"the picture's data hold a run of zeros at byte {at:,}, which no picture contains")
            if not progressive and count == len(components):
                return None  # the only scan of a baseline image; libjpeg checks the end marker
    if components and any(bit for bits_left in known.values() for bit in bits_left):
        return Fault(
            "scans of the progressive picture are missing" if progressive else "scans of the picture are missing",
            truncated=True,
        )
    return None


def _first_symbols(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields class and number of each Huffman table in a DHT segment, and the symbol of its first, all-zero code."""
    at = 0
    while at + 17 < len(content):
        yield content[at], content[at + 17]
        at += 17 + sum(content[at + 1 : at + 17])


def _ends_block(symbol: int | None) -> bool:
    """Returns whether an AC symbol ends one or several blocks: EOB, EOB1 to EOB14."""
    return symbol is None or (symbol & 15 == 0 and symbol != 0xF0)


def _zeros_in_scan(data: bytes, start: int) -> int | None:
    """Returns the position of a long run of zeros in the scan at `start`, or None.

    Flat areas give zeros only if the all-zero code ends a block. With any other code, as in the tables of most
    programs, such a run would mean block after block with all coefficients at -1 or -3.
    """
    found = _MARKER.search(data, start)
    at = data.find(_ZEROS, start, found.start() if found else len(data))
    return None if at < 0 else at


def webp_fault(data: bytes) -> Fault | None:
    """Checks the lengths declared in a WebP; for an animation, up to its first frame."""
    declared = 8 + int.from_bytes(data[4:8], "little")
    if declared > len(data) + 1:  # some programs count a padding byte that they do not write
        return Fault(f"the file declares {declared:,} bytes, and has {len(data):,}", truncated=True)
    for at, name, length in _webp_chunks(data):
        if at + 8 + length > min(declared, len(data)):
            return Fault(f"chunk {name!r} at byte {at:,} reaches beyond the file's declared end", truncated=True)
        if name in _WEBP_PICTURES:
            break
    return None


def webp_probe(data: bytes) -> bytes | None:
    """Returns a WebP of the (first) image in `data` with its last bytes removed, or None if there is no image.

    An encoder writes only the bytes that a decoder needs, so decoding this probe of an intact image fails. In corrupt
    data, the decoder gets out of step and reaches the end of the image too late, which is an error in libwebp, or too
    early, in which case this probe decodes.
    """
    for at, name, length in _webp_chunks(data):
        if name in _WEBP_PICTURES:
            picture = data[at + 8 : at + 8 + length][:-_SLACK]
            padding = b"\0" * (len(picture) & 1)
            body = b"WEBP" + name + len(picture).to_bytes(4, "little") + picture + padding
            return b"RIFF" + len(body).to_bytes(4, "little") + body
    return None


_WEBP_PICTURES = (b"VP8 ", b"VP8L")
# Encoders end with a few unused bytes (2 in libwebp, 4 in libvpx) and may add padding.
_SLACK = 24


def _webp_chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yields position, name and content length of each chunk; a frame's chunks follow the frame."""
    at = 12
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield at, name, length
        at += 8 + (16 if name == b"ANMF" else length + (length & 1))


def bmp_fault(data: bytes) -> Fault | None:
    """Finds missing data in a run-length coded BMP, which decoders fill with the background colour."""
    if len(data) < 34 or int.from_bytes(data[14:18], "little") < 40:
        return None
    width, height = struct.unpack_from("<ii", data, 18)
    compression = int.from_bytes(data[30:34], "little")
    if compression not in (1, 2) or width <= 0:
        return None
    at, x, y = int.from_bytes(data[10:14], "little"), 0, 0
    rows = abs(height)
    while at + 2 <= len(data):
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return None  # the end of the bitmap: pixels not drawn are intentionally background
        elif value == 2:
            if at + 2 > len(data):
                break
            x, y = x + data[at], y + data[at + 1]
            at += 2
        else:
            x += value
            size = value if compression == 1 else (value + 1) // 2
            at += size + (size & 1)
    if at <= len(data) and (y >= rows or (y == rows - 1 and x >= width)):
        return None  # all pixels are drawn; only the end mark is missing
    return Fault("the picture's data stop before its end", truncated=True)
