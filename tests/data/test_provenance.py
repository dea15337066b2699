"""Rows and the pictures that they were made from: what is the same, what is not, and what cannot be told."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raymotion import storage
from raymotion.data.images import marks as picture_marks
from raymotion.data.images.marks import Picture, fingerprints, mark_of, stamps
from raymotion.data.provenance import MADE_FROM, Comparison, read_made_from, require_same_pictures
from raymotion.data.samples import BOX
from raymotion.errors import AccessDenied, Damaged, InputError, StoreUnavailable
from raymotion.pipeline.embed import DecodeOnce
from raymotion.pipeline.stages import DecodeImages, Item, made_from


def folder_of(folder: Path, count: int, *, seed: int, kind: str = "bmp") -> list[str]:
    """Pictures `frame_0000` and so on; all bitmaps have one size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, uris = np.random.default_rng(seed), []
    for number in range(count):
        path = folder / f"frame_{number:04d}.{kind}"
        Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).save(path)
        uris.append(str(path))
    return uris


def samples_of(uris: list[Any], *, prefix: str = "folder:", boxes: list[Any] | None = None) -> pa.Table:
    names = [f"frame_{number:04d}" for number in range(len(uris))]
    return pa.table(
        {
            "sample_id": [prefix + name for name in names],
            "image_uri": pa.array(uris, pa.string()),
            "body_box": pa.array(boxes or [None] * len(uris), BOX),
        }
    )


def made(uris: list[str], **options: Any) -> pa.Table:
    """Rows as a job writes them: the stage reads the pictures."""
    table = samples_of(list(uris), **options)
    items = [Item(row) for row in table.to_pylist()]
    DecodeImages().process(items)
    for own, column in zip(MADE_FROM[1:], made_from(items)[1:], strict=True):
        table = table.append_column(own, column)
    return table


def check(samples: pa.Table, rows: pa.Table, **options: Any) -> Comparison:
    return require_same_pictures(samples, rows, what="features", where="FEATURES", remedy="Make them.", **options)


def test_a_row_carries_what_was_read(tmp_path: Path) -> None:
    (uri,) = folder_of(tmp_path / "a", 1, seed=0)
    first, second = Item({"image_uri": uri}), Item({"image_uri": uri})
    DecodeOnce().process([first, second])
    data = Path(uri).read_bytes()
    assert first.mark == second.mark == mark_of(data)
    assert first.mark.size == len(data) and len(first.mark.digest) == 16
    none = Item({"image_uri": None})
    assert [column.to_pylist() for column in made_from([first, none])] == [
        [uri, None], [len(data), None], [first.mark.digest, None],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["bmp", "jpg"])
def test_two_folders_with_the_same_names_are_not_the_same_pictures(tmp_path: Path, kind: str) -> None:
    a, b = (folder_of(tmp_path / name, 3, seed=seed, kind=kind) for seed, name in enumerate("ab"))
    shutil.copy(a[0], b[0])  # the first is the same in both: the second is the first that differs
    with pytest.raises(InputError) as caught:
        check(samples_of(b), made(a))
    text = str(caught.value)
    assert "folder:frame_0001" in text and a[1] in text and b[1] in text and text.endswith("Make them.")
    assert "\n" not in text


def test_a_moved_folder_is_the_same_pictures(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", 3, seed=0)
    rows = made(a)
    shutil.move(tmp_path / "a", tmp_path / "b")
    b = [uri.replace("/a/", "/b/") for uri in a]
    assert check(samples_of(b), rows) == Comparison(read=3)
    assert check(samples_of(b[::-1]).set_column(0, "sample_id", samples_of(b)["sample_id"].take([2, 1, 0])), rows)
    assert check(samples_of([f"file://{uri}" for uri in b]), rows).notes() == []


@pytest.mark.parametrize("same_size", [True, False])
def test_a_picture_that_was_replaced_is_told(tmp_path: Path, same_size: bool) -> None:
    a = folder_of(tmp_path / "a", 3, seed=0)
    rows, old = made(a), os.stat(a[2])
    side = (12, 16) if same_size else (14, 16)
    Image.fromarray(np.full((*side, 3), 9, np.uint8)).save(a[2])
    os.utime(a[2], (old.st_atime, old.st_mtime))
    assert (os.stat(a[2]).st_size == old.st_size) == same_size
    with pytest.raises(InputError, match=r"folder:frame_0002 .*another picture.*(digest|bytes)"):
        check(samples_of(a), rows)


def test_features_outlive_their_pictures(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", 3, seed=0)
    rows = made(a)
    for uri in a[1:]:
        os.unlink(uri)
    found = check(samples_of(a), rows)
    (note,) = found.notes()
    assert (found.gone, found.read) == (2, 1)
    assert note.startswith("2 rows could not be compared: their pictures are no longer where they were")


@pytest.mark.parametrize(
    ("prefix", "name", "good"),
    [
        ("folder:", "frame_0000.bmp", False),  # means nothing without its folder
        ("mine-", "frame_0000.bmp", False),
        ("coco:", "frame_0000.bmp", True),
        ("coco:", "another.bmp", False),
    ],
)
def test_another_address_that_can_not_be_read(tmp_path: Path, prefix: str, name: str, good: bool) -> None:
    (uri,) = folder_of(tmp_path / "a", 1, seed=0)
    rows = made([uri], prefix=prefix)
    there = samples_of([str(tmp_path / "none" / name)], prefix=prefix)
    if good:
        (note,) = check(there, rows).notes()
        assert "1 rows were joined by id and file name alone" in note
    else:
        with pytest.raises(InputError, match=r"another address.*cannot be read"):
            check(there, rows)


def test_a_file_that_may_not_be_read_is_not_taken_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (folder_of(tmp_path / name, 1, seed=seed) for seed, name in enumerate("ab"))
    rows, read = made(a), storage.read_bytes

    def refused(path: Any) -> bytes:
        if str(path) == b[0]:
            raise AccessDenied("may not read it", path=path)
        return read(path)

    monkeypatch.setattr(storage, "read_bytes", refused)  # the same size, as `stat` says
    with pytest.raises(InputError, match=r"another address.*compared"):
        check(samples_of(b), rows)


def test_an_address_on_one_side_only(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", 1, seed=0)
    with pytest.raises(InputError, match=r"another picture: .*frame_0000.bmp.* then, none now"):
        check(samples_of([None]), made(a))
    assert check(samples_of([None]), made(a), need_address=False).nameless == 1
    assert check(samples_of([None]), samples_of([None])) == Comparison()


def test_rows_that_read_no_picture_are_compared_by_the_files(tmp_path: Path) -> None:
    a, b = (folder_of(tmp_path / name, 2, seed=seed) for seed, name in enumerate("ab"))
    assert check(samples_of(a), samples_of(a)).read == 0
    with pytest.raises(InputError, match="another picture"):
        check(samples_of(b), samples_of(a))
    for one, other in zip(a, b, strict=True):
        shutil.copy(one, other)
    assert check(samples_of(b), samples_of(a)).read == 4


@pytest.mark.parametrize(
    ("now", "then", "same"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], True),
        ([0.1, 2, 3, 4], [np.float32(0.1), 2, 3, 4], True),
        ([1, 2, 3, 4], [1, 2, 3, 4.5], False),
        (None, [1, 2, 3, 4], False),
        ([1, 2, 3, 4], None, False),
        (None, None, True),
    ],
)
def test_boxes_are_compared_exactly(tmp_path: Path, now: Any, then: Any, same: bool) -> None:
    a = folder_of(tmp_path / "a", 2, seed=0)
    samples, rows = samples_of(a, boxes=[[0, 0, 1, 1], now]), made(a, boxes=[[0, 0, 1, 1], then])
    if same:
        check(samples, rows, boxes=["body_box"])
    else:
        with pytest.raises(InputError, match=r"folder:frame_0001 .*another body_box"):
            check(samples, rows, boxes=["body_box"])
    check(samples, rows)  # boxes that were not used do not matter


def test_of_many_pictures_those_that_changed_since_are_read_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_marks, "LOCAL_DIGESTS", 4)
    a = folder_of(tmp_path / "a", 40, seed=0)
    rows = made(a)
    time.sleep(0.02)
    since = time.time()
    time.sleep(0.02)
    assert check(samples_of(a), rows, since=since).read == 4
    old = os.stat(a[23])
    Image.fromarray(np.full((12, 16, 3), 9, np.uint8)).save(a[23])
    os.utime(a[23], (old.st_atime, old.st_mtime))
    with pytest.raises(InputError, match="frame_0023"):
        check(samples_of(a), rows, since=since)
    Image.fromarray(np.full((13, 16, 3), 9, np.uint8)).save(a[7])  # of another size: told without being read
    with pytest.raises(InputError, match=r"frame_0007 .*bytes"):
        check(samples_of(a), rows)


def test_pictures_of_an_object_store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = folder_of(tmp_path / "a", 20, seed=0)
    for uri in a:
        storage.write_bytes(f"{s3}/a/{Path(uri).name}", Path(uri).read_bytes())
    there = [f"{s3}/a/{Path(uri).name}" for uri in a]
    rows = made(a)
    found = check(samples_of(there), rows)  # sizes of all by one listing, digests of some
    assert found.read == picture_marks.REMOTE_DIGESTS and not found.notes()
    before = stamps(there)
    storage.write_bytes(there[0], Path(a[1]).read_bytes())
    with pytest.raises(InputError, match=r"frame_0000 .*another picture"):
        check(samples_of(there), rows)
    after = stamps(there)
    assert after[0] != before[0] and after[1:] == before[1:]
    storage.write_bytes(there[5], b"BM other size")
    with pytest.raises(InputError, match=r"frame_0005 .*13 bytes"):
        check(samples_of(there[1:]).set_column(0, "sample_id", samples_of(there)["sample_id"][1:]), rows)
    moved = [f"{s3}/{number}/{Path(uri).name}" for number, uri in enumerate(a)]  # more folders than are listed
    for uri, other in zip(a, moved, strict=True):
        storage.write_bytes(other, Path(uri).read_bytes())
    monkeypatch.setattr(picture_marks, "REMOTE_FOLDERS", 4)
    assert check(samples_of(moved), rows).read == picture_marks.REMOTE_DIGESTS
    gone = [f"{s3}/gone/{Path(uri).name}" for uri in a]
    with pytest.raises(InputError, match="cannot be compared"):
        check(samples_of(gone), rows)


@pytest.mark.parametrize("count", [2, picture_marks.REMOTE_DIGESTS + 1])  # they are read, or their folder is listed
def test_a_store_that_is_down_is_no_picture_that_is_gone(tmp_path: Path, dead_store: None, count: int) -> None:
    a = folder_of(tmp_path / "a", count, seed=0)
    there = [f"s3://bucket/a/{Path(uri).name}" for uri in a]
    rows = made(a).set_column(1, "image_uri", [there])
    with pytest.raises(StoreUnavailable, match="s3://bucket/a"):
        check(samples_of(there), rows)
    with pytest.raises(StoreUnavailable):
        stamps(there)


def test_nothing_is_fetched_from_a_web_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("fetched")

    monkeypatch.setattr(storage, "filesystem", never)
    uri = "http://127.0.0.1:9/frame_0000.jpg"
    row = samples_of([uri]).append_column("image_bytes", [[5]]).append_column("image_digest", [["0" * 16]])
    found = check(samples_of([uri]), row)
    assert (found.web, found.gone) == (1, 0) and "nothing is fetched from web addresses" in found.notes()[0]
    assert stamps([uri]) == [[uri]]


def test_a_fingerprint_says_what_pictures_are_and_not_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = folder_of(tmp_path / "a", 6, seed=0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    b = [uri.replace("/a/", "/b/") for uri in a]
    own = fingerprints([Picture(uri) for uri in a])
    assert own == fingerprints([Picture(uri) for uri in b])
    assert own[0] == ["frame_0000.bmp", *[(m := mark_of(Path(a[0]).read_bytes())).size, m.digest]]
    Image.fromarray(np.full((12, 16, 3), 9, np.uint8)).save(b[3])  # the same name and size
    assert [x == y for x, y in zip(own, fingerprints([Picture(uri) for uri in b]), strict=True)].index(False) == 3
    monkeypatch.setattr(picture_marks, "LOCAL_DIGESTS", 3)
    some = fingerprints([Picture(uri) for uri in a])
    assert [row[2] is not None for row in some] == [True, False, True, False, True, False]
    assert fingerprints([Picture(None), Picture("/none/x.jpg")]) == [None, ["x.jpg", None, None]]


@pytest.mark.parametrize("damage", ["pages", "footer"])
def test_a_damaged_part_is_told(tmp_path: Path, damage: str) -> None:
    part = tmp_path / "data/part-00000.parquet"
    storage.write_table(part, made(folder_of(tmp_path / "a", 3, seed=0)))
    data = bytearray(part.read_bytes())
    if damage == "pages":
        data[4:84] = bytes(80)
    else:
        del data[-20:]
    part.write_bytes(data)
    with pytest.raises(Damaged, match=r"part-00000\.parquet: .*Parquet.*again"):
        read_made_from(tmp_path, ["data/part-00000.parquet"])


def test_parts_that_do_not_say_what_they_were_made_from_are_refused(tmp_path: Path) -> None:
    storage.write_table(tmp_path / "data/part-00000.parquet", pa.table({"sample_id": ["a"]}))
    with pytest.raises(InputError, match=r"which pictures.*image_digest"):
        read_made_from(tmp_path, ["data/part-00000.parquet"])
    assert read_made_from(tmp_path, [], boxes=["face_box"]).column_names == [
        "sample_id", "image_uri", "image_bytes", "image_digest", "face_box",
    ]  # fmt: skip
