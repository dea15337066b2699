"""A folder of pictures and the four forms of captions; local, and in an object store."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion import storage
from raymotion.data.images.decode import FORMATS
from raymotion.data.readers.folder import FolderReader
from raymotion.errors import AccessDenied, InputError


def read_folder(folder, captions=None):
    return FolderReader(folder=folder, captions=captions).read()


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
    assert (report.rows, report.captions, report.without_caption) == (5, 0, 5)
    assert (report.content.others, report.content.hidden) == ({".txt": 1}, 2)


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


OTHER_NAMES = {
    "c.csv": 'image,text\nb.JPG,"One\nline"\ntrip/a.png,x\nb.JPG,two\n',
    "d.csv": "text;more;filename\nOne line;1;b.JPG\nx;2;trip/a.png\ntwo;3;b.JPG\n",
    "c.tsv": "File_Name\tCaption\nb.JPG\tOne line\ntrip/a.png\tx\nb.JPG\ttwo\n",
    "c.jsonl": '{"file_name": "b.JPG", "text": "One line"}\n{"image": "trip/a.png", "caption": "x"}\n'
    '{"filename": "b.JPG", "captions": ["two"]}\n',
    "captions.txt": "image,caption\nb.JPG,One line\ntrip/a.png,x\nb.JPG,two\n",
    "x.token.txt": "b.JPG#1\ttwo\ntrip/a.png#0\tx\nb.JPG#0\tOne line\n",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_of_the_columns(photos, tmp_path, name):
    (tmp_path / name).write_text(OTHER_NAMES[name])
    table, report = read_folder(photos, tmp_path / name)
    own = captions_of(table)
    assert (own["folder:b.JPG"], own["folder:trip/a.png"]) == (["One line", "two"], ["x"])
    assert (report.captions, report.no_file) == (3, 0)


def test_file_and_caption_count_before_the_other_names(photos, tmp_path):
    (tmp_path / "c.csv").write_text("image,file,text,caption\n1,b.JPG,no,yes\n")
    assert captions_of(read_folder(photos, tmp_path / "c.csv")[0])["folder:b.JPG"] == ["yes"]


def test_a_full_path_names_the_file_too(photos, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({str(photos / "b.JPG"): "hello"}))
    table, _ = read_folder(photos, tmp_path / "c.json")
    assert captions_of(table)["folder:b.JPG"] == ["hello"]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("c.jsonl", '{"file": "b.JPG", "caption": "x"}\n{"file": \n', r"c.jsonl, line 2: is not JSON"),
        ("c.jsonl", '{"caption": "x"}\n', 'line 1: has no "file"'),
        ("c.jsonl", '\n["b.JPG"]\n', 'line 2: has no "file"'),
        ("c.jsonl", '{"file": "b.JPG", "caption": 3}', "line 1: a caption is not text"),
        ("c.jsonl", '{"file": "b.JPG", "captions": ["x", {}]}', "line 1: a caption is not text"),
        ("c.csv", "name,caption\nx,y\n", "lacks the column file"),
        ("c.csv", "file,caption\nb.JPG,x\nb.JPG,one, two\n", "line 3: has 3 cells, the header has 2"),
        ("c.csv", "file,caption\nb.JPG\n", "line 2: has 1 cells, the header has 2"),
        ("c.csv", "file,caption\n,x\n", "line 2: file is empty"),
        ("c.csv", 'file,caption\nb.JPG,"x\n', "line 2: a quote opens a cell and is never closed"),
        ("c.json", "[1]", "is not an object of file to caption"),
        ("c.json", '{"a": {"b": 1}}', "row a: a caption is not text"),
        ("c.xml", "<x/>", "captions in a .xml cannot be read"),
    ],
)
def test_bad_captions_are_named_with_their_line(photos, tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_folder(photos, tmp_path / name)
    assert name in str(caught.value)


def test_half_a_character_in_a_caption(photos, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"file": "b.JPG", "caption": "bad \\ud800"}')
    with pytest.raises(InputError, match=r"'bad \\ud800'.*lone surrogate"):
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
    assert table.num_rows == 1 and report.content.unreadable_names == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_stops(photos):
    (photos / "trip").chmod(0)
    try:
        with pytest.raises(AccessDenied):
            read_folder(photos)
    finally:
        (photos / "trip").chmod(0o755)


def captions_file(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return path


def test_every_name_that_the_formats_go_by_is_a_picture(tmp_path):
    for extension, kind in Image.registered_extensions().items():
        if kind in FORMATS:
            (tmp_path / f"x{extension.upper()}").write_bytes(b"")
    (tmp_path / "x.jif").write_bytes(b"")
    for name in ("x.gif", "x.tif", "README", "y.txt", "z.TXT"):
        (tmp_path / name).write_bytes(b"")
    table, report = read_folder(tmp_path)
    assert {"folder:x.JFIF", "folder:x.JPE", "folder:x.JPG"} < set(table["sample_id"].to_pylist())
    assert report.content.others == {".gif": 1, ".tif": 1, "": 1, ".txt": 2}
    assert report.notes()[0].startswith("5 files without a picture's extension left out (.txt 2, ")


def test_links_are_followed_each_folder_once_and_never_in_a_circle(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in (photos / "z" / "own.jpg", photos / "a.jpg", elsewhere / "b.jpg", elsewhere / "deep" / "c.jpg"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(b"")
    (photos / "0own").symlink_to("z")  # sorts before the folder that it means
    (photos / "up").symlink_to("..")  # holds photos itself
    (photos / "self").symlink_to("self")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "linked.jpg").symlink_to("a.jpg")
    (photos / "far").symlink_to(elsewhere)
    (photos / "far2").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(photos)
    captions = captions_file(tmp_path / "c.jsonl", {"file": "0own/own.jpg", "caption": "by the link's name"})
    os.mkfifo(photos / "pipe.jpg")
    table, report = read_folder(photos, captions)
    names = ["a.jpg", "far/b.jpg", "far/deep/c.jpg", "linked.jpg", "z/own.jpg"]
    assert table["sample_id"].to_pylist() == [f"folder:{name}" for name in names]
    assert captions_of(table)["folder:z/own.jpg"] == ["by the link's name"]
    # 0own, far2, up, and back.
    assert (report.content.repeated, report.content.dangling, report.content.special) == (4, 2, 1)
    assert "4 links to folders that are read already left out" in report.notes()


def test_blanks_accents_and_slashes_in_names(tmp_path):
    nfc, nfd = unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")
    both = [unicodedata.normalize(form, "né.jpg") for form in ("NFC", "NFD")]
    photos = tmp_path / "photos"
    (photos / "trip").mkdir(parents=True)
    for name in (" a.jpg", "a.jpg", " b.jpg", nfd, *both, "trip/d.jpg", "E.jpg"):
        (photos / name).write_bytes(b"")
    captions = captions_file(
        tmp_path / "c.jsonl",
        {"file": " a.jpg", "caption": "with a blank"},
        {"file": "a.jpg", "caption": "without"},
        {"file": "a.jpg ", "caption": "either"},
        {"file": "b.jpg", "caption": "b"},
        {"file": nfc, "caption": "accent"},
        {"file": both[0], "caption": "composed"},
        {"file": f"{both[0]} ", "caption": "either accent"},
        {"file": "trip\\d.jpg", "caption": "backslash"},
        {"file": "e.jpg", "caption": "case"},
        {"file": "e.jpg", "caption": ""},
    )
    table, report = read_folder(photos, captions)
    assert captions_of(table) == {
        "folder: a.jpg": ["with a blank"],
        "folder: b.jpg": ["b"],
        "folder:E.jpg": [],
        "folder:a.jpg": ["without"],
        f"folder:{nfd}": ["accent"],
        f"folder:{both[0]}": ["composed"],
        f"folder:{both[1]}": [],
        "folder:trip/d.jpg": ["backslash"],
    }
    # All ten entries: six used, four counted.
    assert (report.captions, report.no_file, report.no_file_captions) == (6, 3, 3)
    assert (report.ambiguous_files, report.other_case, report.empty_captions) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.json", '{"b.JPG": "one", "b.JPG": "two"}', "an object has the key 'b.JPG' twice"),
        (
            "c.jsonl",
            '{"file": "b.JPG", "caption": "x", "captions": ["y"]}',
            'line 1: has both "caption" and "captions"',
        ),
        ("c.jsonl", '\n{"file": "b.JPG", "caption": "x", "caption": "y"}', "line 2: an object has the key 'caption'"),
        ("c.jsonl", '{"file": "b.JPG", "caption": "x", "Caption ": "y"}', 'line 1: has "caption" twice'),
        ("c.csv", "file,caption,captions\nb.JPG,x,y\n", "has both caption and captions"),
        ("c.csv", "file,caption,Caption\nb.JPG,x,y\n", "has the column caption twice"),
        ("c.csv", 'file,caption\nb.JPG,"x\nd.jpeg,"y"\n', "c.csv, line 2: a closing quote is not followed"),
        ("c.csv", 'file,caption\nb.JPG,"x\nd.jpeg,y"\n', "c.csv, line 2: a quoted cell runs on to line 3, and line 3"),
        ("c.csv", "file\0,caption", "holds NUL"),
    ],
)
def test_no_caption_wins_silently_over_another(photos, tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        read_folder(photos, tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_byte_order_marks(photos, tmp_path, encoding, kind):
    (tmp_path / f"c.{kind}").write_text(FORMS[f"c.{kind}"], encoding=encoding)
    table, report = read_folder(photos, tmp_path / f"c.{kind}")
    assert report.captions == 4 and captions_of(table)["folder:trip/a.png"] == ["x", "y"]


def test_keys_of_a_store_are_taken_letter_for_letter(s3, tmp_path):
    for key in ("photos/a.jpg", "photos//b.jpg", "photos/x//c.jpg", "photosets/d.jpg"):
        fs, inner = storage.filesystem(f"{s3}/{key}")
        fs.pipe_file(inner, b"x")
    table, _ = read_folder(f"{s3}/photos", captions_file(tmp_path / "c.jsonl", {"file": "x//c.jpg", "caption": "c"}))
    assert table["image_uri"].to_pylist() == [f"{s3}/photos//b.jpg", f"{s3}/photos/a.jpg", f"{s3}/photos/x//c.jpg"]
    assert table["captions"].to_pylist() == [[], [], ["c"]]


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff \u200d", "\u00ad", "[PAD] [PAD]"])
def test_a_caption_that_nobody_can_read_is_none(tmp_path: Path, nothing: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.jpg").write_bytes(b"x")
    (tmp_path / "c.jsonl").write_text(json.dumps({"file": "a.jpg", "captions": [nothing, "a dog"]}) + "\n")
    table, report = read_folder(tmp_path / "p", tmp_path / "c.jsonl")
    assert table.column("captions").to_pylist() == [["a dog"]] and report.empty_captions == 1
