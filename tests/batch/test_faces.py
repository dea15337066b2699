"""The face job on real Ray, with the cascade on drawn faces; and what it does with pictures that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.batch import faces as job
from raymotion.batch.faces import FaceSettings, detect_faces
from raymotion.data.faces.assign import overlap
from raymotion.data.parts import write_job
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.folders.outputs import run_folder
from raymotion.vocabulary import get_vocabulary

PLACES = {"two": [(60, 40, 40), (220, 40, 40)], "one": [(100, 30, 60)], "none": []}


def drawn_face(side: int) -> np.ndarray:
    """Head, eyes, brows, nose and mouth: (side, side, 3)."""
    image, scale = np.full((side, side, 3), 110, np.uint8), side / 100
    parts = [(50, 42, 40, 46, (60, 45, 40)), (50, 52, 34, 45, (205, 165, 140)), (50, 56, 4, 13, (220, 185, 160))]
    for x in (35, 65):
        parts += [(x, 45, 11, 6, (140, 100, 85)), (x, 46, 4, 4, (30, 25, 25)), (x, 37, 11, 3, (60, 40, 30))]
    parts += [(50, 68, 8, 3, (150, 105, 90)), (50, 80, 14, 4, (140, 60, 60))]
    for x, y, width, height, colour in parts:
        centre, axes = (round(x * scale), round(y * scale)), (round(width * scale), round(height * scale))
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
    return image


def body_of(x: int, y: int, side: int) -> list[float]:
    return [x - 0.9 * side, y - 0.3 * side, x + 1.9 * side, y + 4.5 * side]


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled table, its rows in an order of their own: two people share a picture, and one file is damaged."""
    folder = tmp_path_factory.mktemp("persons")
    rows: list[dict[str, Any]] = []
    for name, places in PLACES.items():
        picture = np.random.default_rng(1).integers(140, 160, (320, 320, 3), dtype=np.uint8)
        for x, y, side in places:
            picture[y : y + side, x : x + side] = drawn_face(side)
        cv2.imwrite(str(folder / f"{name}.png"), picture[:, :, ::-1])
        for number, place in enumerate(places or [(100, 30, 60)]):
            rows.append({"sample_id": f"{name}:{number}", "image_uri": f"{name}.png", "body_box": body_of(*place)})
    (folder / "bad.png").write_bytes((folder / "one.png").read_bytes()[:900])
    rows += [
        {"sample_id": "bad:0", "image_uri": "bad.png", "body_box": body_of(100, 30, 60)},
        {"sample_id": "had:0", "image_uri": "one.png", "body_box": [0, 0, 90, 300], "face_box": [20, 20, 50, 50]},
        {"sample_id": "text:0", "body_box": None},
    ]
    for number, row in enumerate(rows):
        uri = row.get("image_uri")
        row.update(group_id=uri or "text", source="x", labels=["Peace"] if number % 2 else ["Anger", "Pain"])
        row["image_uri"] = uri and str(folder / uri)
    order = [3, 0, 6, 2, 5, 1, 4]
    assert sorted(order) == list(range(len(rows)))
    write_samples(folder / "in.parquet", table_from_rows([rows[i] for i in order], get_vocabulary("emotic-26")))
    return folder / "in.parquet"


def faces_of(path: Path | str) -> dict[str, Any]:
    table = read_samples(path)
    return dict(zip(table.column("sample_id").to_pylist(), table.column("face_box").to_pylist(), strict=True))


def is_at(box: Any, place: tuple[int, int, int]) -> bool:
    x, y, side = place
    return box is not None and overlap(tuple(box), (x, y, x + side, y + side)) > 0.6


def test_faces_are_found_joined_by_id_and_counted(persons: Path, ray_local: Any, runner: Any, tmp_path: Path) -> None:
    """emotic_study.md 13.8: a missing face is a null, not a black square, and the face comes with a producer."""
    out = tmp_path / "out.parquet"
    told = runner("data", "faces", persons, "--out", out, "--shard-rows", 2, "--workers", 1)
    assert told.code == 0, told.err
    before, after = read_samples(persons), read_samples(out)
    # All but the face boxes is as it was: rows, order, labels, vocabulary.
    assert after.drop_columns("face_box").equals(before.drop_columns("face_box"), check_metadata=True)
    faces = faces_of(out)
    assert is_at(faces["two:0"], PLACES["two"][0]) and is_at(faces["two:1"], PLACES["two"][1])
    assert is_at(faces["one:0"], PLACES["one"][0])
    assert faces["had:0"] == [20, 20, 50, 50]
    assert faces["none:0"] is faces["bad:0"] is faces["text:0"] is None
    lines = {line[:11].strip(): line[11:] for line in told.out.splitlines()}
    assert [lines[n].split()[0] for n in ("found", "there", "none", "unreadable", "no image")] == list("31111")
    assert "1 image_truncated" in lines["unreadable"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]  # nothing is left beside it


def test_boxes_that_are_there_can_be_overwritten(persons: Path, ray_local: Any, s3: str) -> None:
    out = f"{s3}/faces/out.parquet"
    report = detect_faces(FaceSettings(samples=str(persons), out=out, overwrite_boxes=True, workers=1))
    assert (report.found, report.kept, report.none, report.unreadable, report.no_image) == (3, 0, 2, 1, 1)
    faces = faces_of(out)
    assert faces["had:0"] is None and is_at(faces["one:0"], PLACES["one"][0])
    assert storage.filesystem(s3)[0].find(storage.filesystem(f"{s3}/faces")[1]) == [
        storage.filesystem(out)[1]
    ]  # the run's state is gone from the bucket too


@pytest.mark.slow
def test_the_same_command_goes_on_and_other_settings_begin_anew(
    persons: Path, ray_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"

    def settings(**changes: Any) -> FaceSettings:
        return FaceSettings(samples=str(persons), out=str(out), workers=1, shard_rows=1, **changes)

    with monkeypatch.context() as patch:  # the driver dies before the table is written

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(job, "_joined", killed)
        with pytest.raises(KeyboardInterrupt):
            detect_faces(settings())
    assert not out.exists()
    folder = Path(run_folder(str(out))) / "faces"
    # A shard that was not committed is done again; the others are not touched.
    record = json.loads((folder / "_job.json").read_text())
    write_job(folder, {**record, "status": "running"})
    (folder / "_commits/part-00001.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("data/part-*.parquet")}
    seen: dict[str, int] = {}

    def look(samples: pa.Table, *rest: Any) -> Any:
        seen.update({path.name: path.stat().st_mtime_ns for path in folder.glob("data/part-*.parquet")})
        return joined(samples, *rest)

    joined = job._joined
    monkeypatch.setattr(job, "_joined", look)
    assert detect_faces(settings()).found == 3
    assert [name for name in before if seen[name] != before[name]] == ["part-00001.parquet"]
    monkeypatch.undo()

    outputs.claim(run_folder(str(out)))
    folder.mkdir(parents=True)
    write_job(folder, {**record, "status": "complete"})  # of other settings
    report = detect_faces(settings(min_side=50.0))
    assert (report.found, report.none) == (1, 3)
    assert not Path(run_folder(str(out))).exists()


def test_a_table_without_a_gap_needs_no_run(tmp_path: Path, persons: Path) -> None:
    """And an output that is no table is not overwritten."""
    table = read_samples(persons)
    full = table.filter(pa.compute.is_valid(table.column("face_box")))
    write_samples(tmp_path / "in.parquet", full)
    report = detect_faces(FaceSettings(samples=str(tmp_path / "in.parquet"), out=str(tmp_path / "out.parquet")))
    assert (report.kept, report.found) == (1, 0)
    assert read_samples(tmp_path / "out.parquet").equals(full)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: exists.*sample table"):
        detect_faces(FaceSettings(samples=str(persons), out=str(tmp_path / "notes.txt")))


def test_a_yunet_without_its_model_ends_before_any_work(persons: Path, tmp_path: Path, runner: Any) -> None:
    bad = tmp_path / "yunet.onnx"
    bad.write_bytes(b"no model")
    for more, message in (([], "needs a file of weights"), (["--weights", bad], "is no YuNet model")):
        told = runner("data", "faces", persons, "--out", tmp_path / "out.parquet", "--detector", "yunet", *more)
        assert told.code == 2 and message in told.err and told.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["yunet.onnx"]
