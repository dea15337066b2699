"""`raymotion data prepare table`: tables of the user's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.readers.table import TableReader
from raymotion.data.samples import read_samples, scale_of, vocabulary_of
from raymotion.data.text_rows import columns_of
from raymotion.errors import InputError
from raymotion.vocabulary import MIKELS_8, read_vocabulary

CSV = "path,text,feelings\na.jpg,A dog.,joy; calm\nsub/b.jpg,,\nhttps://x.org/c.jpg,Rain.,sadness\n"


def read(path: Path, **options: Any) -> tuple[pa.Table, Any]:
    return TableReader(path=str(path), **options).read()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_known_by_their_names_and_labels_become_a_vocabulary(tmp_path: Path) -> None:
    table, report = read(write(tmp_path / "mine.csv", CSV), vocabulary_from_data=True, no_split=True)
    assert table["image_uri"].to_pylist() == [
        str(tmp_path / "a.jpg"), str(tmp_path / "sub/b.jpg"), "https://x.org/c.jpg",
    ]  # fmt: skip
    assert table["captions"].to_pylist() == [["A dog."], [], ["Rain."]]
    assert table["labels"].to_pylist() == [["joy", "calm"], None, ["sadness"]], "an empty cell: not annotated"
    vocabulary = vocabulary_of(table)
    assert vocabulary is not None and (vocabulary.name, vocabulary.labels) == ("mine-3", ("calm", "joy", "sadness"))
    assert report.columns == {"image": "path", "captions": "text", "labels": "feelings"}
    assert report.labels == {"calm": 1, "joy": 1, "sadness": 1} and report.unlabelled == 1
    assert table["sample_id"].to_pylist()[0] == "table:a.jpg"


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = [{"image": f"{i}.jpg", "caption": f'say "{i}"', "labels": ["joy", "awe"][: 1 + i % 2]} for i in range(6)]
    text = [{**row, "labels": "|".join(row["labels"])} for row in rows]
    path = tmp_path / f"t.{'csv' if kind == 'semicolon' else kind}"
    if kind in ("csv", "semicolon"):
        mark = "," if kind == "csv" else ";"
        lines = [mark.join(('"' + value.replace('"', '""') + '"') for value in row.values()) for row in text]
        write(path, "\n".join([mark.join(text[0]), *lines]))
    elif kind == "tsv":
        write(path, "\n".join(["\t".join(text[0]), *("\t".join(row.values()) for row in text)]))
    elif kind == "json":
        write(path, json.dumps(rows))
    elif kind == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    table, _ = read(path, separator="|", vocabulary_from_data=True, no_split=True)
    assert table["labels"].to_pylist() == [row["labels"] for row in rows]
    assert table["captions"].to_pylist() == [[row["caption"]] for row in rows]
    assert table["image_uri"].to_pylist() == [str(tmp_path / row["image"]) for row in rows]


def test_one_hot_columns_and_shares(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "file,happy,sad\na.jpg,1,0\nb.jpg,0.25,0.75\nc.jpg,no,yes\nd.jpg,,\n")
    table, _ = read(path, label_columns="happy, sad", vocabulary_from_data=True, no_split=True)
    assert table["labels"].to_pylist() == [["happy"], ["happy", "sad"], ["sad"], []]
    assert table["label_weights"].to_pylist() == [None, [0.25, 0.75], None, None]
    assert vocabulary_of(table).labels == ("happy", "sad")  # type: ignore[union-attr]


def test_annotators_of_one_picture_become_shares(tmp_path: Path) -> None:
    rows = "image,caption,label\na.jpg,x,joy\na.jpg,y,joy;awe\na.jpg,x,\na.jpg,z,awe\nb.jpg,x,anger\n"
    path = write(tmp_path / "t.csv", rows)
    table, report = read(path, vocabulary_from_data=True, annotators=True, no_split=True)
    assert table["labels"].to_pylist() == [["awe", "joy"], ["anger"]]
    assert table["label_weights"].to_pylist()[0] == pytest.approx([2 / 3, 2 / 3]), "the empty cell is no vote"
    assert table["captions"].to_pylist()[0] == ["x", "y", "z"] and report.merged == 3


def test_repeated_pictures_with_labels_are_samples_of_one_group(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,caption,label\na.jpg,x,joy\na.jpg,y,awe\n")
    table, _ = read(path, vocabulary_from_data=True)
    assert table["sample_id"].to_pylist() == ["table:a.jpg", "table:a.jpg#2"]
    assert len(set(table["group_id"].to_pylist())) == 1


@pytest.mark.parametrize("image", ["image", "file", "filename", "file_name"])
@pytest.mark.parametrize("caption", ["caption", "text"])
def test_rows_of_captions_alone_are_one_sample_for_each_picture(tmp_path: Path, image: str, caption: str) -> None:
    rows = "".join(f"{name}.jpg,{name} {i}\n" for i in range(5) for name in "ab")
    table, report = read(write(tmp_path / "t.csv", f"{image},{caption}\n{rows}"))
    assert table["sample_id"].to_pylist() == ["table:a.jpg", "table:b.jpg"]
    assert table["captions"].to_pylist() == [[f"{name} {i}" for i in range(5)] for name in "ab"]
    assert report.captioned == 8 and any("further captions" in note for note in report.notes())


@pytest.mark.parametrize("column, values", [("split", ["train", "test"]), ("scene", ["x", "y"])])
def test_captions_of_a_picture_in_two_splits_or_groups(tmp_path: Path, column: str, values: list[str]) -> None:
    path = write(tmp_path / "t.csv", f"image,caption,{column}\n" + "".join(f"a.jpg,x,{own}\n" for own in values))
    with pytest.raises(InputError, match=r"table:a.jpg is in the (splits test, train|groups table:x, table:y)"):
        read(path, group_column="scene" if column == "scene" else None)


def test_splits_are_taken_or_made(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,label,split\na.jpg,joy,training\nb.jpg,joy,dev\nc.jpg,awe,TEST\n")
    table, _ = read(path, vocabulary_from_data=True)
    assert table["split"].to_pylist() == ["train", "val", "test"]
    path = write(tmp_path / "u.csv", "image,label\n" + "".join(f"{i}.jpg,{'ab'[i % 2]}\n" for i in range(40)))
    table, _ = read(path, vocabulary_from_data=True, val_fraction=0.2, test_fraction=0.2)
    assert {name: table["split"].to_pylist().count(name) for name in ("train", "val", "test")} == {
        "train": 24, "val": 8, "test": 8,
    }  # fmt: skip


def test_a_vocabulary_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", "# mine\njoy\n\n awe \n")
    assert (read_vocabulary(str(path)).labels, read_vocabulary(str(path)).name) == (("joy", "awe"), "words-2")
    stated = write(tmp_path / "v.json", json.dumps(MIKELS_8.to_dict()))
    assert read_vocabulary(str(stated)) == MIKELS_8 == read_vocabulary("mikels-8")
    with pytest.raises(InputError, match="more than once"):
        read_vocabulary(str(write(tmp_path / "twice.txt", "joy\njoy\n")))
    with pytest.raises(InputError, match=r"nothing.txt: no vocabulary has this name"):
        read_vocabulary(str(tmp_path / "nothing.txt"))


def test_numbers_on_a_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,valence,arousal\na.jpg,1.5,\nb.jpg,9,3\n")
    table, _ = read(path, scale="1,9")
    assert scale_of(table) == (1.0, 9.0) and table["arousal"].to_pylist() == [None, 3.0]


@pytest.mark.parametrize(
    "text, options, said",
    [
        (CSV, {}, r"t.csv: has labels \(calm, joy, sadness ...\), and no vocabulary is given"),
        (CSV, {"vocabulary": "mikels-8"}, r"t.csv, line 2: the label 'joy' is not in the vocabulary mikels-8"),
        (CSV, {"label_column": "mood"}, r"has no column 'mood'. Its columns are path, text, feelings"),
        (CSV, {"label_columns": "feelings,x"}, r"has no column 'x'"),
        (CSV, {"vocabulary_from_data": True, "min_count": 9}, "no label is on 9 rows"),
        (CSV, {"vocabulary_from_data": True, "vocabulary": "mikels-8"}, "Give one of them"),
        ("a,b\n1,2\n", {}, "has no column of pictures or captions.* its columns are a, b"),
        ("image,happy\na.jpg,2\n", {"label_columns": "happy", "vocabulary_from_data": True}, "line 2: happy is '2'"),
        ("image,split\na.jpg,later\n", {}, "line 2: the split 'later' is not train, val or test"),
        ("image,valence\na.jpg,high\n", {"scale": "1,9"}, "line 2: valence is 'high', not a number"),
        ("image,valence\na.jpg,4\n", {"scale": "9,1"}, "--scale 9,1 is not a lowest and a highest value"),
        ("image,x\na.jpg,4\n", {"scale": "1,9"}, "has no column valence, arousal, dominance"),
        ("image,Image\na.jpg,b.jpg\n", {}, "line 1: has the column 'image' twice"),
        ("image,text\n", {}, "has no rows"),
        ("", {}, "the file is empty"),
        (
            "image,label,split\na.jpg,x,train\na.jpg,y,test\n",
            {"annotators": True, "vocabulary_from_data": True},
            "table:a.jpg is in the splits test, train",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(write(tmp_path / "t.csv", text), **options)


def test_other_files_and_pictures_in_cells_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.xlsx: is a .xlsx, not a table"):
        read(write(tmp_path / "t.xlsx", "x"))
    with pytest.raises(InputError, match="is not a list of objects"):
        read(write(tmp_path / "t.json", '{"image": "a.jpg"}'))
    with pytest.raises(InputError, match="line 2: is not an object"):
        read(write(tmp_path / "t.jsonl", '{"image": "a.jpg"}\n[1]\n'))
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a.jpg"}]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 0: the image column holds pictures"):
        read(tmp_path / "t.parquet")


def test_the_command(tmp_path: Path, runner: Callable[..., Any]) -> None:
    path = write(tmp_path / "mine.csv", CSV)
    done = runner("data", "prepare", "table", path, "--vocabulary-from-data", "--out", tmp_path / "s.parquet")
    assert done.code == 0 and "labels     calm 1, joy 1, sadness 1" in done.out, done.err
    assert read_samples(str(tmp_path / "s.parquet")).num_rows == 3


@given(
    st.lists(
        st.text(st.characters(exclude_characters='",;\t\r\n\0', exclude_categories=["Cs"]), min_size=1), min_size=2
    )
)
def test_the_header_is_found_whatever_the_delimiter(names: list[str]) -> None:
    names = list({name.strip().casefold(): name.strip() for name in names if name.strip()}.values())
    if len(names) < 2:
        return
    for mark in ",;\t":
        assert columns_of(mark.join(names) + "\n", "t.csv") == names


def pictures(folder: Path, count: int) -> list[bytes]:
    """JPEG and PNG files of one colour each, as bytes."""
    folder.mkdir(exist_ok=True)
    found = []
    for i in range(count):
        path = folder / f"{i}.{'png' if i % 2 else 'jpg'}"
        Image.new("RGB", (20, 16), (40 * i, 90, 200 - 30 * i)).save(path)
        found.append(path.read_bytes())
    return found


@pytest.fixture
def hub_set(tmp_path: Path) -> Any:
    """A data set of Hugging Face with pictures, class numbers and lists of them, in two splits."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.List(datasets.ClassLabel(names=["awe", "joy", "fear"])),
        }
    )
    data = pictures(tmp_path / "raw", 6)

    def part(rows: range) -> Any:
        values = {
            "image": [{"bytes": data[i], "path": f"{i}.jpg" if i != 2 else None} for i in rows],
            "text": [f"picture {i}" for i in rows],
            "label": [[i % 3, 1] if i % 3 != 1 else [1] for i in rows],
        }
        return datasets.Dataset.from_dict(values, features=features)

    return datasets.DatasetDict({"train": part(range(4)), "validation": part(range(4, 6))}), data


@pytest.mark.parametrize("kind", ["save_to_disk", "folder of Parquet", "Parquet"])
def test_a_data_set_of_hugging_face_gives_named_classes_and_pictures_as_files(
    tmp_path: Path, hub_set: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, data = hub_set
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "set"
    if kind == "save_to_disk":
        found.save_to_disk(str(place))
    else:
        place.mkdir()
        for split, part in found.items():
            part.to_parquet(str(place / f"{split}-00000-of-00001.parquet"))
    path = str(place / "*.parquet") if kind == "Parquet" else f"hf:{place}"
    reader = TableReader(path=path, pictures=str(tmp_path / "out"), vocabulary_from_data=True, no_split=True)
    table, _ = reader.read()
    assert table["labels"].to_pylist() == [
        ["awe", "joy"], ["joy"], ["fear", "joy"], ["awe", "joy"], ["joy"], ["fear", "joy"],
    ]  # fmt: skip
    if kind != "Parquet":  # whose files no column names a split of
        assert table["split"].to_pylist() == ["train"] * 4 + ["val"] * 2
    assert table["captions"].to_pylist() == [[f"picture {i}"] for i in range(6)]
    addresses = table["image_uri"].to_pylist()
    assert [Path(own).read_bytes() for own in addresses] == data
    assert [Path(own).suffix for own in addresses] == [".jpg", ".png"] * 3
    assert table["sample_id"].to_pylist()[0] == "table:0.jpg"
    again, _ = reader.read()
    assert again == table and len(list((tmp_path / "out").rglob("*.*"))) == 6


def test_pictures_in_cells_need_a_place_and_names_that_are_read_do_not(tmp_path: Path) -> None:
    data = pictures(tmp_path / "raw", 1)[0]
    pq.write_table(pa.table({"image": [data], "caption": ["A field."]}), tmp_path / "bytes.parquet")
    with pytest.raises(InputError, match=r"row 0: the image column holds pictures.*--pictures FOLDER"):
        read(tmp_path / "bytes.parquet")
    table, _ = read(tmp_path / "bytes.parquet", pictures=str(tmp_path / "out"))
    assert Path(table["image_uri"][0].as_py()).read_bytes() == data
    cells = [{"bytes": None, "path": str(tmp_path / "raw/0.jpg")}]
    pq.write_table(pa.table({"image": cells, "caption": ["A field."]}), tmp_path / "path.parquet")
    table, _ = read(tmp_path / "path.parquet")
    assert table["image_uri"].to_pylist() == [str(tmp_path / "raw/0.jpg")]


def test_a_class_number_beyond_the_names_is_an_error_with_its_row(tmp_path: Path) -> None:
    features = {"label": {"names": ["awe"], "_type": "ClassLabel"}}
    table = pa.table({"caption": ["a", "b"], "label": [0, 7]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, row 1: there is no class 7 of 1 \(awe"):
        read(tmp_path / "t.parquet", vocabulary_from_data=True)


@pytest.mark.parametrize("name", ["hf:nobody/nothing", "hf:{tmp_path}/nowhere", "hf:{tmp_path}/empty"])
def test_a_data_set_that_is_not_there_is_one_line(tmp_path: Path, name: str) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"hf:.*: (cannot be read \(.*\)\. Write|there is no folder .*) hf:owner/name"):
        TableReader(path=name.format(tmp_path=tmp_path)).read()


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"not installed\. Install it: pip install 'raymotion\[datasets\]'"):
        TableReader(path="hf:owner/name").read()


def test_an_id_of_ones_own_column_stands_once(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,path\n1,a.jpg\n2,b.jpg\n2,c.jpg\n")
    with pytest.raises(InputError, match=r"t\.csv, line 4: the id '2' appears twice.*--annotators"):
        read(path, id_column="id")
    assert read(path, id_column="id", annotators=True)[0].num_rows == 2


def test_repeated_and_missing_pictures_and_odd_labels_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    text = "path,labels\na.jpg,joy\na.jpg,Joy\nb.jpg,joy|awe\ns3://bucket/c.jpg,awe\n"
    table, report = read(write(tmp_path / "t.csv", text), vocabulary_from_data=True, no_split=True)
    assert table["sample_id"].to_pylist()[:2] == ["table:a.jpg", "table:a.jpg#2"]
    assert (report.repeated, report.not_there) == (1, 1)
    told = "\n".join(report.lines())
    for sentence in ("name the picture of an earlier row", "pictures are not there",
                     "Joy and joy differ in capitals alone",
                     "the label 'joy|awe' looks like several: is --separator ';' right?"):  # fmt: skip
        assert sentence in told, told
    quiet, report = read(write(tmp_path / "u.csv", "path,labels\na.jpg,joy; awe\n"), vocabulary_from_data=True)
    assert not report.doubts and not report.not_there and not report.repeated and quiet.num_rows == 1
