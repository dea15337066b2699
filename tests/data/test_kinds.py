"""Something else than what is wanted is named with the command that takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymotion import storage
from raymotion.batch.label_dataset import read_labels_record
from raymotion.data.embedding_layout import require_complete
from raymotion.data.features import RegionFeatures
from raymotion.data.parts import write_job
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import Damaged, InputError
from raymotion.models.checkpoint import read_checkpoint_info


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind that a newcomer has at hand."""
    base = tmp_path_factory.mktemp("things")

    def file(name: str, content: bytes | str) -> None:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    file("photos/deep/er/a.JPG", b"\xff\xd8")
    file("my photos/a.png", b"\x89PNG")
    file("coco/annotations/captions_val2017.json", "{}")
    file("emotic/Annotations/Annotations.mat", b"MATLAB")
    file("captions.csv", "file,caption\na.jpg,A dog.\n")
    file("captions.jsonl", '{"file": "a.jpg", "caption": "A dog."}\n')
    file("captions_val.json", '{"info": {}, "licenses": [], "images": []}')
    file("socratis.csv", "image_name,caption\nx,y\n")
    file("annotations.csv", "Index,Folder,Filename\n")
    file("a.jpg", b"\xff\xd8")
    file("photos.zip", b"PK")
    file("recipe.yaml", "kind: teacher\n")
    file("teacher/config.json", "{}")
    file("teacher/model.safetensors", b"")
    for name, job in (("labels", "labels"), ("regions", "region-features"), ("embeddings", "embeddings")):
        file(f"{name}/_job.json", json.dumps({"job": job, "status": "complete"}))
    pq.write_table(pa.table({"url": ["http://x"]}), base / "laion.parquet")
    pq.write_table(pa.table({"sample_id": ["a"], "probabilities": [[0.5]], "selected": [True]}), base / "part.parquet")
    row = {"sample_id": "a", "group_id": "a", "source": "t"}
    write_samples(base / "samples.parquet", table_from_rows([row]))
    (base / "feelings.csv").write_text("path,text,feelings\na.jpg,A dog.,joy\n")
    (base / "feelings.jsonl").write_text('{"path": "a.jpg", "feelings": ["joy"]}\n')
    (base / "empty").mkdir()
    return base


TABLE = [
    ("photos", "is a folder of pictures, not a sample table", "data prepare folder {} --out samples.parquet"),
    ("my photos", "is a folder of pictures", "data prepare folder '{}' --out samples.parquet"),
    ("coco", "is a folder of COCO", "data prepare coco {} --out"),
    ("emotic", "is a folder of EMOTIC", "data prepare emotic {} --out"),
    ("captions.csv", "is a list of captions", "data prepare folder PICTURES --captions {} --out"),
    ("captions.jsonl", "is a list of captions", "--captions {} --out"),
    ("feelings.csv", "is a table of other columns", "raymotion data prepare table {} --out samples.parquet"),
    ("feelings.jsonl", "is a table of other columns", "raymotion data prepare table {} --out samples.parquet"),
    ("captions_val.json", "is a file of COCO's annotations", "data prepare coco ROOT"),
    ("socratis.csv", "is a file of Socratis", "data prepare socratis {} --images PICTURES --out"),
    ("a.jpg", "is a picture", "raymotion predict MODEL {}"),
    ("photos.zip", "is an archive", "Unpack it"),
    ("recipe.yaml", "is a file of settings", "raymotion train {}"),
    ("teacher", "is a checkpoint, not a sample table", "raymotion label SAMPLES --model {}"),
    ("teacher/model.safetensors", "is a file of weights", "--weights"),
    ("labels", "is a labelled data set", "--labels {} --out student/"),
    ("part.parquet", "is a labelled data set", "--labels"),
    ("regions", "is a folder of region features", "--features {}"),
    ("embeddings", "is a folder of embeddings", "--embeddings {}"),
    ("laion.parquet", "is not a sample table: lacks sample_id", "raymotion data prepare"),
]


@pytest.mark.parametrize(("name", "what", "command"), TABLE)
def test_where_a_table_is_wanted(things: Path, name: str, what: str, command: str) -> None:
    with pytest.raises(InputError) as caught:
        read_samples(things / name)
    text = str(caught.value)
    assert text.startswith(f"{things / name}: {what}") and "\n" not in text
    assert command.format(things / name) in text


@pytest.mark.parametrize(
    ("name", "read", "told"),
    [
        ("labels", read_checkpoint_info, "is a labelled data set, not a checkpoint. Train a student on it: "),
        ("samples.parquet", read_checkpoint_info, "is a sample table, not a checkpoint. Train a model on it first: "),
        ("photos", read_checkpoint_info, "is a folder of pictures, not a checkpoint"),
        ("teacher/model.safetensors", read_checkpoint_info, "is a file of weights, not a checkpoint. Name the checkpo"),
        ("samples.parquet", read_labels_record, "is a sample table, not a labelled data set. Label it first: raymotio"),
        ("teacher", read_labels_record, "is a checkpoint, not a labelled data set"),
        ("labels", RegionFeatures, "is a labelled data set, not region features"),
        ("samples.parquet", RegionFeatures, "Make them from it: raymotion features regions"),
        ("embeddings", RegionFeatures, "is a folder of embeddings, not region features"),
        ("regions", require_complete, "is a folder of region features, not embeddings"),
        ("empty", read_checkpoint_info, "is not a checkpoint: it has no config.json"),
        ("absent", read_checkpoint_info, "no such checkpoint"),
        ("absent", read_samples, "no such file"),
        ("empty", read_samples, "is a folder, not a file"),
    ],
)
def test_where_something_else_is_wanted(things: Path, name: str, read: Any, told: str) -> None:
    with pytest.raises(InputError, match=rf"{name}") as caught:
        read(str(things / name))
    assert told in str(caught.value)


def test_what_is_right_is_no_wrong_kind_wherever_it_lies(things: Path, s3: str) -> None:
    storage.write_bytes(f"{s3}/samples.parquet", (things / "samples.parquet").read_bytes())
    storage.write_bytes(f"{s3}/photos/a.jpg", b"\xff\xd8")
    for place in (str(things), s3):
        assert wrong_kind(f"{place}/samples.parquet", "table") is None
        assert wrong_kind(f"{place}/absent", "table") is None
        assert "is a folder of pictures" in str(wrong_kind(f"{place}/photos", "table"))
    assert wrong_kind(things / "labels", "labels") is None and wrong_kind(things / "teacher", "checkpoint") is None


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:4] + bytes(len(data) - 4)])
def test_a_damaged_table_is_told_as_such(things: Path, tmp_path: Path, damage: Any) -> None:
    table = tmp_path / "samples.parquet"
    table.write_bytes(damage((things / "samples.parquet").read_bytes()))
    with pytest.raises(Damaged, match=r"samples\.parquet: .*Parquet"):
        read_samples(table)
    assert wrong_kind(table, "checkpoint") is None


def test_a_folder_is_known_by_the_copy_of_its_record(tmp_path: Path) -> None:
    write_job(tmp_path, {"job": "labels", "status": "complete"})
    for damage in ("cut", "gone"):
        if damage == "cut":
            (tmp_path / "_job.json").write_text('{"job": "la')
        else:
            (tmp_path / "_job.json").unlink()
        assert "is a labelled data set" in str(wrong_kind(tmp_path, "table")), damage
    (tmp_path / "__job.json").write_text("{")
    assert wrong_kind(tmp_path, "table") is None


def test_predict_looks_at_the_picture_before_the_model(
    things: Path, tmp_path: Path, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymotion.pipeline import predictor

    monkeypatch.setattr(predictor, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    for name, told in ((tmp_path / "nofile.jpg", "nofile.jpg"), (things / "a.jpg", "is not a readable picture")):
        outcome = runner("predict", things / "teacher", name)
        assert outcome.code == 2 and told in outcome.err and outcome.out == ""
    outcome = runner("predict", things / "teacher", "--caption", "\u200b\ufeff [PAD]")
    assert outcome.code == 2 and "no caption holds a readable character" in outcome.err
