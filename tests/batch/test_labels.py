"""The labelling job with real teachers (untrained, small): what it reads, what it chooses, what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from raymotion import storage
from raymotion.batch.choice import choose_globally, select
from raymotion.batch.export import PUBLISHED_ORDER, Exported, export
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.label_dataset import matrix_of, open_labels, read_parts
from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.regions import RegionSettings, extract_regions
from raymotion.batch.spec import FEWEST_FOR_RAY
from raymotion.data.images.decode import decode_rgb
from raymotion.data.parts import write_job
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.data.views.pictures import render
from raymotion.errors import InputError, SettingsMismatch
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import load_model, save_checkpoint
from raymotion.models.inputs.base import Arrays
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.student.network import Student, StudentConfig
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import RegionExtractor, Regions, identify
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

EXTRACTOR, WEIGHTS, COUNT = "fasterrcnn_mobilenet_v3_large_320_fpn", "random:0", 4
pytestmark = pytest.mark.usefixtures("ray_jobs")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two checkpoints: `text` was trained on captions alone, `both` on captions and regions."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer = train_tokenizer([f"caption {i} and another one" for i in range(50)], size=120)
    made = {}
    captions = Captions(64, tokenizer=tokenizer)
    regions = RegionInput(identify(EXTRACTOR, WEIGHTS, COUNT))
    for name, inputs in (("text", [captions]), ("both", [captions, regions])):
        torch.manual_seed(7)
        config = TeacherConfig(size="tiny", vocab_size=len(tokenizer), visual_dim=1024, normalize_regions=True)  # type: ignore[call-arg]
        model = VisualBertTeacher(config, 29)
        torch.nn.init.normal_(model.head.weight, std=1.0)  # else every probability of an untrained head is 0.5
        save_checkpoint(
            folder / name,
            get_kind("teacher-visualbert"),
            model,
            inputs,
            [MultiLabel(SOCRATIS_29)],
            training={"outputs": {"emotions": {"thresholds": [0.5] * 29, "prior": [0.1] * 29}}},
        )
        made[name] = str(folder / name)
    return made


def teacher_says(folder: str, captions: list[str], regions: Regions | None = None) -> np.ndarray:
    """The probabilities (29,) of one sample, without pipeline or job."""
    model = load_model(folder, kind="teacher-visualbert")
    own = model.info.input("captions")
    assert isinstance(own, Captions)
    evidence: dict[str, Any] = {"captions": own.tokens([captions])}
    if regions is not None:
        values = {"regions": regions.features, "region_mask": regions.mask}
        evidence["regions"] = Arrays("regions", regions.mask.any(axis=1), values)
    return np.asarray(model.predict(evidence)["emotions"][0])


def settings(table: Path | str, teacher: str, out: Path | str, **more: Any) -> LabelSettings:
    return LabelSettings(samples=str(table), model=teacher, out=str(out), workers=1, max_failed=0.5, **more)


def table_of(folder: Path | str) -> pa.Table:
    return pa.concat_tables([part for _, part in read_parts(folder)])


@dataclass(frozen=True)
class Made:
    """A finished job: its sample table, its folder, and its summary."""

    samples: Path
    folder: Path
    summary: JobSummary


def write_images(folder: Path, rows: int, damaged: dict[int, bytes]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(rows):
        path = folder / f"{row:05d}.jpg"
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
        if row in damaged:
            path.write_bytes(damaged[row])
    table = table_from_rows(
        {
            "sample_id": f"x:{row}", "group_id": f"x:{row}", "image_uri": str(folder / f"{row:05d}.jpg"),
            "captions": [] if row == 2 else [f"caption {row}", "another"], "source": "x",
        }
        for row in range(rows)
    )  # fmt: skip
    write_samples(folder / "samples.parquet", table)
    return folder / "samples.parquet"


@pytest.fixture(scope="module")
def streamed(ray_jobs: Any, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Ten images, one cut off, one without a caption, labelled by the teacher of captions and regions."""
    folder = tmp_path_factory.mktemp("streamed")
    samples = write_images(folder / "images", 10, {3: b"\xff\xd8\xff cut"})
    return Made(samples, folder / "out", label(settings(samples, teachers["both"], folder / "out", shard_rows=4)))


@pytest.fixture(scope="module")
def captioned(ray_jobs: Any, teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """COCO-like samples without images, labelled by the teacher of captions alone.

    Two have nothing to read, and as each is a shard of its own, two parts have no rows.
    """
    folder = tmp_path_factory.mktemp("captioned")
    captions = [["a caption", "another"], ["caption 1"], [], ["  "], ["caption 4"]]
    uris = ["d/val2017/000000000139.jpg", "d/val2014/COCO_val2014_000000000285.jpg", "d/1.jpg", "d/2.jpg", None]
    ids = ["coco:000000000139", "coco:000000000285", "mine:1", "mine:2", "mine:3"]
    samples = folder / "samples.parquet"
    rows = zip(ids, uris, captions, strict=True)
    table = table_from_rows(
        {"sample_id": i, "group_id": i, "image_uri": uri, "captions": own, "source": "x"} for i, uri, own in rows
    )
    write_samples(samples, table)
    return Made(samples, folder / "out", label(settings(samples, teachers["text"], folder / "out", shard_rows=1)))


@pytest.mark.slow
def test_other_programs_find_the_good_rows_by_the_folders_name(streamed: Made) -> None:
    """Nine rows: not the one in quarantine, nor those of the manifest."""
    folder = str(streamed.folder)
    assert len(pd.read_parquet(folder)) == pa.dataset.dataset(folder).count_rows() == 9
    assert pq.read_table(folder).column("sample_id").to_pylist() == [f"x:{i}" for i in range(10) if i != 3]
    assert len(list(streamed.folder.rglob("*.parquet"))) == 3  # what DuckDB and polars find


@pytest.mark.slow
def test_duckdb_and_datasets_find_them_too(streamed: Made, tmp_path: Path) -> None:
    duckdb, datasets = pytest.importorskip("duckdb"), pytest.importorskip("datasets")
    for what in (f"'{streamed.folder}/**/*.parquet'", f"'{streamed.folder}/data/*.parquet'"):
        assert duckdb.sql(f"SELECT count(*) FROM {what}").fetchall() == [(9,)]
    loaded = datasets.load_dataset(str(streamed.folder), cache_dir=str(tmp_path))
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": 9}


def test_open_labels_names_each_emotion(streamed: Made) -> None:
    frame = open_labels(streamed.folder)
    assert len(frame) == 9 and frame.columns[0] == "sample_id" and "probabilities" not in frame.columns
    assert frame.attrs["labels"] == list(SOCRATIS_29.labels)
    named = frame[frame.attrs["labels"]].to_numpy()
    assert named.dtype == np.float32
    np.testing.assert_array_equal(named, matrix_of(table_of(streamed.folder)))
    assert frame["labels"].map(len).tolist() == [4] * 9


def test_the_card_says_what_the_data_set_is(streamed: Made, teachers: dict[str, str], tmp_path: Path) -> None:
    text = (streamed.folder / "_README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["configs"][0]["data_files"] == "data/*.parquet" and header["size_categories"] == ["n<1K"]
    for words in (
        streamed.summary.record["collapse"]["headline"], "9 good rows, 1 in quarantine (1 image_truncated",
        streamed.summary.record["model"]["fingerprint"], "captions and regions", "RANDOM WEIGHTS",
        "| probabilities | fixed_size_list", ", ".join(SOCRATIS_29.labels), "top-per-image",
    ):  # fmt: skip
        assert words in text, words
    select(streamed.folder, tmp_path / "b", SelectionPolicy(policy="threshold", threshold=0.6))
    other = (tmp_path / "b/_README.md").read_text()
    assert "threshold 0.6" in other and len(pd.read_parquet(tmp_path / "b")) == 9


def test_a_folder_of_another_layout_is_refused(streamed: Made, teachers: dict[str, str], tmp_path: Path) -> None:
    write_job(tmp_path / "old", {**streamed.summary.record, "format": 2})
    with pytest.raises(InputError, match=r"old: .*layout 2.* 3"):
        label(settings(streamed.samples, teachers["both"], tmp_path / "old", shard_rows=4))
    with pytest.raises(InputError, match="layout 2"):
        open_labels(tmp_path / "old")


def test_regions_and_captions_in_one_stream(streamed: Made, teachers: dict[str, str]) -> None:
    summary = streamed.summary
    assert summary.counts["in"] == 10 and summary.counts["good"] == 9
    assert any("RANDOM WEIGHTS" in notice for notice in summary.record["notices"])
    got = table_of(streamed.folder)
    vocabulary = Vocabulary.from_metadata(got.schema.metadata)
    assert vocabulary is not None and vocabulary.labels == SOCRATIS_29.labels
    # The same by hand, one image at a time, without the job: decode, regions, teacher. Row 2 has no caption.
    extractor = RegionExtractor(EXTRACTOR, WEIGHTS, COUNT)
    for row, probabilities in list(zip(got.to_pylist(), matrix_of(got), strict=True))[:3]:
        regions = extractor([decode_rgb(Path(row["image_uri"]).read_bytes())])
        expected = teacher_says(teachers["both"], row["captions"], regions)
        np.testing.assert_allclose(probabilities, expected, atol=5e-3)
        order = np.argsort(-probabilities)[:4]
        assert row["labels"] == [SOCRATIS_29.labels[i] for i in sorted(order)] and row["selected"]
    assert got.column("captions").to_pylist()[:3] == [["caption 0", "another"], ["caption 1", "another"], []]


def test_the_same_command_after_a_picture_changed_is_refused(
    streamed: Made, teachers: dict[str, str], tmp_path: Path
) -> None:
    """Finished as the job is: who reads its rows finds other pictures at their addresses."""
    path = streamed.samples.with_name("00005.jpg")
    table, kept = table_of(streamed.folder), path.read_bytes()
    place = table.column("sample_id").to_pylist().index("x:5")
    assert table.column("image_bytes")[place].as_py() == len(kept)
    same = settings(streamed.samples, teachers["both"], streamed.folder, shard_rows=4)
    assert label(same).already_complete
    path.write_bytes(streamed.samples.with_name("00006.jpg").read_bytes())
    try:
        with pytest.raises(SettingsMismatch, match=r"x:5 .*another picture.*fresh output folder"):
            label(same)
    finally:
        path.write_bytes(kept)


@pytest.mark.slow
def test_features_made_before_give_the_same_labels(
    streamed: Made, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extract_regions(
        RegionSettings(
            samples=str(streamed.samples), out=str(tmp_path / "f"), extractor=EXTRACTOR, weights=WEIGHTS, count=COUNT,
            workers=1, max_failed=0.5,
        )
    )  # fmt: skip
    cached = label(
        settings(streamed.samples, teachers["both"], tmp_path / "b", features=str(tmp_path / "f"), shard_rows=4)
    )
    a, b = table_of(streamed.folder), table_of(tmp_path / "b")
    assert a.column("sample_id") == b.column("sample_id") and len(a) == 9
    np.testing.assert_allclose(matrix_of(a), matrix_of(b), atol=2e-3)  # features were stored as float16
    assert cached.counts["by_reason"] == {"no_features": 1}
    for name in ("image_uri", "image_bytes", "image_digest"):  # of the pictures that the features were made from
        assert a.column(name) == b.column(name) and not a.column(name).null_count


def test_a_teacher_of_captions_alone_reads_no_image_and_says_so(captioned: Made, teachers: dict[str, str]) -> None:
    assert captioned.summary.record["notices"] == [
        "The model was trained on captions alone: it labels from those, and no image was read."
    ]
    expected = teacher_says(teachers["text"], ["a caption", "another"])
    np.testing.assert_allclose(matrix_of(table_of(captioned.folder))[0], expected, atol=1e-5)


def test_a_sample_without_anything_to_read_is_quarantined(captioned: Made) -> None:
    assert captioned.summary.counts == {"in": 5, "good": 3, "quarantined": 2, "by_reason": {"no_input": 2}}


@pytest.mark.slow
def test_the_best_of_each_class_over_the_whole_set(streamed: Made, teachers: dict[str, str], tmp_path: Path) -> None:
    """In the job itself; `select` with the same policy, from other labels, gives the same."""
    out, policy = tmp_path / "out", {"policy": "top-per-class", "count": 2}
    summary = label(settings(streamed.samples, teachers["text"], out, shard_rows=4, selection=policy))
    got = table_of(out)
    matrix = matrix_of(got)
    for column, name in enumerate(SOCRATIS_29.labels):
        best = set(np.argsort(-matrix[:, column], kind="stable")[:2].tolist())
        assert {i for i, labels in enumerate(got.column("labels").to_pylist()) if name in labels} == best
    assert got.column("selected").to_pylist() == [bool(labels) for labels in got.column("labels").to_pylist()]
    assert summary.record["choice"]["labels"] == 58
    # 9 images are too few for the collapse check, which says so, in the first line of the command's output.
    assert summary.record["collapse"]["headline"].startswith(
        "No collapse found, with a reservation: 9 images are too few"
    )
    # The books follow the files that the choice rewrote.
    for path in sorted(out.glob("data/part-*.parquet")):
        commit = json.loads((out / "_commits" / path.with_suffix(".json").name).read_text())
        assert commit["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # Chosen again, nothing changes: an interrupted choice can be repeated.
    before = [path.read_bytes() for path in sorted(out.glob("data/part-*"))]
    choose_globally(str(out), str(out), SelectionPolicy.model_validate(policy), SOCRATIS_29, None)
    assert [path.read_bytes() for path in sorted(out.glob("data/part-*"))] == before


def test_select_chooses_anew_without_a_model(streamed: Made, tmp_path: Path) -> None:
    record = select(streamed.folder, tmp_path / "b", SelectionPolicy(policy="threshold", threshold=0.6))
    a, b = table_of(streamed.folder), table_of(tmp_path / "b")
    np.testing.assert_array_equal(matrix_of(a), matrix_of(b))
    for labels, row in zip(b.column("labels").to_pylist(), matrix_of(b), strict=True):
        assert labels == [name for name, p in zip(SOCRATIS_29.labels, row, strict=True) if p >= 0.6]
    assert record["settings"]["selection"]["policy"] == "threshold"
    assert (tmp_path / "b/_quarantine/part-00000.pq").exists()
    with pytest.raises(InputError, match="holds a data set"):
        select(streamed.folder, tmp_path / "b", SelectionPolicy())
    # One that was interrupted: its record says that it is not done, so the same command begins anew.
    write_job(tmp_path / "b", {**record, "status": "running"})
    assert select(streamed.folder, tmp_path / "b", SelectionPolicy())["status"] == "complete"
    sampled = select(streamed.folder, tmp_path / "c", SelectionPolicy(sample_fraction=0.5, seed=1))
    assert 0 < sampled["choice"]["selected"] < 9
    fitted = select(streamed.folder, tmp_path / "d", SelectionPolicy(policy="class-thresholds"))
    assert fitted["choice"]["labels"] == int((matrix_of(a) >= 0.5).sum()), "the teacher's thresholds are 0.5"


def test_export_as_the_public_system_wrote_it(captioned: Made, tmp_path: Path) -> None:
    assert export(captioned.folder, tmp_path / "labels.csv", "csv") == Exported(3, without_address=1)
    with open(tmp_path / "labels.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows[0]) == 31 and rows[0][:2] == ["coco_url", "captions"] and tuple(rows[0][2:]) == PUBLISHED_ORDER
    assert sorted(PUBLISHED_ORDER) == list(SOCRATIS_29.labels)
    first = table_of(captioned.folder).to_pylist()[0]
    assert rows[1][0] == "http://images.cocodataset.org/val2017/000000000139.jpg"
    assert literal_eval(rows[1][1]) == first["captions"] == ["a caption", "another"]
    assert {name for name, mark in zip(rows[0][2:], rows[1][2:], strict=True) if mark == "1.0"} == set(first["labels"])


@pytest.mark.slow
def test_everything_on_s3(s3: str, captioned: Made, teachers: dict[str, str]) -> None:
    """Samples, teacher, labels, another choice, export: no local path at all, and the same labels."""
    for name in storage.list_names(teachers["text"]):
        storage.write_bytes(f"{s3}/teacher/{name}", storage.read_bytes(f"{teachers['text']}/{name}"))
    storage.write_bytes(f"{s3}/samples.parquet", captioned.samples.read_bytes())
    job = settings(f"{s3}/samples.parquet", f"{s3}/teacher", f"{s3}/labels", shard_rows=1)
    assert label(job).counts == captioned.summary.counts
    assert table_of(f"{s3}/labels") == table_of(captioned.folder)
    assert label(job).already_complete
    select(f"{s3}/labels", f"{s3}/chosen", SelectionPolicy(policy="top-per-class", count=1))
    assert export(f"{s3}/chosen", f"{s3}/labels.csv", "csv").rows >= 1
    assert storage.read_text(f"{s3}/labels.csv").startswith("coco_url,captions,curious,")


def test_export_as_coco_json(captioned: Made, tmp_path: Path) -> None:
    export(captioned.folder, tmp_path / "labels.json", "coco-json")
    value = json.loads((tmp_path / "labels.json").read_text())
    assert [image["id"] for image in value["images"]] == [139, 285, 286], "numbered above COCO's own"
    assert value["images"][1]["coco_url"] == "http://images.cocodataset.org/val2014/COCO_val2014_000000000285.jpg"
    names = {c["id"]: c["name"] for c in value["categories"]}
    first = table_of(captioned.folder).to_pylist()[0]
    own = [a for a in value["annotations"] if a["image_id"] == 139]
    assert {names[a["category_id"]] for a in own} == set(first["labels"])
    assert own[0]["score"] == pytest.approx(first["probabilities"][own[0]["category_id"] - 1], abs=1e-5)


@pytest.mark.parametrize(
    ("teacher", "more", "message"),
    [
        ("text", {"features": "anywhere"}, "captions.* would not use --features"),
        ("both", {"weights": "random:1"}, "random:1.*random:0"),
        ("both", {"features": "absent"}, "no such folder"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(
    streamed: Made,
    teachers: dict[str, str],
    tmp_path: Path,
    teacher: str,
    more: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        label(settings(streamed.samples, teachers[teacher], tmp_path / "out", **more))


def test_another_teacher_on_the_same_folder_shows_the_difference(captioned: Made, teachers: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"settings.*model\.fingerprint: \w+ there, \w+ here"):
        label(settings(captioned.samples, teachers["both"], captioned.folder))
    with pytest.raises(InputError, match=r"selection.count: 4 there, 2 here"):
        label(settings(captioned.samples, teachers["text"], captioned.folder, selection={"count": 2}))


def write_student(folder: Path, *, reads_captions: bool = True) -> str:
    tokenizer = train_tokenizer([f"caption {i} and another one" for i in range(50)], size=120)
    torch.manual_seed(7)
    shape = {"image_size": 32, "channels": [4, 8], "embedding_size": 8, "text_size": 8, "hidden_size": 16}
    model = Student(StudentConfig.model_validate({**shape, "vocab_size": len(tokenizer)}), 29)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    torch.nn.init.normal_(model.no_image)  # or a picture that is masked would be one that is black
    torch.nn.init.normal_(model.no_text)
    inputs = [Captions(64, tokenizer=tokenizer, used=reads_captions), PictureInput(32)]
    save_checkpoint(folder, get_kind("student"), model, inputs, [MultiLabel(SOCRATIS_29)], training={})
    return str(folder)


@pytest.mark.parametrize("reads_captions", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_student_labels_from_pictures_and_captions(tmp_path: Path, reads_captions: bool) -> None:
    """Row 2 has no caption, 3 a damaged picture, 5 no picture, 6 neither."""
    table = pq.read_table(write_images(tmp_path / "images", 7, {3: b"\xff\xd8\xff cut"}))
    rows = table.to_pylist()
    rows[5]["image_uri"] = rows[6]["image_uri"] = None
    rows[6]["captions"] = ["  "]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows))
    student = write_student(tmp_path / "student", reads_captions=reads_captions)
    summary = label(settings(tmp_path / "s.parquet", student, tmp_path / "out", shard_rows=4))
    failed = {"image_truncated": 1, "no_input": 1 if reads_captions else 2}
    bad = sum(failed.values())
    assert summary.counts == {"in": 7, "good": 7 - bad, "quarantined": bad, "by_reason": failed}
    got = table_of(tmp_path / "out")
    # The same in plain Python: the picture decoded, made small, and masked where there is none.
    loaded = load_model(student, kind="student")
    own = loaded.info.input("captions")
    assert isinstance(own, Captions)
    for row, probabilities in zip(got.to_pylist(), matrix_of(got), strict=True):
        uri = row["image_uri"]
        pixels = np.zeros((1, 32, 32, 3), np.uint8)
        if uri is not None:
            pixels = render(decode_rgb(Path(uri).read_bytes(), min_side=32), 32)[None]
        captions = rows[int(row["sample_id"][2:])]["captions"]
        there = np.array([uri is not None])
        picture = Arrays("picture", there, {"images": pixels, "image_mask": there})
        expected = loaded.predict({"captions": own.tokens([captions]), "picture": picture})["emotions"][0]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=row["sample_id"])
        assert row["captions"] == (captions if reads_captions else [])
    assert len({tuple(row.round(4)) for row in matrix_of(got)}) == 7 - bad, "an answer for each sample"


def test_a_student_has_no_use_for_region_features(streamed: Made, tmp_path: Path) -> None:
    student = write_student(tmp_path / "student")
    with pytest.raises(InputError, match=r"reads captions and images itself.* --features"):
        label(settings(streamed.samples, student, tmp_path / "out", features="anywhere"))


def test_without_ray_the_same_files(streamed: Made, teachers: dict[str, str], tmp_path: Path, digests: Any) -> None:
    """A cut-off picture goes into quarantine here too; what was committed before an interruption stays."""
    again = settings(streamed.samples, teachers["both"], tmp_path / "out", shard_rows=4)
    threads = torch.get_num_threads()
    own = label(again.model_copy(update={"workers": 0}))
    assert torch.get_num_threads() == threads, "a notebook goes on with its own"
    assert own.record["throughput"]["workers"] == 0 and own.counts == streamed.summary.counts
    assert digests(tmp_path / "out") == digests(streamed.folder)
    assert len(digests(tmp_path / "out")) == 4  # three shards, one of them with a part in quarantine


def test_without_ray_an_interrupted_job_goes_on(mean_job: Any, mean_stage: Any, write_table: Any, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    samples, stage, seen = write_table(10), mean_stage(), []
    process = type(stage).process

    def stops(self: Any, items: Any) -> None:
        seen.extend(item.row["sample_id"] for item in items)
        if len(seen) == 7:
            raise KeyboardInterrupt
        process(self, items)

    monkeypatch.setattr(type(stage), "process", stops)
    job = mean_job(stage=stage, samples=samples, out=tmp_path / "out", workers=0, shard_rows=3, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert json.loads((tmp_path / "out" / "_job.json").read_text())["status"] == "interrupted"
    summary = run_job(job)
    assert summary.counts["good"] == 10 and summary.record["runs"][-1]["resumed_from_shards"] == 2
    assert len(seen) == 7 + 4, "the two shards that were committed ran once"


@pytest.mark.parametrize(
    "rows, address, more, here",
    [
        (FEWEST_FOR_RAY - 1, None, {}, True),
        (FEWEST_FOR_RAY, None, {}, False),
        (5, "auto", {}, False),
        (5, None, {"workers": 1}, False),
        (5, None, {"gpus_per_worker": 0.0}, False),
        (10**6, None, {"workers": 0}, True),
    ],
)
def test_few_rows_need_no_ray(rows: int, address: str | None, more: dict[str, Any], here: bool) -> None:
    assert LabelSettings(samples="s", model="m", out="o", **more).runs_here(rows, address) is here


@pytest.mark.parametrize("more", [{"address": "auto"}, {"autoscale": True}, {"gpus_per_worker": 1.0}])
def test_workers_0_and_a_cluster_are_refused(more: dict[str, Any]) -> None:
    address = more.pop("address", None)
    with pytest.raises(InputError, match="--workers 0 is this process"):
        LabelSettings(samples="s", model="m", out="o", workers=0, **more).runs_here(5, address)


@pytest.mark.slow
def test_a_small_job_never_imports_ray(captioned: Made, teachers: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom raymotion.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'ray' not in sys.modules, 'Ray was imported'\n"
    )
    command = [
        "label",
        captioned.samples,
        "--model",
        teachers["text"],
        "--out",
        tmp_path / "out",
        "--progress",
        "lines",
    ]
    done = subprocess.run([sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this process, without Ray (--workers 1 or more starts it)" in done.stderr
    assert "in this process, without Ray" in done.stdout
