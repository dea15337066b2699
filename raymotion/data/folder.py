"""Any folder of pictures, with or without a file of captions."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from raymotion import storage
from raymotion.data.samples import table_from_rows
from raymotion.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass
class FolderReport:
    """Counts of what `read_folder` met.

    Attributes:
        rows: images. captions: captions in all. without_caption: images that have none.
        no_file: files that the captions name and the folder lacks (`no_file_names`: the first few of them).
        other_files: files in the folder that are no pictures by their names.
        unreadable_names: pictures left out because their names are not UTF-8.
    """

    rows: int = 0
    captions: int = 0
    without_caption: int = 0
    no_file: int = 0
    no_file_names: list[str] = field(default_factory=list)
    other_files: int = 0
    unreadable_names: int = 0


def read_folder(folder: storage.PathLike, captions: storage.PathLike | None = None) -> tuple[pa.Table, FolderReport]:
    """Every picture below `folder`, sorted by path, as a sample table without labels.

    Files are taken by their extension (jpg, jpeg, png, webp, bmp, in any case); hidden files and folders are not.

    Args:
        folder: local folder or s3:// address.
        captions: by its extension, `.jsonl` with `{"file": "a/b.jpg", "caption": "..."}` or `"captions": [...]` per
            line; `.csv` or `.tsv` with the columns file and caption; `.json` with an object of file to caption or
            captions. Files are relative to `folder`; those that come repeatedly have several captions.

    Raises:
        InputError: names the captions file, its line and the reason; or says that the folder holds no pictures.
    """
    if not storage.is_dir(folder):
        raise InputError("no such folder", path=folder, remedy="Check the path.")
    report = FolderReport()
    base = storage.absolute(folder)
    files: list[str] = []
    for name in _relative_names(folder):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if posixpath.splitext(name)[1].lower() not in EXTENSIONS:
            report.other_files += 1
        elif not name.isprintable() and not _is_utf8(name):
            report.unreadable_names += 1
        else:
            files.append(name)
    if not files:
        raise InputError(f"holds no pictures ({', '.join(EXTENSIONS)})", path=folder, remedy="Check the path.")
    texts: dict[str, list[str]] = {}
    known = set(files)  # a key of a store may be spelled `a//b.jpg` or `./a.jpg`
    if captions is not None:
        for name, text in _read_captions(captions):
            own = texts.setdefault(name if name in known else _normal(name, base), [])
            if text:
                own.append(text)
    stray = sorted(set(texts) - set(files))
    if texts and len(stray) == len(texts):
        raise InputError(
            f"names no picture of {folder}: {stray[0]!r} is not in it",
            path=captions,
            remedy="Paths are relative to the folder, subfolders included.",
        )
    report.no_file, report.no_file_names = len(stray), stray[:5]
    rows = [
        {
            "sample_id": f"folder:{name}",
            "group_id": f"folder:{name}",
            "image_uri": storage.child(base, name),
            "captions": texts.get(name, []),
            "source": "folder",
        }
        for name in sorted(files)
    ]
    report.rows = len(rows)
    report.captions = sum(len(texts.get(name, [])) for name in files)
    report.without_caption = sum(1 for name in files if not texts.get(name))
    return table_from_rows(rows), report


def _relative_names(folder: storage.PathLike) -> Iterator[str]:
    """Paths of all files below `folder`, relative to it and with '/'."""
    base = storage.absolute(folder)
    if storage.is_remote(folder):
        yield from storage.list_tree(folder)
        return

    def refuse(error: OSError) -> None:
        raise error  # os.walk would skip a folder that it may not list

    with storage.explained(folder, "list it"):
        for place, _, names in os.walk(base, onerror=refuse):
            for name in names:
                yield os.path.relpath(os.path.join(place, name), base).replace(os.sep, "/")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normal(name: str, base: str) -> str:
    """A file of the captions as a path relative to the folder: `./a.jpg` and the full path mean `a.jpg` too."""
    text = name.strip()
    if text.startswith(base.rstrip("/") + "/"):
        text = text[len(base.rstrip("/")) + 1 :]
    return posixpath.normpath(text) if text else text


def _read_captions(path: storage.PathLike) -> Iterator[tuple[str, str]]:
    """Pairs of file and caption, the caption's whitespace made single spaces ('' where there is none)."""
    kind = storage.suffix(path)
    if kind in (".jsonl", ".ndjson"):
        for number, line in enumerate(storage.read_text(path).split("\n"), start=1):
            if line.strip():
                yield from _jsonl_line(line, path, f"{number}")
    elif kind in (".csv", ".tsv"):
        yield from _delimited(storage.read_text(path), path, "\t" if kind == ".tsv" else ",")
    elif kind == ".json":
        value = storage.read_json(path)
        if not isinstance(value, dict):
            raise InputError("is not an object of file to caption", path=path, remedy="Lines of objects are a .jsonl.")
        for name, own in value.items():
            yield from _pairs(name, own, path, name)
    else:
        raise InputError(
            f"captions in a {kind or 'file without extension'} can not be read",
            path=path,
            remedy="Give a .jsonl, .csv, .tsv or .json file.",
        )


def _jsonl_line(line: str, path: storage.PathLike, row: str) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"is not JSON ({getattr(error, 'msg', error)})", path=path, row=row) from error
    if not isinstance(value, dict) or not isinstance(value.get("file"), str) or not value["file"].strip():
        raise InputError('has no "file"', path=path, row=row, remedy='Write {"file": "a.jpg", "caption": "..."}.')
    own = value["captions"] if "captions" in value else value.get("caption")
    yield from _pairs(value["file"], own, path, row)


def _pairs(name: str, captions: object, path: storage.PathLike, row: str) -> Iterator[tuple[str, str]]:
    values = captions if isinstance(captions, list) else [captions]
    if not values:
        yield name, ""
    for value in values:
        if value is not None and not isinstance(value, str):
            raise InputError("a caption is not text", path=path, row=row, remedy="Give text or a list of texts.")
        yield name, " ".join((value or "").split())


def _delimited(text: str, path: storage.PathLike, delimiter: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        missing = [name for name in ("file", "caption") if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"lacks the column {', '.join(missing)}", path=path, remedy="It needs file and caption.")
        for values in reader:
            row = f"{reader.line_num}"
            if None in values or values["caption"] is None:
                raise InputError(
                    "has more or fewer fields than the header", path=path, row=row, remedy="Quote text with delimiters."
                )
            if not values["file"].strip():
                raise InputError("file is empty", path=path, row=row)
            yield values["file"], " ".join(values["caption"].split())
    except csv.Error as error:
        raise InputError(f"can not be read ({error})", path=path, row=f"{reader.line_num}") from error
