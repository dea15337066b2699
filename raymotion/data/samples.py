"""The sample table: the output of every reader and the input of every job.

Each row is one sample: an image, or one person in an image. Pixels are never stored; `image_uri` says where they are.
Missing values are null (or an empty list of captions), and models mask them.

| column | type | meaning |
|---|---|---|
| sample_id | string | stable and unique, `coco:000000000139`, `emotic:test:17` |
| group_id | string | the image (or scene); a group is never divided between splits |
| image_uri | string, nullable | local path or address |
| captions | list<string> | possibly empty |
| body_box, face_box | 4 x float32, nullable | x1, y1, x2, y2 in pixels of the upright image |
| labels | list<string>, nullable | null: not annotated; empty: annotated, and no label applies |
| label_weights | list<float32>, nullable | share of annotators in (0, 1], one for each label |
| valence, arousal, dominance | float32, nullable | on the scale in the table's metadata (`scale_of`) |
| valence_sd, arousal_sd, dominance_sd | float32, nullable, optional | spread of the ratings, on that scale |
| predicted_valence, ... | float32, nullable, optional | what another model predicts (`crossfit`), on that scale |
| split | string, nullable | train, val or test |
| source | string | the data set |
| label_source | string, nullable, optional | where people's labels came from: `review/kept`, `cvat/corrected` |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion import storage
from raymotion.data.path_kinds import wrong_kind
from raymotion.errors import AccessDenied, AddressRefused, InputError, located
from raymotion.folders import outputs
from raymotion.stores import tar
from raymotion.vocabulary import Vocabulary

BOX = pa.list_(pa.float32(), 4)

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("body_box", BOX),
        pa.field("face_box", BOX),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("label_weights", pa.list_(pa.float32())),
        pa.field("valence", pa.float32()),
        pa.field("arousal", pa.float32()),
        pa.field("dominance", pa.float32()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string(), nullable=False),
    ]
)

DIMENSIONS = ("valence", "arousal", "dominance")
# Predictions of another model, for models that read them; those of training rows by a model that did not see the row.
PREDICTED = tuple(f"predicted_{name}" for name in DIMENSIONS)
NUMBERS = (*DIMENSIONS, *(f"{name}_sd" for name in DIMENSIONS))
# Optional columns.
OPTIONAL = pa.schema(
    [
        *(pa.field(name, pa.float32()) for name in (*NUMBERS[len(DIMENSIONS) :], *PREDICTED)),
        pa.field("label_source", pa.string()),
    ]
)
SCALE_KEY = b"raymotion.scale"
# In the metadata of a table whose image addresses are relative to its folder.
RELATIVE_KEY = b"raymotion.relative"

SPLITS = ("train", "val", "test")
# Values are float32, the ends of a scale float64.
SCALE_SLACK = 1e-4


def table_from_rows(
    rows: Iterable[Mapping[str, Any]],
    vocabulary: Vocabulary | None = None,
    *,
    scale: tuple[float, float] | None = None,
    where: object = None,
) -> pa.Table:
    """Builds a validated sample table from rows; missing keys become null (captions: empty).

    Args:
        scale: lowest and highest possible value of valence, arousal and dominance, if known.
        where: file that the rows come from, for messages, which also name the sample.
    """
    complete = [{"captions": [], **row} for row in rows]
    known = {field.name for field in (*SCHEMA, *OPTIONAL)}
    for number, row in enumerate(complete):
        sample = row.get("sample_id", f"row {number}")
        if unknown := sorted(set(row) - known):
            raise InputError(
                f"{sample}: there is no column {unknown[0]!r}",
                path=where,
                remedy=f"There are {', '.join(sorted(known))}.",
            )
        if isinstance(row["captions"], str):
            raise InputError(f"{sample}: captions are a text", path=where, remedy="Give a list of texts.")
    try:
        optional = [own for own in OPTIONAL if any(own.name in row for row in complete)]
        table = pa.Table.from_pylist(complete, schema=pa.schema([*SCHEMA, *optional]))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = f"the rows do not fit the sample table: {str(error).splitlines()[0]}"
        raise InputError(reason, path=where) from error
    except UnicodeEncodeError as error:  # JSON can contain "\\ud800", which is not a character
        text = ascii(error.object)[:60]
        raise InputError(
            f"{text} contains half a character (a lone surrogate)", path=where, remedy="Fix this text."
        ) from error
    try:
        return _validated(attach_scale(attach_vocabulary(table, vocabulary), scale), where)
    except InputError as error:
        if not isinstance(error.row, int):
            raise
        sample = complete[error.row]["sample_id"]
        reason = error.reason if repr(sample) in error.reason else f"{sample}: {error.reason}"
        raise InputError(reason, path=where, remedy=error.remedy) from error


def attach_vocabulary(table: pa.Table, vocabulary: Vocabulary | None) -> pa.Table:
    """Returns `table` with `vocabulary` in the metadata of its schema; None removes it."""
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key == SCALE_KEY}
    return table.replace_schema_metadata({**kept, **({} if vocabulary is None else vocabulary.to_metadata())})


def attach_scale(table: pa.Table, scale: tuple[float, float] | None) -> pa.Table:
    """Returns `table` with the scale of valence, arousal and dominance in its metadata; None changes nothing."""
    if scale is None:
        return table
    text = json.dumps([float(value) for value in scale]).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), SCALE_KEY: text})


def scale_of(table: pa.Table, *, where: object = None) -> tuple[float, float] | None:
    """Returns the lowest and highest possible value of valence, arousal and dominance; None if not stated.

    Raises:
        InputError: the metadata are invalid.
    """
    text = (table.schema.metadata or {}).get(SCALE_KEY)
    if text is None:
        return None
    try:
        low, high = (float(value) for value in json.loads(text))
    except (TypeError, ValueError) as error:
        raise InputError(f"states a scale of {text!r}, not [low, high]", path=where) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"states a scale of {text!r}, not [low, high]", path=where)
    return low, high


def with_optional(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Returns `table` with those of the optional columns `names` that it lacks, all null."""
    for name in names:
        if name in OPTIONAL.names and name not in table.column_names:
            field = OPTIONAL.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def vocabulary_of(table: pa.Table, *, where: object = None) -> Vocabulary | None:
    """Returns the vocabulary in the metadata of `table`, or None for unlabelled samples."""
    return Vocabulary.from_metadata(table.schema.metadata, where=where)


def write_samples(path: storage.PathLike, table: pa.Table) -> None:
    """Validates a sample table and writes it atomically.

    Only another sample table may be overwritten, because any other file may be an input.
    """
    require_table_or_nothing(path)
    storage.write_table(path, validate(table, where=path))


def require_table_or_nothing(path: storage.PathLike) -> None:
    """Raises an `InputError` if `path` exists and is not a sample table."""
    outputs.require_replaceable(path, "a sample table", lambda head: head[:4] == b"PAR1" and _is_sample_table(path))


def _is_sample_table(path: storage.PathLike) -> bool:
    """Returns whether the Parquet file at `path` has the columns of a sample table."""
    import pyarrow.parquet as pq

    try:
        with storage.open_input(path) as file:
            names = set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return False
    return names <= {*SCHEMA.names, *OPTIONAL.names} and all(field.nullable or field.name in names for field in SCHEMA)


def read_samples(path: storage.PathLike) -> pa.Table:
    """Reads and validates a sample table; addresses relative to its folder (`relative_to`) become absolute.

    Raises:
        InputError: names the file, the row and the reason, and for other kinds of files (a csv file, a folder of
            pictures) the command that reads them.
    """
    try:
        return _resolved(validate(storage.read_table(path), where=path), path)
    except AccessDenied:
        raise
    except InputError as error:
        raise wrong_kind(path, "table") or error from error


def relative_to(table: pa.Table, folder: storage.PathLike) -> pa.Table:
    """Returns `table` with image addresses relative to `folder`, its own, so that a data set can be moved as a whole.

    Raises:
        InputError: a picture lies elsewhere.
    """
    base = storage.absolute(folder)

    def inside(path: str) -> str:
        own = storage.absolute(path)
        if storage.is_remote(base) != storage.is_remote(own) or not own.startswith(base.rstrip("/") + "/"):
            raise InputError(
                f"{path} does not lie in {base}, the folder of the table",
                remedy="Write the table beside the pictures, or leave --relative out.",
            )
        return own[len(base.rstrip("/")) + 1 :]

    uris: list[str | None] = []
    for row, uri in enumerate(table.column("image_uri").to_pylist()):
        with located(None, row=row):
            uris.append(None if uri is None else _with_file(uri, inside))
    metadata = {**(table.schema.metadata or {}), RELATIVE_KEY: b"1"}
    return _with_uris(table, uris).replace_schema_metadata(metadata)


def _resolved(table: pa.Table, path: storage.PathLike) -> pa.Table:
    """Returns `table` with absolute addresses, if those in the file `path` are relative to its folder."""
    metadata = dict(table.schema.metadata or {})
    if metadata.pop(RELATIVE_KEY, None) is None:
        return table
    base = storage.parent(storage.absolute(path))
    uris = [
        None if uri is None else _with_file(uri, lambda own: storage.join(base, own))
        for uri in table.column("image_uri").to_pylist()
    ]
    return _with_uris(table, uris).replace_schema_metadata(metadata)


def _with_file(uri: str, changed: Callable[[str], str]) -> str:
    """Returns an address with its path changed; inside a tar, that of the tar."""
    if storage.scheme_of(uri) != tar.SCHEME:
        return changed(uri)
    place = tar.place_of(uri)
    return replace(place, file=changed(place.file)).address


def _with_uris(table: pa.Table, uris: Sequence[str | None]) -> pa.Table:
    return table.set_column(
        table.schema.get_field_index("image_uri"), SCHEMA.field("image_uri"), pa.array(uris, pa.string())
    )


def require_allowed_images(table: pa.Table) -> None:
    """Checks the addresses of all pictures before any is read.

    Raises:
        AddressRefused: an address has a scheme that is not read, such as `file:`, or http(s) without permission.
    """
    for row, uri in enumerate(table.column("image_uri").to_pylist()):
        if uri is None:
            continue
        try:
            storage.require_allowed_in_table(uri)
        except AddressRefused as error:
            raise AddressRefused(error.reason, path=error.path, row=row, remedy=error.remedy) from error


def validate(table: pa.Table, *, where: object = None) -> pa.Table:
    """Returns `table` cast to `SCHEMA`; nullable columns may be missing.

    Raises:
        InputError: a column is unknown, or names the first invalid row, counted from 0.
    """
    try:
        return _validated(table, where)
    except InputError as error:
        if not isinstance(error.row, int):
            raise
        raise InputError(error.reason, path=error.path, row=_row(error.row), remedy=error.remedy) from error


def _row(number: int) -> str:
    return f"{number} (counted from 0)"


def _validated(table: pa.Table, where: object) -> pa.Table:
    known = pa.schema([*SCHEMA, *(own for own in OPTIONAL if own.name in table.column_names)])
    unknown = [name for name in table.column_names if name not in known.names]
    missing = [f.name for f in SCHEMA if not f.nullable and f.name not in table.column_names]
    if unknown or missing:
        raise InputError(
            "is not a sample table: "
            + "; ".join(
                text
                for text in (
                    f"lacks {', '.join(missing)}" if missing else "",
                    f"has unknown columns {', '.join(unknown)}" if unknown else "",
                )
                if text
            ),
            path=where,
            remedy="Make it with `raymotion data prepare`.",
        )
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise InputError(f"has the columns {', '.join(twice)} twice", path=where)
    columns = []
    for field in known:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
        except pa.ArrowException as error:
            raise InputError(
                f"column {field.name} is {column.type}, not {field.type} ({str(error).splitlines()[0]})", path=where
            ) from error
        if not field.nullable and column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise InputError(f"{field.name} is null", path=where, row=row)
        columns.append(column)
    checked = pa.table(columns, schema=known.with_metadata(table.schema.metadata))
    scale_of(checked, where=where)
    _check_ids(checked, where)
    _check_labels(checked, where)
    _check_values(checked, where)
    return checked


def _check_ids(table: pa.Table, where: object) -> None:
    ids = table.column("sample_id")
    if pc.count_distinct(ids).as_py() == table.num_rows:
        empty = pc.index(ids, pa.scalar("")).as_py()
        if empty >= 0:
            raise InputError("sample_id is empty", path=where, row=empty)
        return
    seen: set[str] = set()
    for row, sample_id in enumerate(ids.to_pylist()):
        if sample_id in seen:
            raise InputError(f"sample_id {sample_id!r} appears twice", path=where, row=row, remedy="Ids are unique.")
        seen.add(sample_id)


def _check_labels(table: pa.Table, where: object) -> None:
    vocabulary = vocabulary_of(table, where=where)
    labels, weights = table.column("labels"), table.column("label_weights")
    if labels.null_count == table.num_rows and weights.null_count == table.num_rows:
        return
    if vocabulary is not None and _labels_are_good(labels.combine_chunks(), weights.combine_chunks(), vocabulary):
        return
    # Something is invalid: check row by row to find the first.
    for row, (names, shares) in enumerate(zip(labels.to_pylist(), weights.to_pylist(), strict=True)):
        if shares is not None and (names is None or len(shares) != len(names)):
            raise InputError(f"{len(names or [])} labels have {len(shares)} label_weights", path=where, row=row)
        if any(share is None or not 0.0 < share <= 1.0 for share in shares or []):
            raise InputError(f"label_weights {shares} are not all in (0, 1]", path=where, row=row)
        if names is None:
            continue
        if vocabulary is None:
            raise InputError("has labels, but the file names no vocabulary", path=where, row=row)
        if len(set(names)) != len(names):
            raise InputError(f"labels {names} name one twice", path=where, row=row)
        foreign = [name for name in names if name not in vocabulary]
        if foreign:
            raise InputError(f"labels {foreign} are not in the vocabulary {vocabulary.name}", path=where, row=row)


def _labels_are_good(labels: pa.ListArray, weights: pa.ListArray, vocabulary: Vocabulary) -> bool:
    """Returns whether all labels are valid, column by column: `_check_labels` would be slow on large tables."""
    weighted = np.asarray(weights.is_valid())
    counts = np.nan_to_num(pc.list_value_length(labels).to_numpy(zero_copy_only=False), nan=-1.0)
    shares_of = np.nan_to_num(pc.list_value_length(weights).to_numpy(zero_copy_only=False), nan=-1.0)
    if (counts[weighted] != shares_of[weighted]).any():
        return False
    shares = pc.list_flatten(weights).to_numpy(zero_copy_only=False)
    columns = pc.index_in(pc.list_flatten(labels), value_set=pa.array(vocabulary.labels, pa.string()))
    if columns.null_count or not ((shares > 0.0) & (shares <= 1.0)).all():
        return False
    rows = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
    places = rows * len(vocabulary) + columns.to_numpy(zero_copy_only=False)
    return len(np.unique(places)) == len(places)


def _boxes_are_good(boxes: pa.FixedSizeListArray) -> bool:
    """Returns whether all boxes that are not null are finite with x1 < x2 and y1 < y2."""
    corners = boxes.drop_null().flatten()
    values = corners.to_numpy(zero_copy_only=False).reshape(-1, 4)  # a null becomes NaN
    return bool(np.isfinite(values).all() and (values[:, :2] < values[:, 2:]).all())


def _check_values(table: pa.Table, where: object) -> None:
    for name in ("body_box", "face_box"):
        column = table.column(name)
        if column.null_count == table.num_rows or _boxes_are_good(column.combine_chunks()):
            continue
        for row, box in enumerate(column.to_pylist()):
            if box is None:
                continue
            if any(v is None or not math.isfinite(v) for v in box) or box[2] <= box[0] or box[3] <= box[1]:
                raise InputError(f"{name} {box} is not x1, y1, x2, y2 with x1 < x2 and y1 < y2", path=where, row=row)
    for name in (*NUMBERS, *PREDICTED):
        if name not in table.column_names:
            continue
        bad = storage.first_not_finite(table.column(name))
        if bad is not None:
            value = table.column(name)[bad].as_py()
            raise InputError(f"{name} is {value}", path=where, row=bad, remedy="Leave what is not known null.")
    _check_scale(table, where)
    splits = table.column("split")
    foreign = set(pc.unique(splits).to_pylist()) - {None, *SPLITS}
    if foreign:
        name = sorted(foreign)[0]
        raise InputError(
            f"split {name!r} is not one of {', '.join(SPLITS)}",
            path=where,
            row=pc.index(splits, pa.scalar(name)).as_py(),
        )
    captions = table.column("captions")
    null_caption = pc.index(pc.is_null(pc.list_flatten(captions)), True).as_py()
    if null_caption >= 0:
        row = pc.list_parent_indices(captions.combine_chunks())[null_caption].as_py()
        raise InputError("a caption is null", path=where, row=row, remedy="Leave missing captions out of the list.")


def _check_scale(table: pa.Table, where: object) -> None:
    scale = scale_of(table, where=where)
    if scale is None:
        return
    low, high = scale
    for name in DIMENSIONS:
        values = table.column(name)
        beyond = pc.or_kleene(pc.less(values, low - SCALE_SLACK), pc.greater(values, high + SCALE_SLACK))
        row = pc.index(beyond, True).as_py()
        if row >= 0:
            raise InputError(
                f"{name} is {values[row].as_py():g}, and the scale is {low:g} to {high:g}",
                path=where,
                row=row,
                remedy="Correct the value or the scale.",
            )


def targets(table: pa.Table, vocabulary: Vocabulary, *, soft: bool = False) -> np.ndarray:
    """Returns the targets of the labelled rows of `table`, float32 of shape (rows, labels).

    Args:
        soft: use the share of annotators from `label_weights`, if present, instead of 1.

    Raises:
        InputError: a row has no labels.
    """
    own = vocabulary_of(table)
    if own is not None:
        vocabulary.require_same(own, here="the model", there="the sample table")
    labels, weights = (table.column(name).combine_chunks() for name in ("labels", "label_weights"))
    if labels.null_count:
        row = pc.index(pc.is_null(labels), True).as_py()
        raise InputError("has no labels", row=_row(row), remedy="Keep only labelled samples for this.")
    matrix = np.zeros((table.num_rows, len(vocabulary)), dtype=np.float32)
    rows = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
    names = pc.list_flatten(labels)
    columns = pc.index_in(names, value_set=pa.array(vocabulary.labels, pa.string()))
    if columns.null_count:
        first = pc.index(pc.is_null(columns), True).as_py()
        raise InputError(
            f"{names[first].as_py()!r} is not an emotion of the vocabulary {vocabulary.name}",
            row=_row(int(rows[first])),
        )
    columns = columns.to_numpy(zero_copy_only=False)
    matrix[rows, columns] = 1.0
    if soft:
        # Where a row has weights, it has one for each label, in the same order.
        weighted = np.asarray(weights.is_valid())[rows]
        matrix[rows[weighted], columns[weighted]] = pc.list_flatten(weights).to_numpy(zero_copy_only=False)
    return matrix
