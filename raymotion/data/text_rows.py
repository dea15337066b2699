"""Strict readers of csv, tsv, JSON Lines and JSON.

Content is either read or rejected with its line: a quote that swallows rows, a duplicate column or key, a surplus cell.
Lines are counted from 1, as in an editor; a record of several lines is identified by its first.

**csv** follows RFC 4180: cells with the delimiter, a quote or a line break are quoted, and quotes inside are doubled.
The delimiter is the comma, or the semicolon or tab if only that gives the requested columns. **tsv** has no quoting: a
quote is an ordinary character, and `\\t`, `\\n`, `\\r` and `\\\\` are escapes. Two conventions of other programs are
supported: a file with a quoted header is a csv with tabs, and a cell in quotes whose inner quotes are all doubled was
quoted by a csv writer. Lines may end in LF, CR LF or CR.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raymotion import storage
from raymotion.errors import InputError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_ESCAPED = re.compile(r"\\([tnr\\])")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}

Cells = dict[str, str]


def shown(text: str) -> str:
    """Formats `text` for a one-line message; escapes it if it has unprintable characters such as line breaks."""
    return text if text.isprintable() else ascii(text)


def lines_of(text: str) -> list[str]:
    """Splits `text` at LF, CR LF and CR and keeps the line ends; `str.splitlines` also splits at other characters."""
    return _LINE.findall(text)


def delimited_rows(
    text: str,
    path: storage.PathLike,
    needed: Sequence[str],
    *,
    optional: Sequence[str] = (),
    verbatim: Sequence[str] = (),
    is_start: Callable[[Cells], bool] | None = None,
) -> Iterator[tuple[int, Cells]]:
    """Yields line and cells of each record, by column name; skips empty records.

    Args:
        text: content of the file `path`; the extension (.tsv, .tab or another) selects the format.
        needed: required columns; case and outer blanks of the header are ignored.
        optional: columns to read if present; all others are ignored.
        verbatim: columns of a tsv with paths, in which a backslash is not an escape.
        is_start: returns whether the cells of a line look like a record. A quoted csv cell that contains such a line is
            rejected, since its quote was probably never closed.

    Raises:
        InputError: a column is missing or duplicate, or a record is invalid; names the line.
    """
    if "\0" in text:
        raise InputError("holds NUL characters", path=path, remedy="Is it UTF-16, or not text? Save it as UTF-8.")
    wanted = {name.casefold(): name for name in (*needed, *optional)}
    lines = lines_of(text)
    read, places, width = _opened(lines, path, needed, wanted)
    records = (record for record in read if any(cell.strip() for cell in record[2]))
    next(records)  # the header
    for number, last, cells in records:
        if len(cells) != width:
            raise InputError(
                f"has {len(cells)} cells, the header has {width}" + _runs_to(number, last),
                path=path,
                line=number,
                remedy="Put cells that hold a delimiter in quotes." if read.quoted else "",
            )
        if is_start is not None and last > number:
            _refuse_swallowed(lines, number, last, read.delimiter, places, width, is_start, path)
        yield number, {name: read.cell(cells[at], name in verbatim) for name, at in places.items()}


def bare_rows(
    text: str, path: storage.PathLike, columns: Sequence[str], shape: str = ""
) -> Iterator[tuple[int, Cells]]:
    """Yields line and cells of each record of a csv without a header, with commas; skips empty records.

    Args:
        columns: keys of the cells. shape: what messages say that a line holds; default: `columns`.

    Raises:
        InputError: a record has not as many cells as `columns`, or is invalid; names the line.
    """
    if "\0" in text:
        raise InputError("holds NUL characters", path=path, remedy="Is it UTF-16, or not text? Save it as UTF-8.")
    for number, last, cells in _Csv(lines_of(text), ",", path):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"has {len(cells)} cells, not {len(columns)}" + _runs_to(number, last),
                path=path,
                line=number,
                remedy=f"A line holds {shape or ', '.join(columns)}, without a header.",
            )
        yield number, dict(zip(columns, cells, strict=True))


def columns_of(text: str, path: storage.PathLike) -> list[str]:
    """Returns the names in the header of a csv or tsv; the delimiter is the one that gives the most columns.

    Raises:
        InputError: the file has no header, or names a column twice.
    """
    lines = lines_of(text)
    tab = posixpath.splitext(str(path))[1].lower() in (".tsv", ".tab")
    readers: list[_Csv | _Tsv] = [_Tsv(lines)] if tab else [_Csv(lines, delimiter, path) for delimiter in ",;\t"]
    best: list[str] = []
    for reader in readers:
        first = next((cells for _, _, cells in reader if any(cell.strip() for cell in cells)), [])
        best = first if len(first) > len(best) else best
    names = [cell.strip() for cell in best]
    twice = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if not names:
        raise InputError("the file is empty", path=path, remedy="Its first line names the columns.")
    if twice:
        reason = f"has the column {shown(twice[0])!r} twice"
        raise InputError(reason, path=path, line=1, remedy="Give every column a name of its own.")
    return names


class _Csv:
    """Iterates over the records of a csv: first line, last line and cells."""

    quoted = True

    def __init__(self, lines: Sequence[str], delimiter: str, path: storage.PathLike) -> None:
        self.lines, self.delimiter, self.path = lines, delimiter, path

    def __iter__(self) -> Iterator[tuple[int, int, list[str]]]:
        reader = csv.reader(iter(self.lines), delimiter=self.delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(
                    _reason(str(error), start, reader.line_num, self.delimiter),
                    path=self.path,
                    line=start,
                    remedy='A cell that holds a quote is put in quotes, and the quote in it doubled: "say ""cheese""".',
                ) from error
            yield start, reader.line_num, cells

    def cell(self, text: str, verbatim: bool) -> str:
        return text


class _Tsv:
    """Iterates over the records of a tsv, one per line."""

    quoted = False
    delimiter = "\t"

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[tuple[int, int, list[str]]]:
        for number, line in enumerate(self.lines, start=1):
            yield number, number, line.rstrip("\r\n").split("\t")

    def cell(self, text: str, verbatim: bool) -> str:
        if (
            len(text) > 3
            and text[0] == text[-1] == '"'
            and '"' in text[1:-1]
            and '"' not in text[1:-1].replace('""', "")
        ):
            text = text[1:-1].replace('""', '"')
        return text if verbatim else _ESCAPED.sub(lambda found: _ESCAPES[found.group(1)], text)


def _opened(
    lines: Sequence[str], path: storage.PathLike, needed: Sequence[str], wanted: dict[str, str]
) -> tuple[_Csv | _Tsv, dict[str, int], int]:
    """Returns the first reader that finds the needed columns, their positions in the header, and the header's width."""
    tab = posixpath.splitext(str(path))[1].lower() in (".tsv", ".tab")
    readers: list[_Csv | _Tsv] = [_Csv(lines, delimiter, path) for delimiter in ",;\t"]
    if tab:
        readers = [_Tsv(lines), *reversed(readers)]
    missing: list[str] | None = None
    unreadable: InputError | None = None
    for reader in readers:
        try:
            line, _, first = next((record for record in reader if any(cell.strip() for cell in record[2])), (1, 1, []))
        except InputError as error:
            unreadable = unreadable or error
            continue
        header = [cell.strip().casefold() for cell in first]
        lacking = [name for name in needed if name.casefold() not in header]
        if missing is None:
            missing = lacking
        if lacking:
            continue
        for name in wanted:
            if header.count(name) > 1:
                raise InputError(
                    f"has the column {wanted[name]} twice", path=path, line=line, remedy="Keep one of them."
                )
        return reader, {wanted[cell]: at for at, cell in enumerate(header) if cell in wanted}, len(header)
    if missing is None and unreadable is not None:
        raise unreadable
    raise InputError(
        f"lacks the column {', '.join(missing or needed)}", path=path, remedy=f"It needs {', '.join(needed)}."
    )


def _reason(error: str, start: int, last: int, delimiter: str) -> str:
    if "unexpected end" in error:
        return "a quote opens a cell and is never closed: the rest of the file would be one cell"
    if "expected after" in error:
        return f"a closing quote is not followed by a {_NAMES[delimiter]}" + _runs_to(start, last)
    if "field larger" in error:
        return f"a cell has more than {csv.field_size_limit():,} characters" + _runs_to(start, last)
    return f"cannot be read as csv ({error})"


def _runs_to(start: int, last: int) -> str:
    return f" (a quoted cell runs on to line {last}; is a quote not closed?)" if last > start else ""


def _refuse_swallowed(
    lines: Sequence[str],
    number: int,
    last: int,
    delimiter: str,
    places: dict[str, int],
    width: int,
    is_start: Callable[[Cells], bool],
    path: storage.PathLike,
) -> None:
    for inner in range(number + 1, last + 1):
        cells = [cell.strip().strip('"') for cell in lines[inner - 1].rstrip("\r\n").split(delimiter)]
        if len(cells) >= width and is_start({name: cells[at] for name, at in places.items()}):
            raise InputError(
                f"a quoted cell runs on to line {last}, and line {inner} in it looks like a row of its own",
                path=path,
                line=number,
                remedy='Close the quote; a quote inside a quoted cell is doubled: "say ""cheese""".',
            )


def parse_json(text: str, path: storage.PathLike, *, line: int | None = None) -> Any:
    """Parses `text` as JSON and rejects duplicate keys (Python would keep the last and drop the others).

    Args:
        line: line number, if `text` is one line of the file.

    Raises:
        InputError: it is not valid JSON (names the line), or a key appears twice.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InputError(f"an object has the key {twice!a} twice", path=path, line=line, remedy="Keep one of them.")
        return value

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        raise InputError(f"is not JSON (line {at}: {error.msg})" if line is None else f"is not JSON ({error.msg})",
                         path=path, line=line) from error  # fmt: skip
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; deeply nested lists
        raise InputError(f"cannot be read as JSON ({str(error).splitlines()[0]})", path=path, line=line) from error


def read_json(path: storage.PathLike) -> Any:
    """Reads a JSON file; see `parse_json`."""
    return parse_json(storage.read_text(path), path)


def json_lines(text: str, path: storage.PathLike) -> Iterator[tuple[int, Any]]:
    """Yields line number and value of each line that is not blank."""
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            yield number, parse_json(line, path, line=number)
