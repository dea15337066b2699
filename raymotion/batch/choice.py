"""Choosing labels from probabilities that are already there: cheap, repeatable, and without any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy
from raymotion.vocabulary import Vocabulary


def with_choice(table: pa.Table, mask: np.ndarray, selected: np.ndarray, vocabulary: Vocabulary) -> pa.Table:
    """`table` with a policy's choice in its columns labels and selected: mask (n, L) bool, selected (n,) bool."""
    labels = [vocabulary.decode(np.flatnonzero(row).tolist()) for row in mask]
    for name, values in (
        ("labels", pa.array(labels, pa.list_(pa.string()))),
        ("selected", pa.array(selected.tolist(), pa.bool_())),
    ):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, pa.field(name, values.type, nullable=False), values)
    return table


def read_parts(folder: storage.PathLike, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    """Names and tables of the parts of a data set, in order."""
    for name in storage.list_names(folder):
        if name.startswith("part-") and name.endswith(".parquet"):
            yield name, storage.read_table(storage.join(folder, name), columns)


def matrix_of(table: pa.Table) -> np.ndarray:
    """The column probabilities as float32 (n, L)."""
    column = table.column("probabilities").combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)


def choose_globally(
    source: str, target: str, policy: SelectionPolicy, vocabulary: Vocabulary, thresholds: Sequence[float] | None
) -> dict[str, Any]:
    """Applies a policy to the probabilities of all parts in `source`; writes the parts, with its choice, to `target`.

    Holds probabilities and ids of the whole set in memory (130 bytes a row for 29 labels), nothing else. Writing in
    place (`source == target`) is safe to interrupt and repeat: the choice depends on the probabilities alone.
    """
    ids: list[str] = []
    matrices: list[np.ndarray] = []
    sizes = []
    for _, table in read_parts(source, ["sample_id", "probabilities"]):
        ids.extend(table.column("sample_id").to_pylist())
        matrices.append(matrix_of(table).copy())
        sizes.append(table.num_rows)
    mask, selected = policy.choose(
        np.concatenate(matrices), ids, None if thresholds is None else np.asarray(thresholds)
    )
    start = 0
    for (name, table), size in zip(read_parts(source), sizes, strict=True):
        rows = slice(start, start + size)
        chosen = with_choice(table, mask[rows], selected[rows], vocabulary)
        sha256, length = storage.write_table(storage.join(target, name), chosen)
        _update_commit(target, name, sha256, length)
        start += size
    return {"selection": policy.model_dump(mode="json"), "selected": int(selected.sum()), "labels": int(mask.sum())}


def _update_commit(folder: str, name: str, sha256: str, length: int) -> None:
    path = storage.join(folder, "_commits", name.replace(".parquet", ".json"))
    if storage.exists(path):
        storage.write_json(path, {**storage.read_json(path), "sha256": sha256, "bytes": length})


def read_labels_record(folder: storage.PathLike) -> dict[str, Any]:
    """job.json of a finished labelling job, or an `InputError`."""
    path = storage.join(storage.absolute(folder), "job.json")
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("job") != "labels":
        raise InputError(
            "is not the record of a labelling job", path=path, remedy="Name the --out of `raymotion label`."
        )
    if record.get("status") != "complete":
        raise InputError("the job is not complete", path=folder, remedy="Run the same `raymotion label` command again.")
    return record


def select(labels: storage.PathLike, out: storage.PathLike, policy: SelectionPolicy) -> dict[str, Any]:
    """Writes a labelled data set with the choice of another policy to `out`; returns its job.json.

    The same parts, quarantine and books, with other values in the columns labels and selected.
    """
    source, target = storage.absolute(labels), storage.absolute(out)
    record = read_labels_record(source)
    if source == target or storage.exists(storage.join(target, "job.json")):
        raise InputError("holds a data set", path=target, remedy="Name a fresh --out.")
    vocabulary = Vocabulary.from_dict(record["vocabulary"], where=storage.join(source, "job.json"))
    thresholds = record["model"]["teacher"].get("thresholds")
    choice = choose_globally(source, target, policy, vocabulary, thresholds)
    for name in storage.list_names(storage.join(source, "quarantine")):
        storage.write_bytes(
            storage.join(target, "quarantine", name), storage.read_bytes(storage.join(source, "quarantine", name))
        )
    settings = {**record["settings"], "selection": policy.model_dump(mode="json")}
    identity = {**record["identity"], "selection": policy.model_dump(mode="json")}
    chosen = {**record, "settings": settings, "identity": identity, "choice": choice, "selected_from": source}
    storage.write_json(storage.join(target, "job.json"), chosen)
    return chosen
