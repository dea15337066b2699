"""A folder of pictures and the four forms of captions; local, and in an object store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.folder import read_folder
from raymotion.errors import AccessDenied, InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.JPG", "trip/a.png", "trip/deep/c.webp", "d.jpeg", "e.bmp", "notes.txt", ".hidden.jpg", ".t/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not opened by the reader")
    return folder


def captions_of(table) -> dict[str, list[str]]:
    return dict(zip(table["sample_id"].to_pylist(), table["captions"].to_pylist(), strict=True))


def test_all_pictures_sorted(photos):
    table, report = read_folder(photos)
    names = ["b.JPG", "d.jpeg", "e.bmp", "trip/a.png", "trip/deep/c.webp"]
    assert table["sample_id"].to_pylist() == [f"folder:{name}" for name in names]
    assert table["image_uri"].to_pylist() == [str(photos / name) for name in names]
    assert (report.rows, report.captions, report.without_caption, report.other_files) == (5, 0, 5, 1)


FORMS = {
    "c.jsonl": '{"file": "b.JPG", "caption": " One\\nline "}\n\n{"file": "./trip/a.png", "captions": ["x", "y"]}\n'
    '{"file": "gone.jpg", "caption": "z"}\n{"file": "b.JPG", "caption": "two"}\n{"file": "d.jpeg", "caption": ""}\n',
    "c.csv": 'file,caption\nb.JPG,"One\nline"\ntrip/a.png,x\ngone.jpg,z\ntrip/a.png,y\nb.JPG,two\nd.jpeg,\n',
    "c.tsv": "file\tcaption\nb.JPG\tOne line\ntrip/a.png\tx\ngone.jpg\tz\ntrip/a.png\ty\nb.JPG\ttwo\n",
    "c.json": json.dumps({"b.JPG": ["One line", "two"], "trip//a.png": ["x", "y"], "gone.jpg": "z", "d.jpeg": []}),
}


@pytest.mark.parametrize("name", FORMS)
def test_captions_in_each_form(photos, tmp_path, name):
    (tmp_path / name).write_text(FORMS[name])
    table, report = read_folder(photos, tmp_path / name)
    assert captions_of(table) == {
        "folder:b.JPG": ["One line", "two"],
        "folder:d.jpeg": [],
        "folder:e.bmp": [],
        "folder:trip/a.png": ["x", "y"],
        "folder:trip/deep/c.webp": [],
    }
    assert (report.captions, report.without_caption) == (4, 3)
    assert (report.no_file, report.no_file_names) == (1, ["gone.jpg"])


def test_a_full_path_names_the_file_too(photos, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({str(photos / "b.JPG"): "hello"}))
    table, _ = read_folder(photos, tmp_path / "c.json")
    assert captions_of(table)["folder:b.JPG"] == ["hello"]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("c.jsonl", '{"file": "b.JPG", "caption": "x"}\n{"file": \n', r"c.jsonl, row 2: is not JSON"),
        ("c.jsonl", '{"caption": "x"}\n', 'row 1: has no "file"'),
        ("c.jsonl", '\n["b.JPG"]\n', 'row 2: has no "file"'),
        ("c.jsonl", '{"file": "b.JPG", "caption": 3}', "row 1: a caption is not text"),
        ("c.jsonl", '{"file": "b.JPG", "captions": ["x", {}]}', "row 1: a caption is not text"),
        ("c.csv", "name,caption\nx,y\n", "lacks the column file"),
        ("c.csv", "file,caption\nb.JPG,x\nb.JPG,one, two\n", "row 3: has more or fewer fields"),
        ("c.csv", "file,caption\nb.JPG\n", "row 2: has more or fewer fields"),
        ("c.csv", "file,caption\n,x\n", "row 2: file is empty"),
        ("c.csv", 'file,caption\nb.JPG,"x\n', "can not be read"),
        ("c.json", "[1]", "is not an object of file to caption"),
        ("c.json", '{"a": {"b": 1}}', "row a: a caption is not text"),
        ("c.xml", "<x/>", "captions in a .xml can not be read"),
    ],
)
def test_bad_captions_are_named_with_their_line(photos, tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_folder(photos, tmp_path / name)
    assert name in str(caught.value)


def test_half_a_character_in_a_caption(photos, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"file": "b.JPG", "caption": "bad \\ud800"}')
    with pytest.raises(InputError, match=r"'bad \\ud800' holds half of a character"):
        read_folder(photos, tmp_path / "c.jsonl")


@given(content=st.binary(max_size=60), kind=st.sampled_from(["jsonl", "csv", "tsv", "json"]))
def test_any_bytes_are_captions_or_an_input_error(tmp_path_factory, content, kind):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(b"")
    (folder / f"c.{kind}").write_bytes(content)
    try:
        table, _ = read_folder(folder, folder / f"c.{kind}")
    except InputError:
        return
    assert table.num_rows == 1


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "nope")
    with pytest.raises(InputError, match="holds no pictures"):
        read_folder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="no such file"):
        read_folder(tmp_path, tmp_path / "nope.jsonl")


def test_a_name_that_is_not_utf8_is_counted(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    try:
        with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    table, report = read_folder(tmp_path)
    assert table.num_rows == 1 and report.unreadable_names == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_stops(photos):
    (photos / "trip").chmod(0)
    try:
        with pytest.raises(AccessDenied):
            read_folder(photos)
    finally:
        (photos / "trip").chmod(0o755)
