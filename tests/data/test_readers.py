"""A reader of somebody else's is a command without a change to any file of raymotion's."""

from __future__ import annotations

import re

import pytest

from raymotion.data.readers.reader import READERS, Reader
from raymotion.data.samples import read_samples
from raymotion.errors import InputError

TOY = '''
from typing import Literal

from pydantic import Field

from raymotion.config import File
from raymotion.data.readers.reader import Reader, Report
from raymotion.data.samples import table_from_rows
from raymotion.vocabulary import SOCRATIS_29


class ToyReader(Reader):
    """Lines of a text, each with the same label.

    \\b
    Example:
      raymotion data prepare toy lines.txt --label sad --out toy.parquet
    """

    lines: File
    label: Literal["happy", "sad"] = Field("happy", description="of all lines")
    most: int = Field(100, ge=1, description="lines to read")

    def read(self):
        with open(self.lines) as file:
            texts = file.read().splitlines()[: self.most]
        rows = [
            {"sample_id": f"toy:{i}", "group_id": f"toy:{i}", "captions": [text], "labels": [self.label],
             "split": "test", "source": "toy"}
            for i, text in enumerate(texts)
        ]
        return table_from_rows(rows, SOCRATIS_29, where=self.lines), Report(rows=len(rows))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of an installed package that brings a reader; its entry point can be written."""
    (tmp_path / "toy_reader_package.py").write_text(TOY)
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(folder, name="toy", place="toy_reader_package:ToyReader"):
    information = folder / "toy_reader-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-reader\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[raymotion.readers]\n{name} = {place}\n")


def test_a_reader_that_is_named_by_its_place(runner, toy):
    name, out = "toy_reader_package:ToyReader", toy / "toy.parquet"
    done = runner("data", "prepare", name, toy / "lines.txt", "--label", "sad", "--most", 2, "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["rows       2", "split      test 2", f"wrote      {out}"]
    assert read_samples(out)["labels"].to_pylist() == [["sad"], ["sad"]]
    help_text = runner("data", "prepare", name, "--help").out
    assert "--label [happy|sad]" in help_text and "[default: 100]" in help_text
    assert runner("data", "prepare", name, toy / "lines.txt", "--most", 0, "--out", out).code == 2


def test_a_reader_of_an_installed_package_is_listed(runner, toy):
    install(toy)
    assert "Lines of a text" in runner("data", "prepare", "--help").out
    done = runner("data", "prepare", "toy", toy / "lines.txt", "--out", toy / "toy.parquet")
    assert done.code == 0 and "rows       3" in done.out


def test_two_readers_of_one_name_are_refused(runner, toy):
    install(toy, "coco")
    done = runner("data", "prepare", "coco", toy, "--out", toy / "toy.parquet")
    assert done.code == 2 and "two readers are called 'coco'" in done.err


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nowhere", "no reader is called 'nowhere'.*There are .*coco.*folder"),
        ("no_such_package:Reader", "cannot be imported: No module named 'no_such_package'"),
        ("raymotion.data.samples:Nothing", "cannot be imported: .*Nothing"),
        ("raymotion.data.samples:read_samples", "is not a reader"),
    ],
)
def test_what_is_not_a_reader_is_refused(runner, tmp_path, name, reason):
    with pytest.raises(InputError, match=reason):
        READERS.get(name)
    done = runner("data", "prepare", name, tmp_path, "--out", tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.err


def test_raymotions_own():
    assert {"coco", "emotic", "folder", "socratis"} <= set(READERS.places())
    for name in READERS.places():
        reader = READERS.get(name)
        assert issubclass(reader, Reader) and f"raymotion data prepare {name}" in (reader.__doc__ or "")
        assert all(field.description or field.is_required() for field in reader.model_fields.values())


BROKEN_READERS = """
import pyarrow as pa
from raymotion.data.readers.reader import Reader, Report
from raymotion.data.samples import table_from_rows

ROWS = [{"sample_id": "a", "group_id": "a", "source": "t"}]

class Table(Reader):
    def read(self): return table_from_rows(ROWS, None)

class Rows(Reader):
    def read(self): return ROWS, Report(rows=1)

class NoReport(Reader):
    def read(self): return table_from_rows(ROWS, None), None

class Empty(Reader):
    def read(self): return table_from_rows([], None), Report()

class WrongRows(Reader):
    def read(self): return table_from_rows(ROWS, None), Report(rows=7)

class Clash(Reader):
    out: str = ""
    def read(self): return table_from_rows(ROWS, None), Report(rows=1)

class NoRead(Reader):
    pass
"""


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Table", r"broken:Table\.read returns a Table\. Return a sample table and a Report"),
        ("Rows", r"broken:Rows\.read returns a list as its table.*table_from_rows"),
        ("NoReport", r"broken:NoReport\.read returns a NoneType as its report.*Report\("),
        ("Empty", "no row was found"),
        ("WrongRows", r"WrongRows\.read reports 7 rows, and its table has 1"),
        ("Clash", "the reader broken:Clash has a field out, which is an option of all"),
        ("NoRead", "broken:NoRead does not define read"),
    ],
)
def test_what_a_reader_returns_is_checked(runner, tmp_path, monkeypatch, name, reason):
    (tmp_path / "broken.py").write_text(BROKEN_READERS)
    monkeypatch.syspath_prepend(tmp_path)
    done = runner("data", "prepare", f"broken:{name}", "--out", tmp_path / "out.parquet")
    assert done.code == 2 and re.search(reason, done.err), done.err
    assert not (tmp_path / "out.parquet").exists()
