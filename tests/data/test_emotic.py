"""EMOTIC: both formats, and each of the known defects found (emotic_study.md, section 13: 8, 9, 14 and 15)."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.images.decode import decode_rgb
from raymotion.data.images.sizes import PictureSize, read_size
from raymotion.data.readers.emotic import EmoticReader
from raymotion.data.readers.emotic.csv_file import COLUMNS, read_csv
from raymotion.data.readers.emotic.mat_file import read_mat
from raymotion.data.synthetic.emotic import PLANTED, write_emotic
from raymotion.errors import InputError
from raymotion.vocabulary import EMOTIC_26

VAD = ("valence", "arousal", "dominance")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """180 persons, 20 defects of 9 kinds."""
    root = tmp_path_factory.mktemp("emotic")
    write_emotic(root, 180, seed=2, defects=0.15)
    return root


@pytest.fixture(scope="module")
def from_mat(planted):
    return read_emotic(planted, faces=planted / "faces.csv")


def read_emotic(root, **options):
    return EmoticReader(root=root, **options).read()


def structs(names, rows):
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for k, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            array[0, k][name] = value
    return array


def cell(*values):
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def several(choices, combined, vads, mean, box=(10, 10, 60, 90)):
    """A person of val or test, as EMOTIC's .mat has one."""
    names = ("body_bbox", "annotations_categories", "combined_categories", "annotations_continuous",
             "combined_continuous", "gender", "age")  # fmt: skip
    labels = structs(("categories",), [(cell(*own),) for own in choices])
    row = (np.array([box], float), labels, cell(*combined), structs(VAD, vads), structs(VAD, mean), "Male", "Adult")
    return structs(names, [row])


def write_mat(root, persons, *, size=(100, 100), picture=(100, 100), split="val", names=("n_col", "n_row"), exif=1):
    folder = root / "emotic" / "mscoco" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    block = Image.Exif()
    block[0x0112] = exif
    Image.new("RGB", picture, (10, 200, 30)).save(folder / "a.jpg", exif=block)
    record = ("a.jpg", "mscoco/images", structs(names, [size]), structs(("name",), [("mscoco",)]), persons)
    fields = ("filename", "folder", "image_size", "original_database", "person")
    (root / "Annotations").mkdir(exist_ok=True)
    scipy.io.savemat(root / "Annotations" / "Annotations.mat", {split: structs(fields, [record])})
    return root


def write_csv(root, *changes, split="train"):
    """train.csv in `root` with good rows that `changes` alter, one dict of columns for each row; no pictures."""
    good = {
        "Index": 0, "Folder": "mscoco/images", "Filename": "a.jpg", "Image Size": [100, 100], "BBox": [1, 2, 50, 60],
        "Categorical_Labels": ["Peace"], "Continuous_Labels": [5.0, 4.0, 3.0], "Gender": "Male", "Age": "Kid",
    }  # fmt: skip
    with open(root / f"{split}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for index, change in enumerate(changes):
            writer.writerow({**good, "Index": index, **change})
    return root / f"{split}.csv"


def one(root, **options):
    table, report = read_emotic(root, **options)
    (row,) = table.to_pylist()
    return row, report


class TestPlantedDefects:
    @pytest.mark.parametrize("source", ["mat", "csv"])
    def test_exactly_the_planted_defects_are_found(self, planted, from_mat, source):
        report = from_mat[1] if source == "mat" else read_emotic(planted, annotations=planted / "emotic_pre")[1]
        expected: dict[str, list[str]] = {}
        for entry in json.loads((planted / "defects.json").read_text()):
            expected.setdefault(entry["kind"], []).append(entry["name"])
        assert expected.keys() >= PLANTED.keys()
        found = {kind: sorted(names) for kind, names in report.found.items() if names}
        assert found == {kind: sorted(names) for kind, names in expected.items()}

    def test_both_formats_give_the_same_samples(self, planted, from_mat):
        """But for the shares of annotators, which the csv of val and test does not have."""
        table, _ = read_emotic(planted, annotations=planted / "emotic_pre", faces=planted / "faces.csv")
        drop = ["label_weights", *VAD]
        assert table.drop_columns(drop).equals(from_mat[0].drop_columns(drop))
        for name in VAD:
            ours, theirs = (np.array(t[name].to_pylist(), dtype=float) for t in (table, from_mat[0]))
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
        kinds = {(row["split"], row["label_weights"] is None) for row in table.to_pylist()}
        assert kinds == {("train", False), ("val", True), ("test", True)}

    def test_defect_14_a_person_without_vad_keeps_the_labels(self, from_mat):
        table, report = from_mat
        rows = {row["sample_id"]: row for row in table.to_pylist()}
        assert report.found["no_vad"]
        for name in report.found["no_vad"]:
            assert rows[name]["labels"] and [rows[name][axis] for axis in VAD] == [None] * 3

    def test_defect_15_no_image_is_in_two_splits(self, planted, from_mat):
        table, report = from_mat
        splits: dict[str, set[str]] = {}
        for row in table.to_pylist():
            splits.setdefault(row["group_id"], set()).add(row["split"])
        assert report.count("leaked_image") and all(len(names) == 1 for names in splits.values())
        for image in report.found["leaked_image"]:
            assert splits[f"emotic:{image}"] == {"val"}
        kept, _ = read_emotic(planted, keep_leaked=True)
        assert kept.num_rows == table.num_rows + report.count("leaked_person")

    def test_defect_9_the_prevalence_of_each_split_is_told(self, planted, from_mat):
        table, report = from_mat
        for split in ("train", "val", "test"):
            own = [row["labels"] for row in table.to_pylist() if row["split"] == split]
            shares = [sum(label in labels for labels in own) / len(own) for label in EMOTIC_26.labels]
            assert report.splits[split].prevalence == pytest.approx(shares)
            assert report.splits[split].chance_map == pytest.approx(np.mean([share for share in shares if share]))
        text = "\n".join(report.prevalence_table())
        assert "train: one annotator; val: 4 to 6 annotators; test: 2 to 4 annotators." in text
        assert f"{100 * report.splits['val'].prevalence[11]:.1f}%" in text and "Doubt/Confusion" in text

    def test_defect_8_a_missing_face_is_null(self, planted, from_mat):
        table, report = from_mat
        with open(planted / "faces.csv") as file:
            visible = {f"emotic:{r['split']}:{r['index']}": bool(r["x1"]) for r in csv.DictReader(file)}
        rows = table.to_pylist()
        assert {row["sample_id"]: row["face_box"] is not None for row in rows}.items() <= visible.items()
        assert 0 < report.faces < len(rows)
        assert read_emotic(planted)[0]["face_box"].null_count == len(rows)

    def test_ids_do_not_move_when_persons_are_left_out(self, planted, from_mat):
        ids = [name for name in from_mat[0]["sample_id"].to_pylist() if name.startswith("emotic:train:")]
        everyone, report = read_emotic(planted, keep_missing=True, keep_leaked=True)
        gone = {*report.found["unlabelled_person"]}
        whole = [f"emotic:train:{k}" for k in range(report.splits["train"].persons)]
        assert [name for name in everyone["sample_id"].to_pylist() if ":train:" in name] == [
            name for name in whole if name not in gone
        ]
        assert len(ids) < len(whole) and set(ids) <= set(whole)
        missing = [row for row in everyone.to_pylist() if row["image_uri"] is None]
        assert len(missing) == from_mat[1].count("missing_person") > 0

    def test_every_box_lies_in_its_picture(self, from_mat):
        for row in from_mat[0].to_pylist():
            with Image.open(row["image_uri"]) as picture:
                for box in (row["body_box"], row["face_box"]):
                    if box is not None:
                        assert 0 <= box[0] < box[2] <= picture.width and 0 <= box[1] < box[3] <= picture.height


class TestAnnotators:
    def test_labels_are_the_union_and_weights_the_share_of_three_annotators(self, tmp_path):
        choices = [["Peace", "Anger"], ["Peace"], ["Yearning", "Peace"]]
        vads = [(4.0, 5.0, 6.0), (5.0, 5.0, 7.0), (6.0, 5.0, 8.0)]
        person = several(choices, ["Peace", "Anger", "Yearning"], vads, [(5.0, 5.5, 7.0)])
        row, report = one(write_mat(tmp_path, person))
        assert row["labels"] == ["Anger", "Peace", "Yearning"]
        assert row["label_weights"] == pytest.approx([1 / 3, 1, 1 / 3])
        assert [row[axis] for axis in VAD] == [5.0, 5.5, 7.0]  # the combined, not the annotators' mean
        assert report.splits["val"].annotators == {3: 1}

    def test_where_the_combined_vad_is_missing_the_annotators_mean_stands(self, tmp_path):
        vads = [(4.0, 5.0, 6.0), (6.0, 7.0, 8.0), (np.nan, 1.0, 1.0)]
        person = several([["Peace"]] * 3, ["Peace"], vads, [(np.nan,) * 3])
        assert [one(write_mat(tmp_path, person))[0][axis] for axis in VAD] == [5.0, 6.0, 7.0]

    def test_a_combined_list_that_is_no_union_is_told(self, tmp_path):
        row, report = one(write_mat(tmp_path, several([["Peace"], ["Peace"]], ["Fear"], [(5,) * 3], [(5,) * 3])))
        assert report.count("odd_union") == 1 and row["labels"] == ["Fear", "Peace"]
        assert row["label_weights"] == [0.5, 1.0]

    def test_nobody_is_left_of_a_person_without_annotators(self, tmp_path):
        with pytest.raises(InputError, match="no person is left"):
            read_emotic(write_mat(tmp_path, several([[]], [], [(5,) * 3], [(5,) * 3])))

    def test_fields_are_found_by_position_where_they_have_other_names(self, tmp_path):
        named = read_mat(write_mat(tmp_path, several([["Peace"]], ["Peace"], [(5,) * 3], [(4,) * 3])) / "Annotations" /
                         "Annotations.mat")  # fmt: skip
        content = scipy.io.loadmat(tmp_path / "Annotations" / "Annotations.mat")["val"]

        def renamed(array):
            names = [f"f{k}" for k in range(len(array.dtype.names))]
            rows = [tuple(renamed(v) if getattr(v, "dtype", None) is not None and v.dtype.names else v for v in r)
                    for r in array.ravel()]  # fmt: skip
            return structs(names, rows)

        scipy.io.savemat(tmp_path / "bare.mat", {"val": renamed(content)})
        assert read_mat(tmp_path / "bare.mat") == named


class TestBoxes:
    def person(self, box):
        return several([["Peace"]], ["Peace"], [(5,) * 3], [(5,) * 3], box)

    @pytest.mark.parametrize("names, size", [(("n_col", "n_row"), (200, 100)), (("n_row", "n_col"), (100, 200))])
    def test_defect_14_sizes_are_read_by_name(self, tmp_path, names, size):
        root = write_mat(tmp_path, self.person((150, 10, 190, 90)), size=size, names=names, picture=(200, 100))
        row, report = one(root)
        assert row["body_box"] == [150, 10, 190, 90] and not report.notes()

    def test_defect_14_boxes_are_clipped_to_the_picture_not_to_the_annotated_size(self, tmp_path):
        row, report = one(write_mat(tmp_path, self.person((150, 10, 230, 90)), size=(100, 200), picture=(200, 100)))
        assert row["body_box"] == [150, 10, 200, 90]
        assert report.count("transposed_size") == 1 and report.count("suspect_box") == 0

    def test_a_box_cut_at_the_swapped_limit_is_not_passed_on(self, tmp_path):
        root = write_mat(tmp_path, self.person((50, 10, 100, 90)), size=(100, 200), picture=(200, 100))
        row, report = one(root)
        assert row["body_box"] is None and report.found["suspect_box"] == ["emotic:val:0"]
        assert report.folders["suspect_box"] == {"mscoco/images": 1}
        assert one(root, keep_suspect_boxes=True)[0]["body_box"] == [50, 10, 100, 90]

    @pytest.mark.parametrize("box", [(50, 10, 50, 90), (60, 10, 50, 90), (120, 10, 140, 90), (np.nan, 0, 9, 9)])
    def test_a_box_without_an_area_is_null_and_the_person_stays(self, tmp_path, box):
        row, report = one(write_mat(tmp_path, self.person(box)))
        assert row["body_box"] is None and row["labels"] == ["Peace"] and report.count("degenerate_box") == 1

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_defect_14_boxes_of_a_picture_that_exif_turns_are_turned_with_it(self, tmp_path, orientation):
        stored = np.zeros((96, 160, 3), np.uint8)
        stored[16:48, 96:144] = 255  # the body
        write_mat(tmp_path, self.person((96, 16, 144, 48)), size=(160, 96))
        path = tmp_path / "emotic" / "mscoco" / "images" / "a.jpg"
        block = Image.Exif()
        block[0x0112] = orientation
        Image.fromarray(stored).save(path, exif=block, quality=95)
        assert read_size(str(path)) == PictureSize(*((96, 160) if orientation >= 5 else (160, 96)), orientation)
        row, report = one(tmp_path)
        assert report.count("turned_image") == 1 and report.count("transposed_size") == 0
        upright = decode_rgb(path.read_bytes())
        x1, y1, x2, y2 = (int(v) for v in row["body_box"])
        assert (x2 - x1) * (y2 - y1) == 48 * 32
        assert upright[y1:y2, x1:x2].mean() > 240 and upright.sum() < 1.05 * upright[y1:y2, x1:x2].sum()

    @pytest.mark.parametrize("size, exif", [((200, 200), 1), ((50, 50), 1), ((100, 101), 1), ((90, 160), 6), ((), 6)])
    def test_boxes_of_a_picture_of_another_size_are_null(self, tmp_path, size, exif):
        root = write_mat(tmp_path, self.person((10, 10, 50, 50)), size=size or (0, 0), picture=(100, 100), exif=exif)
        row, report = one(root)
        assert row["body_box"] is None and row["labels"] == ["Peace"]
        assert report.found["other_size_box"] == ["emotic:val:0"] and report.count("other_size") == 1

    def test_a_swapped_size_does_not_hide_that_exif_mirrors_the_picture(self, tmp_path):
        root = write_mat(tmp_path, self.person((150, 10, 190, 90)), size=(100, 200), picture=(200, 100), exif=2)
        row, report = one(root)
        assert row["body_box"] == [10, 10, 50, 90]
        assert report.count("transposed_size") == report.count("turned_image") == 1

    def test_boxes_of_the_upright_pixels_stay(self, tmp_path):
        root = write_mat(tmp_path, self.person((10, 10, 50, 150)), size=(96, 160), picture=(160, 96), exif=6)
        row, report = one(root)
        assert row["body_box"] == [10, 10, 50, 150] and not report.notes()

    @pytest.mark.parametrize("box, size", [((10, 10, 50, 150), (160, 96)), ((10, 10, 150, 50), (96, 160))])
    def test_a_box_that_fits_the_other_way_round_alone_is_null(self, tmp_path, box, size):
        row, report = one(write_mat(tmp_path, self.person(box), size=size, picture=(160, 96), exif=6))
        assert row["body_box"] is None and report.count("outside_box") == 1

    @pytest.mark.parametrize("box", [(60, 10, 150, 90), (-90, 10, 40, 90), (10, 95, 60, 120)])
    def test_a_box_mostly_beyond_the_picture_is_null(self, tmp_path, box):
        row, report = one(write_mat(tmp_path, self.person(box)))
        assert row["body_box"] is None and report.found["outside_box"] == ["emotic:val:0"]
        assert "1 body boxes that lie mostly beyond the picture; null (mscoco/images 1)" in report.notes()

    def test_boxes_without_a_picture_are_counted_as_unchecked(self, tmp_path):
        write_csv(tmp_path, {})
        row, report = one(tmp_path, keep_missing=True)
        assert row["body_box"] == [1, 2, 50, 60] and report.count("unchecked_box") == 1

    @pytest.mark.parametrize(
        "face, exif, kept, kind",
        [
            ("20,20,40,40", 1, [20, 20, 40, 40], None),
            ("80,20,110,40", 1, [80, 20, 100, 40], "clipped_face"),
            ("90,20,110.5,40", 1, None, "outside_face"),
            ("120,20,140,40", 1, None, "outside_face"),
            ("20,20,40,40", 3, [20, 20, 40, 40], "turned_face"),
        ],
    )
    def test_faces_are_boxes_of_the_upright_picture(self, tmp_path, face, exif, kept, kind):
        write_mat(tmp_path, self.person((10, 10, 60, 90)), exif=exif)
        (tmp_path / "faces.csv").write_text(f"split,index,x1,y1,x2,y2\nval,0,{face}\n")
        row, report = one(tmp_path, faces=tmp_path / "faces.csv")
        assert row["face_box"] == kept
        assert [name for name in report.found if name.endswith("_face") and report.count(name)] == [kind][: bool(kind)]


class TestEveryFileCounts:
    def test_pictures_that_nobody_is_annotated_in(self, tmp_path):
        write_csv(tmp_path, {}, {"Filename": "b.jpg", "Folder": "mscoco"})
        for name in ("images/a.jpg", "images/c.jpg", "b.jpg", "d.png", "notes.txt"):
            path = tmp_path / "mscoco" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (100, 100)).save(path, format="JPEG")
        _, report = read_emotic(tmp_path)
        assert report.found["unused_image"] == ["mscoco/d.png", "mscoco/images/c.jpg"]

    def test_names_with_blanks_and_other_accents(self, tmp_path):
        nfc, nfd = "caf\u00e9.jpg", "cafe\u0301.jpg"
        write_csv(tmp_path, {"Filename": nfc}, {"Filename": "b.jpg"})
        (tmp_path / "mscoco" / "images").mkdir(parents=True)
        for name in (nfd, " b.jpg"):
            Image.new("RGB", (100, 100)).save(tmp_path / "mscoco" / "images" / name)
        table, report = read_emotic(tmp_path)
        assert [uri.rsplit("/", 1)[1] for uri in table["image_uri"].to_pylist()] == [nfd, " b.jpg"]
        assert not report.count("missing_image")

    def test_images_without_a_person(self, tmp_path):
        root = write_mat(tmp_path, several([["Peace"]], ["Peace"], [(5,) * 3], [(5,) * 3]))
        content = scipy.io.loadmat(root / "Annotations" / "Annotations.mat")["val"]
        fields = ("filename", "folder", "image_size", "original_database", "person")
        empty = ("b.jpg", "mscoco/images", *list(content.ravel()[0])[2:4], np.zeros((1, 0)))
        both = structs(fields, [tuple(content.ravel()[0]), empty])
        scipy.io.savemat(root / "Annotations" / "Annotations.mat", {"val": both})
        row, report = one(root)
        assert row["sample_id"] == "emotic:val:0" and report.found["no_persons"] == ["mscoco/images/b.jpg"]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("val,0,1,1,5,5\nval,0,,,,\n", "line 3: the person 0 of val appears twice, first in line 2"),
            ("val,0,1,1,5,5,9\n", "line 2: has 7 cells, the header has 6"),
            ('val,0,1,1,5,"5\n', "line 2: a quote opens a cell"),
        ],
    )
    def test_no_face_wins_silently_over_another(self, tmp_path, text, message):
        write_mat(tmp_path, several([["Peace"]], ["Peace"], [(5,) * 3], [(5,) * 3]))
        (tmp_path / "faces.csv").write_text(f"split,index,x1,y1,x2,y2\n{text}")
        with pytest.raises(InputError, match=message):
            read_emotic(tmp_path, faces=tmp_path / "faces.csv")

    def test_a_lone_quote_in_the_csv_is_named_with_its_line(self, tmp_path):
        path = write_csv(tmp_path, {}, {"Age": "Kid"}, {"Age": "Kid"})
        lines = path.read_text().splitlines()
        lines[2] = lines[2][: -len("Kid")] + '"Kid'
        path.write_text("\n".join(lines))
        with pytest.raises(InputError, match=r"train\.csv, line 3: .*closing quote"):
            read_emotic(tmp_path)


class TestBadInput:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"Categorical_Labels": ["Peace", "Joy"]}, r"line 3: 'Joy' is not one of EMOTIC's 26"),
            ({"Categorical_Labels": "__import__('os')"}, "line 3: Categorical_Labels is .* not a list"),
            ({"Categorical_Labels": "(" * 3000}, "line 3: Categorical_Labels is"),
            ({"BBox": "[" + "1," * 9999 + "]"}, "line 3: BBox has 20,000 characters"),
            ({"BBox": [1, 2, 3]}, "line 3: BBox is .* not a list of 4 numbers"),
            ({"Continuous_Labels": ["5", 1, 2]}, "line 3: Continuous_Labels"),
            ({"Image Size": [True, 5]}, "line 3: Image Size"),
            ({"Index": 0}, "line 3: Index 0 appears twice"),
            ({"Index": "x"}, "line 3: Index 'x' is not a whole number"),
            ({"Filename": "../../etc/passwd"}, "line 3: .* do not name a file below the image folder"),
        ],
    )
    def test_a_fault_in_a_csv_is_named_with_its_line(self, tmp_path, change, message):
        with pytest.raises(InputError, match=message):
            read_csv(write_csv(tmp_path, {}, change), "train")

    def test_a_csv_with_other_columns_is_refused(self, tmp_path):
        (tmp_path / "train.csv").write_text("file,label\na.jpg,Peace\n")
        with pytest.raises(InputError, match="column Folder, Filename"):
            read_emotic(tmp_path)

    def test_nan_is_read_where_python_has_no_literal_for_it(self, tmp_path):
        (person,) = read_csv(write_csv(tmp_path, {"Continuous_Labels": "[nan, 4.0, 3.0]"}), "train")
        assert person.vad is None and person.labels() == ("Peace",)

    @pytest.mark.parametrize(
        "data, message",
        [
            (b"", "not a readable .mat file"),
            (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "MATLAB 7.3"),
            (b"something else entirely" * 40, "not a readable .mat file"),
        ],
    )
    def test_other_files_are_no_mat_files(self, tmp_path, data, message):
        (tmp_path / "Annotations.mat").write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_emotic(tmp_path)

    @pytest.mark.parametrize(
        "content, message",
        [
            ({"other": np.ones(3)}, "holds none of train, val and test"),
            ({"train": np.ones((1, 3))}, "train: is not a struct array"),
            ({"train": structs(("filename", "folder"), [("a.jpg", "b")])}, "train image 0: lacks person"),
        ],
    )
    def test_mat_files_of_something_else_are_refused(self, tmp_path, content, message):
        scipy.io.savemat(tmp_path / "Annotations.mat", content)
        with pytest.raises(InputError, match=message):
            read_emotic(tmp_path)

    def test_a_foreign_label_in_a_mat_file_is_named_with_its_person(self, tmp_path):
        root = write_mat(tmp_path, several([["Joy"]], ["Joy"], [(5,) * 3], [(5,) * 3]))
        with pytest.raises(InputError, match="val image 0, person 0: 'Joy' is not"):
            read_emotic(root)

    def test_annotations_without_any_image_say_where_they_were_looked_for(self, tmp_path):
        write_csv(tmp_path, {})
        with pytest.raises(InputError, match=r"none of the 1 .*mscoco/images/a\.jpg.*--keep-missing"):
            read_emotic(tmp_path)
        row, _ = one(tmp_path, keep_missing=True)
        assert row["image_uri"] is None and row["body_box"] == [1, 2, 50, 60]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("split,index,x1\n", "lacks the column y1"),
            ("split,index,x1,y1,x2,y2\nval,99,1,1,5,5\n", "line 2: the annotations have no person 99"),
            ("split,index,x1,y1,x2,y2\nval,0,1,a,5,5\n", "line 2: '1,a,5,5' is not a box"),
            ("split,index,x1,y1,x2,y2\nval,0,5,1,5,5\n", "has no area"),
            ("split,index,x1,y1,x2,y2,filename\nval,0,1,1,5,5,b.jpg\n", "line 2: is of b.jpg, person 0 .*is in a.jpg"),
        ],
    )
    def test_a_fault_in_the_faces_is_named_with_its_line(self, tmp_path, text, message):
        write_mat(tmp_path, several([["Peace"]], ["Peace"], [(5,) * 3], [(5,) * 3]))
        (tmp_path / "faces.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_emotic(tmp_path, faces=tmp_path / "faces.csv")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(position=st.integers(0, 10_000), value=st.integers(0, 255), end=st.integers(0, 10_000))
    def test_a_damaged_mat_file_is_one_line_or_a_table(self, planted, tmp_path, position, value, end):
        data = bytearray((planted / "Annotations" / "Annotations.mat").read_bytes())
        data[position % len(data)] = value
        (tmp_path / "x.mat").write_bytes(bytes(data[: len(data) - end % 7 * 100]))
        try:
            read_mat(tmp_path / "x.mat")
        except InputError as error:
            assert "\n" not in str(error)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cells=st.lists(st.one_of(st.text(max_size=12), st.just("[1, 2, 3, 4]"), st.just("['Peace']")), max_size=9))
    def test_any_text_in_a_csv_is_one_line_or_a_person(self, tmp_path, cells):
        with open(tmp_path / "any.csv", "w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([COLUMNS, cells])
        try:
            read_csv(tmp_path / "any.csv", "val")
        except InputError as error:
            assert "any.csv" in str(error)


def test_an_object_store_is_a_folder_too(s3):
    write_emotic(f"{s3}/e", 4, kind="mat")
    table, report = read_emotic(f"{s3}/e", faces=f"{s3}/e/faces.csv")
    assert table.num_rows == 4 and not report.notes()
    assert all(uri.startswith(f"{s3}/e/emotic/") for uri in table["image_uri"].to_pylist())
