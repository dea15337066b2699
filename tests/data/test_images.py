"""Every kind of picture that users have, and every kind of file that is none.

The pictures are written by Pillow and compared with the arrays they were made of, or with a conversion done by hand.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.images.decode import (
    ImageEmpty,
    ImageError,
    ImageMissing,
    ImageNotAnImage,
    ImageTooLarge,
    ImageTooSmall,
    ImageTruncated,
    ImageUnreachable,
    decode_rgb,
    fetch,
)
from raymotion.errors import AccessDenied, StoreUnavailable

WHITE = 255


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture, which JPEG keeps to within a few grey levels; no two of its corners are alike."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [40 + x * 180 // width, 30 + y * 200 // height, 200 - (x + y) * 100 // (width + height)], -1
    ).astype(np.uint8)


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).mean() <= tolerance


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(float) / 255
    return np.rint(rgb * share + WHITE * (1 - share)).astype(np.uint8)


class TestModes:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
    def test_rgb_comes_back_exactly(self, kind):
        pixels = noise()
        options = {"lossless": True} if kind == "WEBP" else {}
        assert np.array_equal(decode_rgb(saved(Image.fromarray(pixels), kind, **options)), pixels)

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
    def test_jpeg(self, options):
        pixels = gradient()
        close(decode_rgb(saved(Image.fromarray(pixels), "JPEG", quality=95, **options)), pixels, 2)

    def test_the_array_may_be_written_to(self):
        pixels = decode_rgb(saved(Image.fromarray(noise()), "PNG"))
        pixels[0, 0] = 7
        assert pixels[0, 0, 0] == 7

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
    def test_grey(self, kind):
        grey = gradient()[..., 0]
        found = decode_rgb(saved(Image.fromarray(grey), kind))
        close(found, np.repeat(grey[..., None], 3, -1), 0 if kind != "JPEG" else 2)

    @pytest.mark.parametrize("kind", ["PNG", "BMP"])
    def test_one_bit(self, kind):
        bits = noise()[..., 0] > 127
        found = decode_rgb(saved(Image.fromarray(bits), kind))
        assert np.array_equal(found, np.where(bits[..., None], 255, 0).repeat(3, -1).astype(np.uint8))

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_alpha_lies_over_white(self, kind):
        rgb, alpha = noise(), noise()[..., 1]
        data = saved(
            Image.fromarray(np.dstack([rgb, alpha])),
            kind,
            **({"lossless": True, "exact": True} if kind == "WEBP" else {}),
        )
        close(decode_rgb(data), over_white(rgb, alpha), 1)

    def test_grey_with_alpha(self):
        grey, alpha = noise()[..., 0], noise()[..., 1]
        data = saved(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), "PNG")
        close(decode_rgb(data), over_white(np.repeat(grey[..., None], 3, -1), alpha), 1)

    @pytest.mark.parametrize("kind", ["PNG", "BMP"])
    def test_palette(self, kind):
        image = Image.fromarray(gradient()).quantize(16)
        assert np.array_equal(decode_rgb(saved(image, kind)), np.array(image.convert("RGB")))

    def test_palette_with_one_transparent_colour(self):
        image = Image.new("P", (4, 2), 1)
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((0, 0), 0)
        found = decode_rgb(saved(image, "PNG", transparency=0))
        assert found[0, 0].tolist() == [WHITE] * 3
        assert found[1, 3].tolist() == [200, 100, 50]

    def test_palette_with_a_transparency_for_each_colour(self):
        image = Image.new("P", (4, 2), 1)
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((0, 0), 0)
        found = decode_rgb(saved(image, "PNG", transparency=bytes([0, 128])))
        assert found[0, 0].tolist() == [WHITE] * 3
        expected = over_white(np.array([[[200, 100, 50]]]), np.array([[128]]))[0, 0]
        close(found[1:2, 3:4], expected[None, None], 1)

    @pytest.mark.parametrize("mode, colour", [("RGB", (1, 2, 3)), ("L", 9)])
    def test_a_colour_declared_transparent(self, mode, colour):
        image = Image.new(mode, (4, 2), 77 if mode == "L" else (7, 77, 177))
        image.putpixel((0, 0), colour)
        found = decode_rgb(saved(image, "PNG", transparency=colour))
        assert found[0, 0].tolist() == [WHITE] * 3
        assert found[1, 1].tolist() == ([77] * 3 if mode == "L" else [7, 77, 177])

    def test_sixteen_bits_are_scaled_and_not_clipped(self):
        values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
        found = decode_rgb(saved(Image.fromarray(values), "PNG"))
        assert np.abs(found[..., 0].astype(float) - values / 257).max() <= 1
        assert np.array_equal(found[..., 0], found[..., 2])

    def test_animated_webp_gives_its_first_frame(self):
        first, second = Image.new("RGB", (32, 24), (200, 30, 40)), Image.new("RGB", (32, 24), (10, 220, 30))
        data = saved(first, "WEBP", save_all=True, append_images=[second], lossless=True)
        assert Image.open(io.BytesIO(data)).n_frames == 2
        assert np.array_equal(decode_rgb(data), np.array(first))

    def test_a_camera_file_of_several_pictures_gives_the_first(self):
        first, second = Image.fromarray(gradient()), Image.new("RGB", (32, 24))
        data = saved(first, "MPO", save_all=True, append_images=[second], quality=95)
        close(decode_rgb(data), gradient(), 2)


def cmyk_planes() -> np.ndarray:
    """Ink shares 0 (none) to 255 (full), smooth, of shape (48, 64, 4)."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, (x + y) * 2, np.full_like(x, 30) + y], -1).astype(np.uint8)


def cmyk_to_rgb(ink: np.ndarray) -> np.ndarray:
    """R = (1 - C)(1 - K), and so on: the conversion without a colour profile."""
    free = 1 - ink.astype(float) / 255
    return np.rint(255 * free[..., :3] * free[..., 3:]).astype(np.uint8)


class TestCmyk:
    def test_jpeg_with_inverted_inks_as_adobe_writes_it(self):
        ink = cmyk_planes()
        data = saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)
        assert b"Adobe" in data[:200]
        close(decode_rgb(data), cmyk_to_rgb(ink), 2)

    def test_ycck_jpeg(self):
        # Pillow writes no YCCK: the planes are converted here, stored as they are, and the Adobe marker's transform
        # byte is set to 2, which says so. libjpeg decodes YCCK to 255 - RGB(YCC), and Adobe stores 255 - ink, so the
        # first three planes are the YCbCr of the inks as if they were R, G and B.
        ink = cmyk_planes()
        ycc = np.array(Image.fromarray(ink[..., :3]).convert("YCbCr")).astype(int)
        planes = np.dstack([ycc, 255 - ink[..., 3:].astype(int)])
        data = bytearray(saved(Image.fromarray((255 - planes).astype(np.uint8), "CMYK"), "JPEG", quality=100))
        marker = data.index(b"Adobe")
        assert data[marker + 11] == 0
        data[marker + 11] = 2
        assert Image.open(io.BytesIO(bytes(data))).info["adobe_transform"] == 2
        close(decode_rgb(bytes(data)), cmyk_to_rgb(ink), 3)


# Corner colours of the upright picture; a viewer has to show them in these places whatever the orientation tag says.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)


def upright() -> np.ndarray:
    """16 x 24 pixels, a colour for each quarter."""
    return CORNERS.repeat(8, 0).repeat(12, 1)


# How a camera that writes this tag stored the picture (EXIF 2.3, tag 0x0112: where row 0 and column 0 lie).
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[::-1],  # row 0 is the right side: turned left by 90 degrees in the file
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_every_orientation_comes_out_upright(self, orientation, kind):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright())))
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        found = decode_rgb(saved(stored, kind, exif=exif, **options))
        close(found, upright(), 3)
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert np.abs(found[4 + 8 * y, 6 + 12 * x].astype(int) - CORNERS[y, x]).max() < 20

    @pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20])
    def test_a_damaged_exif_block_does_not_cost_the_picture(self, exif):
        pixels = gradient()
        close(decode_rgb(saved(Image.fromarray(pixels), "JPEG", quality=95, exif=exif)), pixels, 2)


class TestDamage:
    @pytest.mark.parametrize("tenth", range(1, 10))
    @pytest.mark.parametrize(
        "kind, options",
        [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"restart_marker_rows": 1}),
            ("PNG", {}),
            ("WEBP", {}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
    )
    def test_a_file_cut_at_any_tenth_is_an_error_and_not_grey(self, kind, options, tenth):
        data = saved(Image.fromarray(noise(96, 128)), kind, **options)
        assert decode_rgb(data).shape == (96, 128, 3)
        with pytest.raises(ImageTruncated):
            decode_rgb(data[: len(data) * tenth // 10])

    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpeg_whose_end_was_never_downloaded_is_an_error(self, progressive):
        exif = Image.Exif()
        exif[0x010E] = "\xff\xd9"  # the end marker's bytes, where they mean nothing
        data = saved(Image.fromarray(noise(96, 128)), "JPEG", progressive=progressive, exif=exif)
        half = len(data) // 2
        with pytest.raises(ImageTruncated):
            decode_rgb(data[:half] + bytes(len(data) - half))

    def test_a_jpeg_with_something_behind_its_end_is_read(self):
        pixels = gradient()
        data = saved(Image.fromarray(pixels), "JPEG", quality=95, restart_marker_blocks=2)
        for trailer in (bytes(40), b"SEFH\0\0", b"\0\xff\xda\0\0"):
            close(decode_rgb(data + trailer), pixels, 2)

    def test_a_decompression_bomb_is_told_from_its_header(self):
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        body = b"IDAT" + zlib.compress(b"\0" * 100)
        data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        with pytest.raises(ImageTooLarge):
            decode_rgb(data)

    def test_the_limit_on_pixels_can_be_set(self):
        data = saved(Image.fromarray(noise(10, 20)), "PNG")
        assert decode_rgb(data, max_pixels=200).shape == (10, 20, 3)
        with pytest.raises(ImageTooLarge, match="20x10"):
            decode_rgb(data, max_pixels=199)

    def test_a_large_picture_gives_no_warning(self, tmp_path):
        # In a process of its own, because pytest sets the warning filters anew for each test.
        (tmp_path / "large.png").write_bytes(saved(Image.new("1", (9500, 9500)), "PNG"))
        code = (
            "import sys; from raymotion.data.images.decode import *\n"
            "try: decode_rgb(open(sys.argv[1], 'rb').read(), max_pixels=1000)\n"
            "except ImageTooLarge: print('too large')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "large.png")], capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("too large\n", "")

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
    def test_a_picture_one_pixel_wide(self, size):
        with pytest.raises(ImageTooSmall, match=f"{size[0]}x{size[1]}"):
            decode_rgb(saved(Image.new("RGB", size), "PNG"))

    def test_an_empty_file(self):
        with pytest.raises(ImageEmpty):
            decode_rgb(b"")

    @pytest.mark.parametrize(
        "data, told",
        [
            (b"just a note\n", "a text file"),
            (b"  <!DOCTYPE html><html><body>404", "an HTML page"),
            (b"<html>", "an HTML page"),
            (b"\x00\x01\x02\xff\xfe" * 30, "starts with the bytes 00 01 02 ff fe"),
            (b"%PDF-1.4\xff\xff", "a PDF file"),
        ],
    )
    def test_what_is_no_picture_is_told(self, data, told):
        with pytest.raises(ImageNotAnImage, match=told):
            decode_rgb(data)

    @pytest.mark.parametrize("kind, told", [("GIF", "a GIF file"), ("TIFF", "a TIFF file")])
    def test_other_formats_are_named(self, kind, told):
        with pytest.raises(ImageNotAnImage, match=told):
            decode_rgb(saved(Image.fromarray(gradient()), kind))

    def test_reasons_are_distinct_codes(self):
        kinds = ImageError.__subclasses__()
        assert len({kind.reason for kind in kinds}) == len(kinds) == 8
        assert all(kind.reason.startswith("image_") for kind in kinds)


class TestDraft:
    @given(st.integers(20, 300), st.integers(20, 300), st.integers(4, 80))
    def test_the_shorter_side_never_falls_below_what_was_asked(self, width, height, min_side):
        data = saved(Image.new("RGB", (width, height), (90, 90, 90)), "JPEG")
        found = decode_rgb(data, min_side=min_side)
        short, full = min(found.shape[:2]), min(width, height)
        assert short >= min(min_side, full)
        assert found.shape[0] / found.shape[1] == pytest.approx(height / width, rel=0.3)

    def test_a_large_jpeg_is_decoded_smaller(self):
        data = saved(Image.fromarray(gradient(800, 1200)), "JPEG")
        assert decode_rgb(data, min_side=200).shape == (200, 300, 3)
        assert decode_rgb(data, min_side=201).shape == (400, 600, 3)
        assert decode_rgb(data).shape == (800, 1200, 3)

    def test_it_shows_the_same_picture(self):
        pixels = gradient(400, 600)
        found = decode_rgb(saved(Image.fromarray(pixels), "JPEG", quality=95), min_side=100)
        close(found, pixels.reshape(100, 4, 150, 4, 3).mean((1, 3)), 2)


class TestRobustness:
    @given(st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"]))
    def test_random_bytes_raise_nothing_but_image_errors(self, data, magic):
        with pytest.raises(ImageError):
            decode_rgb(magic + data)

    @given(
        st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    )
    def test_damaged_pictures_raise_nothing_but_image_errors(self, kind, damages):
        data = bytearray(saved(Image.fromarray(noise(16, 16)), kind, exif=Image.Exif().tobytes()) if kind != "BMP" else
                         saved(Image.fromarray(noise(16, 16)), kind))  # fmt: skip
        for place, value in damages:
            data[int(place * len(data))] = value
        try:
            found = decode_rgb(bytes(data), max_pixels=1_000_000)
        except ImageError:
            return
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


class TestFetch:
    def test_local(self, tmp_path):
        (tmp_path / "a b.jpg").write_bytes(b"123")
        assert fetch(str(tmp_path / "a b.jpg")) == b"123"

    def test_missing(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        for path in (tmp_path / "none.jpg", tmp_path / "file" / "below.jpg", tmp_path):
            with pytest.raises(ImageMissing):
                fetch(str(path))

    def test_s3(self, s3):
        from raymotion import storage

        storage.write_bytes(f"{s3}/x/a.png", b"123")
        assert fetch(f"{s3}/x/a.png") == b"123"
        with pytest.raises(ImageMissing):
            fetch(f"{s3}/x/b.png")

    def test_a_disk_that_fails_is_asked_again_and_then_told(self):
        # Reading address 0 of a process's memory is an input/output error on every Linux.
        with pytest.raises(ImageUnreachable, match="Input/output error"):
            fetch("/proc/self/mem")

    def test_a_store_that_does_not_answer(self, dead_store):
        with pytest.raises(StoreUnavailable, match="connect"):  # no fault of the picture, so no ImageError
            fetch("s3://bucket/a.jpg")

    def test_a_refusal_is_no_fault_of_the_row(self, refusing_store):
        with pytest.raises(AccessDenied) as caught:
            fetch("s3://bucket/a.jpg")
        assert not isinstance(caught.value, ImageError)

    def test_real_pictures(self, shared_data):
        files = sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:20]
        assert files
        for file in files:
            with Image.open(file) as image:
                expected = np.array(image.convert("RGB"))
            assert np.array_equal(decode_rgb(fetch(str(file))), expected)
