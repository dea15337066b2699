"""`raymotion data prepare flickr8k`: the three published forms, and what is wrong with them.

Tests called after a number hold a bug of the published code: systems.md, section 2.8.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.readers.flickr8k import Flickr8kReader, Flickr8kReport, words
from raymotion.data.readers.flickr8k.caption_files import csv_rows, parse_caption_file
from raymotion.data.readers.flickr8k.public_split import public_split
from raymotion.data.samples import read_samples
from raymotion.data.synthetic.flickr8k import BARE, NO_FILE, write_flickr8k
from raymotion.errors import InputError

NAMES = ("1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg", "1002674143_1b742ab4b8.jpg")


def read(path: Path, **options: Any) -> tuple[pa.Table, Flickr8kReport]:
    return Flickr8kReader(path=str(path), **options).read()


def captions_of(table: pa.Table) -> dict[str, list[str]]:
    ids = [name.removeprefix("flickr8k:") for name in table["sample_id"].to_pylist()]
    return dict(zip(ids, table["captions"].to_pylist(), strict=True))


def splits_of(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flickr8k") / "set"
    write_flickr8k(out, 60, 3, size=48)
    return out


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "captions.txt"
    path.write_bytes(text.encode())
    return path


# the forms


def test_all_three_forms_give_the_same_samples(synthetic):
    tables = {name: read(synthetic / name)[0] for name in ("captions.txt", "Flickr8k.token.txt")}
    first, second = tables.values()
    assert first.equals(second) and first.num_rows == 60
    table, _ = read(synthetic / "dataset_flickr8k.json")
    both = captions_of(first)
    assert 0 < table.num_rows < 60 and captions_of(table).items() <= both.items()


def test_2_8_7_five_captions_of_a_picture_are_one_sample(synthetic):
    """The published code made a row of each caption, and scored row i against the columns 5i to 5i + 4."""
    table, report = read(synthetic / "captions.txt")
    assert table.num_rows == 60 and set(map(len, table["captions"].to_pylist())) == {5}
    assert (report.captions, report.unusual) == (300, 0)
    assert len(set(table["sample_id"].to_pylist())) == 60 == len(set(table["image_uri"].to_pylist()))
    text = (synthetic / "captions.txt").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    for name, captions in captions_of(table).items():
        assert captions == [row["caption"] for row in rows if row["image"] == name]


def test_2_8_9_captions_have_no_padding_of_their_own(synthetic):
    """The published arrays had 50 positions for each caption, three in four of them padding, which the loss counted."""
    table, _ = read(synthetic / "captions.txt")
    texts = [text for captions in table["captions"].to_pylist() for text in captions]
    assert all(text == text.strip() and not re.search(r"<(start|end|pad|unk)>|  ", text) for text in texts)


def test_a_group_is_in_one_split(synthetic):
    table, report = read(synthetic / "captions.txt", val_fraction=0.3, test_fraction=0.3)
    assert report.same_content == 2
    parts: dict[str, set[str]] = {}
    for group, split in zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        parts.setdefault(group, set()).add(split)
    assert len(parts) == 58 and all(len(own) == 1 for own in parts.values())
    assert read(synthetic / "captions.txt", content_hash=False)[1].same_content == 0
    again, _ = read(synthetic / "captions.txt", val_fraction=0.3, test_fraction=0.3)
    other, _ = read(synthetic / "captions.txt", val_fraction=0.3, test_fraction=0.3, seed=1)
    assert splits_of(table) == splits_of(again) != splits_of(other)


def test_what_is_missing_on_either_side_is_told(synthetic):
    _, report = read(synthetic / "Flickr8k.token.txt")
    assert (report.not_files, report.not_file_captions, report.not_file_name) == (1, 5, NO_FILE)
    assert (report.bare, report.bare_name, report.missing) == (1, BARE, 0)
    assert any(NO_FILE in note for note in report.notes()) and any(BARE in note for note in report.notes())


def test_more_captions_than_pictures(tmp_path):
    (tmp_path / "Images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "Images" / NAMES[0])
    path = write_csv(tmp_path, "image,caption\n" + "".join(f"{name},A dog .\n" * 2 for name in NAMES))
    table, report = read(path)
    assert captions_of(table) == {NAMES[0]: ["A dog .", "A dog ."]}
    assert (report.missing, report.missing_captions, report.missing_name) == (2, 4, NAMES[1])
    assert report.notes()[0] == (
        f"2 pictures that the captions name are not in the folder (such as {NAMES[1]}), 4 captions left out"
    )
    with pytest.raises(InputError, match="none of its 3 pictures is in"):
        read(write_csv(tmp_path, "image,caption\nx.jpg,A dog .\ny.jpg,A dog .\nz.jpg,A dog .\n"))


def test_without_pictures_the_addresses_are_empty(tmp_path):
    path = write_csv(tmp_path, f"image,caption\n{NAMES[0]},A dog .\n")
    table, report = read(path)
    assert table["image_uri"].to_pylist() == [None] and report.without_pictures
    assert any("--images" in note for note in report.notes())


def test_the_real_captions(shared_data):
    path = shared_data / "flickr8k" / "captions.csv"
    table, report = read(path)
    assert (report.rows, report.captions, report.unusual) == (600, 3000, 0)
    # Against the csv module, which this copy is written for.
    wanted: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO(path.read_text())):
        wanted.setdefault(row["image"], []).append(" ".join(row["caption"].split()))
    assert captions_of(table) == wanted
    assert Counter(table["split"].to_pylist()) == {"train": 480, "val": 60, "test": 60}


# captions.txt


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quoted_and_unquoted_commas_and_quotes(tmp_path, end):
    lines = [
        "image,caption",
        f'{NAMES[0]},"A dog , a ball ."',
        f"{NAMES[0]},A dog , a ball .",
        f'{NAMES[0]},"A sign says ""stop"" , twice ."',
        f'{NAMES[0]},A sign says "stop" .',
        f'{NAMES[0]},"Stop" says a sign .',
        f'"{NAMES[0]}","all quoted"',
        "",
        f'{NAMES[1]},"A caption',
        'of two lines"',
        f'{NAMES[1]},"never closed',
        f"{NAMES[1]},  spaced ,  out  ",
    ]
    table, report = read(write_csv(tmp_path, end.join(lines)))
    assert captions_of(table) == {
        NAMES[0]: [
            "A dog , a ball .", "A dog , a ball .", 'A sign says "stop" , twice .', 'A sign says "stop" .',
            '"Stop" says a sign .', "all quoted",
        ],
        NAMES[1]: ["A caption of two lines", '"never closed', "spaced , out"],
    }  # fmt: skip
    assert report.unusual == 2


def test_a_file_without_a_header_and_with_other_names(tmp_path):
    assert captions_of(read(write_csv(tmp_path, f"{NAMES[0]},A dog .\n"))[0]) == {NAMES[0]: ["A dog ."]}
    assert captions_of(read(write_csv(tmp_path, f"file_name,Text\n{NAMES[0]},A dog .\n"))[0]) == {NAMES[0]: ["A dog ."]}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "the file is empty"),
        ("image|caption\nx.jpg|A dog", "line 1: begins with 'image|caption', which is not the header"),
        ("image,caption,more\nx.jpg,A dog,1", "line 1: begins with"),
        ("image,caption\nx.jpg,A dog\njust words\n", "line 3: is 'just words'"),
        ("image,caption\n,A dog\n", "line 2"),
        ("image,caption\nx.jpg,\n", "none of its 1 pictures has a caption"),
        ("image,caption\nx.jpg,A\0dog\n", "NUL"),
        ("x.jpg#0\tA dog\nx.jpg 1 A dog\n", "line 2: is 'x.jpg 1 A dog', not NAME.jpg#0"),
        ("[]", "has no list images"),
        ('{"images": [3]}', "images[0]: is not an object"),
        ('{"images": [{"filename": "x.jpg", "sentences": [{}]}]}', "images[0]: has a sentence without raw"),
        ('{"images": [{"filename": "x.jpg", "split": "dev", "sentences": []}]}', "has the split 'dev'"),
        (
            '{"images": [{"filename": "x.jpg", "sentids": [5], "sentences": [{"raw": "A dog", "sentid": 7}]}]}',
            "they are another picture's",
        ),
        (
            '{"images": [{"filename": "x.jpg", "sentences": []}, {"filename": "x.jpg", "sentences": []}]}',
            "images[1]: names 'x.jpg' a second time",
        ),
    ],
)
def test_other_files_are_refused_with_their_line(tmp_path, text, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        read(write_csv(tmp_path, text))


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
_ROWS = st.lists(st.tuples(st.sampled_from(NAMES), _TEXT), min_size=1, max_size=8)


@given(rows=_ROWS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), end=st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_writes_is_read_back(rows, quoting, end):
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    writer.writerows([("image", "caption"), *rows])
    assert [(name, caption) for _, name, caption in csv_rows(text.getvalue(), "x")] == rows


@given(rows=_ROWS, end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_is_written_without_quoting_is_read_back(rows, end):
    # A caption in quotes from end to end could be either.
    assume(not any(re.fullmatch(r'\s*"([^"]|"")*"\s*', caption) for _, caption in rows))
    text = "image,caption" + end + "".join(f"{name},{caption}{end}" for name, caption in rows)
    found = [(name, caption) for _, name, caption in csv_rows(text, "x")]
    assert found == rows


@given(rows=st.lists(st.tuples(st.sampled_from(NAMES), _TEXT.map(lambda text: text + ".")), min_size=1, max_size=8))
def test_a_token_file_is_read_back(rows):
    numbers: Counter[str] = Counter()
    lines, wanted = [], {}
    for name, caption in rows:
        lines.append(f"{name}#{numbers[name]}\t{caption}")
        numbers[name] += 1
        wanted.setdefault(name, []).append(caption)
    form, pictures = parse_caption_file("\r\n".join(reversed(lines)), "x")
    assert form == "token" and {own.name: list(own.captions) for own in pictures} == wanted


@given(text=st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        _, pictures = parse_caption_file(text, "x")
    except InputError:
        return
    assert all(own.name for own in pictures)


# the published splits


def test_karpathys_split(synthetic, tmp_path):
    document = json.loads((synthetic / "dataset_flickr8k.json").read_text())
    wanted = {f"flickr8k:{own['filename']}": own["split"] for own in document["images"]}
    for name in ("captions.txt", "dataset_flickr8k.json"):
        table, report = read(synthetic / name, split="karpathy", content_hash=False)
        found = splits_of(table)
        assert {key: own for key, own in found.items() if own is not None} == wanted
        assert report.no_split == len(found) - len(wanted) == (1 if name == "captions.txt" else 0)
    document["images"][0]["split"] = "restval"
    other = tmp_path / "karpathy.json"
    other.write_text(json.dumps(document))
    table, _ = read(synthetic / "captions.txt", split="karpathy", karpathy=str(other), content_hash=False)
    assert splits_of(table)[f"flickr8k:{document['images'][0]['filename']}"] == "train"


def test_a_copy_in_two_parts_of_a_published_split_is_withdrawn(synthetic, tmp_path):
    table, _ = read(synthetic / "captions.txt", no_split=True)
    groups = Counter(table["group_id"].to_pylist())
    (pair, *_) = [group for group, count in groups.items() if count == 2]
    names = [row["sample_id"][9:] for row in table.to_pylist() if row["group_id"] == pair]
    document = json.loads((synthetic / "dataset_flickr8k.json").read_text())
    document["images"] = [
        {"filename": own["filename"], "split": "test" if own["filename"] == names[1] else "train", "sentences": []}
        for own in document["images"]
    ]
    other = tmp_path / "karpathy.json"
    other.write_text(json.dumps(document))
    table, report = read(synthetic / "captions.txt", split="karpathy", karpathy=str(other))
    found = splits_of(table)
    assert f"flickr8k:{names[0]}" not in found and found[f"flickr8k:{names[1]}"] == "test"
    assert report.withdrawn == 1 and table.num_rows == 59


def test_the_public_split_has_the_published_sizes_and_numpys_order():
    names = [f"{number:04d}.jpg" for number in range(8091)]
    found = public_split(names)
    assert Counter(found.values()) == {"train": 5663, "val": 1213, "test": 1215}
    # As the public code did it: a shuffle in place, by the legacy generator.
    shuffled = np.array(names, dtype=object)
    np.random.RandomState(42).shuffle(shuffled)
    assert [found[name] for name in shuffled] == ["train"] * 5663 + ["val"] * 1213 + ["test"] * 1215


def test_the_public_split_is_of_the_file_not_of_the_folder(synthetic, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text((synthetic / "captions.txt").read_text())
    everything, report = read(path, split="public")
    assert "no published part" in str(report.split_note)
    (tmp_path / "Images").mkdir()
    for number, picture in enumerate(sorted((synthetic / "Images").iterdir())):
        if number % 3:
            (tmp_path / "Images" / picture.name).write_bytes(picture.read_bytes())
    some, report = read(path, split="public", content_hash=False)
    assert report.missing > 10 and splits_of(some).items() <= splits_of(everything).items()


def test_short_captions_are_dropped_on_demand(tmp_path):
    text = f"image,caption\n{NAMES[0]},A dog .\n{NAMES[0]},A tri-colored dog .\n{NAMES[1]},Dogs !\n"
    table, report = read(write_csv(tmp_path, text), min_words=3)
    assert captions_of(table) == {NAMES[0]: ["A tri-colored dog ."]}
    assert (report.short_captions, report.uncaptioned) == (2, 1)
    assert read(write_csv(tmp_path, text))[1].short_captions == 0
    assert (words("A dog ."), words("tri-colored , dog"), words("...")) == (2, 2, 0)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"split": "public", "no_split": True}, "--no-split and --split public are given"),
        ({"karpathy": "x.json"}, "--karpathy is given, and the split is grouped"),
        ({"split": "karpathy"}, "dataset_flickr8k.json: no such file"),
        ({"split": "karpathy", "karpathy": "captions.txt"}, "holds no split"),
        ({"images": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(reason)):
        read(write_csv(tmp_path, f"image,caption\n{NAMES[0]},A dog .\n"), **options)


def test_the_commands(runner, tmp_path):
    made = runner("data", "synth", "flickr8k", "--images", 30, "--size", 40, "--out", tmp_path / "set")
    assert made.code == 0 and "captions   150" in made.out, made.err
    done = runner("data", "prepare", "flickr8k", tmp_path / "set/captions.txt", "--out", tmp_path / "f.parquet")
    assert done.code == 0 and "rows       30\ncaptions   150" in done.out, done.err
    table = read_samples(tmp_path / "f.parquet")
    assert table.num_rows == 30 and all(Path(uri).is_file() for uri in table["image_uri"].to_pylist())
    again = runner("data", "synth", "flickr8k", "--images", 30, "--size", 40, "--out", tmp_path / "again")
    assert again.code == 0
    for name in ("captions.txt", "dataset_flickr8k.json"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_captions_say_what_is_seen(synthetic):
    table, _ = read(synthetic / "captions.txt")
    texts = [" ".join(captions) for captions in table["captions"].to_pylist()]
    light = [float(np.asarray(Image.open(uri).convert("L")).mean()) for uri in table["image_uri"].to_pylist()]
    night = [bool(re.search("at night|in the dark", text)) for text in texts]
    dark, bright = ([own for own, is_night in zip(light, night, strict=True) if is_night is k] for k in (True, False))
    assert len(dark) > 5 and np.mean(dark) + 20 < np.mean(bright)
