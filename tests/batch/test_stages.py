"""Stages run without Ray: each bad picture gets its reason, and a denied file is nobody's bad row."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raymotion.batch.stages import DecodeImages, ExtractRegions, Failure, Item
from raymotion.data.images import ImageTruncated
from raymotion.data.samples import read_samples
from raymotion.errors import AccessDenied, InputError, RunFailed
from raymotion.models.regions import identify


def items_of(path: Path) -> list[Item]:
    return [Item(row) for row in read_samples(path).to_pylist()]


def test_decode_gives_each_picture_pixels_or_a_reason(write_table: Callable[..., Path]) -> None:
    damaged = {1: "image_truncated", 2: "image_not_an_image", 3: "image_empty"}
    items = items_of(write_table(6, damaged=damaged, missing=[4]))
    DecodeImages().process(items)
    assert [item.failure.reason if item.failure else None for item in items] == [
        None, "image_truncated", "image_not_an_image", "image_empty", "image_missing", None,
    ]  # fmt: skip
    assert items[0].pixels is not None and items[0].pixels.shape == (32, 48, 3)
    assert items[1].failure is not None and items[1].failure.error == "ImageTruncated"
    assert items[1].failure.stage == "decode" and items[1].failure.message


def test_a_sample_without_an_address_passes_unless_images_are_required() -> None:
    row = {"sample_id": "a", "image_uri": None, "captions": ["x"]}
    lenient, strict = Item(row), Item(row)
    DecodeImages().process([lenient])
    DecodeImages(required=True).process([strict])
    assert lenient.failure is None and lenient.pixels is None
    assert strict.failure is not None and strict.failure.reason == "no_image"


def test_a_denied_file_is_an_error_of_the_run(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    """Run without privileges, since root may read everything."""
    items = items_of(write_table(2))
    image = Path(items[0].row["image_uri"])
    image.chmod(0)
    code = (
        "import os, sys\n"
        "from raymotion.batch.stages import DecodeImages, Item\n"
        "from raymotion.errors import AccessDenied\n"
        f"if os.getuid() == 0: os.setuid(65534)\n"
        f"item = Item({{'sample_id': 'a', 'image_uri': {str(image)!r}, 'captions': []}})\n"
        "try:\n    DecodeImages().process([item])\n"
        "except AccessDenied as error:\n    print('denied', error)\n"
        "else:\n    print('passed', item.failure)\n"
    )
    for folder in [tmp_path, *tmp_path.parents]:  # others may enter the folders above
        if os.access(folder, os.W_OK) and folder != Path("/") and folder.owner() == Path.home().owner():
            folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "Permission" in done.stderr and "denied" not in done.stdout:
        pytest.skip("this checkout can not be read without privileges")
    assert done.stdout.startswith("denied"), done.stdout + done.stderr


def test_failure_keeps_messages_short() -> None:
    failure = Failure.of("decode", ImageTruncated("x" * 10_000))
    assert failure.reason == "image_truncated" and len(failure.message) == 500
    assert Failure.of("model", ValueError("")).message == "ValueError"


def test_regions_stage_replaces_pixels(write_table: Callable[..., Path]) -> None:
    items = items_of(write_table(3))
    DecodeImages(320).process(items)
    items[1].pixels = None  # a sample without a picture
    stage = ExtractRegions(identify("fasterrcnn_mobilenet_v3_large_320_fpn", "random:0", 4), "random:0", "float32")
    stage.setup(1, "cpu")
    stage.process(items)
    assert items[0].regions is not None and items[0].regions.features.shape == (4, 1024) and items[0].pixels is None
    assert items[1].regions is None


def test_weights_that_changed_since_the_job_began_are_refused() -> None:
    stage = ExtractRegions(identify("fasterrcnn_mobilenet_v3_large_320_fpn", "random:1", 4), "random:0", "float32")
    with pytest.raises(InputError, match="the weights are random:0 here, and were random:1 when the job began"):
        stage.setup(1, "cpu")


def test_a_store_that_is_down_ends_the_run_and_books_nothing(dead_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item({"sample_id": "a", "image_uri": "s3://bucket/a.jpg", "captions": []})
    with pytest.raises(RunFailed, match=r"When the store answers again, the same command goes on"):
        DecodeImages().process([item])
    assert item.failure is None


def test_a_store_that_refuses_ends_the_run(refusing_store: None) -> None:
    item = Item({"sample_id": "a", "image_uri": "s3://bucket/a.jpg", "captions": []})
    with pytest.raises(AccessDenied):
        DecodeImages().process([item])
