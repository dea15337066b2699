"""Vectors that were made elsewhere: a Parquet file with an id and a vector in each row, and the samples they are of."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymotion import storage
from raymotion.data.images.marks import file_name
from raymotion.data.text_rows import shown
from raymotion.errors import InputError

ID_NAMES = ("sample_id", "image", "image_uri", "image_path", "file_name", "filename", "file", "path", "id", "name")
VECTOR_NAMES = ("embedding", "embeddings", "vector", "features", "feature")


@dataclass(frozen=True)
class VectorTable:
    """Vectors by id.

    Attributes:
        path: the file. ids: distinct. vectors: (n, dim), of the file's own type of numbers.
        id_column, vector_column: where they were found.
        digest: hex SHA-256 of the file.
    """

    path: str
    ids: tuple[str, ...]
    vectors: np.ndarray
    id_column: str
    vector_column: str
    digest: str

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])


def read_vectors(
    path: storage.PathLike, *, id_column: str | None = None, vector_column: str | None = None
) -> VectorTable:
    """Reads a Parquet file of vectors.

    Args:
        id_column: column of ids: sample ids, or names of pictures; default: by name (`ID_NAMES`).
        vector_column: column of lists of numbers; default: by name (`VECTOR_NAMES`), or the only one.

    Raises:
        InputError: it is no such file, vectors differ in length or hold nulls, or an id appears twice.
    """
    data = storage.require(path)
    if data[:4] != b"PAR1":
        raise InputError("is not a Parquet file", path=path, remedy="Write the ids and vectors as Parquet.")
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise InputError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", path=path) from error
    lists = [own.name for own in table.schema if _is_list(own.type)]
    vector = _chosen(vector_column, lists, VECTOR_NAMES, "vectors", "vector-column", path)
    texts = [own.name for own in table.schema if pa.types.is_string(own.type) or pa.types.is_large_string(own.type)]
    name = _chosen(id_column, texts, ID_NAMES, "ids", "id-column", path)
    if not table.num_rows:
        raise InputError("has no rows", path=path)
    ids = table.column(name).to_pylist()
    seen: set[str] = set()
    for row, own in enumerate(ids):
        if not own:
            raise InputError(f"{name} is empty", path=path, row=f"{row} (counted from 0)")
        if own in seen:
            raise InputError(
                f"{name} {shown(own)!r} appears twice",
                path=path,
                row=f"{row} (counted from 0)",
                remedy="Keep one vector for each.",
            )
        seen.add(own)
    matrix = _matrix(table.column(vector).combine_chunks(), vector, path)
    return VectorTable(storage.absolute(path), tuple(ids), matrix, name, vector, hashlib.sha256(data).hexdigest())


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _chosen(
    given: str | None, there: Sequence[str], usual: Sequence[str], what: str, option: str, path: storage.PathLike
) -> str:
    if given is not None:
        if given not in there:
            raise InputError(
                f"has no column {given!r} of {what}",
                path=path,
                remedy=f"Columns that could be: {', '.join(map(shown, there)) or 'none'}.",
            )
        return given
    folded = {name.casefold(): name for name in there}
    found = next((folded[name] for name in usual if name in folded), there[0] if len(there) == 1 else None)
    if found is None:
        raise InputError(
            f"has {'no column' if not there else 'several columns'} that could hold {what}",
            path=path,
            remedy=f"Give --{option}: {', '.join(map(shown, there))}."
            if there
            else "Ids are texts, vectors lists of numbers.",
        )
    return found


def _matrix(column: pa.Array, name: str, path: storage.PathLike) -> np.ndarray:
    """Returns (n, dim); raises an `InputError` for a null or another length, with its row."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{name} is null", path=path, row=f"{row} (counted from 0)")
    values = column.flatten()
    if values.null_count:
        raise InputError(f"{name} has a null within a vector", path=path)
    if pa.types.is_fixed_size_list(column.type):
        dim = column.type.list_size
    else:
        lengths = np.diff(column.offsets.to_numpy())
        dim = int(lengths[0])
        if (lengths != dim).any():
            row = int(np.flatnonzero(lengths != dim)[0])
            raise InputError(
                f"{name} has {lengths[row]:,} numbers, the first row has {dim:,}",
                path=path,
                row=f"{row} (counted from 0)",
                remedy="All vectors must be of one length.",
            )
    if not dim:
        raise InputError(f"{name} holds empty vectors", path=path)
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(column), dim)


def match_vectors(ids: Sequence[str], samples: pa.Table, *, by_picture: bool = True) -> np.ndarray:
    """Returns for each sample the position of its vector in `ids`, int64; -1 for none.

    A sample is known by its id, by its id without the data set (`flickr8k:a.jpg`: a.jpg), and with `by_picture` by
    the address or the file name of its picture; the first of these that is in `ids` counts. Ids are also compared by
    their file name (`Images/a.jpg`: a.jpg), unless two have the same.
    """
    place = {own: row for row, own in enumerate(ids)}
    bases: dict[str, int] = {}
    for row, own in enumerate(ids):
        base = posixpath.basename(own.replace("\\", "/"))
        bases[base] = -1 if base in bases else row
    for base, row in bases.items():
        if row >= 0:
            place.setdefault(base, row)
    uris = samples.column("image_uri").to_pylist()
    found = np.full(samples.num_rows, -1, np.int64)
    for row, (sample_id, uri) in enumerate(zip(samples.column("sample_id").to_pylist(), uris, strict=True)):
        found[row] = next((place[name] for name in _names(sample_id, uri, by_picture) if name in place), -1)
    return found


def _names(sample_id: str, uri: str | None, by_picture: bool) -> Iterable[str]:
    yield sample_id
    yield sample_id.partition(":")[2] or sample_id
    if by_picture and uri is not None:
        yield uri
        yield file_name(uri)
