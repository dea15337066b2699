"""Describes files that are not readable images, from their first bytes and in terms a user knows."""

from __future__ import annotations

import re
import unicodedata

READ = "JPEG, PNG, WebP and BMP are read"

# Offset, magic bytes, description. The first match is used.
_PICTURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF87a", "a GIF file"),
    (0, b"GIF89a", "a GIF file"),
    (8, b"CR\x02\x00", "a Canon raw file"),
    (0, b"II*\0", "a TIFF file"),
    (0, b"MM\0*", "a TIFF file"),
    (0, b"II+\0", "a TIFF file"),
    (0, b"MM\0+", "a TIFF file"),
    (0, b"IIRO", "an Olympus raw file"),
    (0, b"IIRS", "an Olympus raw file"),
    (0, b"IIU\0", "a Panasonic raw file"),
    (0, b"FUJIFILMCCD-RAW", "a Fujifilm raw file"),
    (0, b"FOVb", "a Sigma raw file"),
    (0, b"\0MRM", "a Minolta raw file"),
    (0, b"8BPS", "a Photoshop file (PSD)"),
    (0, b"gimp xcf", "a GIMP file (XCF)"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"II\xbc", "a JPEG XR file"),
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS file"),
    (0, b"\0\0\x01\0", "an icon file (ICO)"),
    (0, b"\0\0\x02\0", "a cursor file (CUR)"),
    (0, b"icns", "an icon file (ICNS)"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"DDS ", "a DDS file"),
    (0, b"qoif", "a QOI file"),
    (0, b"BPG\xfb", "a BPG file"),
    (0, b"FLIF", "a FLIF file"),
    (0, b"\x8aMNG", "an MNG file"),
    (0, b"\x8bJNG", "a JNG file"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (128, b"DICM", "a DICOM file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"AT&TFORM", "a DjVu file"),
)
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF-", "a PDF file"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (0, b"{\\rtf", "a rich-text document"),
    (0, b"PK\x03\x04", "a zip archive (or an Office document, which is one)"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"MATLAB 5.0 MAT", "a MATLAB file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document or a Thumbs.db"),
    (0, b"\0\x05\x16\x07", "a macOS resource fork (the ._ file beside a picture), not the picture itself"),
    (0, b"\0\x05\x16\0", "a macOS resource fork, not the picture itself"),
    (0, b"bplist00", "a property list"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
    (0, b"\0\0\x01\xb3", "an MPEG video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"ID3", "an MP3 file"),
    (0, b"fLaC", "a FLAC file"),
)
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAV file", b"CDR": "a CorelDRAW file"}
# Brands of the ISO base media format, ISO/IEC 14496-12; other brands are videos.
_BRANDS = {
    b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"heim": "a HEIC picture", b"heis": "a HEIC picture",
    b"hevc": "a HEIC picture", b"hevx": "a HEIC picture", b"mif1": "a HEIF picture", b"msf1": "a HEIF picture",
    b"mif2": "a HEIF picture", b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"crx ": "a Canon raw file",
    b"jxl ": "a JPEG XL file", b"jp2 ": "a JPEG 2000 file", b"qt  ": "a QuickTime video",
}  # fmt: skip
_TEXT_STARTS: tuple[tuple[str, str], ...] = (
    ("<!doctype html", "an HTML page, perhaps an error page saved by a downloader"),
    ("<!doctype", "an HTML page, perhaps an error page saved by a downloader"),
    ("<html", "an HTML page, perhaps an error page saved by a downloader"),
    ("<head", "an HTML page, perhaps an error page saved by a downloader"),
    ("<svg", "an SVG drawing"),
    ("version https://git-lfs", "a Git LFS pointer: the picture itself was not downloaded (git lfs pull)"),
    ("data:image/", "a picture as a data: address in text, not decoded"),
    ("/9j/", "a picture as base64 text, not decoded"),
    ("ivborw0kggo", "a picture as base64 text, not decoded"),
    ("/* xpm", "an XPM picture"),
)
_NETPBM = re.compile(rb"P[1-7]\s+[\d#]")
_HEAD = 512


def describe_file(data: bytes) -> str:
    """Describes a file that raymotion cannot decode: "a GIF file; JPEG, PNG, WebP and BMP are read"."""
    text = _as_text(data[:_HEAD], whole=len(data) <= _HEAD)
    for table, remark in ((_PICTURES, f"; {READ}"), (_OTHERS, "")):
        for offset, magic, words in table:
            # "MZ" and "ID3" may also begin a sentence.
            if data.startswith(magic, offset) and not (text and magic.isalnum()):
                return words + remark
    if _NETPBM.match(data):
        return f"a Netpbm picture; {READ}"
    if data[4:8] == b"ftyp":
        return _describe_media(data)
    if data[:4] in (b"RIFF", b"RIFX") and data[8:12] != b"WEBP":
        for kind, words in _RIFF.items():
            if data.startswith(kind, 8):
                return words
    if not data.strip(b"\0"):
        return "nothing but zeros: space was reserved for the file, and its bytes never arrived"
    if text is not None:
        return _describe_text(text)
    return f"starts with the bytes {data[:8].hex(' ')}, which no JPEG, PNG, WebP or BMP does"


def is_text(data: bytes) -> bool:
    """Returns whether the first bytes are readable text in UTF-8, UTF-16 with a byte order mark, or cp1252."""
    return _as_text(data[:_HEAD], whole=len(data) <= _HEAD) is not None


def _describe_media(data: bytes) -> str:
    size = min(max(int.from_bytes(data[:4], "big"), 16), 64)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    for brand in brands:
        if brand in _BRANDS:
            words = _BRANDS[brand]
            return words if "video" in words else f"{words}; {READ}"
    return "an MP4 video"


def _describe_text(text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n").lower()
    for begins, words in _TEXT_STARTS:
        if start.startswith(begins):
            return words
    if start.startswith(("<?xml", "<!--")):
        return "an SVG drawing" if "<svg" in start else "an XML file, perhaps an error answer saved by a downloader"
    return "a text file"


def _as_text(head: bytes, *, whole: bool) -> str | None:
    """Decodes the head as text, or returns None. A character cut off at the end is ignored."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if marked else ["utf-8", "cp1252"]:
        for cut in range(1 if whole else 4):
            try:
                text = head[: len(head) - cut].decode(encoding)
            except UnicodeDecodeError:
                continue
            if _reads_as_text(text, lenient=encoding == "utf-8"):
                return text
    return None


def _reads_as_text(text: str, *, lenient: bool) -> bool:
    if any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\r\n\f\x1b" for c in text):
        return False
    # In cp1252 nearly every byte is a character, so require mostly ASCII.
    return lenient or sum(c.isascii() for c in text) >= 0.7 * len(text)
