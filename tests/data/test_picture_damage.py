"""Damage that a decoder passes over, in every format; and what looks like damage and is none."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from raymotion.data.images.decode import (
    ImageDamaged,
    ImageEmpty,
    ImageError,
    ImageNotAnImage,
    ImageTruncated,
    decode_rgb,
)
from raymotion.data.images.sizes import PictureSize, read_size

WHITE = 255
Damaged = (ImageDamaged, ImageTruncated)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 192, width: int = 256, seed: int = 0) -> np.ndarray:
    """Smooth shapes and grain, as a photograph has: no two rows alike, nowhere flat."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(9, 40) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(9, 40)) for _ in range(3)]
    grain = rng.normal(0, 8, (height, width, 1))
    return np.clip(128 + 70 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


JPEGS = {
    "plain": {"quality": 85},
    "low": {"quality": 40},
    "optimised": {"quality": 85, "optimize": True},
    "progressive": {"quality": 85, "progressive": True},
    "restarts": {"quality": 85, "restart_marker_rows": 1},
    "full colour": {"quality": 90, "subsampling": 0},
}
FILES = {
    **{f"jpeg {name}": ("JPEG", options) for name, options in JPEGS.items()},
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "webp lossless": ("WEBP", {"lossless": True}),
}


def zero_third(data: bytes) -> bytes:
    n = len(data)
    return data[: n // 3] + bytes(n // 3) + data[n // 3 + n // 3 :]


def zero_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("damage", [zero_third, zero_end])
    def test_a_part_that_was_never_written(self, name, damage):
        kind, options = FILES[name]
        data = saved(photo(), kind, **options)
        assert decode_rgb(data).shape == (192, 256, 3)
        with pytest.raises(Damaged):
            decode_rgb(damage(data))

    @pytest.mark.parametrize("name", JPEGS)
    @pytest.mark.parametrize("min_side", [None, 64])
    def test_a_jpeg_cut_in_half_and_closed(self, name, min_side):
        data = saved(photo(), "JPEG", **JPEGS[name])
        with pytest.raises(Damaged):
            decode_rgb(data[: len(data) // 2] + b"\xff\xd9", min_side=min_side)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_grey_and_cmyk_jpegs(self, mode):
        data = saved(Image.fromarray(photo()).convert(mode), "JPEG")
        for spoilt in (zero_third(data), data[: len(data) // 2] + b"\xff\xd9"):
            with pytest.raises(Damaged):
                decode_rgb(spoilt)

    @pytest.mark.parametrize("filler", [b"\xff", b"\x00", b"\x55", None])
    @pytest.mark.parametrize("name", ["jpeg plain", "jpeg progressive", "png", "webp", "webp lossless"])
    def test_a_block_overwritten(self, name, filler):
        kind, options = FILES[name]
        data = saved(photo(), kind, **options)
        block = np.random.default_rng(1).bytes(2048) if filler is None else filler * 2048
        at = len(data) // 3
        with pytest.raises(Damaged):
            decode_rgb(data[:at] + block + data[at + len(block) :])

    def test_a_block_of_another_file(self):
        data, other = saved(photo(), "JPEG"), saved(photo(seed=1), "JPEG")
        at = len(data) // 2
        with pytest.raises(Damaged):
            decode_rgb(data[:at] + other[at : at + 3000] + data[at + 3000 :])

    def test_zeros_that_a_jpeg_decoder_makes_a_picture_of(self):
        """Sometimes as many blocks come out as went in, and libjpeg warns of nothing."""
        data = saved(photo(480, 640), "JPEG", quality=85)
        start = data.index(b"\xff\xda") + 14
        for at in np.linspace(start, len(data) - 400, 40).astype(int):
            with pytest.raises(Damaged):
                decode_rgb(data[:at] + bytes(300) + data[at + 300 :])

    @pytest.mark.parametrize("block", [bytes(64), b"\xff" * 64, bytes(range(64))])
    @pytest.mark.parametrize("options", [{}, {"quality": 30}, {"method": 0}, {"method": 6}])
    def test_a_few_bytes_of_a_webp(self, block, options):
        unnoticed = 0
        for seed in range(5):
            data = saved(photo(seed=seed), "WEBP", **options)
            at = len(data) // 3
            try:
                decode_rgb(data[:at] + block + data[at + 64 :])
            except Damaged:
                continue
            unnoticed += 1
        assert unnoticed <= 1  # by chance a decoder comes out where it should

    def test_scans_of_a_progressive_jpeg_that_are_missing(self):
        data = saved(photo(), "JPEG", progressive=True)
        scans = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
        assert len(scans) > 5
        for scan in scans[1:]:
            # The tables of a scan stand before it.
            tables = data.rfind(b"\xff\xc4", 0, scan)
            with pytest.raises(ImageTruncated, match=r"scans.*missing"):
                decode_rgb(data[:tables] + b"\xff\xd9")

    def test_a_header_that_declares_more_rows_than_there_are(self):
        data = bytearray(saved(photo(), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 7] = struct.pack(">H", 300)
        with pytest.raises(Damaged):
            decode_rgb(bytes(data))

    @pytest.mark.parametrize("delta", [-5000, -100, -2, 2, 100, 5000])
    @pytest.mark.parametrize("at", [4, 16])
    def test_a_webp_whose_lengths_do_not_fit(self, delta, at):
        data = bytearray(saved(photo(), "WEBP"))
        data[at : at + 4] = struct.pack("<I", struct.unpack_from("<I", data, at)[0] + delta)
        with pytest.raises(Damaged):
            decode_rgb(bytes(data))

    @pytest.mark.parametrize("tenth", range(1, 10))
    def test_a_run_length_coded_bmp_that_is_cut(self, tenth):
        data = rle8(np.repeat(np.arange(32)[:, None] * 7 % 256, 40, 1).astype(np.uint8))
        assert decode_rgb(data).shape == (32, 40, 3)
        with pytest.raises(ImageTruncated):
            decode_rgb(data[: 54 + 1024 + (len(data) - 54 - 1024) * tenth // 10])

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_only_the_first_picture_of_an_animation_counts(self, kind):
        first, second = Image.fromarray(photo()), Image.fromarray(photo(seed=1))
        data = saved(first, kind, save_all=True, append_images=[second], lossless=True)
        assert np.array_equal(decode_rgb(data), photo())
        at = data.rindex(b"fdAT") + 40 if kind == "PNG" else data.rindex(b"VP8L") + 40
        assert np.array_equal(decode_rgb(data[:at] + bytes(64) + data[at + 64 :]), photo())

    @given(st.floats(0, 0.99), st.integers(1, 40), st.sampled_from(["flip", "drop", "double"]))
    @settings(max_examples=60)
    def test_no_damage_of_a_png_goes_unnoticed(self, place, length, how):
        """Every byte that the pixels depend on is under a checksum."""
        data = saved(photo(24, 32), "PNG", pnginfo=None)
        at = int(place * len(data))
        spoilt = {
            "flip": data[:at] + bytes(255 - value for value in data[at : at + length]) + data[at + length :],
            "drop": data[:at] + data[at + length :],
            "double": data[: at + length] + data[at:],
        }[how]
        try:
            found = decode_rgb(spoilt)
        except ImageError:
            return
        assert np.array_equal(found, photo(24, 32))


class TestNoDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize(
        "trailer", [b"\0" * 5000, b"\xff\xd8\xff\xe1 a motion photo", b"MotionPhoto_Data" + bytes(range(256)) * 9]
    )
    def test_something_behind_the_end(self, name, trailer):
        kind, options = FILES[name]
        data = saved(photo(), kind, **options)
        assert np.array_equal(decode_rgb(data + trailer), decode_rgb(data))

    def test_flat_pictures_are_whole(self):
        """Flat areas are coded as runs of zeros by some encoders."""
        height, width = 240, 320
        flat = np.zeros((height, width, 3), np.uint8)
        half = photo(height, width)
        half[: height // 2] = 255
        spots = flat + np.uint8(128)
        spots[::17, ::31] = 255
        for pixels in (flat, flat + np.uint8(255), half, spots, np.repeat(half[..., :1], 3, -1)):
            for options in ({}, {"optimize": True}, {"progressive": True}, {"optimize": True, "subsampling": 0}):
                for quality in (5, 50, 95):
                    assert decode_rgb(saved(pixels, "JPEG", quality=quality, **options)).shape == pixels.shape
            for options in ({"method": 0, "quality": 100}, {"quality": 1}, {"lossless": True, "method": 0}):
                assert decode_rgb(saved(pixels, "WEBP", **options)).shape == pixels.shape

    def test_a_jpeg_without_its_end_marker_alone(self):
        data = saved(photo(), "JPEG")
        assert np.array_equal(decode_rgb(data[:-2]), decode_rgb(data))

    @pytest.mark.parametrize("filling", [1, 3, 15])
    def test_a_jpeg_filled_up_before_its_end_marker(self, filling):
        data = saved(photo(), "JPEG")
        assert np.array_equal(decode_rgb(data[:-2] + bytes(filling) + b"\xff\xd9"), decode_rgb(data))

    def test_the_scan_parameters_that_some_cameras_write(self):
        data = bytearray(saved(photo(), "JPEG"))
        scan = data.index(b"\xff\xda")
        assert data[scan + 11 : scan + 14] == b"\x00\x3f\x00"
        data[scan + 12] = 0
        assert np.array_equal(decode_rgb(bytes(data)), decode_rgb(saved(photo(), "JPEG")))

    @pytest.mark.parametrize(
        "marker, content",
        [
            (0xE0, b"JFIF\0"),
            (0xE0, b"JFIF\0\7\1\0\0\1\0\1\0\0"),
            (0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0<\xff\xfe"),
            (0xE2, b"ICC_PROFILE\0"),
            (0xE2, b"ICC_PROFILE\0\5\2xx"),
            (0xE2, b"MPF\0garbage"),
            (0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\xff\xff"),
            (0xEE, b"Adobe"),
            (0xFE, b"\0" * 60000),
        ],
    )
    def test_a_damaged_segment_beside_the_picture(self, marker, content):
        data = saved(photo(), "JPEG")
        segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        assert np.array_equal(decode_rgb(data[:2] + segment + data[2:]), decode_rgb(data))

    @pytest.mark.parametrize("factors", [0x11, 0x12, 0x21, 0x22, 0x41])
    def test_every_sampling_gives_the_pixels_of_another_decoder(self, factors):
        data = cv2.imencode(".jpg", photo(), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors << 16 | 0x1111])[1].tobytes()
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(decode_rgb(data).astype(int) - expected).max() <= 2


class TestKeep:
    @pytest.mark.parametrize(
        "spoil, kind",
        [
            (zero_third, ImageDamaged),
            (zero_end, ImageTruncated),
            (lambda data: data[: len(data) // 2], ImageTruncated),
            (lambda data: data[: len(data) // 2] + b"\xff\xd9", ImageDamaged),
        ],
    )
    @pytest.mark.parametrize("min_side", [None, 90])
    def test_a_jpeg_is_kept_as_it_decodes(self, spoil, kind, min_side):
        data, notes = saved(photo(), "JPEG"), []
        found = decode_rgb(spoil(data), min_side=min_side, damaged="keep", on_kept=notes.append)
        whole = decode_rgb(data, min_side=min_side)
        assert found.shape == whole.shape
        rows = len(whole) // 5
        assert np.array_equal(found[:rows], whole[:rows]) and not np.array_equal(found, whole)
        assert [type(note) for note in notes] == [kind]

    def test_a_png_whose_checksum_alone_is_wrong(self):
        data, notes = bytearray(saved(photo(), "PNG")), []
        data[data.rindex(b"IEND") - 6] ^= 1  # the checksum of the last data
        with pytest.raises(ImageDamaged, match="checksum of chunk IDAT"):
            decode_rgb(bytes(data))
        assert np.array_equal(decode_rgb(bytes(data), damaged="keep", on_kept=notes.append), photo())
        assert len(notes) == 1

    def test_what_no_decoder_reads_is_not_kept(self):
        data = saved(photo(), "PNG")
        with pytest.raises(ImageTruncated):
            decode_rgb(data[: len(data) // 2], damaged="keep")
        with pytest.raises(ImageNotAnImage):
            decode_rgb(b"text", damaged="keep")

    def test_whole_pictures_give_no_note(self):
        notes: list[ImageError] = []
        for kind, options in FILES.values():
            decode_rgb(saved(photo(), kind, **options), damaged="keep", on_kept=notes.append)
        assert not notes


def chunk(name: bytes, body: bytes, *, checksum: int | None = None) -> bytes:
    value = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", value)


def with_chunks(data: bytes, *chunks: bytes, after: bytes = b"IHDR") -> bytes:
    """A PNG with more chunks behind its first one of a name."""
    at = data.index(after) + 4 + int.from_bytes(data[data.index(after) - 4 : data.index(after)], "big") + 4
    return data[:at] + b"".join(chunks) + data[at:]


class TestPngExtras:
    @pytest.mark.parametrize(
        "extra",
        [
            chunk(b"tEXt", b"Comment\0" + b"a" * 3_000_000),
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 30_000_000)),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * 30_000_000)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 30_000_000)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x/>" * 900_000),
            chunk(b"iCCP", b"profile\0\0" + zlib.compress(np.random.default_rng(0).bytes(3_000_000))),
            chunk(b"iCCP", b"profile\0\0garbage"),
            chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"), checksum=7),
            chunk(b"tEXt", b"Comment\0text", checksum=7),
            chunk(b"eXIf", b"MM\0*\0\0\0\x08", checksum=7),
            chunk(b"eXIf", b"garbage"),
            chunk(b"zTXt", b"Raw profile type exif\0\0garbage"),
            chunk(b"pHYs", b"\0"),
            chunk(b"gAMA", b""),
            chunk(b"cHRM", b"\1"),
            chunk(b"tIME", b"\1"),
            chunk(b"acTL", b"\0"),
            chunk(b"fcTL", b"\0"),
            chunk(b"prVt", b"private"),
        ],
        ids=lambda data: f"{data[4:8].decode()}-{len(data)}",
    )
    @pytest.mark.parametrize("after", [b"IHDR", b"IDAT"])
    def test_what_stands_beside_the_pixels_does_not_cost_them(self, extra, after):
        data = saved(photo(24, 32), "PNG")
        assert np.array_equal(decode_rgb(with_chunks(data, extra, after=after)), photo(24, 32))

    def test_many_texts(self):
        texts = [chunk(b"tEXt", b"Comment%d\0" % i + b"a" * 900_000) for i in range(80)]
        assert np.array_equal(decode_rgb(with_chunks(saved(photo(24, 32), "PNG"), *texts)), photo(24, 32))

    def test_pillow_writes_the_issue_s_file(self):
        info = PngImagePlugin.PngInfo()
        info.add_text("Description", "x" * 3_000_000)
        assert np.array_equal(decode_rgb(saved(photo(24, 32), "PNG", pnginfo=info)), photo(24, 32))

    @pytest.mark.parametrize("where", ["eXIf", "exif text", "xmp", "packed xmp"])
    def test_orientation_is_still_read(self, where):
        xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
        exif = Image.Exif()
        exif[0x0112] = 3
        raw = exif.tobytes()
        extra = {
            "eXIf": chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
            "exif text": chunk(
                b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(raw) + raw.hex().encode())
            ),
            "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
            "packed xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        }[where]
        found = decode_rgb(with_chunks(saved(photo(24, 32), "PNG"), extra))
        assert np.array_equal(found, photo(24, 32)[::-1, ::-1])

    @pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"IDAT", b"tRNS"])
    def test_a_checksum_that_counts(self, name):
        data = bytearray(saved(Image.fromarray(photo(24, 32)).quantize(16), "PNG", transparency=bytes([0, 99])))
        at = data.index(name)
        data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
        with pytest.raises(ImageDamaged, match=f"checksum of chunk {name.decode()}"):
            decode_rgb(bytes(data))

    def test_a_checksum_written_over_wrong_data(self):
        """Right checksums around data that unpack to too little, or to another sum than their own."""
        data = saved(photo(24, 32), "PNG")
        at = data.index(b"IDAT")
        length = int.from_bytes(data[at - 4 : at], "big")
        packed, head, tail = data[at + 4 : at + 4 + length], data[: at - 4], chunk(b"IEND", b"")
        short = zlib.compress(zlib.decompress(packed)[: -33 * 3 * 4])
        for body in (short, packed[:-9]):
            with pytest.raises(Damaged):
                decode_rgb(head + chunk(b"IDAT", body) + tail)

    def test_a_png_of_apple_s_own_kind_is_named(self):
        data = saved(photo(24, 32), "PNG")
        with pytest.raises(ImageNotAnImage, match="CgBI"):
            decode_rgb(data[:8] + chunk(b"CgBI", b"\x50\0\x20\x02") + data[8:])


def png(rows: np.ndarray, depth: int, colour: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """A PNG of sample values (height, width, channels), packed by hand."""
    height, width, _ = rows.shape
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *extra, chunk(b"IDAT", body), chunk(b"IEND", b"")])


class TestTransparency:
    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_grey_with_one_transparent_value(self, depth):
        top = 2**depth - 1
        values = np.random.default_rng(0).integers(0, top + 1, (9, 13, 1))
        values[0, :4, 0] = [0, top, top // 2, min(top, top // 2 + 1)]
        clear = int(values[0, 2, 0])
        found = decode_rgb(png(values, depth, 0, chunk(b"tRNS", struct.pack(">H", clear))))
        expected = np.where(values == clear, WHITE, values * 255 // top).repeat(3, -1)
        assert np.abs(found.astype(int) - expected).max() <= (1 if depth == 16 else 0)
        assert (found[(values == clear)[..., 0]] == WHITE).all()

    @pytest.mark.parametrize("depth", [8, 16])
    def test_rgb_with_one_transparent_colour(self, depth):
        top = 2**depth - 1
        values = np.random.default_rng(0).integers(0, top + 1, (9, 13, 3))
        values[2, 3] = values[5, 6] = (3, 2, 1)
        values[7, 7] = (3, 2, 2)  # in 8 bits of 16 the same
        found = decode_rgb(png(values, depth, 2, chunk(b"tRNS", struct.pack(">HHH", 3, 2, 1))))
        clear = (values == (3, 2, 1)).all(-1)
        assert clear.sum() == 2
        expected = np.where(clear[..., None], WHITE, values * 255 // top)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found[clear] == WHITE).all() and (found[7, 7] < 9).all()

    @pytest.mark.parametrize("depth", [1, 2, 4, 8])
    def test_a_palette(self, depth):
        rng, size = np.random.default_rng(0), 2**depth
        palette, alpha = rng.integers(0, 256, (size, 3), np.uint8), rng.integers(0, 256, size, np.uint8)
        alpha[0] = 0
        values = rng.integers(0, size, (9, 13, 1))
        found = decode_rgb(png(values, depth, 3, chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alpha.tobytes())))
        share = alpha[values[..., 0]][..., None] / 255
        expected = palette[values[..., 0]] * share + WHITE * (1 - share)
        assert np.abs(found - expected).max() <= 1

    @pytest.mark.parametrize("colour", [4, 6])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_alpha(self, colour, depth):
        top, channels = 2**depth - 1, 2 if colour == 4 else 4
        values = np.random.default_rng(0).integers(0, top + 1, (9, 13, channels))
        share = values[..., -1:] / top
        expected = values[..., :-1] * 255 / top * share + WHITE * (1 - share)
        assert np.abs(decode_rgb(png(values, depth, colour)) - expected).max() <= 2

    def test_it_is_turned_with_the_picture(self):
        values = np.arange(6).reshape(2, 3, 1)
        exif = Image.Exif()
        exif[0x0112] = 6
        extra = chunk(b"tRNS", struct.pack(">H", 0)), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        found = decode_rgb(png(values, 4, 0, *extra))
        assert found[..., 0].tolist() == [[51, 255], [68, 17], [85, 34]]

    @pytest.mark.parametrize("mode", ["I;16", "L"])
    def test_a_picture_that_the_caller_opened(self, mode):
        from raymotion.data.images.decode import upright_rgb

        values = np.random.default_rng(0).integers(0, 256, (9, 13, 1))
        data = png(values, 16 if mode == "I;16" else 8, 0, chunk(b"tRNS", struct.pack(">H", int(values[0, 0, 0]))))
        image = Image.open(io.BytesIO(data))
        assert image.mode == mode
        assert upright_rgb(image)[0, 0].tolist() == [WHITE] * 3


def bmp32(pixels: np.ndarray, *, masks: bool) -> bytes:
    """A BMP of 32 bits a pixel, (height, width, 4) BGRA, with or without a header that gives alpha a mask."""
    height, width, _ = pixels.shape
    body = pixels[::-1].astype(np.uint8).tobytes()
    size = 124 if masks else 40
    header = struct.pack("<IiiHHIIiiII", size, width, height, 1, 32, 3 if masks else 0, len(body), 0, 0, 0, 0)
    if masks:
        header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(64)
    return b"BM" + struct.pack("<IHHI", 14 + size + len(body), 0, 0, 14 + size) + header + body


def rle8(rows: np.ndarray) -> bytes:
    """A run-length coded BMP of grey levels (height, width)."""
    height, width = rows.shape
    body = b""
    for row in rows[::-1]:
        body += b"".join(bytes([1, value]) for value in row) + b"\0\0"
    body += b"\0\1"
    palette = b"".join(bytes([i, i, 255 - i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(body), 0, 0, 54 + 1024) + header + palette + body


class TestBmp:
    @pytest.mark.parametrize("masks", [False, True])
    def test_an_unused_fourth_byte_is_not_transparency(self, masks):
        pixels = np.dstack([photo(24, 32)[..., ::-1], np.zeros((24, 32), np.uint8)])
        assert np.array_equal(decode_rgb(bmp32(pixels, masks=masks)), photo(24, 32))

    def test_alpha_that_is_used_lies_over_white(self):
        alpha = np.random.default_rng(0).integers(0, 256, (24, 32, 1), np.uint8)
        found = decode_rgb(bmp32(np.dstack([photo(24, 32)[..., ::-1], alpha]), masks=True))
        expected = photo(24, 32) * (alpha / 255) + WHITE * (1 - alpha / 255)
        assert np.abs(found - expected).max() <= 1

    def test_one_that_is_not_read_is_named(self):
        data = bytearray(saved(photo(24, 32), "BMP"))
        data[30] = 4  # a JPEG within a BMP
        with pytest.raises(ImageNotAnImage, match="BMP"):
            decode_rgb(bytes(data))


def media(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + b"\0\0\1\0meta" + bytes(60)


@pytest.mark.parametrize(
    "data, told",
    [
        (bytes(5000), "nothing but zeros"),
        (b"PK\3\4\x14\0\0\0\x08\0" + bytes(90), "a zip archive"),
        (b"8BPS\0\1" + bytes(40), r"a Photoshop file \(PSD\)"),
        (media(b"heic"), "a HEIC picture"),
        (media(b"mif1"), "a HEIF picture"),
        (media(b"avif"), "an AVIF picture"),
        (media(b"crx "), "a Canon raw file"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  ", "a QuickTime video"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", "an MP4 video"),
        (b"\xff\x0a" + bytes(30), "a JPEG XL file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "a JPEG XL file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "a JPEG 2000 file"),
        (b"II*\0\x10\0\0\0CR\2\0", "a Canon raw file"),
        (b"FUJIFILMCCD-RAW 0201", "a Fujifilm raw file"),
        (b"\0\0\1\0\1\0" + bytes(40), "an icon file"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF file"),
        (b"%PDF-1.7\nall in letters", "a PDF file"),
        (b"\x1f\x8b\x08\0" + bytes(30), "a gzip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a 7-Zip archive"),
        (b"PAR1" + bytes(30), "a Parquet file"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV file"),
        (b"RIFF\x24\0\0\0AVI LIST", "an AVI video"),
        (b"\x1a\x45\xdf\xa3" + bytes(30), "a Matroska or WebM video"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        ", "a macOS resource fork"),
        (b"P6\n2 2\n255\n" + bytes(12), "a Netpbm picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<svg/>', "an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file, perhaps an error answer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a Git LFS pointer"),
        (b"/9j/4AAQSkZJRgABAQ", "a picture as base64 text"),
        ("ein Text über Öl".encode(), "a text file"),
        ("日本語のテキスト".encode() * 60, "a text file"),
        ("\ufeffwith a mark".encode(), "a text file"),
        ("in two bytes".encode("utf-16"), "a text file"),
        ("résumé of a text in Latin-1, mostly plain letters".encode("latin-1"), "a text file"),
        (b"BMW is a car maker of Munich, Germany, and not a bitmap", "a text file"),
        (b"II. chapter", "a text file"),
        (b"MM magazine", "a text file"),
        (b"ID3 is an algorithm", "a text file"),
        (b"abc\0\0\0\0\0", "starts with the bytes 61 62 63 00"),
        (b"\0\0\0\0\1" * 40, "starts with the bytes 00 00 00 00"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_other_kinds_are_named(data, told):
    with pytest.raises(ImageNotAnImage, match=told):
        decode_rgb(data)


@pytest.mark.parametrize("marker, depth, told", [(0xC1, 12, "12 bits"), (0xC3, 8, "lossless"), (0xC5, 8, "hierarch")])
def test_rare_kinds_of_jpeg_are_named(marker, depth, told):
    data = bytearray(saved(photo(24, 32), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, depth
    with pytest.raises(ImageNotAnImage, match=told):
        decode_rgb(bytes(data))


@given(st.binary(min_size=4, max_size=300))
@settings(max_examples=100)
def test_only_text_is_called_text(data):
    from raymotion.data.images.file_kinds import describe_file

    if describe_file(data) == "a text file":
        assert b"\0" not in data or data.startswith((b"\xff\xfe", b"\xfe\xff"))


class TestSizes:
    @pytest.mark.parametrize("text", [1000, 3_000_000])
    def test_a_png_with_a_long_text(self, tmp_path, text):
        exif = Image.Exif()
        exif[0x0112] = 6
        data = with_chunks(saved(photo(24, 32), "PNG", exif=exif), chunk(b"tEXt", b"Comment\0" + b"a" * text))
        (tmp_path / "a.png").write_bytes(data)
        assert read_size(str(tmp_path / "a.png")) == PictureSize(24, 32, 6)

    def test_a_jpeg_with_a_damaged_profile(self, tmp_path):
        data = saved(photo(24, 32), "JPEG")
        (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + data[2:])
        assert read_size(str(tmp_path / "a.jpg")) == PictureSize(32, 24)

    def test_what_is_none_is_named(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"GIF89a" + bytes(60))
        with pytest.raises(ImageNotAnImage, match="a GIF file"):
            read_size(str(tmp_path / "a.jpg"))
        (tmp_path / "b.jpg").write_bytes(b"")
        with pytest.raises(ImageEmpty):
            read_size(str(tmp_path / "b.jpg"))
