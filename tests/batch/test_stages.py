"""Stages run without Ray: each bad picture gets its reason, and a denied file is nobody's bad row."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raymotion import storage
from raymotion.batch.preflight import check_image_folders
from raymotion.data.images.decode import ImageTruncated
from raymotion.data.samples import read_samples, table_from_rows
from raymotion.errors import AccessDenied, AddressRefused, InputError, RunFailed, StoreUnavailable
from raymotion.models.vision.regions import identify
from raymotion.pipeline.embed import DecodeOnce
from raymotion.pipeline.stages import DecodeImages, ExtractRegions, Failure, Item
from raymotion.stores import access


def jpeg(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


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


def test_a_damaged_picture_is_kept_where_that_was_asked_for(write_table: Callable[..., Path]) -> None:
    damaged = {1: "image_truncated", 2: "image_damaged", 3: "image_empty"}
    strict, keeping = items_of(write_table(5, damaged=damaged)), items_of(write_table(5, damaged=damaged, name="t"))
    DecodeImages().process(strict)
    assert [item.failure.reason if item.failure else None for item in strict] == [None, *damaged.values(), None]
    DecodeImages(damaged="keep").process(keeping)
    assert [item.failure.reason if item.failure else None for item in keeping] == [
        None,
        None,
        None,
        "image_empty",
        None,
    ]
    assert [item.pixels is not None for item in keeping] == [True, True, True, False, True]
    assert [(item.damage or "").partition(":")[0] for item in keeping] == [
        "", "image_truncated", "image_damaged", "", "",
    ]  # fmt: skip


def test_a_damaged_picture_of_several_persons_is_noted_with_each(write_table: Callable[..., Path]) -> None:
    first, second = items_of(write_table(2, damaged={0: "image_damaged"}))
    second.row["image_uri"] = first.row["image_uri"]
    DecodeOnce("keep").process([first, second])
    assert first.damage and first.damage == second.damage and second.pixels is first.pixels


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
        "from raymotion.pipeline.stages import DecodeImages, Item\n"
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
        pytest.skip("this checkout cannot be read without privileges")
    assert done.stdout.startswith("denied"), done.stdout + done.stderr


def test_failure_keeps_messages_short() -> None:
    failure = Failure.of("decode", ImageTruncated("x" * 10_000))
    assert failure.reason == "image_truncated" and len(failure.message) == 500
    assert Failure.of("model", ValueError("")).message == "ValueError"


def test_regions_stage_adds_features(write_table: Callable[..., Path]) -> None:
    items = items_of(write_table(3))
    DecodeImages(320).process(items)
    items[1].pixels = None  # a sample without a picture
    stage = ExtractRegions(identify("fasterrcnn_mobilenet_v3_large_320_fpn", "random:0", 4), "random:0", "float32")
    stage.setup(1, "cpu")
    stage.process(items)
    assert items[0].regions is not None and items[0].regions.features.shape == (4, 1024)
    assert items[0].pixels is not None, "another input may read them"
    assert items[1].regions is None


def test_weights_that_changed_since_the_job_began_are_refused() -> None:
    stage = ExtractRegions(identify("fasterrcnn_mobilenet_v3_large_320_fpn", "random:1", 4), "random:0", "float32")
    with pytest.raises(InputError, match=r"random:0 here.* random:1"):
        stage.setup(1, "cpu")


def test_a_store_that_is_down_ends_the_run_and_books_nothing(dead_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item({"sample_id": "a", "image_uri": "s3://bucket/a.jpg", "captions": []})
    with pytest.raises(RunFailed, match=r"store.* the same command"):
        DecodeImages().process([item])
    assert item.failure is None


def test_a_store_that_refuses_ends_the_run(refusing_store: None) -> None:
    item = Item({"sample_id": "a", "image_uri": "s3://bucket/a.jpg", "captions": []})
    with pytest.raises(AccessDenied):
        DecodeImages().process([item])


# A store and the row's fault


@pytest.mark.parametrize("wrong", [("short", 0), ("short", 700), ("cut", 700), ("cut", 0)], ids=str)
def test_a_short_body_is_the_stores_fault(s3: str, store_proxy: Any, wrong: tuple[str, int]) -> None:
    """Also one that was announced as short as it came: before a picture is called bad, its length is asked for."""
    data = jpeg(0, (640, 480))
    storage.write_bytes(f"{s3}/a.jpg", data)
    store_proxy.fault = lambda request, before: wrong if request.method == "GET" and before < 2 else None
    item = Item({"sample_id": "a", "image_uri": f"{s3}/a.jpg", "captions": []})
    with DecodeImages().ahead([item]):
        DecodeImages().process([item])
    assert item.failure is None and item.pixels is not None and item.pixels.shape == (480, 640, 3)
    store_proxy.fault = lambda request, before: wrong if request.method == "GET" else None
    with access.using(patience=0.2), pytest.raises(StoreUnavailable, match=r"a\.jpg.*the same command"):
        DecodeImages().process([item := Item(item.row)])
    assert item.failure is None


def test_what_is_bad_in_the_store_is_a_bad_row(s3: str, store_proxy: Any) -> None:
    rows = {"empty": b"", "cut": jpeg(0, (640, 480))[:700], "text": b"no picture"}
    for name, data in rows.items():
        storage.write_bytes(f"{s3}/{name}.jpg", data)
    items = [Item({"sample_id": n, "image_uri": f"{s3}/{n}.jpg", "captions": []}) for n in [*rows, "none"]]
    DecodeImages().process(items)
    reasons = [item.failure.reason for item in items if item.failure]
    assert reasons == ["image_empty", "image_truncated", "image_not_an_image", "image_missing"]


def test_one_request_a_picture_and_all_at_once(s3: str, store_proxy: Any) -> None:
    items = [Item({"sample_id": str(n), "image_uri": f"{s3}/{n // 2}.jpg", "captions": []}) for n in range(24)]
    for number in range(12):
        storage.write_bytes(f"{s3}/{number}.jpg", jpeg(number))
    store_proxy.requests.clear()
    store_proxy.latency = 0.5
    began = time.monotonic()
    stage = DecodeImages()
    with stage.ahead(items):
        stage.process(items)
    assert not any(item.failure for item in items)
    assert [request.kind for request in store_proxy.requests] == ["GET picture"] * 12
    assert time.monotonic() - began < 3  # one after the other they take 6


def test_persons_of_one_picture_take_one_request(s3: str, store_proxy: Any) -> None:
    storage.write_bytes(f"{s3}/a.jpg", jpeg(0))
    store_proxy.requests.clear()
    items = [Item({"sample_id": str(n), "image_uri": f"{s3}/a.jpg", "captions": []}) for n in range(5)]
    stage = DecodeOnce()
    with stage.ahead(items):
        stage.process(items)
    assert all(item.pixels is not None for item in items) and len(store_proxy.requests) == 1


# Which addresses


def table_of(*uris: str) -> pa.Table:
    return table_from_rows(
        {"sample_id": f"x:{n}", "group_id": f"x:{n}", "image_uri": uri, "captions": [], "source": "x"}
        for n, uri in enumerate(uris)
    )


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "ftp://host/a.jpg", "data:image/png;base64,AA", "https://h/a.jpg"]
)
def test_a_table_with_other_addresses_is_refused_before_anything_is_read(tmp_path: Path, uri: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    table = table_of(str(tmp_path / "a.jpg"), uri)
    with pytest.raises(AddressRefused, match=rf"{uri.split(':')[0]}.*row 1") as told:
        check_image_folders(table, required=True)
    assert "\n" not in str(told.value)
    item = Item({"sample_id": "a", "image_uri": uri, "captions": []})
    with pytest.raises(AddressRefused):
        DecodeImages().process([item])


def test_web_addresses_are_read_where_that_is_asked_for_and_fail_by_row() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/a.jpg": jpeg(0), "/large.jpg": bytes(3000)}.get(self.path)
            self.send_response(200 if found else 403 if self.path == "/closed.jpg" else 404)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, access.using(allow_http=True):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        uris = [f"{base}/{name}.jpg" for name in ("a", "large", "closed", "none")]
        check_image_folders(table_of(*uris), required=True)
        items = [Item({"sample_id": uri, "image_uri": uri, "captions": []}) for uri in uris]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raymotion.stores.web.MOST_BYTES", 2000)
            with DecodeImages().ahead(items):
                DecodeImages().process(items)
        server.shutdown()
    assert items[0].pixels is not None
    reasons = [item.failure.reason for item in items if item.failure]
    assert reasons == ["image_too_large", "image_unreachable", "image_missing"]


def test_one_missing_picture_of_many_folders_is_a_row_and_a_missing_folder_a_mistake(s3: str) -> None:
    for number in range(3):
        storage.write_bytes(f"{s3}/{number}/a.jpg", b"x")
    check_image_folders(table_of(*(f"{s3}/{number}/a.jpg" for number in range(4))), required=True)
    for wrong in ([f"{s3}/none/{n}.jpg" for n in range(5)], [f"{s3}/none/a.jpg"]):
        uris = [f"{s3}/0/a.jpg", *wrong] if len(wrong) > 1 else wrong
        with pytest.raises(InputError, match="none: no such folder"):
            check_image_folders(table_of(*uris), required=True)


def test_many_folders_take_few_requests(s3: str, store_proxy: Any) -> None:
    uris = [f"{s3}/{number}/a.jpg" for number in range(100)]
    storage.write_bytes(uris[0], b"x")
    store_proxy.requests.clear()
    check_image_folders(table_of(*uris), required=True)
    assert len(store_proxy.requests) <= 33
