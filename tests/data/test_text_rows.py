"""Text files of rows: dialects, line numbers, and nothing that is swallowed or overwritten."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymotion.data.text_rows import delimited_rows, json_lines, parse_json
from raymotion.errors import InputError

COLUMNS = ("file", "caption")


def is_start(cells):
    return cells["file"] in {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}


def rows(text, name="c.csv"):
    found = delimited_rows(text, name, COLUMNS, optional=("more",), verbatim=("file",), is_start=is_start)
    return [(line, cells["file"], cells["caption"]) for line, cells in found]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_an_editor_whatever_ends_them(end):
    text = end.join(["file,caption", "", "a.jpg,one\u2028line", 'b.jpg,"two', 'lines"', "c.jpg,three"])
    assert rows(text) == [(3, "a.jpg", "one\u2028line"), (4, "b.jpg", f"two{end}lines"), (6, "c.jpg", "three")]


@pytest.mark.parametrize(
    "text",
    [
        "file;caption\na.jpg;one, two\n",
        "file\tcaption\na.jpg\tone, two\n",
        '"File";" CAPTION "\r\n"a.jpg";"one, two"\r\n',
        '\n\n File ,Caption,own\na.jpg,"one, two",x\n,,\n   \n',
    ],
)
def test_other_delimiters_and_headers_with_blanks_or_capitals(text):
    ((_, file, caption),) = rows(text)
    assert (file, caption) == ("a.jpg", "one, two")


# Each with the line where the record begins.
LONE_QUOTES = [
    ('file,caption\na.jpg,x\nb.jpg,"open\nc.jpg,y\n', r"line 3: a quote opens a cell and is never closed"),
    ('file,caption\nb.jpg,"open\nc.jpg,"quoted, too"\n', r"line 2: a closing quote is not followed by a comma.*line 3"),
    ('file,caption\na.jpg,"x" y\n', "line 2: a closing quote is not followed by a comma"),
    ('file,caption\n\na.jpg,x\nb.jpg,"open\nc.jpg,y\nd.jpg,5"\n', "line 4: a quoted cell runs on .*line 5 in it looks"),
    (
        'file,caption\na.jpg,"x\nb.jpg,y","z"\n',
        "line 2: has 3 cells, the header has 2 .a quoted cell runs on to line 3",
    ),
    ('file,caption\na.jpg, "x, y"\n', "line 2: has 3 cells"),
    ('file,caption\na.jpg,"' + "x" * 200_000 + '"\n', "line 2: a cell has more than 131,072 characters"),
]


@pytest.mark.parametrize(("text", "reason"), LONE_QUOTES)
def test_a_lone_quote_is_named_with_the_line_where_its_record_begins(text, reason):
    with pytest.raises(InputError, match=reason):
        rows(text)


def test_a_quote_within_a_cell_of_a_csv_and_a_caption_of_several_lines_are_read():
    text = 'file,caption\na.jpg,a 5" pipe\nb.jpg,"say ""cheese"",\nthen b.jpg, smile"\n'
    assert rows(text) == [(2, "a.jpg", 'a 5" pipe'), (3, "b.jpg", 'say "cheese",\nthen b.jpg, smile')]


def test_a_tsv_has_no_quotes():
    text = 'file\tcaption\na.jpg\t"open\nb.jpg\ta 5" pipe\nc\\new.jpg\tone\\ttwo\\\\n C:\\x\nd.jpg\t"Hello"\n'
    assert rows(text, "c.tsv") == [
        (2, "a.jpg", '"open'),
        (3, "b.jpg", 'a 5" pipe'),
        (4, "c\\new.jpg", "one\ttwo\\n C:\\x"),
        (5, "d.jpg", '"Hello"'),
    ]
    with pytest.raises(InputError, match=r"c\.tsv, line 2: .*3 cells.* 2$"):
        rows("file\tcaption\na.jpg\tone\ttwo\n", "c.tsv")


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_a_csv_writer_wrote(quoting):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", quoting=quoting).writerows([COLUMNS, ("a.jpg", 'say "cheese"'), ("b.jpg", "x")])
    assert [row[1:] for row in rows(buffer.getvalue(), "c.tsv")] == [("a.jpg", 'say "cheese"'), ("b.jpg", "x")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,caption,Caption\na,b,c\n", "line 1: has the column caption twice"),
        ("file,text\n", "lacks the column caption. It needs file, caption"),
        ("", "lacks the column file, caption"),
        ("f\0i\0l\0e\0", "holds NUL characters"),
    ],
)
def test_files_of_something_else(text, reason):
    with pytest.raises(InputError, match=reason):
        rows(text)


@settings(max_examples=60)
@given(
    table=st.lists(
        st.tuples(st.text("ab.,;\"'\t\n\r\\ é", min_size=1, max_size=6), st.text("ab,;\"'\t\n\r\\ é", max_size=12)),
        max_size=6,
    ),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_pythons_writer_writes_is_read_back(table, delimiter):
    table = [pair for pair in table if any(cell.strip() for cell in pair)]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([COLUMNS, *table])
    assert [(file, caption) for _, file, caption in rows(buffer.getvalue())] == table


def test_keys_that_stand_twice_are_refused():
    with pytest.raises(InputError, match=r"c\.json: .*key 'a\.jpg' twice"):
        parse_json('{"a.jpg": "one", "b.jpg": "x", "a.jpg": "two"}', "c.json")
    with pytest.raises(InputError, match=r"c\.jsonl, line 3: .*key 'file' twice"):
        list(json_lines('{}\n\n{"file": "a", "x": [{"y": 1}], "file": "b"}\n', "c.jsonl"))


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000, "[1,\n2", "NaN]"])
def test_what_is_no_json_is_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_json(text, "c.json")
    assert str(caught.value).startswith("c.json: ") and "\n" not in str(caught.value)


def test_json_lines_may_end_in_bare_cr():
    values = [{"a": "x\u2028y"}, {"b": 1}]
    text = "\r".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert list(json_lines(text, "c.jsonl")) == [(1, values[0]), (2, values[1])]
