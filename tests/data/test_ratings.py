"""`raymotion data prepare ratings`, `oasis` and `gaped`: pictures with valence and arousal.

Tests called after a number hold a bug of the published code: systems.md, section 4.5.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raymotion import storage
from raymotion.data.images.decode import decode_rgb
from raymotion.data.readers.gaped import GapedReader
from raymotion.data.readers.oasis import OasisReader
from raymotion.data.readers.ratings import RatingsReader
from raymotion.data.readers.table import parse_number
from raymotion.data.samples import read_samples, scale_of
from raymotion.data.synthetic.rated import write_gaped, write_oasis
from raymotion.errors import InputError


def read(path: Path, **options: Any) -> tuple[pa.Table, Any]:
    options = {"scale": "1,9", "valence_column": "valence", **options}
    return RatingsReader(path=str(path), **options).read()


def draw(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8 + grey // 256, 8), grey % 256).save(path, "BMP" if path.suffix == ".bmp" else "PNG")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


# ---------------------------------------------------------------- ratings


def test_names_are_matched_exactly_then_without_blanks_case_and_extension(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "A.png",
        "b c.BMP",
        "St. Peter 1.jpg",
        "sub/d.jpg",
        "e.png",
        "e.bmp",
        "x/f.png",
        "y/f.png",
        "z/g.jpg",
        "z/g.bmp",
    ]
    for grey, name in enumerate(names):
        draw(tmp_path / "pictures" / name, grey)
    text = "picture,valence\na.jpg,1\nB C.jpg ,2\nst. peter 1,3\nD,4\ne.bmp,5\nE.jpg,6\ny/F,7\nf,8\nSt,9\nG.jpg,9\n"
    table, report = read(
        write(tmp_path / "t.csv", text), images=str(tmp_path / "pictures"), image_column="picture", no_split=True
    )
    found = {Path(uri).relative_to(tmp_path / "pictures").as_posix(): value for uri, value in zip(
        table["image_uri"].to_pylist(), table["valence"].to_pylist(), strict=True)}  # fmt: skip
    assert found == {
        "a.jpg": 1,
        "b c.BMP": 2,
        "St. Peter 1.jpg": 3,
        "sub/d.jpg": 4,
        "e.bmp": 5,
        "y/f.png": 7,
        "z/g.jpg": 9,
    }
    # E.jpg could be e.png or e.bmp, f could be in x or y, and St is not St. Peter.
    assert (report.missing, report.ambiguous, report.unused_pictures) == (3, 2, 4)
    assert "3 rows have no picture in the folder, and are left out (E.jpg, f, St)" in "\n".join(report.lines())


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "json"])
def test_every_format_with_points_and_commas(tmp_path: Path, kind: str) -> None:
    for i in range(3):
        draw(tmp_path / f"{i}.jpg", i)
    cells = [
        ("file", "v", "sd", "a"),
        ("0.jpg", "4,5", "1,25", "2"),
        ("1.jpg", "3.5", "", "8"),
        ("2.jpg", "9", "0", ""),
    ]
    if kind == "json":
        import json

        path = write(tmp_path / "t.json", json.dumps([dict(zip(cells[0], row, strict=True)) for row in cells[1:]]))
    else:
        mark = {"csv": ",", "semicolon": ";", "tsv": "\t"}[kind]
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=mark, lineterminator="\r").writerows(cells)
        path = write(tmp_path / f"t.{'csv' if kind == 'semicolon' else kind}", "﻿" + buffer.getvalue() + "\r\r")
    table, report = read(path, valence_column="v", valence_sd_column="sd", arousal_column="a", no_split=True)
    assert scale_of(table) == (1.0, 9.0)
    assert table["valence"].to_pylist() == [4.5, 3.5, 9.0] and table["arousal"].to_pylist() == [2.0, 8.0, None]
    assert table["valence_sd"].to_pylist() == [1.25, None, 0.0] and "arousal_sd" not in table.column_names
    assert report.numbers["valence"] == (3.5, pytest.approx(17 / 3), 9.0)


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("image,valence\na,10\n", {}, r"t\.csv, line 2: valence is 10, and the scale is 1 to 9"),
        ("image,valence\na,high\n", {}, "line 2: valence is 'high', not a number"),
        ("image,valence\na,nan\n", {}, "line 2: valence is 'nan', not a finite number"),
        (
            'image,valence\na,"1,200"\n',
            {"scale": "0,2000"},
            r"line 2: valence is '1,200', which could be 1\.200 or 1200\. Write",
        ),
        (
            "image,valence,g\na,3,X\nA.jpg,3,y\n",
            {"group_column": "g"},
            r"line 3: names 'A\.jpg' another time, with the group 'y' \(line 2 has 'x'\)",
        ),
        (
            "image,valence,s\na,3,X\na,3,y\n",
            {"source_column": "s"},
            r"line 3: names 'a' another time, with the source 'ratings/y' \(line 2 has 'ratings/x'\)",
        ),
        ("image,valence\n ,3\n", {}, "line 2: image is empty"),
        ("image,valence\na,3\nA.jpg,4\n", {}, r"line 3: rates 'A\.jpg' another time, with other numbers \(line 2 has"),
        ("image,valence,sd\na,3,-1\n", {"valence_sd_column": "sd"}, "line 2: valence_sd is -1, less than 0"),
        ("image,valence\na,3\n", {"scale": None}, r"the scale of the ratings is not stated\. Give --scale LOW,HIGH"),
        ("image,valence\na,3\n", {"scale": "9,1"}, "--scale 9,1 is not a lowest and a highest value"),
        ("image,valence\na,3\n", {"scale": "1"}, "--scale 1 is not a lowest and a highest value"),
        ("image,v\na,3\n", {}, "has no column 'valence'. Its columns are image, v"),
        ("image,valence\na,3\n", {"group_column": "g"}, "has no column 'g'"),
        ("image,valence\na,3\n", {"source_column": "g"}, "has no column 'g'"),
        ("image,valence\na,3\n", {"valence_column": None}, "no column of ratings is named. Give --valence-column"),
        ("image,valence\na,3\n", {"arousal_sd_column": "valence"}, "--arousal-sd-column is given without the ratings"),
        ("what,valence\na,3\n", {}, "has no column of pictures that is known by its name. Give --image-column"),
        ("image,valence\na,3\n", {"group_pattern": "("}, r"--group-pattern '\(' is no regular expression"),
        ("image,valence\nz,3\n", {}, r"none of the 1 rows has a picture in .*: 'z', for example, is not there"),
        ("image,valence\na,\n", {}, "none of the 1 rows has a picture"),
        ("image,valence\na,3\n", {"images": "{tmp}/nowhere"}, "nowhere: no such folder"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    draw(tmp_path / "a.jpg")
    options = {key: value.format(tmp=tmp_path) if value else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "t.csv", text), **options)


def test_three_decimals_after_a_comma_are_read_where_no_thousands_can_be_meant(tmp_path: Path) -> None:
    for i in range(2):
        draw(tmp_path / f"{i}.jpg", i)
    path = write(tmp_path / "t.csv", 'image,valence\n0,"3,125"\n1,"0,875"\n')
    assert read(path, scale="0,9", no_split=True)[0]["valence"].to_pylist() == [3.125, 0.875]


@pytest.mark.parametrize(("scale", "told"), [("0,100", True), ("1,7", False)])
def test_a_scale_that_the_values_hardly_use_is_told(tmp_path: Path, scale: str, told: bool) -> None:
    for i in range(12):
        draw(tmp_path / f"{i}.jpg", i)
    text = "image,valence\n" + "".join(f"{i},{1.11 + i * 0.489}\n" for i in range(12))
    _, report = read(write(tmp_path / "t.csv", text), scale=scale)
    expected = "valence lies between 1.11 and 6.49, of a scale of 0 to 100: is that scale right?"
    assert (expected in "\n".join(report.lines())) is told and bool(report.narrow) is told


def test_a_folder_of_pictures_is_no_table(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"is a folder, not a table\. Give the table, .* with --images"):
        read(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,valence\na.jpg,3\n")
    assert read(tmp_path, image_column="file_name")[0].num_rows == 1


def test_one_row_without_a_picture_and_too_few_rated_ones(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    told = "\n".join(read(write(tmp_path / "t.csv", "image,valence\na,3\nb,4\n"))[1].lines())
    assert "1 row has no picture in the folder, and is left out (b)" in told and "Add rated images" in told


def test_rows_without_ratings_and_rows_said_twice_are_counted(tmp_path: Path) -> None:
    for grey, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        draw(tmp_path / name, grey)
    shutil.copy(tmp_path / "a.jpg", tmp_path / "a copy.jpg")
    text = "image,valence\na.jpg,3\nb.jpg,\na.jpg,3\na copy.jpg,3.2\nc.jpg,9\n"
    table, report = read(write(tmp_path / "t.csv", text), no_split=True)
    assert (table.num_rows, report.unrated, report.repeated, report.same_content, report.groups) == (3, 1, 1, 1, 2)
    groups = dict(zip(table["sample_id"].to_pylist(), table["group_id"].to_pylist(), strict=True))
    assert groups["ratings:a.jpg"] == groups["ratings:a copy.jpg"] != groups["ratings:c.jpg"]
    told = "\n".join(report.lines())
    assert (
        "1 row left out, which has no rating" in told and "1 picture has the content of another one: it is in" in told
    )
    _, report = read(tmp_path / "t.csv", no_split=True, content_hash=False)
    assert report.groups == 3


def split_groups(table: pa.Table, key: Any) -> int:
    """How many groups, by an independent key of the picture's name, are in more than one split."""
    splits: dict[str, set[str]] = {}
    for row in table.to_pylist():
        splits.setdefault(key(Path(row["image_uri"]).stem), set()).add(row["split"])
    return sum(len(found) > 1 for found in splits.values())


def test_4_5_4_augmented_twins_stay_together_by_the_index_in_their_names(tmp_path: Path) -> None:
    # What Keras' ImageDataGenerator writes: PREFIX_INDEX_HASH.jpg, six of each picture, with the same valence.
    rng = np.random.default_rng(0)
    lines, grey = ["file,valence"], 0
    for index in range(40):
        for kind in ("orig", "zoom", "shear", "bright", "width", "height"):
            name = f"{kind}_{index}_{rng.integers(10**6)}.jpg"
            draw(tmp_path / name, grey)
            lines.append(f"{name},{1 + index % 8}")
            grey += 1
    path = write(tmp_path / "t.csv", "\n".join(lines))
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    table, report = read(path, group_pattern=r"_(\d+)_", **options)
    assert report.groups == 40 and split_groups(table, lambda stem: stem.split("_")[1]) == 0
    assert Counter(table["split"].to_pylist()) == {"train": 144, "val": 48, "test": 48}
    loose, _ = read(path, **options)
    assert split_groups(loose, lambda stem: stem.split("_")[1]) > 10, "without the pattern, the test would not tell"


def test_groups_from_a_column_and_a_pattern(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / f"{i}.jpg", i)
    text = "file,valence,theme,kind\n0,1,Acorns 1,Object\n1,2,acorns 2 ,Object\n2,3,Route 66,\n3,4,7,x\n4,5,Barn,x\n"
    path = write(tmp_path / "t.csv", text)
    table, report = read(path, group_column="theme", group_pattern=r"^(.*?) \d+$", source_column="kind", name="mine",
                         no_split=True)  # fmt: skip
    assert table["group_id"].to_pylist() == ["mine:acorns", "mine:acorns", "mine:route", "mine:7", "mine:barn"]
    assert table["source"].to_pylist() == ["mine/object", "mine/object", "mine", "mine/x", "mine/x"]
    assert report.ungrouped == 2 and "2 names without the --group-pattern" in "\n".join(report.lines())
    whole, _ = read(path, group_column="theme", no_split=True)
    assert whole["group_id"].to_pylist()[:2] == ["ratings:acorns 1", "ratings:acorns 2"]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(st.characters(codec="utf-8"), max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_read_or_refused(tmp_path: Path, one: str, other: str) -> None:
    draw(tmp_path / "a.jpg")
    path = write(tmp_path / "t.csv", f"image,valence\na.jpg,3\n{one},{other}\n")
    try:
        table, report = read(path)
    except InputError:
        return
    assert table.num_rows == report.rows >= 1
    gaped = tmp_path / "gaped"
    gaped.mkdir(exist_ok=True)
    draw(gaped / "A001.bmp")
    write(gaped / "A.txt", f"file\tValence\tArousal\nA001.jpg\t3\t4\nA002{one}\t{other}\t5\n")
    try:
        GapedReader(path=str(gaped)).read()
    except InputError:
        return


# ---------------------------------------------------------------- OASIS


def test_oasis_as_it_is(shared_data: Path, tmp_path: Path, runner: Any) -> None:
    folder = shared_data / "oasis"
    if not folder.is_dir():
        pytest.skip("no OASIS beside the checkout")
    out = tmp_path / "oasis.parquet"
    done = runner("data", "prepare", "oasis", folder, "--out", out)
    assert done.code == 0, done.err
    table = read_samples(out)
    assert table.num_rows == 530 and len(set(table["group_id"].to_pylist())) == 143 and scale_of(table) == (1.0, 7.0)
    # An independent reading of the file.
    lines = (folder / "OASIS.csv").read_bytes().decode().split("\r")
    rows = {row[1].strip(): row for row in csv.reader(lines[1:]) if row}
    assert len(rows) == 530
    for row in table.to_pylist():
        name = Path(row["image_uri"]).stem
        own = rows[name]
        assert [row["valence"], row["valence_sd"], row["arousal"], row["arousal_sd"]] == pytest.approx(
            [float(own[k]) for k in (4, 5, 7, 8)], rel=1e-6
        )
        assert row["source"] == f"oasis/{own[2].strip().lower()}"
    assert split_groups(table, lambda stem: stem.rstrip("0123456789 ").lower()) == 0
    assert {row["group_id"] for row in table.to_pylist() if "Ambulance" in row["image_uri"]} == {"oasis:ambulance"}


def test_a_synthetic_oasis_has_the_oddities_of_the_real_one_and_is_read(tmp_path: Path) -> None:
    report = write_oasis(tmp_path, 120, 2, size=16)
    raw = (tmp_path / "OASIS.csv").read_bytes()
    assert b"\n" not in raw and raw.count(b"\r") == 121 and b" ," in raw
    table, found = OasisReader(path=str(tmp_path)).read()
    assert (found.missing, table.num_rows, found.unused_pictures) == (report.gone, 120 - report.gone, 0)
    assert report.pngs == sum(Path(uri).read_bytes()[:4] == b"\x89PNG" for uri in table["image_uri"].to_pylist()) > 0
    assert found.groups == len({Path(uri).stem.rsplit(" ", 1)[0] for uri in table["image_uri"].to_pylist()})
    assert split_groups(table, lambda stem: stem.rsplit(" ", 1)[0]) == 0
    # Pictures of a theme feel nearly the same: 0.5 of 6 points around their mean.
    within = table.to_pandas().groupby("group_id")["valence"].std()
    assert within.mean() < 0.5 < table["valence"].to_pandas().std()
    again = tmp_path / "again"
    write_oasis(again, 120, 2, size=16)
    assert (again / "OASIS.csv").read_bytes() == raw


@pytest.mark.parametrize(
    "before, after, message",
    [
        (",Valence_mean,", ",Valence,", "has no column 'Valence_mean'"),
        ("raymotion,", "raymotion,8", r"OASIS\.csv, line 2: valence is 8\d\.\d+, and the scale is 1 to 7"),
        (",Valence_SD,", ",Theme,", "has the column 'Theme' twice|has the column 'theme' twice"),
    ],
)
def test_a_damaged_oasis_is_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    write_oasis(tmp_path, 30, 0, size=8)
    path = tmp_path / "OASIS.csv"
    path.write_bytes(path.read_bytes().replace(before.encode(), after.encode(), 1))
    with pytest.raises(InputError, match=message):
        OasisReader(path=str(tmp_path)).read()


def test_a_folder_without_oasis(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no OASIS\.csv"):
        OasisReader(path=str(tmp_path)).read()
    with pytest.raises(InputError, match=r"nowhere: no such folder\. Give the folder that holds OASIS\.csv"):
        OasisReader(path=str(tmp_path / "nowhere")).read()
    with pytest.raises(InputError, match=r"OASIS\.csv: is a file\. Give the folder"):
        OasisReader(path=str(write(tmp_path / "OASIS.csv", ""))).read()


# ---------------------------------------------------------------- GAPED


@pytest.fixture
def gaped(tmp_path: Path) -> Path:
    """Two types by hand: ratings say .jpg, files are .bmp in a folder of their type."""
    for grey, name in enumerate(("A/A001.bmp", "A/a002.BMP", "A/A003.bmp", "N/N001.bmp", "N/N002.bmp")):
        draw(tmp_path / name, grey)
    write(
        tmp_path / "A.txt",
        "file\tValence\tArousal\tInternal norms\tExternal norms\t\r\n"
        "A001.jpg\t10,5\t70\t20\t30\t\r\nA002.jpg\t20\t60\t\t\t\r\n\r\nA003.jpg\t30\t50\t1\t2\r\n",
    )
    write(
        tmp_path / "A_with SD.txt",
        "﻿File\tValence\tSD\tArousal\tSD\nA001.jpg\t10.5\t5.5\t70\t6\nA002.jpg\t24\t7\t60\t8\t\n",
    )
    write(tmp_path / "N.txt", "file\tValence\tArousal\nN001.jpg\t41\t20\nN002.jpg\t50\t25\n")
    return tmp_path


def by_name(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {Path(row["image_uri"]).stem.upper(): row for row in table.to_pylist()}


def test_gaped_merges_both_forms(gaped: Path) -> None:
    table, report = GapedReader(path=str(gaped), no_split=True).read()
    rows = by_name(table)
    assert scale_of(table) == (0.0, 100.0)
    columns = ("valence", "valence_sd", "arousal", "arousal_sd")
    assert {name: tuple(row[column] for column in columns) for name, row in rows.items()} == {
        "A001": (10.5, 5.5, 70.0, 6.0),
        "A002": (24.0, 7.0, 60.0, 8.0),  # the file with SDs counts
        "A003": (30.0, None, 50.0, None),  # only the other has it
        "N001": (41.0, None, 20.0, None),
        "N002": (50.0, None, 25.0, None),
    }  # fmt: skip
    assert [rows[name]["source"] for name in ("A001", "N001")] == ["gaped/animal", "gaped/neutral"]
    assert (report.different, report.without_sd, report.with_norms) == (1, 3, 2)
    assert report.types == {"animal": 3, "neutral": 2} and report.absent == ["H", "P", "Sn", "Sp"]
    told = "\n".join(report.lines())
    assert "there is no file of ratings of the types H, P, Sn, Sp" in told
    assert "2 rows have ratings of norms, for which a sample table has no place" in told
    assert "without a picture's extension" not in told, "the files of ratings are no surprise"


def test_4_5_9_deviations_are_kept(gaped: Path) -> None:
    table, _ = GapedReader(path=str(gaped), no_split=True).read()
    rows = by_name(table)
    assert [rows["A001"]["valence_sd"], rows["A002"]["arousal_sd"]] == [5.5, 8.0]
    header = "file\tValence\tArousal\tSD Arousal\tSD Valence"
    write(gaped / "A_with SD.txt", f"{header}\nA001.jpg\t10.5\t70\t6\t5.5\n")
    table, _ = GapedReader(path=str(gaped), no_split=True).read()
    assert [by_name(table)["A001"][f"{name}_sd"] for name in ("valence", "arousal")] == [5.5, 6.0], "by name, not place"


def test_4_5_5_neutral_pictures_are_neutral_whatever_their_valence(gaped: Path) -> None:
    # The published "calculated" category asked for a valence of exactly 50, which no picture has.
    table, _ = GapedReader(path=str(gaped), no_split=True, categories=True).read()
    labels = {name: row["labels"] for name, row in by_name(table).items()}
    assert labels == {**{f"A00{k}": ["negative"] for k in (1, 2, 3)}, "N001": ["neutral"], "N002": ["neutral"]}
    table, _ = GapedReader(path=str(gaped), no_split=True).read()
    assert table["labels"].null_count == 5, "without the option, no category is made up"


def test_4_5_3_each_split_has_each_type_and_each_valence(tmp_path: Path) -> None:
    # Rows stand type by type, and the published validation was the first 20 %: 117 negative pictures.
    write_gaped(tmp_path, 240, 1, size=8)
    table, report = GapedReader(path=str(tmp_path), val_fraction=0.2, test_fraction=0.2).read()
    frame = table.to_pandas()
    shares = frame.groupby("source")["split"].value_counts(normalize=True).unstack().fillna(0)
    assert (abs(shares - [0.2, 0.6, 0.2]) < 0.12).all(axis=None), shares
    means = frame.groupby("split")["valence"].mean()
    assert means.max() - means.min() < 5
    first = frame.iloc[: len(frame) // 5]["valence"].mean()
    assert abs(first - frame["valence"].mean()) > 10, "the first fifth would not do"
    assert report.groups == table.num_rows - report.same_content and report.same_content > 0


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("A.txt", "", r"A\.txt: is empty"),
        ("A.txt", "A001.jpg\t10\t20\n", r"A\.txt, line 1: the column '10' is not known"),
        ("A.txt", "file\tValence\nA001.jpg\t1\n", "line 1: has no column arousal in its header"),
        ("A.txt", "file\tValence\tArousal\tvalence\n", "line 1: has the column valence twice"),
        ("A.txt", "file\tSD\tValence\tArousal\n", "line 1: the column 'SD' is the deviation of nothing"),
        ("A.txt", "file\tValence\tArousal\nA003.jpg\t101\t2\n", "line 2: valence is 101, and the scale is 0 to 100"),
        ("A.txt", "file\tValence\tArousal\nA003.jpg\tx\t2\n", "line 2: valence is 'x', not a number"),
        ("A.txt", "file\tValence\tArousal\nH001.jpg\t1\t2\n", r"line 2: names 'H001\.jpg', which is no picture of the"),
        ("A.txt", "file\tValence\tArousal\nA001.jpg\t1\t2\t3\n", "line 2: has 4 cells, and the header has 3"),
        ("A.txt", "file\tValence\tArousal\nA003.jpg\t1\t2\nA003.jpg\t1\t3\n", "line 3: rates 'A003.jpg' another time"),
        ("A.txt", "file\tVal\0ence\tArousal\n", "holds NUL characters"),
        (
            "sub/a.TXT",
            "file\tValence\tArousal\nA001.jpg\t1\t2\n",
            "holds other ratings than .*, and both are of the type A",
        ),
    ],
)
def test_a_bad_file_of_ratings_is_named(gaped: Path, file: str, text: str, message: str) -> None:
    (gaped / file).parent.mkdir(exist_ok=True)
    write(gaped / file, text)
    with pytest.raises(InputError, match=message):
        GapedReader(path=str(gaped)).read()


def test_a_folder_that_is_not_gaped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        GapedReader(path=str(tmp_path / "nowhere")).read()
    with pytest.raises(InputError, match=r"holds no file of ratings\. They are A\.txt"):
        GapedReader(path=str(tmp_path)).read()


def test_ratings_in_a_folder_of_their_own_and_a_copy_of_them(gaped: Path) -> None:
    (gaped / "SD").mkdir()
    shutil.move(gaped / "A_with SD.txt", gaped / "SD")
    shutil.copy(gaped / "A.txt", gaped / "SD")
    table, report = GapedReader(path=str(gaped), no_split=True).read()
    assert by_name(table)["A001"]["valence_sd"] == 5.5 and report.repeated == 0


def test_synthetic_gaped_on_the_command_line(runner: Any, tmp_path: Path) -> None:
    for name, rows in (("gaped", 60), ("oasis", 60)):
        done = runner("data", "synth", name, "--images", rows, "--size", 16, "--out", tmp_path / name)
        assert done.code == 0 and "not there" in done.out, done.err
        out = tmp_path / f"{name}.parquet"
        done = runner("data", "prepare", name, tmp_path / name, "--out", out)
        assert done.code == 0 and "split" in done.out, done.err
        assert read_samples(out).num_rows == 59
        for uri in read_samples(out)["image_uri"].to_pylist():
            assert decode_rgb(storage.read_bytes(uri)).shape == (16, 16, 3)
    done = runner("data", "prepare", "ratings", tmp_path / "oasis/OASIS.csv", "--images", tmp_path / "oasis/images",
                  "--image-column", "Theme", "--valence-column", "Valence_mean", "--scale", "1,5",
                  "--out", out)  # fmt: skip
    assert done.code == 2 and "and the scale is 1 to 5" in done.err


def test_an_object_store_is_a_folder_too(s3: str) -> None:
    write_gaped(f"{s3}/gaped", 40, 0, size=8)
    table, report = GapedReader(path=f"{s3}/gaped").read()
    assert table.num_rows == 39 and report.not_compared == 0 and report.without_sd == 0
    assert table["image_uri"][0].as_py().startswith("s3://")
    write_oasis(f"{s3}/oasis", 40, 0, size=8)
    assert OasisReader(path=f"{s3}/oasis").read()[0].num_rows == 39


@pytest.mark.parametrize("text", ["1,200", "-3,000"])
def test_a_comma_that_may_separate_thousands_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="could be"):
        parse_number(text, "valence")


@pytest.mark.parametrize(("text", "number"), [("1,2", 1.2), ("0,125", 0.125), ("12,5", 12.5), ("1,2345", 1.2345)])
def test_a_decimal_comma_is_read(text: str, number: float) -> None:
    assert parse_number(text, "valence") == number
