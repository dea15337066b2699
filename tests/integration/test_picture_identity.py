"""Two folders with the same file names and other pictures, through everything that joins rows to samples."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raymotion import storage
from raymotion.batch.embeddings import EmbeddingSink
from raymotion.batch.label_dataset import load_labels
from raymotion.batch.labels import LabelSettings, LabelSink, label
from raymotion.batch.preflight import require_same_pictures_as_before
from raymotion.batch.regions import RegionSink
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.embeddings import Embeddings
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError, SettingsMismatch
from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from raymotion.evaluation.matched_pictures import check_matched
from raymotion.evaluation.matching import match
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import ExtractorIdentity, Regions
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.pipeline.embed import DecodeOnce
from raymotion.pipeline.stages import DecodeImages, Item, LoadRegions
from raymotion.report.audit import AuditSettings, audit_against_truth, audit_samples
from raymotion.report.cards import thumbnail
from raymotion.train.pictures import cache_pictures
from raymotion.train.prepare import prepare_data
from raymotion.vocabulary import VALENCE_3

ROWS = 12
EXTRACTOR = ExtractorIdentity(name="fasterrcnn_mobilenet_v3_large_320_fpn", weights="random:0", count=2, dim=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def paint(path: Path, seed: int) -> None:
    """A smooth picture, so that a copy of it in another size is told from another one."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(small).resize((60, 48), Image.Resampling.BICUBIC).save(path)


def write_folder(folder: Path, seed: int, *, kind: str = "bmp", prefix: str = "folder:") -> Path:
    """Pictures of one size under the same names, and their sample table."""
    folder.mkdir()
    for i in range(ROWS):
        paint(folder / f"frame_{i:04d}.{kind}", 1000 * seed + i)
    return write_table(folder, kind=kind, prefix=prefix)


def write_table(folder: Path, *, kind: str = "bmp", prefix: str = "folder:", **changes: Any) -> Path:
    rows = [
        {
            "sample_id": f"{prefix}frame_{i:04d}", "group_id": f"{i}", "source": "t", "captions": [f"caption {i}"],
            "image_uri": str(folder / f"frame_{i:04d}.{kind}"), "labels": [VALENCE_3.labels[i % 3]],
            "split": ("train", "train", "val", "test")[i % 4], "body_box": [1, 2, 30, 40], "face_box": [3, 4, 9, 9],
            **changes,
        }
        for i in range(ROWS)
    ]  # fmt: skip
    path = folder.with_suffix(f".{len(list(folder.parent.glob('*.parquet')))}.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3))
    return path


def items_of(samples: Path) -> list[Item]:
    items = [Item(row) for row in read_samples(samples).to_pylist()]
    DecodeOnce().process(items)
    assert all(item.mark is not None for item in items)
    return items


def finish(folder: Path, table: Any, kind: str, **record: Any) -> Path:
    storage.write_table(folder / "data/part-00000.parquet", table)
    job = {"job": kind, "status": "complete", "runs": [{"started": "2024-01-01T00:00:00Z"}], **record}
    storage.write_json(folder / "_job.json", job)
    return folder


def region_features(folder: Path, samples: Path) -> Path:
    items = items_of(samples)
    n, d = EXTRACTOR.count, EXTRACTOR.dim
    for item in items:
        item.regions = Regions(
            np.ones((n, d), np.float32), np.zeros((n, 4), np.float32), np.zeros(n, np.float32), np.ones(n, bool)
        )
    identity = {"extractor": EXTRACTOR.to_dict()}
    return finish(folder, RegionSink(EXTRACTOR).encode(items), "region-features", identity=identity)


def embeddings(folder: Path, samples: Path, streams: tuple[str, ...] = ("context", "body")) -> Path:
    shapes = {FeatureKey(stream, "net"): FeatureShape(1, 3) for stream in streams}
    items = items_of(samples)
    for item in items:
        item.output = {key.column: np.ones((1, 3), np.float16) for key in shapes}
    layout = EmbeddingLayout(shapes, {"net": {"name": "net", "dim": 3}}, {"none": 1}, seed=0)
    return finish(folder, EmbeddingSink(layout).encode(items), "embeddings")


def labels(folder: Path, samples: Path, *, read: bool = True) -> Path:
    items = items_of(samples) if read else [Item(row) for row in read_samples(samples).to_pylist()]
    rng = np.random.default_rng(0)
    for item in items:
        item.output["emotions"] = rng.random(3).astype(np.float32)
    sink = LabelSink([MultiLabel(VALENCE_3)], SelectionPolicy(policy="top-per-image", count=1), None, True)
    return finish(folder, sink.encode(items), "labels", vocabulary=VALENCE_3.to_dict(), counts={"good": ROWS})


def teacher(folder: Path) -> str:
    tokenizer = train_tokenizer([f"caption {i}" for i in range(20)], size=80)
    torch.manual_seed(0)
    config = TeacherConfig(size="tiny", vocab_size=len(tokenizer), visual_dim=EXTRACTOR.dim)  # type: ignore[call-arg]
    save_checkpoint(
        folder, get_kind("teacher-visualbert"), VisualBertTeacher(config, 3),
        [Captions(64, tokenizer=tokenizer), RegionInput(EXTRACTOR)], [MultiLabel(VALENCE_3)],
        training={"outputs": {"emotions": {"thresholds": [0.5] * 3, "prior": [0.3] * 3}}},
    )  # fmt: skip
    return str(folder)


def learn_from_regions(folder: Path, samples: Path) -> None:
    data = {"samples": str(samples), "features": str(folder)}
    prepare_data(TeacherRecipe.model_validate({"data": data, "model": {"size": "tiny"}, "tokenizer": {"size": 100}}))


def label_from_regions(folder: Path, samples: Path) -> None:
    out = folder.with_name("labelled")
    label(LabelSettings(samples=str(samples), model=teacher(out.with_name("t")), out=str(out), features=str(folder)))


def evaluate_on_regions(folder: Path, samples: Path) -> None:
    out, checkpoint = folder.with_name("evaluated"), teacher(folder.with_name("t"))
    evaluate_checkpoint(
        EvaluateSettings(samples=str(samples), model=checkpoint, out=str(out), features=str(folder), split="all")
    )


def learn_from_embeddings(folder: Path, samples: Path) -> None:
    data = {"samples": str(samples), "embeddings": [str(folder)]}
    prepare_data(FusionRecipe.model_validate({"data": data, "backbones": {"context": "net", "body": "net"}}))


def audit(folder: Path, samples: Path, **settings: Any) -> dict[str, Any]:
    out = folder.with_name("audit")
    return dict(audit_against_truth(folder, samples, out, AuditSettings(bootstrap=0, examples=0, **settings)).record)


def audit_by_name(folder: Path, samples: Path) -> None:
    audit(folder, samples, on="image-name")


def audit_humans(folder: Path, samples: Path) -> None:
    audit_samples(samples, folder, folder.with_name("audit"), AuditSettings(bootstrap=0, examples=0))


def matched(folder: Path, samples: Path, on: Any) -> list[str]:
    """What an audit does before it measures; returns its notes."""
    labelled, truth = load_labels(folder), read_samples(samples)
    ids, pictures = labelled.pictures()
    found = match(ids, [own.uri for own in pictures], truth, on=on)
    return check_matched(found, pictures, truth, where=samples, since=labelled.begun)


def learn_from_labels(folder: Path) -> Any:
    data = {"labels": str(folder), "val_fraction": 0.3}
    return prepare_data(StudentRecipe.model_validate({"data": data, "tokenizer": {"size": 100}}))


Make, Use = Callable[[Path, Path], Path], Callable[[Path, Path], Any]
CONSUMERS = [
    pytest.param(region_features, learn_from_regions, id="train-on-regions"),
    pytest.param(region_features, label_from_regions, id="label-with-regions"),
    pytest.param(region_features, evaluate_on_regions, id="evaluate-with-regions"),
    pytest.param(embeddings, learn_from_embeddings, id="train-on-embeddings"),
    pytest.param(labels, audit, id="audit"),
    pytest.param(labels, audit_by_name, id="audit-by-name"),
    pytest.param(labels, audit_humans, id="audit-humans"),
]


@pytest.mark.parametrize(("make", "use"), CONSUMERS)
def test_the_other_folders_pictures_are_refused(tmp_path: Path, make: Make, use: Use) -> None:
    a, b = write_folder(tmp_path / "a", 1), write_folder(tmp_path / "b", 2)
    with pytest.raises(InputError, match=r"folder:frame_0000 .*another picture") as found:
        use(make(tmp_path / "made", a), b)
    first = "frame_0000.bmp"
    assert f"{tmp_path}/a/{first}" in str(found.value) and f"{tmp_path}/b/{first}" in str(found.value)
    assert found.value.remedy and "\n" not in str(found.value)
    out = [path for path in ("labelled", "audit") if (tmp_path / path).exists()]
    assert not out, "something was written"


QUICK = [
    pytest.param(region_features, learn_from_regions, id="regions"),
    pytest.param(embeddings, learn_from_embeddings, id="embeddings"),
    pytest.param(labels, lambda folder, samples: matched(folder, samples, "sample"), id="by-id"),
    pytest.param(labels, lambda folder, samples: matched(folder, samples, "image-name"), id="by-name"),
]


@pytest.mark.parametrize(("make", "use"), QUICK)
def test_a_folder_that_moved_is_the_same_pictures(tmp_path: Path, make: Make, use: Use) -> None:
    made = make(tmp_path / "made", write_folder(tmp_path / "a", 1))
    shutil.move(tmp_path / "a", tmp_path / "b")
    use(made, write_table(tmp_path / "b"))


@pytest.mark.parametrize("change", ["size", "content", "gone"])
@pytest.mark.parametrize(("make", "use"), QUICK)
def test_a_picture_that_was_replaced_since(tmp_path: Path, make: Make, use: Use, change: str) -> None:
    a = write_folder(tmp_path / "a", 1)
    made, path = make(tmp_path / "made", a), tmp_path / "a" / "frame_0007.bmp"
    if change == "gone":  # features and labels outlive the pictures
        os.unlink(path)
        use(made, a)
        return
    shape = (48, 60, 3) if change == "content" else (40, 50, 3)
    Image.fromarray(np.full(shape, 200, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"folder:frame_0007"):
        use(made, a)


def test_rows_without_a_mark_are_compared_by_the_files(tmp_path: Path) -> None:
    """Labels of a teacher of captions alone: no picture was read, but the addresses say which are meant."""
    a, b = write_folder(tmp_path / "a", 1), write_folder(tmp_path / "b", 2)
    made = labels(tmp_path / "made", a, read=False)
    assert matched(made, a, "sample") == []
    with pytest.raises(InputError, match=r"folder:frame_0000 .*another picture"):
        matched(made, b, "sample")


def test_names_that_two_data_sets_share_are_of_one_picture_if_it_shows_the_same(tmp_path: Path) -> None:
    a = write_folder(tmp_path / "a", 1, kind="png", prefix="folder:")
    (tmp_path / "copies").mkdir()
    for path in (tmp_path / "a").glob("*.png"):  # as EMOTIC holds COCO's pictures: another encoding, another size
        copy = tmp_path / "copies" / f"{path.stem}.jpg"
        Image.open(path).resize((120, 96), Image.Resampling.BICUBIC).save(copy, quality=90)
    copies = write_table(tmp_path / "copies", kind="jpg", prefix="other:")
    made = labels(tmp_path / "made", a)
    notes = audit(made, copies)["notes"]
    assert any("12 matched pairs are pictures of other bytes" in note and "12 of them" in note for note in notes)
    paint(tmp_path / "copies" / "frame_0005.jpg", 77)
    with pytest.raises(InputError, match=r"other:frame_0005 .*another picture"):
        matched(made, copies, "image-name")


@pytest.mark.parametrize(
    ("streams", "changes", "refused"),
    [
        (("context", "body"), {"body_box": [1, 2, 30, 41]}, "body_box"),
        (("context", "body"), {"body_box": None}, "body_box"),
        (("context", "body"), {"face_box": [5, 5, 8, 8]}, None),  # no face was looked at
        (("context",), {"body_box": [1, 2, 30, 41]}, None),
        (("context", "face"), {"face_box": None}, "face_box"),
    ],
)
def test_embeddings_of_other_boxes(
    tmp_path: Path, streams: tuple[str, ...], changes: dict[str, Any], refused: str | None
) -> None:
    made = embeddings(tmp_path / "made", write_folder(tmp_path / "a", 1), streams)
    now = write_table(tmp_path / "a", **changes)
    if refused is None:
        learn_from_embeddings(made, now)
    else:
        with pytest.raises(InputError, match=rf"folder:frame_0000 .*another {refused}: .*then, .*now"):
            learn_from_embeddings(made, now)


def test_embeddings_that_are_read_together_are_of_the_same_pictures_and_boxes(tmp_path: Path) -> None:
    a, b = write_folder(tmp_path / "a", 1), write_folder(tmp_path / "b", 2)
    faces = write_table(tmp_path / "a", face_box=[5, 5, 8, 8])
    one = embeddings(tmp_path / "one", a)
    both = Embeddings([one, embeddings(tmp_path / "two", faces, ("face",))])
    both.require_made_from(read_samples(faces))
    with pytest.raises(InputError, match="another face_box"):
        both.require_made_from(read_samples(a))
    with pytest.raises(InputError, match=r"folder:frame_0000 .*another picture"):
        Embeddings([one, embeddings(tmp_path / "three", b, ("face",))])


def test_features_whose_pictures_can_only_be_told_by_name_are_counted(tmp_path: Path) -> None:
    made = region_features(tmp_path / "made", write_folder(tmp_path / "a", 1, prefix="coco:"))
    now = write_table(tmp_path / "elsewhere", prefix="coco:")
    data = {"samples": str(now), "features": str(made)}
    recipe = {"data": data, "model": {"size": "tiny"}, "tokenizer": {"size": 100}}
    assert prepare_data(TeacherRecipe.model_validate(recipe)).counts["compared_by_name_alone"] == ROWS
    with pytest.raises(InputError, match=r"folder:frame_0000 .*another address.*cannot be read"):
        learn_from_regions(
            region_features(tmp_path / "b-made", write_folder(tmp_path / "b", 1)), write_table(tmp_path / "elsewhere")
        )


def test_labels_of_cached_features_carry_the_pictures_that_those_were_made_from(tmp_path: Path) -> None:
    a = write_folder(tmp_path / "a", 1)
    stage, items = LoadRegions(str(region_features(tmp_path / "made", a))), items_of(a)
    expected = [item.mark for item in items]
    for item in items:
        item.mark = None
    stage.setup(1, "cpu")
    stage.process(items)
    assert [item.mark for item in items] == expected


def test_a_student_learns_from_the_pictures_that_were_labelled(tmp_path: Path) -> None:
    a = write_folder(tmp_path / "a", 1)
    made = labels(tmp_path / "made", a)
    before = learn_from_labels(made)
    shutil.copy(tmp_path / "a" / "frame_0003.bmp", tmp_path / "a" / "frame_0004.bmp")
    with pytest.raises(InputError, match=r"labels of folder:frame_0004 .*another picture.*student"):
        learn_from_labels(made)
    assert len(before.sample_ids) == ROWS


def test_training_data_are_the_same_where_pictures_moved_and_others_where_they_changed(tmp_path: Path) -> None:
    def learn(samples: Path) -> Any:
        return prepare_data(
            StudentRecipe.model_validate({"data": {"samples": str(samples)}, "tokenizer": {"size": 100}})
        )

    first = learn(write_folder(tmp_path / "a", 1))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = learn(write_table(tmp_path / "b"))
    assert moved.fingerprint == first.fingerprint
    shutil.copy(tmp_path / "b" / "frame_0003.bmp", tmp_path / "b" / "frame_0004.bmp")  # of the same size
    assert learn(write_table(tmp_path / "b")).fingerprint != first.fingerprint


def test_a_cache_of_pictures_is_made_anew_for_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 1)
    uris = [str(path) for path in sorted((tmp_path / "a").glob("*.bmp"))]
    first, old = cache_pictures(uris, 8, threads=1), os.stat(uris[0])
    assert cache_pictures(uris, 8, threads=1) == first
    shutil.copy(uris[1], uris[0])
    os.utime(uris[0], ns=(old.st_atime_ns, old.st_mtime_ns))  # the same size and time
    second = cache_pictures(uris, 8, threads=1)
    assert second != first
    pictures = np.load(second)
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_a_job_that_goes_on_after_a_picture_changed_is_refused(tmp_path: Path) -> None:
    """Whether finished or not; the boxes are part of the input, whose digest is compared before."""
    a = write_folder(tmp_path / "a", 1)
    made, samples = region_features(tmp_path / "made", a), read_samples(a)
    record = storage.read_json(made / "_job.json")
    require_same_pictures_as_before(str(made), [0], samples, record)
    shutil.copy(tmp_path / "a" / "frame_0003.bmp", tmp_path / "a" / "frame_0004.bmp")
    require_same_pictures_as_before(str(made), [], samples, record)  # what is not committed is made anew
    with pytest.raises(SettingsMismatch, match=r"rows of folder:frame_0004 .*fresh output folder"):
        require_same_pictures_as_before(str(made), [0], samples, record)


def test_a_page_does_not_show_another_picture_as_the_one_that_was_labelled(tmp_path: Path) -> None:
    labelled = load_labels(labels(tmp_path / "made", write_folder(tmp_path / "a", 1)))
    shutil.copy(tmp_path / "a" / "frame_0003.bmp", tmp_path / "a" / "frame_0004.bmp")
    same, other = labelled.rows([3, 4])
    assert thumbnail(same.image_uri, same.mark)[0] is not None
    assert thumbnail(other.image_uri, other.mark) == (None, "not shown: another picture stands at this address now")


def test_pictures_that_one_batch_reads_have_marks_of_their_own(tmp_path: Path) -> None:
    items = [Item(row) for row in read_samples(write_folder(tmp_path / "a", 1)).to_pylist()]
    DecodeImages().process(items)
    assert len({item.mark for item in items}) == ROWS
