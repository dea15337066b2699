"""Records which picture each row of features or labels was made from, and compares it with that of a sample table.

An id names a sample, but not the picture that was read: two folders that both contain `frame_0000.jpg` give the same
ids. So each row made from a picture has its address, its size in bytes, a digest of its bytes, and the boxes that were
used. Code that joins such rows with samples first calls `require_same_pictures`.

Comparison:

- Boxes: exactly, for all rows.
- Pictures at the recorded address: the sizes of all files; the digests of all files up to `LOCAL_DIGESTS` (in an object
  store, `REMOTE_DIGESTS`), else of as many: first files that changed since the rows were made, then evenly spread.
- Pictures at another address: the same. A moved folder has the same pictures, whatever its name.
- A picture that no longer exists at its recorded address cannot be compared: features may outlive pictures.
- A picture that cannot be read at another address is accepted only if its file has the recorded name and its id is
  globally unique (`GLOBAL_IDS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.data.images.marks import THREADS, Files, Picture, PictureMark, address, file_name, is_web
from raymotion.data.samples import BOX
from raymotion.errors import InputError

MADE_FROM = (
    pa.field("image_uri", pa.string()),
    pa.field("image_bytes", pa.int64()),
    pa.field("image_digest", pa.string()),
)
BOXES = (pa.field("body_box", BOX), pa.field("face_box", BOX))
MADE_FROM_COLUMNS = tuple(own.name for own in MADE_FROM)

# Prefixes of globally unique ids of public data sets. Other ids are names below some folder.
GLOBAL_IDS = ("coco:", "emotic:", "socratis:", "flickr8k:")


@dataclass(frozen=True)
class Pair:
    """One joined row: the picture named by the sample table now, and the one the other side was made from."""

    sample_id: str
    now: Picture
    then: Picture


@dataclass(frozen=True)
class Difference:
    """Two pictures that differ: `row` of the pairs, and what each side has.

    `unreadable`: the pictures have different addresses and cannot be compared.
    """

    row: int
    sample_id: str
    what: str
    now: str
    then: str
    unreadable: bool = False


@dataclass
class Comparison:
    """The result of a comparison of pictures.

    Attributes:
        differences: one for each row with different pictures, in order.
        read: number of pictures whose bytes were read.
        gone: rows whose picture no longer exists or may not be read, so that nothing was compared.
        web: rows whose picture is at a web address, which is not fetched for comparison.
        by_name: rows whose picture could be read at neither address; id and file name are the same.
        nameless: rows in which one side names no picture.
    """

    differences: list[Difference] = field(default_factory=list)
    read: int = 0
    gone: int = 0
    web: int = 0
    by_name: int = 0
    nameless: int = 0

    def notes(self) -> list[str]:
        """Returns notices about rows that were joined without comparing their pictures."""
        lines = []
        if self.gone:
            why = "their pictures are no longer where they were, or may not be read"
            lines.append(f"{self.gone:,} rows could not be compared: {why}.")
        if self.web:
            lines.append(f"{self.web:,} rows were not compared: nothing is fetched from web addresses for that.")
        if self.by_name:
            lines.append(
                f"{self.by_name:,} rows were joined by id and file name alone: their pictures stand at another address "
                "now, and could not be read to compare them."
            )
        if self.nameless:
            lines.append(f"{self.nameless:,} rows were joined by id alone: one side names no picture of them.")
        return lines


def compare_pictures(
    pairs: Sequence[Pair], *, since: float | None = None, need_address: bool = True, first: bool = False
) -> Comparison:
    """Compares the bytes of the two pictures of each pair as far as possible; see the module.

    Args:
        since: seconds since the epoch. If not all files are read, those that changed later come first.
        need_address: a pair with an address on one side only is a difference; else it is counted as nameless.
        first: stop at the first difference.
    """
    result = Comparison()
    files = Files(
        uri
        for pair in pairs
        for uri in _to_look_at(pair)
    )  # fmt: skip
    to_read: list[tuple[int, list[str]]] = []
    for row, pair in enumerate(pairs):
        now, then = pair.now, pair.then
        if now.uri is None or then.uri is None:
            if now.uri is None and then.uri is None:
                continue
            if need_address:
                result.differences.append(_difference(row, pair, "picture", now.uri or "none", then.uri or "none"))
            else:
                result.nameless += 1
            continue
        moved = address(now.uri) != address(then.uri)
        sides = [side.mark.size if side.mark else files.sizes.get(side.uri or "") for side in (now, then)]
        if now.mark is None and then.mark is None and not moved:
            continue
        if any(side.mark is None and side.uri not in files.sizes for side in (now, then)):
            _not_compared(result, row, pair, moved, sides)
        elif None not in sides and sides[0] != sides[1]:
            what = f"{sides[0]:,} bytes", f"{sides[1]:,} bytes"
            result.differences.append(_difference(row, pair, "picture", *what))
        elif now.mark and then.mark:
            if now.mark != then.mark:
                result.differences.append(
                    _difference(row, pair, "picture", f"digest {now.mark.digest}", f"digest {then.mark.digest}")
                )
        else:
            to_read.append((row, [side.uri for side in (now, then) if side.mark is None and side.uri is not None]))
        if first and result.differences:
            return result
    files.read({uri for _, uris in to_read for uri in uris}, since)
    result.read = len(files.marks)
    for row, _ in to_read:
        pair = pairs[row]
        marks = [side.mark or files.marks.get(address(side.uri or "")) for side in (pair.now, pair.then)]
        if any(
            mark is None and address(side.uri or "") in files.failed
            for mark, side in zip(marks, (pair.now, pair.then), strict=True)
        ):
            moved = address(pair.now.uri or "") != address(pair.then.uri or "")
            _not_compared(result, row, pair, moved, [None if mark is None else mark.size for mark in marks])
        elif marks[0] is not None and marks[1] is not None and marks[0] != marks[1]:
            what = f"digest {marks[0].digest}", f"digest {marks[1].digest}"
            result.differences.append(_difference(row, pair, "picture", *what))
        if first and result.differences:
            break
    result.differences.sort(key=lambda found: found.row)
    return result


def require_same_pictures(
    samples: pa.Table,
    made: pa.Table,
    *,
    what: str,
    where: object,
    remedy: str,
    boxes: Sequence[str] = (),
    since: float | None = None,
    need_address: bool = True,
    error: type[InputError] = InputError,
) -> Comparison:
    """Raises unless the rows of `made` were made from the pictures and boxes of the samples with the same ids.

    Args:
        samples: rows with sample_id and image_uri, and marks (`MADE_FROM`) if the bytes were read; in any order.
        made: likewise, from `read_made_from`. Ids in one of the tables only are ignored.
        what: contents of `made` for the message: `features`, `labels`.
        where: the folder of `made`, for the message.
        boxes: names of the box columns that were used, `body_box` or `face_box`.
        since, need_address: see `compare_pictures`.

    Raises:
        InputError: (or `error`) names the first sample that differs, its present picture, and the recorded one.
    """
    require_same_boxes(samples, made, boxes, what=what, where=where, remedy=remedy, error=error)
    rows, places = _joined(samples, made)
    now, then = pictures_of(samples.take(rows)), pictures_of(made.take(places))
    ids = samples.column("sample_id").take(pa.array(rows)).to_pylist()
    pairs = [Pair(*triple) for triple in zip(ids, now, then, strict=True)]
    result = compare_pictures(pairs, since=since, need_address=need_address, first=True)
    for found in result.differences[:1]:
        raise error(_refusal(what, found), path=where, remedy=remedy)
    return result


def require_same_boxes(
    samples: pa.Table,
    made: pa.Table,
    boxes: Sequence[str],
    *,
    what: str,
    where: object,
    remedy: str,
    error: type[InputError] = InputError,
) -> None:
    """Compares the boxes only; see `require_same_pictures`."""
    if not boxes:
        return
    rows, places = _joined(samples, made)
    for name in boxes:
        own, other = _boxes(samples, name)[rows], _boxes(made, name)[places]
        differs = ~((own == other) | (np.isnan(own) & np.isnan(other))).all(axis=1)
        if differs.any():
            at = int(np.flatnonzero(differs)[0])
            sample_id = samples.column("sample_id")[int(rows[at])].as_py()
            found = Difference(int(rows[at]), sample_id, name, _box_text(own[at]), _box_text(other[at]))
            raise error(_refusal(what, found), path=where, remedy=remedy)


def _refusal(what: str, found: Difference) -> str:
    return f"its {what} of {found.sample_id} were made from another {found.what}: {found.then} then, {found.now} now"


def pictures_of(table: pa.Table) -> list[Picture]:
    """Returns the picture of each row, with its mark if the table has one."""
    uris = table.column("image_uri").to_pylist()
    if "image_digest" not in table.column_names:
        return [Picture(uri) for uri in uris]
    marks = zip(table.column("image_bytes").to_pylist(), table.column("image_digest").to_pylist(), strict=True)
    return [
        Picture(uri, None if digest is None or size is None else PictureMark(size, digest))
        for uri, (size, digest) in zip(uris, marks, strict=True)
    ]


def read_made_from(
    folder: storage.PathLike, parts: Iterable[str], *, boxes: Sequence[str] = (), remedy: str = "Make it again."
) -> pa.Table:
    """Reads sample_id, image_uri, image_bytes, image_digest and boxes of all rows of the parts of a folder.

    Raises:
        InputError: a part does not record what it was made from.
        Damaged: a part cannot be read.
    """
    columns = ["sample_id", *MADE_FROM_COLUMNS, *boxes]

    def read(name: str) -> pa.Table:
        path = storage.join(folder, name)
        with storage.open_parquet(path, remedy=remedy) as parquet:
            require_columns(parquet.schema_arrow, path, boxes=boxes, remedy=remedy)
            return parquet.read(columns=columns).replace_schema_metadata(None)

    with ThreadPoolExecutor(THREADS) as pool:  # object stores are slow, but serve many requests at once
        tables = list(pool.map(read, parts))
    if not tables:
        return pa.table({"sample_id": pa.array([], pa.string())} | {own.name: pa.nulls(0, own.type) for own in
                        (*MADE_FROM, *(box for box in BOXES if box.name in boxes))})  # fmt: skip
    return pa.concat_tables([table.select(columns) for table in tables], promote_options="permissive")


def require_columns(schema: pa.Schema, path: object, *, boxes: Sequence[str] = (), remedy: str) -> None:
    """Raises an `InputError` unless a part records the pictures of its rows."""
    missing = [name for name in (*MADE_FROM_COLUMNS, *boxes) if name not in schema.names]
    if missing:
        raise InputError(
            f"does not say which pictures it was made from: it lacks {', '.join(missing)}", path=path, remedy=remedy
        )


def begun_at(job: Mapping[str, Any]) -> float | None:
    """Returns when the first run of a job began, in seconds since the epoch, from its record."""
    try:
        started = str(job["runs"][0]["started"])
        return datetime.strptime(started, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _to_look_at(pair: Pair) -> list[str]:
    """Returns the addresses of a pair whose files have to be read."""
    now, then = pair.now, pair.then
    if now.uri is None or then.uri is None or (now.mark and then.mark):
        return []
    if now.mark is None and then.mark is None and address(now.uri) == address(then.uri):
        return []
    return [side.uri for side in (now, then) if side.mark is None and side.uri is not None]


def _not_compared(result: Comparison, row: int, pair: Pair, moved: bool, sizes: Sequence[int | None]) -> None:
    """Counts a pair with a picture that cannot be read."""
    if not moved and is_web(pair.now.uri or ""):
        result.web += 1
    elif not moved:
        result.gone += 1
    elif _same_name(pair):
        result.by_name += 1
    else:
        result.differences.append(_unreadable(row, pair, sizes))


def _same_name(pair: Pair) -> bool:
    """Returns whether id and file name identify the picture, if its bytes cannot be read."""
    assert pair.now.uri is not None and pair.then.uri is not None
    names = {unquote(file_name(pair.now.uri)), unquote(file_name(pair.then.uri))}
    return len(names) == 1 and pair.sample_id.startswith(GLOBAL_IDS)


def _difference(row: int, pair: Pair, what: str, now: str, then: str) -> Difference:
    def told(side: Picture, value: str) -> str:
        return value if side.uri is None or side.uri == value else f"{side.uri} ({value})"

    return Difference(row, pair.sample_id, what, told(pair.now, now), told(pair.then, then))


def _unreadable(row: int, pair: Pair, sizes: Sequence[int | None]) -> Difference:
    texts = ["cannot be read" if size is None else f"{size:,} bytes" for size in sizes]
    found = _difference(row, pair, "address, and the pictures cannot be compared", texts[0], texts[1])
    return replace(found, unreadable=True)


def _joined(samples: pa.Table, made: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in both tables of their common ids, in the order of `samples`."""
    place = {sample_id: row for row, sample_id in enumerate(made.column("sample_id").to_pylist())}
    found = [place.get(sample_id, -1) for sample_id in samples.column("sample_id").to_pylist()]
    places = np.array(found, dtype=np.int64)
    rows = np.flatnonzero(places >= 0)
    return rows, places[rows]


def _boxes(table: pa.Table, name: str) -> np.ndarray:
    """Returns boxes (n, 4) float32; NaN for rows without one."""
    column = table.column(name)
    nothing = [np.nan] * 4
    return np.array([nothing if box is None else box for box in column.to_pylist()], np.float32).reshape(-1, 4)


def _box_text(box: np.ndarray) -> str:
    return "none" if np.isnan(box).all() else f"[{', '.join(f'{value:g}' for value in box.tolist())}]"
