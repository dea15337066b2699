"""Exports of a labelled data set: every row can be found again, and no address is made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.batch.choice import select
from raymotion.batch.export import Exported, export, public_address
from raymotion.batch.label_dataset import load_labels, open_labels
from raymotion.batch.labels import LabelSink
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.pipeline.stages import Item
from raymotion.report.page import write_report
from raymotion.vocabulary import Vocabulary

VOCABULARY = Vocabulary("three", ("calm", "happy", "sad"))


def labelled(folder: Path, rows: list[tuple[str, str | None]]) -> Path:
    """A finished labels folder of (sample_id, image_uri) with known probabilities."""
    items = []
    for number, (sample_id, uri) in enumerate(rows):
        captions = [f'caption {number}, "quoted"', "ünïcode"]
        item = Item({"sample_id": sample_id, "image_uri": uri, "captions": captions})
        item.output["emotions"] = np.array([0.9, 0.25, 0.123456], np.float32)
        items.append(item)
    sink = LabelSink([MultiLabel(VOCABULARY)], SelectionPolicy(policy="threshold", threshold=0.5), None, True)
    storage.write_table(folder / "data/part-00000.parquet", sink.encode(items))
    record = {"job": "labels", "status": "complete", "vocabulary": VOCABULARY.to_dict()}
    storage.write_json(folder / "_job.json", record)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("sample_id", "uri", "split", "address"),
    [
        ("coco:000000000139", "/data/val2017/000000000139.jpg", None, "val2017/000000000139.jpg"),
        ("coco:000000000139:person:7", "/data/val2017/000000000139.jpg", None, "val2017/000000000139.jpg"),
        ("coco:000000000139", "s3://b/val2014/COCO_val2014_000000000139.jpg", None,
         "val2014/COCO_val2014_000000000139.jpg"),
        ("coco:000000000139", None, "train2014", "train2014/COCO_train2014_000000000139.jpg"),
        ("coco:000000000139", "/data/images/000000000139.jpg", "val2017", "val2017/000000000139.jpg"),
        # A folder that is no split of COCO, and a data set of one's own in COCO's format.
        ("coco:000000000139", "/data/images/000000000139.jpg", None, None),
        ("coco:000000000139", None, None, None),
        ("coco:000000000007", "/data/val2017/cat.png", "val2017", None),
        # Renumbered ids: the file is the picture.
        ("coco:000000000007", "/data/val2017/000000000139.jpg", None, "val2017/000000000139.jpg"),
    ],
)  # fmt: skip
def test_cocos_address_is_cocos_or_none(
    sample_id: str, uri: str | None, split: str | None, address: str | None
) -> None:
    wanted = "" if address is None else f"http://images.cocodataset.org/{address}"
    assert public_address({"sample_id": sample_id, "image_uri": uri}, split) == wanted


def test_other_pictures_have_the_address_that_they_were_read_from() -> None:
    assert public_address({"sample_id": "folder:a.jpg", "image_uri": "s3://b/a.jpg"}) == "s3://b/a.jpg"
    assert public_address({"sample_id": "folder:a.jpg", "image_uri": "/home/me/a.jpg"}) == ""


def test_the_public_format_without_any_address_is_refused(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "labels", [("coco:000000000139", None), ("coco:000000000285", None)])
    with pytest.raises(InputError, match=r"coco_url.*--coco-split val2017"):
        export(folder, tmp_path / "a.csv", "csv")
    assert not (tmp_path / "a.csv").exists()
    assert export(folder, tmp_path / "a.csv", "csv", coco_split="val2017") == Exported(2)
    urls = [row["coco_url"] for row in read(tmp_path / "a.csv")]
    assert urls == [f"http://images.cocodataset.org/val2017/{n:012d}.jpg" for n in (139, 285)]


def test_the_full_csv_holds_id_address_captions_labels_and_probabilities(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "labels", [("folder:a, b.jpg", "/home/me/a, b.jpg"), ("x:1", None)])
    assert export(folder, tmp_path / "a.csv", "full-csv") == Exported(2, without_address=1)
    first, second = read(tmp_path / "a.csv")
    assert list(first) == ["sample_id", "image_uri", "public_url", "captions", "labels", "p_calm", "p_happy", "p_sad"]
    assert (first["sample_id"], first["image_uri"], first["public_url"]) == ("folder:a, b.jpg", "/home/me/a, b.jpg", "")
    assert json.loads(first["captions"]) == ['caption 0, "quoted"', "ünïcode"]
    assert json.loads(first["labels"]) == ["calm"]
    probabilities = [float(second[f"p_{name}"]) for name in VOCABULARY.labels]
    assert probabilities == pytest.approx([0.9, 0.25, 0.123456], abs=1e-6)


def test_the_command_counts_rows_without_an_address(tmp_path: Path, runner: Any) -> None:
    folder = labelled(tmp_path / "labels", [("x:0", "https://host/a.jpg"), ("x:1", None)])
    done = runner("export", folder, "--format", "csv", "--out", tmp_path / "a.csv")
    assert (done.code, done.out) == (0, f"2 images -> {tmp_path / 'a.csv'}\n")
    assert done.err == "warning: 1 of 2 rows have no address for their picture\n"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("coco-json", '{"info": {"description": "COCO 2017 Dataset","url": "http://cocodataset.org"}, "images": []}'),
        ("full-csv", "sample_id,price\na,1\n"),
        ("full-csv", "sample_id,image_uri,public_url,captions,labels,p_calm\n"),
        ("csv", "coco_url,captions\n"),
    ],
)
def test_a_file_that_only_begins_like_an_export_is_kept(tmp_path: Path, kind: str, text: str) -> None:
    folder = labelled(tmp_path / "labels", [("coco:000000000139", "/val2017/000000000139.jpg")])
    (tmp_path / "mine").write_text(text)
    with pytest.raises(InputError, match="mine: "):
        export(folder, tmp_path / "mine", kind)
    assert (tmp_path / "mine").read_text() == text
    for _ in range(2):
        export(folder, tmp_path / "ours", kind)


def test_an_export_whose_first_line_is_longer_than_what_is_looked_at_is_replaced(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "labels", [("a", "/a.jpg")])
    names = [f"{name}{'é' * 2000}" for name in VOCABULARY.labels]
    record = {"job": "labels", "status": "complete", "vocabulary": Vocabulary("three", tuple(names)).to_dict()}
    storage.write_json(folder / "_job.json", record)
    for _ in range(2):
        export(folder, tmp_path / "ours", "full-csv")


def test_labels_of_a_model_without_emotions(tmp_path: Path) -> None:
    """Its numbers can be exported and opened; what needs emotions says that there are none."""
    table = pa.table({
        "sample_id": ["a", "b"], "image_uri": ["s3://b/a.jpg", None], "image_bytes": [1, None],
        "captions": [["one"], []], "valence": pa.array([1.5, None], pa.float32()),
    })  # fmt: skip
    storage.write_table(tmp_path / "l/data/part-00000.parquet", table)
    storage.write_json(tmp_path / "l/_job.json", {"job": "labels", "status": "complete", "vocabulary": None})
    assert export(tmp_path / "l", tmp_path / "all.csv", "full-csv") == Exported(2, 1)
    assert (tmp_path / "all.csv").read_text().splitlines() == [
        "sample_id,image_uri,public_url,captions,valence", 'a,s3://b/a.jpg,s3://b/a.jpg,"[""one""]",1.5', "b,,,[],"
    ]  # fmt: skip
    assert open_labels(tmp_path / "l").equals(table.to_pandas()) and not open_labels(tmp_path / "l").attrs["labels"]
    for use in (
        lambda: export(tmp_path / "l", tmp_path / "x", "csv"),
        lambda: export(tmp_path / "l", tmp_path / "x", "coco-json"),
        lambda: select(tmp_path / "l", tmp_path / "x", SelectionPolicy()),
        lambda: load_labels(tmp_path / "l"),
        lambda: write_report(tmp_path / "l", tmp_path / "x.html"),
    ):
        with pytest.raises(InputError, match="no labels"):
            use()


def test_an_emotion_with_the_name_of_a_column(tmp_path: Path) -> None:
    words = Vocabulary("odd", ("selected", "calm"))
    table = pa.table(
        {"sample_id": ["a"], "probabilities": pa.array([[0.25, 0.5]], pa.list_(pa.float32(), 2)), "selected": [True]}
    )
    storage.write_table(tmp_path / "data/part-00000.parquet", table)
    storage.write_json(tmp_path / "_job.json", {"job": "labels", "status": "complete", "vocabulary": words.to_dict()})
    assert open_labels(tmp_path).to_dict("records") == [
        {"sample_id": "a", "p_selected": 0.25, "calm": 0.5, "selected": True}
    ]
    assert open_labels(tmp_path).attrs["labels"] == ["p_selected", "calm"]


@pytest.mark.parametrize("kind, name", [("full-csv", "x.xlsx"), ("csv", "x.json"), ("coco-json", "x.csv")])
def test_a_file_of_another_format_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: ends in \{Path(name).suffix}, and {kind} is written\. Name a"):
        export(tmp_path / "labels", tmp_path / name, kind)
