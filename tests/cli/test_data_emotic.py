"""`raymotion data synth emotic` and `raymotion data prepare emotic`."""

from __future__ import annotations

import json

from raymotion.data.samples import read_samples


def test_emotic_made_and_prepared(runner, tmp_path):
    root = tmp_path / "emotic"
    done = runner("data", "synth", "emotic", "--persons", 60, "--seed", 1, "--defects", 0.2, "--out", root)
    assert done.code == 0, done.err
    assert "defects" in done.out and (root / "defects.json").exists() and (root / "faces.csv").exists()
    done = runner(
        "data", "prepare", "emotic", root, "--faces", root / "faces.csv", "--report", tmp_path / "report.json",
        "--out", tmp_path / "e.parquet",
    )  # fmt: skip
    assert done.code == 0, done.err
    table = read_samples(tmp_path / "e.parquet")
    report = json.loads((tmp_path / "report.json").read_text())
    assert f"{table.num_rows} persons in" in done.out and report["rows"] == table.num_rows
    for line in ("(one annotator)", "chance mAP", "images in more than one split (framesdb/images", "Doubt/Confusion"):
        assert line in done.out
    assert report["splits"]["train"]["gender"].keys() == {"Male", "Female"}
    assert report["counts"]["missing_image"] == len(report["found"]["missing_image"]) > 0


def test_a_folder_without_annotations_is_one_line_and_exit_code_2(runner, tmp_path):
    done = runner("data", "prepare", "emotic", tmp_path, "--out", tmp_path / "e.parquet")
    assert done.code == 2 and "--annotations" in done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "e.parquet").exists()
