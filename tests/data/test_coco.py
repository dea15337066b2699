"""The COCO reader, on files written here by hand and on the real ones where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.coco import clip_box, coco_url, face_from_keypoints, read_coco
from raymotion.errors import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"


def keypoints(**points: tuple[float, float, int]) -> list[float]:
    names = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
    return [v for name in names for v in points.get(name, (0, 0, 0))] + [0] * 36


FACE = keypoints(nose=(50, 60, 2), left_eye=(55, 50, 2), right_eye=(45, 50, 2), left_ear=(62, 52, 1))


def person(number: int, image: int, bbox: list[float], **extra: object) -> dict[str, object]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": bbox, "iscrowd": 0, **extra}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Image 1 has all; 2 is on disk alone; 3 has captions and no file; 4 an entry and nothing else."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for number in (1, 2):
        (tmp_path / "val2017" / f"{number:012d}.jpg").write_bytes(b"not opened by the reader")
    (tmp_path / "val2017" / "notes.txt").write_text("x")
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 100, "height": 80} for n in (4, 1, 3)]
    captions = [
        {"id": 9, "image_id": 1, "caption": "third"},
        {"id": 2, "image_id": 1, "caption": " first\n of all "},
        {"id": 5, "image_id": 1, "caption": "second"},
        {"id": 7, "image_id": 1, "caption": " \n"},
        {"id": 1, "image_id": 3, "caption": "no file"},
    ]
    people = [
        person(11, 1, [-10, 10, 60, 50], keypoints=FACE),
        person(12, 1, [5, 5, 40, 40], iscrowd=1),
        person(13, 1, [5, 5, 60, 20]),
        person(14, 1, [120, 5, 60, 60]),
        person(15, 1, [0, 0, 100, 80], category_id=18),
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    write = {
        "captions": {"images": images, "annotations": captions},
        "person_keypoints": {"images": images, "annotations": people, "categories": categories[:1]},
        "instances": {"images": images, "annotations": people, "categories": categories},
    }
    for name, value in write.items():
        (tmp_path / "annotations" / f"{name}_val2017.json").write_text(json.dumps(value))
    return tmp_path


def test_images_with_no_entry_and_entries_with_no_image(root):
    table, report = read_coco(root)
    assert table["sample_id"].to_pylist() == ["coco:000000000001", "coco:000000000002", "coco:000000000003"]
    assert table["group_id"].to_pylist() == table["sample_id"].to_pylist()
    # In the order of annotation ids, on one line, without the empty one.
    assert table["captions"].to_pylist() == [["first of all", "second", "third"], [], ["no file"]]
    assert table["image_uri"].to_pylist() == [
        str(root / "val2017" / "000000000001.jpg"), str(root / "val2017" / "000000000002.jpg"), None,
    ]  # fmt: skip
    assert set(table["split"].to_pylist()) == {"val"} and set(table["source"].to_pylist()) == {"coco"}
    assert (report.rows, report.images, report.captions, report.empty_captions) == (3, 3, 4, 1)
    assert (report.no_entry, report.no_image, report.dropped_entries, report.other_files) == (1, 2, 1, 1)
    assert report.files == ["captions_val2017.json"]  # nothing that was not asked for


def test_persons(root):
    table, report = read_coco(root, persons=True)
    assert table["sample_id"].to_pylist() == ["coco:000000000001:person:11"]
    assert table["group_id"].to_pylist() == ["coco:000000000001"]
    assert table["captions"].to_pylist() == [["first of all", "second", "third"]]
    assert table["body_box"].to_pylist() == [[0.0, 10.0, 50.0, 60.0]]  # clipped at the left
    # By hand: eyes 10 apart, so 30 high; middle of 45..55, mean height of 60, 50, 50.
    face = table["face_box"].to_pylist()[0]
    assert face == pytest.approx([35.0, 160 / 3 - 15, 65.0, 160 / 3 + 15], abs=1e-4)
    assert (report.crowds, report.small_boxes, report.degenerate_boxes) == (1, 1, 1)
    assert (report.persons, report.faces) == (1, 1)


def test_persons_from_the_instances_where_there_are_no_keypoints(root):
    (root / "annotations" / "person_keypoints_val2017.json").unlink()
    table, _ = read_coco(root, persons=True)  # the dog is none
    assert table["sample_id"].to_pylist() == ["coco:000000000001:person:11"]
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match="neither annotations/person_keypoints_val2017"):
        read_coco(root, persons=True)


def test_without_captions_the_images_are_enough(root):
    (root / "annotations" / "captions_val2017.json").unlink()
    table, report = read_coco(root)
    assert table["captions"].to_pylist() == [[], []]
    assert report.dropped_entries == 2
    with pytest.raises(InputError, match=r"neither images in train2017/ nor .*Check --split"):
        read_coco(root, "train2017")


def test_names_of_2014(tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "COCO_train2014_000000000042.jpg").write_bytes(b"")
    table, _ = read_coco(tmp_path, "train2014")
    row = table.to_pylist()[0]
    assert (row["sample_id"], row["split"]) == ("coco:000000000042", "train")
    assert row["image_uri"].endswith("COCO_train2014_000000000042.jpg")


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"images": [', r"captions_val2017.json: is not JSON \(line 1"),
        ("[]", "is a JSON list, not an object"),
        ("{}", "has no list 'images'"),
        ('{"images": {}}', "has no list 'images'"),
        ('{"images": [{"id": 1}]}', r"row images\[0\]: lacks 'file_name'"),
        ('{"images": [3]}', r"row images\[0\]: is not an object"),
        ('{"images": [{"id": "1", "file_name": "a.jpg"}]}', r"images\[0\]: id is \"1\""),
        ('{"images": []}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": null}]}', r"annotations\[0\]: caption is"),
        ('{"images": [], "annotations": [{"id": true, "image_id": 2, "caption": ""}]}', "id is true"),
    ],
)
def test_malformed_files_are_named_with_the_entry(root, content, reason):
    (root / "annotations" / "captions_val2017.json").write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_coco(root)
    assert "captions_val2017.json" in str(caught.value)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"bbox": [1, 2, 3]}, r"person_keypoints_val2017.json, row annotations\[0\]: bbox is not 4 numbers"),
        ({"bbox": [1, 2, "3", 4]}, "bbox is not 4 numbers"),
        ({"keypoints": [1, 2]}, "keypoints is not 51 numbers"),
        ({"image_id": 2}, "image 2 has no width and height"),
    ],
)
def test_malformed_persons(root, change, reason):
    path = root / "annotations" / "person_keypoints_val2017.json"
    document = json.loads(path.read_text())
    document["annotations"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=reason):
        read_coco(root, persons=True)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_coco(tmp_path / "nope")


def test_url():
    assert coco_url("coco:000000000009", "train2017") == "http://images.cocodataset.org/train2017/000000000009.jpg"
    assert coco_url("coco:000000000042:person:7", "val2014") == (
        "http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg"
    )
    for sample_id, split in (("folder:a.jpg", "val2017"), ("coco:9", "val2017"), ("coco:000000000009", "val")):
        with pytest.raises(InputError):
            coco_url(sample_id, split)


def test_a_face_needs_three_visible_points():
    two = keypoints(nose=(50, 60, 2), left_eye=(55, 50, 2), right_eye=(45, 50, 1))
    assert face_from_keypoints(two, 100, 100) is None
    # In profile: nose and ear 30 apart make a face 45 high.
    profile = keypoints(nose=(20, 50, 2), left_eye=(28, 50, 2), left_ear=(50, 50, 2))
    assert face_from_keypoints(profile, 100, 100) == (12.5, 27.5, 57.5, 72.5)


@given(
    box=st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4),
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
)
def test_clipped_boxes_are_in_the_image(box, width, height):
    clipped = clip_box(box, width, height)
    if clipped is not None:
        x1, y1, x2, y2 = clipped
        assert all(map(math.isfinite, clipped))
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


@pytest.mark.skipif(not REAL.is_dir(), reason="the real COCO sample is not here")
def test_the_real_sample():
    table, report = read_coco(REAL, "val2017")
    assert (report.rows, report.images, report.captions, report.no_entry, report.no_image) == (103, 103, 515, 0, 0)
    assert all(Path(uri).is_file() for uri in table["image_uri"].to_pylist())
    people, counts = read_coco(REAL, "train2017", persons=True)
    assert set(people["split"].to_pylist()) == {"train"}
    # All 87 person annotations of the file are accounted for.
    assert counts.persons + counts.small_boxes + counts.crowds + counts.degenerate_boxes == 87
    # A face is within the picture of its person: its centre lies in the body box.
    for body, face in zip(people["body_box"].to_pylist(), people["face_box"].to_pylist(), strict=True):
        if face is not None:
            cx, cy = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
            assert body[0] <= cx <= body[2] and body[1] <= cy <= body[3]
