"""Vectors that were made elsewhere: a Parquet file with an id and a vector in each row, and the samples they are of."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Shared:
    """What says nothing, because samples of several pictures of a table have it.

    Attributes:
        ids: sample ids without their data set. names: file names.
    """

    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Matches:
    """The vector of each sample.

    Attributes:
        rows: int64 (n,), its position; -1 for none.
        by_file_name: bool (n,), whether only the file names are the same.
        ambiguous: of samples without a vector, by position: the file name or id that could have told it, and why not.
    """

    rows: np.ndarray
    by_file_name: np.ndarray
    ambiguous: dict[int, str]


class VectorIds:
    """The ids of vectors, to find those of samples.

    A sample is known by its id, by its id without the data set (`flickr8k:a.jpg`: a.jpg), and with `by_picture` by the
    address of its picture; the first of these that is an id counts. Else the file names in these are compared with
    those in the ids (`Images/a.jpg`: a.jpg). A file name that several vectors, or several pictures, have says nothing.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self._place = {own: row for row, own in enumerate(ids)}
        self._of_name: dict[str, list[int]] = {}
        for row, own in enumerate(ids):
            self._of_name.setdefault(_base(own), []).append(row)

    def match(self, samples: pa.Table, *, by_picture: bool = True, shared: Shared | None = None) -> Matches:
        """Returns the vector of each sample.

        Args:
            shared: see `shared_by_pictures`, of the whole table that the samples are of.
        """
        shared = shared or Shared()
        uris = samples.column("image_uri").to_pylist()
        rows = np.full(samples.num_rows, -1, np.int64)
        by_name = np.zeros(samples.num_rows, dtype=bool)
        ambiguous: dict[int, str] = {}
        for row, (sample_id, uri) in enumerate(zip(samples.column("sample_id").to_pylist(), uris, strict=True)):
            own, names = _names(sample_id, uri if by_picture else None)
            exact = [sample_id, *([] if own in shared.ids else [own]), *([uri] if uri and by_picture else [])]
            rows[row] = next((self._place[name] for name in exact if name in self._place), -1)
            if rows[row] < 0:
                clear = (name for name in names if name not in shared.names and len(self._of_name.get(name, ())) == 1)
                rows[row] = next((self._of_name[name][0] for name in clear), -1)
                by_name[row] = rows[row] >= 0
            if rows[row] < 0 and (why := self._why_not(own, names, shared)) is not None:
                ambiguous[row] = why
        return Matches(rows, by_name, ambiguous)

    def _why_not(self, own: str, names: Sequence[str], shared: Shared) -> str | None:
        """Returns why a vector with the id or a file name of a sample is not its own; None if there is no such one."""
        if own in shared.ids and own in self._place:
            return f"{shown(own)} is the id of samples of several data sets"
        for name in names:
            there = self._of_name.get(name, [])
            if len(there) > 1:
                first, second = (shown(self.ids[row]) for row in there[:2])
                return f"{shown(name)} is the file name of {len(there):,} vectors, such as {first} and {second}"
            if there and name in shared.names:
                return f"{shown(name)} is the file name of several pictures"
        return None


def shared_by_pictures(samples: pa.Table) -> Shared:
    """Returns the ids and the file names that several pictures of a table have, in different data sets or folders."""
    owners: tuple[dict[str, str], dict[str, str]] = ({}, {})
    shared: tuple[set[str], set[str]] = (set(), set())
    uris = samples.column("image_uri").to_pylist()
    for sample_id, uri in zip(samples.column("sample_id").to_pylist(), uris, strict=True):
        own, names = _names(sample_id, uri)
        for owner, found, several in zip(owners, ([own], names), shared, strict=True):
            several.update(name for name in found if owner.setdefault(name, uri or sample_id) != (uri or sample_id))
    return Shared(*map(frozenset, shared))


def _names(sample_id: str, uri: str | None) -> tuple[str, list[str]]:
    """Returns the id of a sample without its data set, and the file names that it is known by."""
    own = sample_id.partition(":")[2] or sample_id
    names = [_base(sample_id), _base(own), *([] if uri is None else [file_name(uri)])]
    return own, [name for name in dict.fromkeys(names) if name]


def _base(name: str) -> str:
    return posixpath.basename(name.replace("\\", "/"))
