"""`raymotion data prepare deep-connotation`: the merged csv with votes, labels.json, and what is wrong with both.

Tests called after a number hold a bug of the published code: systems.md, section 3.5.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raymotion.data.readers.deep_connotation import PLACEHOLDER, DeepConnotationReader, DeepConnotationReport
from raymotion.data.samples import read_samples, targets, vocabulary_of
from raymotion.data.synthetic.deep_connotation import write_deep_connotation
from raymotion.errors import InputError
from raymotion.vocabulary import MIKELS_8

FLICKR = "http://farm9.staticflickr.com/8100/"


def read(path: Path, **options: Any) -> tuple[pa.Table, DeepConnotationReport]:
    return DeepConnotationReader(path=str(path), **options).read()


def draw(path: Path, grey: int) -> None:
    """A picture of one grey, by which the test knows it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path, "PNG")


def grey_of(uri: str) -> int:
    return Image.open(uri).getpixel((0, 0))


def write_csv(folder: Path, rows: list[tuple[str, str, int, int]]) -> Path:
    path = folder / "merged.csv"
    path.write_text("".join(f"{emotion},{FLICKR}{name},{no},{yes}\n" for emotion, name, no, yes in rows))
    return path


def write_json(folder: Path, parts: dict[str, list[tuple[int, int]]]) -> Path:
    """labels.json of (index, class) of each part."""
    path = folder / "labels.json"
    content = {f"{part}{key}": [pair[k] for pair in own] for part, own in parts.items() for k, key in enumerate("XY")}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deep-connotation")
    report = write_deep_connotation(out, 200, 3, size=16)
    assert (report.rows, report.twice, report.gone) == (200, 10, 10)
    return out


def test_the_synthetic_set_is_read_in_both_forms(synthetic: Path) -> None:
    table, report = read(synthetic / "merged.csv", images=str(synthetic / "images"), contradictions="keep")
    assert vocabulary_of(table) == MIKELS_8
    assert report.missing == 10 and report.contradicting > 0
    assert report.rows + report.rejected + report.repeated == 190, "every row is accounted for"
    assert set(table["split"].to_pylist()) == {"train", "val", "test"}
    parts, both = read(synthetic / "labels.json", contradictions="keep")
    assert both.rows + both.repeated == 190 and both.labels.keys() == set(MIKELS_8.labels) and both.leaking > 0
    assert parts["label_weights"].null_count == both.rows, "labels.json has no votes"
    assert "drawn without a seed" in "\n".join(both.lines())


# ---------------------------------------------------------------- the csv


def test_3_5_8_votes_are_weights_and_filter(tmp_path: Path) -> None:
    rows = [("awe", f"{i}_a.jpg", 5 - i, i) for i in range(6)]
    for i in range(6):
        draw(tmp_path / f"{i}_a.jpg", 10 * i)
    path = write_csv(tmp_path, rows)
    table, report = read(path)
    shares = dict(zip(table["sample_id"].to_pylist(), table["label_weights"].to_pylist(), strict=True))
    assert shares == {f"deep-connotation:awe:{i}_a": [pytest.approx(i / 5)] for i in range(1, 6)}
    assert (report.rejected, report.disputed) == (1, 0), (
        "no weight of 0: the row that nobody agrees with is left out, and counted"
    )
    assert targets(table, MIKELS_8, soft=True).max(axis=1) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "1 row left out, that no annotator agrees with" in "\n".join(report.lines())
    table, report = read(path, min_agreement=3)
    assert "3 rows left out, with which fewer annotators agree than --min-agreement" in "\n".join(report.lines())
    assert [name[-3] for name in table["sample_id"].to_pylist()] == ["3", "4", "5"] and report.disputed == 3
    table, _ = read(path, agreeing_column="third")
    assert table["label_weights"].to_pylist()[0] == [1.0], "the other column counts those who agree"


def test_3_5_9_a_picture_of_several_searches_is_in_one_split(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = []
    for i in range(300):
        name = f"{1000 + i}_ab.jpg"
        draw(tmp_path / "images" / name, i % 256)
        # Each grey but some is a file of its own; a size keeps the contents apart.
        Image.new("L", (8, 8 + i // 256), i % 256).save(tmp_path / "images" / name, "PNG")
        rows.append((MIKELS_8.labels[i % 8], name, 1, 4))
        if i % 3 == 0:  # the same address under another emotion
            rows.append((MIKELS_8.labels[(i + 1) % 8], name, 2, 3))
        elif i % 3 == 1:  # the same picture, uploaded again
            again = f"{5000 + i}_cd.jpg"
            (tmp_path / "images" / again).write_bytes((tmp_path / "images" / name).read_bytes())
            rows.append((MIKELS_8.labels[(i + 2) % 8], again, 2, 3))
    rng.shuffle(rows)
    path = write_csv(tmp_path, rows)
    table, report = read(path, images=str(tmp_path / "images"), contradictions="keep")
    assert table.num_rows == 500 and report.contradicting == 200

    def split_contents(own: pa.Table) -> int:
        splits: dict[bytes, set[str]] = {}
        for uri, split in zip(own["image_uri"].to_pylist(), own["split"].to_pylist(), strict=True):
            splits.setdefault(Path(uri).read_bytes(), set()).add(split)
        return sum(len(found) > 1 for found in splits.values())

    assert split_contents(table) == 0
    assert len(set(table["group_id"].to_pylist())) == 300
    again, _ = read(path, images=str(tmp_path / "images"), contradictions="keep")
    assert again["split"] == table["split"], "seeded"
    other, _ = read(path, images=str(tmp_path / "images"), contradictions="keep", seed=1)
    assert other["split"] != table["split"]
    loose, _ = read(path, images=str(tmp_path / "images"), contradictions="keep", content_hash=False)
    assert split_contents(loose) > 0, "without it, the test would not tell"
    assert len(set(loose["group_id"].to_pylist())) == 400, "the same address is known without reading"


def test_what_becomes_of_a_picture_of_two_emotions(tmp_path: Path) -> None:
    for name, grey in (("1_a", 1), ("2_b", 2), ("3_c", 3)):
        draw(tmp_path / f"{name}.jpg", grey)
    path = write_csv(
        tmp_path,
        [
            ("awe", "1_a.jpg", 1, 4), ("fear", "1_a.jpg", 3, 2),  # 4 against 2 votes
            ("awe", "2_b.jpg", 2, 3), ("fear", "2_b.jpg", 2, 3),  # as many
            ("awe", "3_c.jpg", 2, 3), ("awe", "3_c.jpg", 0, 5),  # the same search, twice: 8 of 10
        ],
    )  # fmt: skip

    def kept(mode: str) -> list[tuple[str, float]]:
        table, report = read(path, contradictions=mode, no_split=True)
        assert (report.contradicting, report.repeated) == (2, 1)
        assert report.overruled == {"strongest": 3, "keep": 0, "drop": 4}[mode]
        pairs = zip(table["sample_id"].to_pylist(), table["label_weights"].to_pylist(), strict=True)
        return [(own.removeprefix("deep-connotation:"), round(weight[0], 3)) for own, weight in pairs]

    assert kept("strongest") == [("awe:1_a", 0.8), ("awe:3_c", 0.8)]
    assert kept("drop") == [("awe:3_c", 0.8)]
    assert kept("keep") == [("awe:1_a", 0.8), ("fear:1_a", 0.4), ("awe:2_b", 0.6), ("fear:2_b", 0.6), ("awe:3_c", 0.8)]


def test_sizes_of_one_photo_are_one_group_and_other_names_are_found(tmp_path: Path) -> None:
    draw(tmp_path / "77_ab_b.jpg", 1)
    draw(tmp_path / "sub" / "77_ab_z.JPG", 2)
    draw(tmp_path / "my photo.png", 3)
    path = tmp_path / "merged.csv"
    path.write_text(
        f"﻿Awe,{FLICKR}77_ab_b.jpg,0,5\r\nawe ,{FLICKR}77_ab_z.jpg?zz=1,1,4\r\n\r\nfear,{FLICKR}my%20photo.jpg,0,5\r\n",
        encoding="utf-8",
    )
    table, report = read(path, no_split=True)
    assert table["group_id"].to_pylist() == ["deep-connotation:77_ab", "deep-connotation:my photo"]
    assert report.repeated == 1 and [grey_of(uri) for uri in table["image_uri"].to_pylist()] == [1, 3]
    assert table["label_weights"].to_pylist()[0] == [pytest.approx(0.9)]


def test_what_a_site_shows_for_photos_that_are_gone_is_no_picture(tmp_path: Path) -> None:
    rows = []
    for i in range(PLACEHOLDER + 1):
        draw(tmp_path / f"{i}_a.jpg", 200)
        rows.append((MIKELS_8.labels[i % 8], f"{i}_a.jpg", 0, 5))
    draw(tmp_path / "900_a.jpg", 1)
    table, report = read(write_csv(tmp_path, [*rows, ("awe", "900_a.jpg", 0, 5)]))
    assert table.num_rows == 1 and report.placeholders == PLACEHOLDER + 1
    assert "a placeholder" in "\n".join(report.lines())


@pytest.mark.parametrize(
    "line, message",
    [
        (f"joy,{FLICKR}1_a.jpg,0,5", r"merged\.csv, line 2: 'joy' is not one of amusement, anger"),
        ("emotion,url,disagree,agree", r"line 2: 'emotion' is not one of .*without a header"),
        (
            f"awe,{FLICKR}1_a.jpg,0",
            r"line 2: has 3 cells, not 4\. A line holds emotion, address and two counts of votes, without",
        ),
        (f"0,awe,{FLICKR}1_a.jpg,0,5", "line 2: has 5 cells, not 4"),
        (f"awe,{FLICKR}1_a.jpg,1,5", "line 2: the votes are 1 and 5, and there are 5 annotators. Correct the row"),
        (f"awe,{FLICKR}1_a.jpg,-1,6", "line 2: the third cell is '-1', not a number of votes"),
        (f"awe,{FLICKR}1_a.jpg,0,many", "line 2: the fourth cell is 'many', not a number of votes"),
        (
            "awe,http://farm9.staticflickr.com/,0,5",
            "line 2: the address 'http://farm9.staticflickr.com/' names no file",
        ),
        (f'awe,"{FLICKR}1_a.jpg,0,5', "line 2: .*quote"),
        ("awe,\0,0,5", "holds NUL characters"),
        ("awe,http://[::1,0,5", r"line 2: the address 'http://\[::1' names no file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    draw(tmp_path / "9_a.jpg", 1)
    path = tmp_path / "merged.csv"
    path.write_text(f"awe,{FLICKR}9_a.jpg,0,5\n{line}\n")
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_folder_is_not_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder, not a file\. Give its csv or labels\.json"):
        read(tmp_path)


def test_pictures_by_the_number_of_the_row(tmp_path: Path) -> None:
    rows = [(MIKELS_8.labels[i], f"{i}_a.jpg", 0, 5) for i in range(8)]
    path = write_csv(tmp_path, rows)
    for i in (0, 1, 2, 4, 5, 6, 7):
        draw(tmp_path / "images" / f"img{i}.jpg", i)
    table, report = read(path, images=str(tmp_path / "images"), names="row", no_split=True)
    assert report.missing == 1
    for uri, labels in zip(table["image_uri"].to_pylist(), table["labels"].to_pylist(), strict=True):
        assert MIKELS_8.index(labels[0]) == grey_of(uri)
    # Numbered without a gap, but fewer than there are rows: by the order of downloads, and the csv does not know it.
    (tmp_path / "images/img7.jpg").rename(tmp_path / "images/img3.jpg")
    with pytest.raises(InputError, match=r"numbered 0 to 6 without a gap: by what was downloaded, not by row"):
        read(path, images=str(tmp_path / "images"), names="row")
    draw(tmp_path / "images" / "img8.jpg", 8)
    with pytest.raises(InputError, match=r"there is img8\.jpg, and the csv has 8 entries, numbered 0 to 7"):
        read(path, images=str(tmp_path / "images"), names="row")
    draw(tmp_path / "images" / "04.png", 8)
    with pytest.raises(InputError, match=r"04\.png and img4\.jpg are both the picture 4"):
        read(path, images=str(tmp_path / "images"), names="row")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"names": "position"}, r"is a csv, and --names position is not of its kind\. Choose address or row"),
        ({"split": "published"}, "is a csv, which has no split"),
        ({"images": "{tmp}/nowhere"}, "nowhere: no such folder"),
        ({"images": "{tmp}/empty"}, r"none of the 1 rows has a picture in .*empty\. Check --images"),
    ],
)
def test_options_that_do_not_fit_a_csv(tmp_path: Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "1_a.jpg", 1)
    options = {key: value.format(tmp=tmp_path) for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        read(write_csv(tmp_path, [("awe", "1_a.jpg", 0, 5)]), **options)


CELL = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["awe", "0", "5", f"{FLICKR}1_a.jpg", '"'])


@given(st.lists(st.lists(CELL, min_size=1, max_size=5), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_read_or_refused_with_a_line(tmp_path: Path, rows: list[list[str]]) -> None:
    draw(tmp_path / "1_a.jpg", 1)
    path = tmp_path / "merged.csv"
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8", newline="")
    try:
        table, report = read(path)
    except InputError:
        return
    assert table.num_rows == report.rows <= len(rows)


# ---------------------------------------------------------------- labels.json


def numbered_parts(folder: Path, sizes: dict[str, int], seed: int = 0) -> dict[str, list[tuple[int, int]]]:
    """Parts with a random order of indices; the grey of a picture is 8 times its index and its class on top."""
    order = list(range(sum(sizes.values())))
    random.Random(seed).shuffle(order)
    parts = {part: [(order.pop(), 0) for _ in range(size)] for part, size in sizes.items()}
    parts = {part: [(index, index % 8) for index, _ in own] for part, own in parts.items()}
    for part, own in parts.items():
        for position, (index, label) in enumerate(own):
            draw(folder / f"{part}_img" / f"img{position}.jpg", 8 * (index // 8) + label)
            draw(folder / "by_index" / f"img{index}.jpg", 8 * (index // 8) + label)
    return parts


@pytest.mark.parametrize("split", ["grouped", "published"])
@pytest.mark.parametrize("names", ["position", "index"])
def test_3_5_1_id_label_and_picture_stay_together(tmp_path: Path, names: str, split: str) -> None:
    parts = numbered_parts(tmp_path, {"train": 150, "dev": 25, "test": 25})
    path = write_json(tmp_path, parts)
    folder = tmp_path / "by_index" if names == "index" else tmp_path
    if names == "position":
        for file in (tmp_path / "by_index").iterdir():
            file.unlink()
    table, report = read(path, images=str(folder), names=names, split=split)
    assert report.rows == 200 and not report.leaking
    for row in table.to_pylist():
        index, grey = int(row["sample_id"].split(":")[1]), grey_of(row["image_uri"])
        assert grey == index, "the picture of the id"
        assert row["labels"] == [MIKELS_8.labels[index % 8]], "and its label"
        if split == "published":
            own = {"train": "train", "val": "dev", "test": "test"}[row["split"]]
            assert (index, index % 8) in parts[own]


def test_3_5_1_labels_of_another_part_are_refused(tmp_path: Path) -> None:
    # The published code paired the vectors of dev with the labels of train: other lengths, cut to fit.
    parts = numbered_parts(tmp_path, {"train": 20, "dev": 6, "test": 5})
    path = write_json(tmp_path, {**parts, "dev": parts["dev"][:5]})
    with pytest.raises(InputError, match=r"there is dev_img/img5\.jpg, and devX has 5 entries, numbered 0 to 4"):
        read(path)
    content = json.loads(write_json(tmp_path, parts).read_text())
    path.write_text(json.dumps({**content, "devY": content["trainY"]}))
    with pytest.raises(InputError, match=r"labels\.json: devX has 6 entries, and devY 20"):
        read(path)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"trainX": [0, 1, 1], "trainY": [0, 0, 0]}, r"row train\[2\]: the index 1 is in trainX already, and again in"),
        ({"devX": [1], "devY": [0]}, r"row dev\[0\]: the index 1 is in trainX already, and again in devX"),
        ({"trainY": [0, 8]}, r"row train\[1\]: trainY has 8, not a number from 0 to 7"),
        ({"trainY": [0, True]}, r"row train\[1\]: trainY has True"),
        ({"trainY": [0, 1.0]}, r"trainY has 1\.0"),
        ({"trainY": [0, "awe"]}, "trainY has 'awe'"),
        ({"trainX": [0, -1]}, r"trainX has -1, not an index"),
        ({"trainX": [0, [1]]}, r"trainX has \[1\], not an index"),
        ({"testX": None}, "has no list testX"),
        ({"devY": {"0": 1}}, "has no list devY"),
    ],
)
def test_what_is_wrong_in_labels_json_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    for part in ("train", "dev", "test"):
        draw(tmp_path / f"{part}_img" / "img0.jpg", 1)
    good = {"trainX": [0, 1], "trainY": [0, 1], "devX": [2], "devY": [2], "testX": [3], "testY": [3]}
    (tmp_path / "labels.json").write_text(json.dumps({**good, **changed}))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "labels.json")


def test_3_5_9_what_leaks_in_the_published_split_is_counted_and_left_out_of_training(tmp_path: Path) -> None:
    # Pictures 0 to 4 of train are also in dev (0, 1), test (2, 3) or again in train (4); 5 is in dev and test.
    own = {"train": [10, 11, 12, 13, 14, 14, 20, 21], "dev": [10, 11, 15, 30], "test": [12, 13, 15, 40]}
    parts: dict[str, list[tuple[int, int]]] = {}
    index = 0
    for part, greys in own.items():
        parts[part] = []
        for position, grey in enumerate(greys):
            draw(tmp_path / f"{part}_img" / f"img{position}.jpg", grey)
            parts[part].append((index, grey % 8))
            index += 1
    table, report = read(write_json(tmp_path, parts), split="published")
    assert (report.leaking, report.withdrawn, report.repeated) == (5, 5, 1)
    found = {split: sorted(grey_of(row["image_uri"]) for row in table.to_pylist() if row["split"] == split)
             for split in ("train", "val", "test")}  # fmt: skip
    assert found == {"train": [14, 20, 21], "val": [10, 11, 30], "test": [12, 13, 15, 40]}
    assert "5 pictures are in more than one part of it" in "\n".join(report.lines())
    fresh, report = read(tmp_path / "labels.json")
    assert report.leaking == 5 and sorted(grey_of(uri) for uri in fresh["image_uri"].to_pylist()) == [
        10, 11, 12, 13, 14, 15, 20, 21, 30, 40,
    ]  # fmt: skip
    blind, report = read(tmp_path / "labels.json", content_hash=False, split="published")
    assert (report.leaking, blind.num_rows) == (0, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"names": "row"}, r"is labels\.json, and --names row is not of its kind\. Choose position or index"),
        ({"min_agreement": 3}, "has no votes, and --min-agreement is given"),
        ({"split": "published", "no_split": True}, "--no-split and --split published are given"),
    ],
)
def test_options_that_do_not_fit_labels_json(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    numbered_parts(tmp_path, {"train": 2, "dev": 1, "test": 1})
    path = write_json(tmp_path, {"train": [(0, 0), (1, 1)], "dev": [(2, 2)], "test": [(3, 3)]})
    with pytest.raises(InputError, match=message):
        read(path, **options)


def test_on_the_command_line(runner: Any, synthetic: Path, tmp_path: Path) -> None:
    done = runner("data", "synth", "deep-connotation", "--images", 80, "--size", 16, "--out", tmp_path / "dc")
    assert done.code == 0 and "80 (4 of a picture that another search found too)" in done.out, done.err
    out = tmp_path / "t.parquet"
    done = runner("data", "prepare", "deep-connotation", tmp_path / "dc/merged.csv", "--images", tmp_path / "dc/images",
                  "--min-agreement", 3, "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    for text in ("agreement", "note", "--min-agreement", "split"):
        assert text in done.out
    assert min(weight for own in read_samples(out)["label_weights"].to_pylist() for weight in own) >= 0.6 - 1e-6
    bad = tmp_path / "bad.csv"
    bad.write_text("awe,http://x.org/1.jpg,3,3\n")
    done = runner("data", "prepare", "deep-connotation", bad, "--out", out)
    assert done.code == 2 and re.search(r"bad\.csv, line 1: the votes are 3 and 3", done.err)


def test_the_synthetic_pictures_show_their_emotion_the_more_often_the_more_agree(
    synthetic: Path, tmp_path: Path
) -> None:
    # An independent reader of colours: nearest mean of hue and brightness. Chance is 1 of 8.
    import numpy as np

    write_deep_connotation(tmp_path, 400, 0, size=24)
    table, _ = read(tmp_path / "merged.csv", images=str(tmp_path / "images"))
    rows = table.to_pylist()
    features = np.stack([
        np.concatenate([own.mean((0, 1)), own.std((0, 1))])
        for row in rows
        for own in [np.asarray(Image.open(row["image_uri"]), dtype=float)]
    ])  # fmt: skip
    labels = np.array([MIKELS_8.index(row["labels"][0]) for row in rows])
    sure = np.array([row["label_weights"][0] >= 0.8 for row in rows])
    train = np.array([row["split"] == "train" for row in rows])
    means = np.stack([features[train & sure & (labels == k)].mean(0) for k in range(8)])
    guess = np.argmin(((features[:, None] - means) ** 2).sum(2), axis=1)
    right = guess == labels
    assert right[sure & ~train].mean() > 0.5
    assert right[~sure].mean() < right[sure].mean() - 0.1
    assert Counter(labels.tolist()).most_common(1)[0][1] / len(labels) < 0.16
