"""The records of any table of the user's own: csv, tsv, JSON, Parquet, Hugging Face, ImageFolder, or WebDataset.

An **ImageFolder** is a folder with `metadata.csv` or `metadata.jsonl` (columns `file_name` and others), in it or in
its folders train, validation and test; without such a file, the folder of a picture is its label. A **WebDataset** is
one or more tars whose files of one sample follow each other under one name: `0001.jpg`, `0001.txt` (a caption),
`0001.cls` (a label), `0001.json` (further columns). Its pictures are read inside the tar.
"""

from __future__ import annotations

import glob
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from raymotion import storage
from raymotion.data.hugging_face import class_names, features_of, is_hugging_face, named, rows_of
from raymotion.data.images.files import EXTENSIONS, list_pictures
from raymotion.data.text_rows import columns_of, delimited_rows, json_lines, read_json
from raymotion.errors import InputError, located
from raymotion.stores.tar import Place

# Where a record stands: the arguments of `errors.located`.
Where = dict[str, Any]
Record = tuple[Where, Mapping[str, Any]]
METADATA = ("metadata.csv", "metadata.jsonl")
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
TEXTS = (".csv", ".tsv", ".tab", ".txt")
TAR = ".tar"
# Names of the columns that a folder or a tar gives.
KEY, IMAGE, CAPTION, LABEL, SPLIT = "__key__", "image", "caption", "label", "split"
# A larger text or json inside a tar is no caption.
MOST_BYTES = 16 * 1024**2


def records_of(path: str, *, verbatim: Sequence[str] = ()) -> tuple[list[str], Iterable[Record]]:
    """Returns the names of the columns, and place and cells of each row.

    Args:
        path: a file, a folder, an address of a file, a pattern (`shards/*.tar`) of local files, or `hf:...`
            (`data.hugging_face`).
        verbatim: columns of a tsv with paths, in which a backslash is not an escape.

    Raises:
        InputError: nothing is there, or it is of no known format; reading may raise it too.
    """
    if is_hugging_face(path):
        return _hugging_face(path)
    paths = _expanded(path)
    if len(paths) == 1 and storage.is_dir(paths[0]):
        return _image_folder(paths[0])
    if all(storage.suffix(own) == TAR for own in paths):
        return _web_dataset(paths)
    tables = [_table(own, verbatim) for own in paths]
    names = list(dict.fromkeys(name for columns, _ in tables for name in columns))
    return names, (record for _, records in tables for record in records)


def _expanded(path: str) -> list[str]:
    if storage.is_remote(path) or storage.exists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise InputError("no file has a name like this", path=path, remedy="Check the pattern.")
    kinds = {storage.suffix(own) for own in found}
    if len(kinds) > 1:
        raise InputError(f"files of several formats have such names ({', '.join(sorted(kinds))})", path=path)
    return found


def _table(path: str, verbatim: Sequence[str]) -> tuple[list[str], Iterator[Record]]:
    kind = storage.suffix(path)
    if kind == ".parquet":
        with storage.open_parquet(path, remedy="Write it again.") as file:
            schema = file.schema_arrow
        return schema.names, _parquet_rows(path, class_names(features_of(schema.metadata)))
    if kind in (".jsonl", ".ndjson", ".json"):
        values = _json_records(path, kind)
        return list(dict.fromkeys(name for _, value in values for name in value)), iter(values)
    if kind in TEXTS:
        text = storage.read_text(path)
        names = columns_of(text, path)
        cells = delimited_rows(text, path, names, verbatim=verbatim)
        return names, (({"path": path, "line": line}, row) for line, row in cells)
    if path.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise InputError(
            "is compressed, and its pictures have no places in it", path=path, remedy="Uncompress it: gunzip, unxz ..."
        )
    raise InputError(
        f"is a {kind or 'file without extension'}, not a table",
        path=path,
        remedy="Give a .csv, .tsv, .json, .jsonl, .parquet or .tar, or a folder with metadata.csv or of labels.",
    )


def _parquet_rows(path: str, classes: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    """Yields the rows of a Parquet file, some at a time: cells may hold pictures."""
    number = 0
    with storage.open_parquet(path, remedy="Write it again.") as file:
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                place: Where = {"path": path, "row": number}
                with located(**place):
                    row |= {column: named(row[column], names) for column, names in classes.items()}
                yield place, row
                number += 1


def _hugging_face(path: str) -> tuple[list[str], Iterator[Record]]:
    columns, splits, rows = rows_of(path)
    # A single split is the whole set, whatever it is called.
    has_splits = len(splits) > 1 and SPLIT not in columns

    def each() -> Iterator[Record]:
        for split, number, row in rows:
            yield {"path": path, "row": f"{number} of {split}"}, {**row, **({SPLIT: split} if has_splits else {})}

    return [*columns, *([SPLIT] if has_splits else [])], each()


def _json_records(path: str, kind: str) -> list[Record]:
    if kind == ".json":
        found: Any = read_json(path)
        if not isinstance(found, list):
            raise InputError("is not a list of objects", path=path, remedy="Lines of objects are a .jsonl.")
        values: list[Record] = [({"path": path, "row": number}, value) for number, value in enumerate(found)]
    else:
        lines = json_lines(storage.read_text(path), path)
        values = [({"path": path, "line": line}, value) for line, value in lines]
    for place, value in values:
        with located(**place):
            if not isinstance(value, dict):
                raise InputError("is not an object", remedy='Write {"image": "a.jpg", ...}.')
    return values


def metadata_of(folder: str) -> list[tuple[str, str | None]]:
    """Returns path and split of each metadata file of a folder: of the whole, or of each folder of a split."""
    splits: dict[str, str | None] = {"": None, **SPLIT_WORDS}
    places = [
        (storage.join(folder, inner, name) if inner else storage.join(folder, name), split)
        for inner, split in splits.items()
        for name in METADATA
    ]
    return [(path, split) for path, split in places if storage.exists(path)]


def _image_folder(folder: str) -> tuple[list[str], Iterable[Record]]:
    """Returns the records of an ImageFolder."""
    folder = storage.absolute(folder)
    tables: list[tuple[str, str | None, list[str], Iterator[Record]]] = []
    for path, split in metadata_of(folder):
        columns, records = _table(path, ["file_name"])
        tables.append((storage.parent(path), split, columns, records))
    if not tables:
        return _labelled_folders(folder)
    names = list(dict.fromkeys(name for *_, columns, _ in tables for name in columns))
    for base, _, columns, _ in tables:
        if "file_name" not in columns:
            raise InputError("has no column file_name", path=base, remedy="metadata.csv names the picture of each row.")
    if any(split is not None for _, split, _, _ in tables) and SPLIT not in names:
        names.append(SPLIT)

    def each() -> Iterator[Record]:
        for base, split, _, records in tables:
            for place, row in records:
                if not row.get("file_name"):
                    raise InputError("file_name is empty", **place)
                own = {} if split is None else {SPLIT: split}
                yield place, {**row, **own, "file_name": storage.join(base, str(row["file_name"]))}

    return names, each()


def _labelled_folders(folder: str) -> tuple[list[str], list[Record]]:
    content = list_pictures(folder)
    parts = [name.split("/") for name in content.pictures]
    if not parts:
        raise InputError(f"holds no pictures ({', '.join(EXTENSIONS)}) and no metadata.csv", path=folder)
    has_splits = all(len(own) > 1 and own[0] in SPLIT_WORDS for own in parts)
    depth = 3 if has_splits else 2
    odd = next((name for name, own in zip(content.pictures, parts, strict=True) if len(own) != depth), None)
    if odd is not None:
        shape = "SPLIT/LABEL/picture.jpg" if has_splits else "LABEL/picture.jpg"
        raise InputError(
            f"holds {odd}, and is not a folder of labels ({shape})",
            path=folder,
            remedy="Pictures without labels are for `raymotion data prepare folder`.",
        )
    rows: list[Record] = []
    for name, own in zip(content.pictures, parts, strict=True):
        split = {SPLIT: SPLIT_WORDS[own[0]]} if has_splits else {}
        # The label is a list: a folder's name may hold the separator of labels.
        rows.append(
            ({"path": content.address(name)}, {KEY: name, IMAGE: content.address(name), LABEL: [own[-2]], **split})
        )
    return [KEY, IMAGE, LABEL, *([SPLIT] if has_splits else [])], rows


def _web_dataset(paths: Sequence[str]) -> tuple[list[str], list[Record]]:
    """Returns the records of WebDataset shards."""
    rows: list[Record] = []
    for path in paths:
        before: set[str] = set()
        for key, row in _samples(storage.absolute(path)):
            if key in before:
                raise InputError(
                    "the files of a sample do not follow each other", path=path, row=key,
                    remedy="Write the tar with its names sorted.",
                )  # fmt: skip
            before.add(key)
            shard = posixpath.basename(path).removesuffix(TAR)
            rows.append(({"path": path, "row": key}, {KEY: f"{shard}/{key}", **row}))
    if not any(IMAGE in row for _, row in rows):
        raise InputError(f"holds no pictures ({', '.join(EXTENSIONS)})", path=paths[0])
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _samples(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields key and cells of the samples of one tar: consecutive files with one name up to the first dot."""
    current: str | None = None
    row: dict[str, Any] = {}
    try:
        with storage.open_input(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, base = posixpath.split(member.name)
                if not member.isreg() or base.startswith("."):
                    continue
                stem, dot, extension = base.partition(".")
                key = posixpath.join(folder, stem)
                if key != current:
                    if current is not None:
                        yield current, row
                    current, row = key, {}
                if dot:
                    with located(path, row=member.name):
                        row |= _cells(archive, member, path, f".{extension.lower()}", row)
    except tarfile.TarError as error:
        raise InputError(
            f"is not an uncompressed tar ({error})", path=path, remedy="Uncompress it, or write it again."
        ) from error
    if current is not None:
        yield current, row


def _cells(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, kind: str, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the cells that one file of a sample gives; none for formats that are not read."""
    if kind in EXTENSIONS:
        if IMAGE in row:
            raise InputError("the sample has several pictures", remedy="Write a sample for each picture.")
        return {IMAGE: Place(path, member.offset_data, member.size, member.name).address}
    if kind not in (".txt", ".caption", ".cls", ".json"):
        return {}
    if member.size > MOST_BYTES:
        raise InputError(f"has {member.size:,} bytes, which is no {kind}")
    taken = archive.extractfile(member)
    assert taken is not None, "a regular file"
    try:
        text = taken.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})") from error
    if kind != ".json":
        return {LABEL if kind == ".cls" else CAPTION: text.strip()}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError("is not an object", remedy='Write {"labels": ["joy"], ...}.')
    twice = [name for name in found if name in row]
    if twice:
        raise InputError(f"has {twice[0]!r}, which another file of the sample gives too", remedy="Keep one of them.")
    return found
