"""`raymotion data`: what the commands write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from raymotion.cli.data import data
from raymotion.data.samples import read_samples


def commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, *path, name)
    return found


@pytest.mark.parametrize("path", [("data",), *commands(data, "data")], ids=" ".join)
def test_every_help_has_an_example(runner, path):
    done = runner(*path, "--help")
    assert done.code == 0 and "Example:" in done.out and f"raymotion {path[0]}" in done.out


def test_coco_made_and_prepared(runner, tmp_path):
    done = runner("data", "synth", "coco", "--images", 10, "--corrupt", 0.1, "--out", tmp_path / "coco")
    assert done.code == 0, done.err
    assert "10 (1 damaged, listed in corrupt.json)" in done.out
    (tmp_path / "coco" / "val2017" / "000000600001.jpg").write_bytes(b"")
    next((tmp_path / "coco" / "val2017").glob("*.jpg")).unlink()
    done = runner("data", "prepare", "coco", tmp_path / "coco", "--split", "val2017", "--out", tmp_path / "c.parquet")
    assert done.code == 0, done.err
    table = read_samples(tmp_path / "c.parquet")
    assert table.num_rows == 11 and table["image_uri"].null_count == 1
    assert "images     11 (1 not on disk)" in done.out and "1 images on disk that no annotation names" in done.out
    assert "split      val 11" in done.out and str(tmp_path / "c.parquet") in done.out
    done = runner("data", "prepare", "coco", tmp_path / "coco", "--persons", "--out", tmp_path / "p.parquet")
    assert done.code == 0, done.err
    assert "with a face box" in done.out
    assert read_samples(tmp_path / "p.parquet")["body_box"].null_count == 0


def test_socratis_made_and_prepared(runner, tmp_path):
    soc, out = tmp_path / "soc", tmp_path / "s.parquet"
    assert runner("data", "synth", "socratis", "--images", 40, "--seed", 3, "--out", soc).code == 0
    done = runner("data", "prepare", "socratis", soc / "cleaned_data.csv", "--images", soc / "images", "--out", out)
    assert done.code == 0, done.err
    table = read_samples(out)
    assert "rows       40" in done.out and "most common: happy" in done.out and "split      train 3" in done.out
    assert set(table["split"].to_pylist()) == {"train", "val", "test"}
    raw = soc / "imCaptionEmotionExplanation_formatted.json"
    done = runner("data", "prepare", "socratis", raw, "--vocabulary", "socratis-29", "--no-split", "--out", out)
    assert done.code == 0, done.err
    assert "no --images folder" in done.out and "annotators" in done.out and "split" not in done.out
    table = read_samples(out)
    assert table["split"].null_count == 40 and table["label_weights"].null_count == 0
    done = runner("data", "prepare", "socratis", raw, "--min-images", 10, "--val-fraction", 0.9, "--out", out)
    assert done.code == 0, done.err
    assert "val 3" in done.out and "train" not in done.out  # 1 - 0.9 - 0.1 leaves none


def test_folder_prepared(runner, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png", "c.txt"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    lines = [{"file": "a.jpg", "captions": ["one", "two"]}, {"file": "z.jpg", "caption": "none"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    photos, out = tmp_path / "photos", tmp_path / "m.parquet"
    done = runner("data", "prepare", "folder", photos, "--captions", tmp_path / "c.jsonl", "--out", out)
    assert done.code == 0, done.err
    assert "captions   2 (1 images have none)" in done.out and "(z.jpg)" in done.out
    assert read_samples(out)["captions"].to_pylist() == [["one", "two"], []]


def test_what_is_left_out_is_told(runner, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "m.parquet"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.jfif", "deep/b.JPE", "c.gif", ".hidden.jpg"):
        (photos / name).write_bytes(b"x")
    (photos / "gone.jpg").symlink_to("nowhere")
    (photos / "again").symlink_to("deep")
    (tmp_path / "c.csv").write_text("file;caption\na.jfif;one\nA.jfif;two\nz.jpg;three\na.jfif;\n")
    done = runner("data", "prepare", "folder", photos, "--captions", tmp_path / "c.csv", "--out", out)
    assert done.code == 0, done.err
    for line in (
        "rows       2",
        "captions   1 (1 images have none)",
        "note       2 files that the captions name are not pictures in the folder (A.jfif, z.jpg), 2 captions left out",
        "note       1 of them differ from a file's name in capital letters only",
        "note       1 entries of the captions file have no caption",
        "note       1 files without a picture's extension left out (.gif 1)",
        "note       1 hidden files left out",
        "note       1 links that lead nowhere left out",
        "note       1 links to folders that are read already left out",
    ):
        assert line in done.out.splitlines()


def test_three_rows_of_socratis_fill_the_splits_and_two_are_told(runner, tmp_path):
    rows = ["image_name,caption,emotions", "a.jpg,x,['sad']", "b.jpg,y,['sad']", "c.jpg,z,['sad']"]
    path, out = tmp_path / "c.csv", tmp_path / "s.parquet"
    path.write_text("\n".join(rows))
    done = runner("data", "prepare", "socratis", path, "--out", out)
    assert done.code == 0 and "split      train 1, val 1, test 1" in done.out and "note" not in done.out
    path.write_text("\n".join(rows[:3]))
    done = runner("data", "prepare", "socratis", path, "--out", out)
    assert done.code == 0 and "note       test is empty: 2 images are too few for 3 splits" in done.out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("synth", "coco", "--images", 0), "0 images cannot be made"),
        (("synth", "socratis", "--corrupt", 2), "the share of corrupt images is 2"),
        (("prepare", "coco", "nowhere"), "nowhere: no such folder"),
        (("prepare", "folder", "nowhere"), "nowhere: no such folder"),
        (("prepare", "socratis", "nowhere.csv"), "nowhere.csv: no such file"),
        (("prepare", "socratis", "nowhere.csv", "--vocabulary", "mine"), "no vocabulary is called 'mine'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(runner, tmp_path, arguments, reason):
    done = runner("data", *arguments, "--out", tmp_path / "out")
    assert done.code == 2 and reason in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_shares_that_do_not_add_up(runner, tmp_path):
    (tmp_path / "c.csv").write_text("image_name,caption,emotions\na.jpg,x,['sad']\n")
    done = runner(
        "data", "prepare", "socratis", tmp_path / "c.csv", "--val-fraction", 0.7, "--test-fraction", 0.5,
        "--out", tmp_path / "s.parquet",
    )  # fmt: skip
    assert done.code == 2 and "train -0.2, val 0.7, test 0.5" in done.err
    assert not (tmp_path / "s.parquet").exists()


def test_the_real_data(runner, shared_data: Path, tmp_path):
    coco, out = shared_data / "coco", tmp_path / "c.parquet"
    done = runner("data", "prepare", "coco", coco, "--split", "train2017", "--out", out)
    assert done.code == 0 and "rows       39" in done.out and "captions   195" in done.out
    path = shared_data / "socratis" / "cleaned_data.csv"
    done = runner("data", "prepare", "socratis", path, "--out", tmp_path / "s.parquet")
    assert done.code == 0, done.err
    assert "rows       2,065" in done.out and "happy 1,390, sad 728, excited 619, curious 610" in done.out
