"""The COCO reader, on files written here by hand and on the real ones where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.boxes import clip_box
from raymotion.data.images.decode import decode_rgb
from raymotion.data.readers.coco import CocoReader, coco_url, face_from_keypoints
from raymotion.errors import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"


def read_coco(root, split="val2017", **options):
    return CocoReader(root=root, split=split, **options).read()


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
    assert (report.no_entry, report.no_image, report.dropped_entries) == (1, 2, 1)
    assert report.content.others == {".txt": 1}
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
    table, report = read_coco(root, persons=True)  # the dog is none
    assert report.other_objects == 1
    assert table["sample_id"].to_pylist() == ["coco:000000000001:person:11"]
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match="neither annotations/person_keypoints_val2017"):
        read_coco(root, persons=True)


def test_a_file_without_a_category_of_persons_is_refused(root):
    path = root / "annotations" / "person_keypoints_val2017.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "categories": [{"id": 1, "name": "People"}]}))
    with pytest.raises(InputError, match=r"val2017\.json: .*category 'person'.*'People'"):
        read_coco(root, persons=True)


def test_without_captions_the_images_are_enough(root):
    (root / "annotations" / "captions_val2017.json").unlink()
    table, report = read_coco(root)
    assert table["captions"].to_pylist() == [[], []]
    assert report.dropped_entries == 2
    with pytest.raises(InputError, match=r"train2017/ .*--split"):
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
        ('{"images": [{"id": 1, "file_name": "\\ud800.jpg"}]}', r"images\[0\]: '\\ud800.jpg' contains half a"),
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
        ({"bbox": [1, 2, 3, 10**400]}, "bbox is not 4 numbers"),
        ({"id": 13}, r"row annotations\[2\]: id 13 appears twice, first in annotations\[0\]"),
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
    address = "http://images.cocodataset.org"
    assert coco_url("/x/train2017/000000000009.jpg") == f"{address}/train2017/000000000009.jpg"
    assert coco_url("s3://b/val2014/COCO_val2014_000000000042.jpg") == (
        f"{address}/val2014/COCO_val2014_000000000042.jpg"
    )
    for place in (
        "/x/mine/000000000009.jpg", "/x/train2017/9.jpg", "/x/train2017/sub/000000000009.jpg",
        "/x/train2017/000000000009.png", "/x/val2014/000000000042.jpg", "/x/val2017/COCO_val2017_000000000042.jpg",
        "/x/train2014/COCO_val2014_000000000042.jpg", "",
    ):  # fmt: skip
        assert coco_url(place) is None


def test_a_face_needs_three_visible_points():
    two = keypoints(nose=(50, 60, 2), left_eye=(55, 50, 2), right_eye=(45, 50, 1))
    assert face_from_keypoints(two, 100, 100) is None
    # In profile: nose and ear 30 apart make a face 45 high.
    profile = keypoints(nose=(20, 50, 2), left_eye=(28, 50, 2), left_ear=(50, 50, 2))
    assert face_from_keypoints(profile, 100, 100) == (12.5, 27.5, 57.5, 72.5)


def write(root: Path, name: str, **document: object) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{name}_val2017.json").write_text(json.dumps(document))


def entry(number: int, file_name: str, width: int = 100, height: int = 80) -> dict[str, object]:
    return {"id": number, "file_name": file_name, "width": width, "height": height}


def captions_for(*numbers: int) -> list[dict[str, object]]:
    return [{"id": k, "image_id": number, "caption": f"of {number}"} for k, number in enumerate(numbers)]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def shown(table) -> dict[str, tuple[str | None, list[str]]]:
    """Picture (below the root's last folder but one) and captions by sample_id."""
    return {
        row["sample_id"]: (row["image_uri"] and "/".join(row["image_uri"].split("/val2017/")[-1:]), row["captions"])
        for row in table.to_pylist()
    }


def test_captions_follow_file_name_where_the_ids_are_renumbered(tmp_path):
    touch(tmp_path, *(f"val2017/{n:012d}.jpg" for n in (139, 285, 632, 1)))
    entries = [entry(1, "000000000139.jpg"), entry(139, "000000000285.jpg"), entry(3, "000000000632.jpg")]
    write(tmp_path, "captions", images=entries, annotations=captions_for(1, 139, 3))
    table, report = read_coco(tmp_path)
    assert shown(table) == {
        "coco:000000000001": ("000000000139.jpg", ["of 1"]),
        "coco:000000000003": ("000000000632.jpg", ["of 3"]),
        "coco:000000000139": ("000000000285.jpg", ["of 139"]),
        # No entry has this file, and number 1 is another's id.
        "coco:file:000000000001.jpg": ("000000000001.jpg", []),
    }
    assert (report.no_entry, report.no_image) == (1, 0)


def test_own_names_png_and_sub_folders(tmp_path):
    touch(tmp_path, "val2017/cat.png", "val2017/day 1/x.JPG", "val2017/day 2/x.jpg", "images/y.webp", "val2017/z.jpg",
          "val2017/000000000042.jpg", "val2017/notes.txt")  # fmt: skip
    entries = [
        entry(7, "cat.png"), entry(8, "day 1/x.JPG"), entry(9, "val2017/day 2/x.jpg"), entry(10, "./images/y.webp"),
        entry(11, "images/y.webp"), entry(12, "../cat.png"), entry(13, "Z.jpg"),
    ]  # fmt: skip
    write(tmp_path, "captions", images=entries, annotations=captions_for(7, 8, 9, 11, 12, 13))
    table, report = read_coco(tmp_path)
    found = shown(table)
    assert found["coco:000000000007"] == ("cat.png", ["of 7"])
    assert found["coco:000000000008"] == ("day 1/x.JPG", ["of 8"])
    assert found["coco:000000000009"] == ("day 2/x.jpg", ["of 9"])
    assert found["coco:000000000011"][0] == str(tmp_path / "images" / "y.webp")
    assert found["coco:000000000012"] == (None, ["of 12"])
    # The number in a name says nothing here: no entry numbers its picture so.
    assert found["coco:file:000000000042.jpg"] == ("000000000042.jpg", [])
    assert found["coco:file:z.jpg"] == ("z.jpg", [])
    assert (report.no_entry, report.other_case, report.content.others) == (2, 1, {".txt": 1})


def test_several_files_of_one_number_are_several_pictures(tmp_path):
    names = ["000000000001.jpg", "COCO_val2014_000000000001.jpg", "000000000001.png",
             "000000000002.jpg", "000000000002.png", "000000000003.jpeg"]  # fmt: skip
    touch(tmp_path, *(f"val2017/{name}" for name in names))
    write(tmp_path, "captions", images=[entry(1, "000000000001.jpg")], annotations=captions_for(1))
    table, report = read_coco(tmp_path)
    assert shown(table) == {
        "coco:000000000001": ("000000000001.jpg", ["of 1"]),
        "coco:000000000003": ("000000000003.jpeg", []),
        **{f"coco:file:{name}": (name, []) for name in sorted(names[1:5])},
    }
    assert (report.no_entry, report.same_number) == (5, 4)
    assert any(note.startswith("4 of them have another image's number") for note in report.notes())


def test_cocos_two_names_of_a_picture(tmp_path):
    touch(tmp_path, "val2017/COCO_val2014_000000000001.jpg", "val2017/a/000000000002.jpg",
          "val2017/000000000003.jpeg", "val2017/COCO_val2014_000000000003.jpg")  # fmt: skip
    entries = [entry(n, f"{n:012d}.jpg") for n in (1, 2, 3)]
    write(tmp_path, "captions", images=entries, annotations=captions_for(1, 2, 3))
    table, report = read_coco(tmp_path)
    found = shown(table)
    assert found["coco:000000000001"] == ("COCO_val2014_000000000001.jpg", ["of 1"])
    assert found["coco:000000000002"] == (None, ["of 2"])  # another folder: another picture
    assert found["coco:000000000003"] == (None, ["of 3"])  # two come into question
    assert (report.by_number, report.no_image, report.ambiguous_names) == (1, 2, 1)


def test_two_entries_of_one_picture_are_one_group(tmp_path):
    touch(tmp_path, "val2017/a.jpg")
    images = [entry(5, "a.jpg"), entry(6, "a.jpg"), entry(5, "a.jpg"), entry(8, "gone.jpg"), entry(9, "gone.jpg")]
    write(tmp_path, "captions", images=images, annotations=captions_for(5, 6, 8, 9, 77))
    table, report = read_coco(tmp_path)
    assert table["sample_id"].to_pylist() == [f"coco:{n:012d}" for n in (5, 6, 8, 9)]
    assert table["group_id"].to_pylist() == [f"coco:{n:012d}" for n in (5, 5, 8, 8)]
    assert (report.shared_files, report.repeated_entries, report.stray_captions, report.captions) == (2, 1, 1, 4)


@pytest.mark.parametrize(
    ("images", "others", "reason"),
    [
        ([entry(1, "a.jpg"), entry(1, "b.jpg")], None, r"captions_val2017.json, row images\[1\]: id 1 appears twice: "
         r"as 'a.jpg' .100 x 80. and as 'b.jpg'"),
        ([entry(1, "a.jpg"), entry(1, "a.jpg", 80, 100)], None, "id 1 appears twice"),
        ([entry(1, "a.jpg")], [entry(1, "b.jpg")], r"keypoints_val2017.json: image 1 is 'b.jpg' here and 'a.jpg' "
         r"in .*captions_val2017.json"),
        ([entry(1, "a.jpg")], [entry(2, "a.jpg")], r"'a.jpg' is image 2 here and 1 in .*captions_val2017.json"),
        ([{"id": "a1", "file_name": "a.jpg"}], None, r'row images\[0\]: id is "a1".*COCO\'s ids are whole numbers'),
        ([{"id": 1.5, "file_name": "a.jpg"}], None, "id is 1.5"),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_or_each_other_are_refused(tmp_path, images, others, reason):
    touch(tmp_path, "val2017/a.jpg", "val2017/b.jpg")
    write(tmp_path, "captions", images=images, annotations=[])
    categories = [{"id": 1, "name": "person"}]
    write(tmp_path, "person_keypoints", images=others or images, annotations=[], categories=categories)
    with pytest.raises(InputError, match=reason):
        read_coco(tmp_path, persons=True)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": [], "images": []}')
    with pytest.raises(InputError, match="has the key 'images' twice"):
        read_coco(tmp_path)


def test_the_same_picture_may_be_written_in_two_ways(tmp_path):
    touch(tmp_path, "val2017/a.jpg")
    write(tmp_path, "captions", images=[entry(1, "val2017/a.jpg")], annotations=captions_for(1))
    write(tmp_path, "instances", images=[entry(1, "./a.jpg")], annotations=[person(4, 1, [0, 0, 50, 50])],
          categories=[{"id": 1, "name": "person"}])  # fmt: skip
    table, _ = read_coco(tmp_path, persons=True)
    assert table["captions"].to_pylist() == [["of 1"]]


STORED = (96, 64)  # a white body of 40 x 20 at (50, 10)
BODY = (50, 10, 90, 30)


def turned_picture(path: Path, orientation: int, size: tuple[int, int] = STORED) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[BODY[1] : BODY[3], BODY[0] : BODY[2]] = 255
    block = Image.Exif()
    block[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=block, quality=95)


def persons_of(root: Path, size: tuple[int, int], *boxes: list[float]):
    images = [entry(1, "a.jpg", *size)]
    people = [person(k, 1, box) for k, box in enumerate(boxes)]
    write(root, "instances", images=images, annotations=people, categories=[{"id": 1, "name": "person"}])
    return read_coco(root, persons=True, min_side=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_stored_pixels_are_turned_with_the_picture(tmp_path, orientation):
    turned_picture(tmp_path / "val2017" / "a.jpg", orientation)
    table, report = persons_of(tmp_path, STORED, [50, 10, 40, 20])
    x1, y1, x2, y2 = (int(v) for v in table["body_box"].to_pylist()[0])
    upright = decode_rgb((tmp_path / "val2017" / "a.jpg").read_bytes())
    assert (x2 - x1) * (y2 - y1) == 800 and upright[y1:y2, x1:x2].mean() > 240
    assert report.turned_boxes == (orientation != 1)


def test_faces_are_turned_with_the_picture(root):
    turned_picture(root / "val2017" / "000000000001.jpg", 3, (100, 80))
    table, report = read_coco(root, persons=True)
    assert table["body_box"].to_pylist() == [[50.0, 20.0, 100.0, 70.0]] and report.turned_boxes == 1
    # Stored (see test_persons) 35 to 65 and 160/3 - 15 to 160/3 + 15, turned by half a turn in 100 x 80.
    face = table["face_box"].to_pylist()[0]
    assert face == pytest.approx([35, 80 - 160 / 3 - 15, 65, 80 - 160 / 3 + 15], abs=1e-4)


def test_boxes_of_the_upright_picture_stay(tmp_path):
    turned_picture(tmp_path / "val2017" / "a.jpg", 6)
    table, report = persons_of(tmp_path, STORED[::-1], [34, 50, 20, 40])
    assert table["body_box"].to_pylist() == [[34, 50, 54, 90]] and report.turned_boxes == 0
    # By hand: stored (50, 10) to (90, 30), turned by a quarter to the right, 64 wide: x from 64 - 30, y from 50.
    upright = decode_rgb((tmp_path / "val2017" / "a.jpg").read_bytes())
    assert upright[50:90, 34:54].mean() > 240


@pytest.mark.parametrize("size", [(64, 96), (192, 128), (96, 65)])
def test_boxes_of_a_picture_of_another_size_are_null(tmp_path, size):
    turned_picture(tmp_path / "val2017" / "a.jpg", 1)
    table, report = persons_of(tmp_path, size, [5, 10, 40, 20], [5, 5, 30, 30])
    assert table["body_box"].null_count == table["face_box"].null_count == 2
    assert (report.persons, report.bodies, report.other_size_boxes) == (2, 0, 2)
    assert "2 boxes of pictures that have another size than annotated; null" in report.notes()


def test_boxes_beyond_the_picture(tmp_path):
    turned_picture(tmp_path / "val2017" / "a.jpg", 1)
    boxes = ([80, 10, 20, 20], [80, 10, 40, 20], [96.5, 70, 9, 9], [0, 0, 96.4, 64.3], [5, 5, 0, 9])
    table, report = persons_of(tmp_path, STORED, *boxes)
    assert table["body_box"].to_pylist() == [[80, 10, 96, 30], None, [0, 0, 96, 64]]
    # Clipped at the right; more than half outside; all outside and without an area: left out.
    assert (report.clipped_boxes, report.outside_boxes, report.degenerate_boxes) == (1, 1, 2)


def test_boxes_without_a_picture_are_counted_as_unchecked(tmp_path):
    touch(tmp_path, "val2017/a.jpg")  # no picture
    table, report = persons_of(tmp_path, STORED, [50, 10, 40, 20])
    assert table["body_box"].to_pylist() == [list(BODY)] and report.unchecked_boxes == 1


def test_without_an_annotated_size_the_pictures_own_counts_unless_exif_turns_it(tmp_path):
    turned_picture(tmp_path / "val2017" / "a.jpg", 1)
    images = [{"id": 1, "file_name": "a.jpg"}]
    write(tmp_path, "instances", images=images, annotations=[person(1, 1, [50, 10, 60, 20])],
          categories=[{"id": 1, "name": "person"}])  # fmt: skip
    table, _ = read_coco(tmp_path, persons=True, min_side=4)
    assert table["body_box"].to_pylist() == [[50, 10, 96, 30]]
    turned_picture(tmp_path / "val2017" / "a.jpg", 3)
    with pytest.raises(InputError, match="image 1 has no width and height"):
        read_coco(tmp_path, persons=True)


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=4), own, max_size=2),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["images", "annotations", "categories"]), at=st.integers(0, 9), value=JSON)
def test_any_value_in_a_file_is_one_line_or_a_table(root, kind, at, value):
    path = root / "annotations" / "person_keypoints_val2017.json"
    whole = path.read_text()
    document = json.loads(whole)
    entry = document[kind][at % len(document[kind])]
    entry[sorted(entry)[at % len(entry)]] = value
    path.write_text(json.dumps(document))
    try:
        table, report = read_coco(root, persons=True)
        assert table.num_rows == report.persons
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(whole)
