"""Socratis: the cleaning rules on a raw file written by hand, and the published counts on the real csv."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.readers.socratis import SocratisReader, clean_words
from raymotion.data.samples import vocabulary_of
from raymotion.errors import InputError
from raymotion.vocabulary import SOCRATIS_29

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "socratis" / "cleaned_data.csv"
HEADER = "image_name,caption,emotions\n"


def read_socratis(path, images=None, **options):
    return SocratisReader(path=path, images=images, no_split=True, **options).read()


def annotator(name: str, *emotions: str, caption: str = "a caption") -> list[object]:
    padded = [*emotions, "", "", ""][:3]
    return [name, caption, padded, [None] * 3, {"age": 30, "gender": "f", "education": "x", "ethnicity": []}]


def write_raw(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def test_cleaning_rule_by_rule():
    raw = ["Happy", "none", "None", "not entered", "x", "very sad", '"calm"', "joy(ful)", "(what)", "happy", "agry", ""]
    assert clean_words(raw) == ["happy", "calm", "joy", "agry"]


@given(st.lists(st.text(alphabet='aB "(x', max_size=6)))
def test_clean_words_are_distinct_and_plain(raw):
    words = clean_words(raw)
    assert len(set(words)) == len(words)
    assert all(word and " " not in word and '"' not in word and "(" not in word for word in words)


def test_shares_of_annotators(tmp_path):
    name = "visualnews__bbc_1.jpg"
    raw = {
        "7": [annotator(name, "Happy", '"happy"', "sad"), annotator(name, "happy"), annotator(name, "none"),
              annotator(name, "sad", "agry")],
        "8": [annotator("conceptualcaptions__2.jpg", "calm"), annotator("conceptualcaptions__2.jpg", "happy")],
        "9": [annotator("other.jpg", "agry")],
    }  # fmt: skip
    table, report = read_socratis(write_raw(tmp_path / "raw.json", raw), vocabulary="socratis-29")
    rows = table.to_pylist()
    assert [row["sample_id"] for row in rows] == ["socratis:visualnews__bbc_1", "socratis:conceptualcaptions__2"]
    assert [row["source"] for row in rows] == ["socratis/visualnews", "socratis/conceptualcaptions"]
    # Of four annotators two say happy and two sad; who says a word twice counts once.
    assert (rows[0]["labels"], rows[0]["label_weights"]) == (["happy", "sad"], [0.5, 0.5])
    assert (rows[1]["labels"], rows[1]["label_weights"]) == (["calm", "happy"], [0.5, 0.5])
    assert (report.annotators, report.dropped_images, report.dropped_words, report.weighted) == (7, 1, 1, True)
    assert report.labels["happy"] == 2 and report.labels["awe"] == 0


def test_words_on_too_few_images_are_no_labels(tmp_path):
    raw = {f"{i}": [annotator(f"{i}.jpg", "sad", "happy" if i < 3 else "agry")] for i in range(5)}
    table, report = read_socratis(write_raw(tmp_path / "raw.json", raw), min_images=3)
    vocabulary = vocabulary_of(table)
    assert vocabulary is not None
    assert (vocabulary.name, vocabulary.labels) == ("socratis-2", ("happy", "sad"))
    assert report.labels == {"happy": 3, "sad": 5}
    with pytest.raises(InputError, match=r"100 images.*'sad'.* 5"):
        read_socratis(tmp_path / "raw.json")


def test_the_29_words_are_the_known_vocabulary(tmp_path):
    raw = {word: [annotator(f"{word}{i}.jpg", word) for i in range(2)] for word in SOCRATIS_29.labels}
    table, _ = read_socratis(write_raw(tmp_path / "raw.json", raw), min_images=2)
    assert vocabulary_of(table) == SOCRATIS_29


def test_pictures_that_are_there(tmp_path):
    path = write_csv(tmp_path / "c.csv", "a.jpg,one,['sad']", "b.jpg,,\"['happy', 'sad']\"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").write_bytes(b"x")
    table, report = read_socratis(path, tmp_path / "images")
    assert table["image_uri"].to_pylist() == [None, str(tmp_path / "images" / "b.jpg")]
    assert table["captions"].to_pylist() == [["one"], []]
    assert table["label_weights"].to_pylist() == [None, None]
    assert (report.images_found, report.images_missing, report.captions) == (1, 1, 1)
    with pytest.raises(InputError, match="no such folder"):
        read_socratis(path, tmp_path / "nope")


@pytest.mark.parametrize(
    "lines, reason",
    [
        (["a.jpg,one,['sad']", "b.jpg,two,['sad'"], r"line 3: emotions \"\['sad'\" are not a list of words"),
        (["a.jpg,one,['sad', 3]"], "line 2: has 4 cells, the header has 3"),
        (["a.jpg,one,\"['sad', 3]\""], "line 2: emotions .* are not a list of words"),
        (["a.jpg,one,__import__('os').getcwd()"], "are not a list of words"),
        (["a.jpg,one"], "line 2: has 2 cells"),
        ([",one,['sad']"], "line 2: image_name is empty"),
        (["a.jpg,one,['sad']", "a.jpg, one ,['calm']"], "line 3: image_name a.jpg appears twice .*, first in line 2"),
        (["a.jpg,one,['agry']"], "line 2: 'agry' is not an emotion of socratis-29"),
        (["a.jpg,one,x", "b.jpg,one,['sad']", "c.jpg,one,y"], "line 2: .*1 more bad lines: 4"),
        (['a.jpg,"one,[]'], "line 2: a quote opens a cell and is never closed"),
    ],
)
def test_bad_rows_are_named(tmp_path, lines, reason):
    path = write_csv(tmp_path / "c.csv", *lines)
    with pytest.raises(InputError, match=reason) as caught:
        read_socratis(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_drops_other_words(tmp_path):
    path = write_csv(tmp_path / "c.csv", "a.jpg,one,\"['agry', 'sad']\"", "b.jpg,two,['agry']")
    table, report = read_socratis(path, vocabulary="socratis-29")
    assert table["labels"].to_pylist() == [["sad"]]
    assert (report.dropped_images, report.dropped_words) == (1, 1)


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "c.csv").write_text("name,caption\nx,y\n")
    with pytest.raises(InputError, match="column image_name, emotions"):
        read_socratis(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-16 text"):
        read_socratis(tmp_path / "c.csv")
    with pytest.raises(InputError, match="no such file"):
        read_socratis(tmp_path / "nope.csv")


@pytest.mark.parametrize(
    "value, reason",
    [
        ([], "is a JSON list"),
        ({"7": []}, "row 7: is not a list of annotators"),
        ({"7": [["a.jpg", "x"]]}, r"row 7\[0\]: is not a list of image name"),
        ({"7": [["", "x", []]]}, r"row 7\[0\]: has no image name"),
        ({"7": [["a.jpg", 3, []]]}, "the caption is not text"),
        ({"7": [["a.jpg", "x", "happy"]]}, "the emotions are not a list"),
    ],
)
def test_bad_entries_of_the_raw_file(tmp_path, value, reason):
    with pytest.raises(InputError, match=reason):
        read_socratis(write_raw(tmp_path / "raw.json", value))
    (tmp_path / "raw.json").write_text('{"7": ')
    with pytest.raises(InputError, match="is not JSON"):
        read_socratis(tmp_path / "raw.json")


# The published counts of images per label, from the data set's own description.
PUBLISHED = {
    "happy": 1390, "sad": 728, "excited": 619, "curious": 610, "interested": 555, "confused": 410, "angry": 344,
    "intrigued": 303, "worried": 224, "concerned": 222, "proud": 204, "hopeful": 192, "inspired": 191, "scared": 179,
    "bored": 172, "anger": 165, "good": 158, "neutral": 156, "calm": 151, "upset": 147, "disgusted": 131, "fear": 131,
    "annoyed": 130, "beautiful": 122, "nostalgic": 122, "joy": 122, "impressed": 121, "amazed": 114, "awe": 108,
}  # fmt: skip


@pytest.mark.skipif(not REAL.is_file(), reason="the real Socratis csv is not here")
def test_the_real_csv():
    table, report = read_socratis(REAL)
    assert report.rows == 2065 and report.labels == PUBLISHED
    assert vocabulary_of(table) == SOCRATIS_29
    labels = table["labels"].to_pylist()
    for best, accuracy in (({"happy"}, 0.673), ({"happy", "sad"}, 0.832), ({"happy", "sad", "excited"}, 0.885)):
        assert sum(1 for own in labels if best & set(own)) / 2065 == pytest.approx(accuracy, abs=0.0005)
    sources = table["source"].to_pylist()
    assert (sources.count("socratis/visualnews"), sources.count("socratis/conceptualcaptions")) == (1616, 449)


def test_each_caption_of_a_picture_keeps_its_own_emotions(tmp_path):
    raw = {
        "7": [annotator("a.jpg", "sad", caption="one"), annotator("a.jpg", "sad", "angry", caption="one"),
              annotator(" a.jpg", "happy", caption="two"), annotator("a.jpg", "calm", caption="")],
        "8": [annotator("b.jpg", "sad", caption="three"), annotator("b.jpg", "happy", caption="")],
        "9": [annotator("a.jpg", "agry", caption="four"), annotator("a.jpg", "happy", caption="two")],
    }  # fmt: skip
    table, report = read_socratis(write_raw(tmp_path / "raw.json", raw), vocabulary="socratis-29")
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    assert {name: (row["captions"], row["labels"], row["label_weights"]) for name, row in rows.items()} == {
        "socratis:a": (["one"], ["angry", "sad"], [0.5, 1.0]),
        "socratis:a#2": (["two"], ["happy"], [1.0]),
        "socratis:a#3": ([], ["calm"], [1.0]),
        "socratis:b": (["three"], ["happy", "sad"], [0.5, 0.5]),  # b has one caption: who has none saw the same
    }
    assert {row["group_id"] for row in rows.values()} == {"socratis:a", "socratis:b"}
    assert (report.annotators, report.several_captions, report.dropped_images) == (8, 2, 1)
    assert report.labels["sad"] == 2 and report.labels["happy"] == 2  # images, not captions
    path = write_csv(tmp_path / "c.csv", "a.jpg,one,['sad']", "a.jpg,two,['happy']")
    table, report = read_socratis(path)
    assert table.select(["sample_id", "group_id", "captions", "labels"]).to_pylist() == [
        {"sample_id": "socratis:a", "group_id": "socratis:a", "captions": ["one"], "labels": ["sad"]},
        {"sample_id": "socratis:a#2", "group_id": "socratis:a", "captions": ["two"], "labels": ["happy"]},
    ]


def test_words_are_counted_by_images_not_by_captions(tmp_path):
    raw = {"1": [annotator("a.jpg", "sad", caption=f"{i}") for i in range(5)], "2": [annotator("b.jpg", "happy")]}
    with pytest.raises(InputError, match=r"2 images.*'happy'.* 1"):
        read_socratis(write_raw(tmp_path / "raw.json", raw), min_images=2)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["a.jpg", "a.jpg.png", "a.png"]),
        (["x/a.jpg", "y/a.jpg", "x/a.webp"], ["x/a.jpg", "y/a", "x/a.webp"]),
        ([" a.jpg", "b.jpg "], ["a", "b"]),
    ],
)
def test_no_two_pictures_share_an_id(tmp_path, names, ids):
    table, _ = read_socratis(write_csv(tmp_path / "c.csv", *(f"{name},of {name},['sad']" for name in names)))
    assert table["sample_id"].to_pylist() == [f"socratis:{name}" for name in ids]
    assert table["group_id"].to_pylist() == table["sample_id"].to_pylist()


def test_an_id_that_is_taken_all_the_same_is_named_with_the_file(tmp_path):
    path = write_csv(tmp_path / "c.csv", "a,one,['sad']", "a,two,['sad']", "a#2,three,['sad']")
    with pytest.raises(InputError, match=r"c\.csv: .*'socratis:a#2'.*twice"):
        read_socratis(path)


def test_names_with_blanks_and_accents_find_their_pictures(tmp_path):
    nfc, nfd = unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg")
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in (" a.jpg", "a.jpg", "b.jpg", nfd, "sub/c.jpg", "D.jpg", "unused.png", "notes.txt"):
        (images / name).write_bytes(b"")
    names = [" a.jpg", "a.jpg", "b.jpg ", nfc, "sub/c.jpg", "d.jpg", "gone.jpg"]
    path = write_csv(tmp_path / "c.csv", *(f"{name},of {name},['sad']" for name in names))
    table, report = read_socratis(path, images)
    found = [" a.jpg", "a.jpg", "b.jpg", nfd, "sub/c.jpg", None, None]
    assert table["image_uri"].to_pylist() == [name and str(images / name) for name in found]
    assert len(set(table["sample_id"].to_pylist())) == 7
    assert (report.images_found, report.images_missing, report.other_case, report.unused_pictures) == (5, 2, 1, 2)
    assert any(note.startswith("1 files without a picture's extension") for note in report.notes())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [
    "IMAGE_NAME;caption ;emotions\r\na.jpg;one, two;['sad']\r\n",
    "image_name\tcaption\temotions\ra.jpg\tone, two\t['sad']\r",
])  # fmt: skip
def test_dialects(tmp_path, encoding, text):
    (tmp_path / "c.csv").write_bytes(text.encode(encoding))
    table, _ = read_socratis(tmp_path / "c.csv")
    assert table.select(["captions", "labels"]).to_pylist() == [{"captions": ["one, two"], "labels": ["sad"]}]


def test_a_lone_quote_is_named_with_its_line(tmp_path):
    path = write_csv(tmp_path / "c.csv", "a.jpg,one,['sad']", "b.jpg,\"two,['sad']", "c.jpg,three\",['sad']")
    with pytest.raises(InputError, match=r"c\.csv, line 3: .*quoted cell.* line 4"):
        read_socratis(path)


def test_an_image_id_that_stands_twice_is_refused(tmp_path):
    one = json.dumps([annotator("a.jpg", "sad")])
    (tmp_path / "raw.json").write_text(f'{{"7": {one}, "7": {one}}}')
    with pytest.raises(InputError, match=r"raw\.json: .*key '7' twice"):
        read_socratis(tmp_path / "raw.json")
