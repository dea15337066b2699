"""Socratis: the cleaning rules on a raw file written by hand, and the published counts on the real csv."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.samples import vocabulary_of
from raymotion.data.socratis import clean_words, read_socratis
from raymotion.errors import InputError
from raymotion.vocabulary import SOCRATIS_29

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "socratis" / "cleaned_data.csv"
HEADER = "image_name,caption,emotions\n"


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
    table, report = read_socratis(write_raw(tmp_path / "raw.json", raw), vocabulary=SOCRATIS_29)
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
    with pytest.raises(InputError, match="no emotion is on 100 images or more; the commonest, 'sad', is on 5"):
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
        (["a.jpg,one,['sad']", "b.jpg,two,['sad'"], r"row 2: emotions \"\['sad'\" are not a list of words"),
        (["a.jpg,one,['sad', 3]"], "row 1: has more fields than the header"),
        (["a.jpg,one,\"['sad', 3]\""], "row 1: emotions .* are not a list of words"),
        (["a.jpg,one,__import__('os').getcwd()"], "are not a list of words"),
        (["a.jpg,one"], "row 1: has fewer fields"),
        ([",one,['sad']"], "row 1: image_name is empty"),
        (["a.jpg,one,['sad']", "a.jpg,two,['sad']"], "row 2: image_name a.jpg stands twice, first in row 1"),
        (["a.jpg,one,['agry']"], "row 1: 'agry' is not an emotion of socratis-29"),
        (["a.jpg,one,x", "b.jpg,one,['sad']", "c.jpg,one,y"], "row 1: .*1 more bad rows: 3"),
        (['a.jpg,"one,[]'], "is not a csv that can be read"),
    ],
)
def test_bad_rows_are_named(tmp_path, lines, reason):
    path = write_csv(tmp_path / "c.csv", *lines)
    with pytest.raises(InputError, match=reason) as caught:
        read_socratis(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_drops_other_words(tmp_path):
    path = write_csv(tmp_path / "c.csv", "a.jpg,one,\"['agry', 'sad']\"", "b.jpg,two,['agry']")
    table, report = read_socratis(path, vocabulary=SOCRATIS_29)
    assert table["labels"].to_pylist() == [["sad"]]
    assert (report.dropped_images, report.dropped_words) == (1, 1)


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "c.csv").write_text("name,caption\nx,y\n")
    with pytest.raises(InputError, match="lacks the column image_name, emotions"):
        read_socratis(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
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
