"""Describes, merges and splits sample tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion.data.samples import (
    DIMENSIONS,
    OPTIONAL,
    SCHEMA,
    SPLITS,
    attach_scale,
    attach_vocabulary,
    read_samples,
    scale_of,
    validate,
    vocabulary_of,
)
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary


@dataclass(frozen=True)
class Description:
    """What a sample table holds.

    Attributes:
        rows, groups, pictures, captions: numbers of each; a picture counts once.
        sources: rows by source. splits: rows by split, "" for none.
        label_sources: rows by where people's labels came from, if the table says so.
        vocabulary: of the labels, or None. labelled: rows with annotations.
        prevalence: for each label, its share of the labelled rows of each split, and of all (""); None without any.
        scale: of valence, arousal and dominance, or None. numbers: for each dimension, count, mean and sd.
    """

    rows: int
    groups: int
    pictures: int
    captions: int
    sources: Mapping[str, int]
    splits: Mapping[str, int]
    label_sources: Mapping[str, int]
    vocabulary: Vocabulary | None
    labelled: int
    prevalence: Mapping[str, Mapping[str, float | None]]
    scale: tuple[float, float] | None
    numbers: Mapping[str, tuple[int, float, float]]


def describe(table: pa.Table, *, where: object = None) -> Description:
    """Counts what a sample table holds."""
    splits = ["" if split is None else split for split in table.column("split").to_pylist()]
    labels, vocabulary = table.column("labels").to_pylist(), vocabulary_of(table, where=where)
    prevalence: dict[str, dict[str, float | None]] = {}
    for label in () if vocabulary is None else vocabulary.labels:
        own: dict[str, float | None] = {}
        for split in ("", *SPLITS):
            known = [row for row, s in zip(labels, splits, strict=True) if row is not None and split in ("", s)]
            own[split] = sum(label in row for row in known) / len(known) if known else None
        prevalence[label] = own
    numbers = {}
    for name in DIMENSIONS:
        values = np.asarray(pc.drop_null(table.column(name)).to_numpy(), dtype=np.float64)
        if len(values):
            numbers[name] = (len(values), float(values.mean()), float(values.std()))
    return Description(
        rows=table.num_rows,
        groups=pc.count_distinct(table.column("group_id")).as_py(),
        pictures=pc.count_distinct(table.column("image_uri")).as_py(),
        captions=pc.sum(pc.list_value_length(table.column("captions"))).as_py() or 0,
        sources=_counted(table.column("source").to_pylist()),
        splits={name: splits.count(name) for name in (*SPLITS, "") if name in splits},
        label_sources=_counted(
            table.column("label_source").drop_null().to_pylist() if "label_source" in table.column_names else []
        ),
        vocabulary=vocabulary,
        labelled=table.num_rows - table.column("labels").null_count,
        prevalence=prevalence,
        scale=scale_of(table, where=where),
        numbers=numbers,
    )


def _counted(values: Sequence[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}


def merge_tables(paths: Sequence[str]) -> pa.Table:
    """Returns the rows of several sample tables, in order.

    Raises:
        InputError: two tables have a sample, a group with different splits, other vocabularies or other scales.
    """
    tables = [read_samples(path) for path in paths]
    vocabulary, scale = None, None
    owner: dict[str, str] = {}
    for path, table in zip(paths, tables, strict=True):
        own = vocabulary_of(table, where=path)
        if vocabulary is not None and own is not None:
            vocabulary.require_same(own, here=owner["vocabulary"], there=path)
        if own is not None and vocabulary is None:
            vocabulary, owner["vocabulary"] = own, path
        found = scale_of(table, where=path)
        if scale is not None and found is not None and found != scale:
            raise InputError(
                f"has a scale of {found[0]:g} to {found[1]:g}, and {owner['scale']} one of {scale[0]:g} to "
                f"{scale[1]:g}",
                path=path,
                remedy="Bring the ratings to one scale first.",
            )
        if found is not None and scale is None:
            scale, owner["scale"] = found, path
    _require_apart(paths, tables)
    names = [field.name for field in SCHEMA] + [
        field.name for field in OPTIONAL if any(field.name in table.column_names for table in tables)
    ]
    whole = pa.concat_tables(
        [table.select([name for name in names if name in table.column_names]).replace_schema_metadata(None)
         for table in tables],
        promote_options="default",
    )  # fmt: skip
    return validate(attach_scale(attach_vocabulary(whole, vocabulary), scale))


def _require_apart(paths: Sequence[str], tables: Sequence[pa.Table]) -> None:
    owner: dict[str, str] = {}
    split_of: dict[str, tuple[str, str]] = {}
    for path, table in zip(paths, tables, strict=True):
        columns = (table.column(name).to_pylist() for name in ("sample_id", "group_id", "split"))
        for row, (sample, group, split) in enumerate(zip(*columns, strict=True)):
            if sample in owner:
                raise InputError(
                    f"has the sample {sample!r}, which {owner[sample]} has too",
                    path=path,
                    row=row,
                    remedy="Merge each table once; ids of different data sets have to differ.",
                )
            owner[sample] = path
            if split is None:
                continue
            before = split_of.setdefault(group, (split, path))
            if before[0] != split:
                raise InputError(
                    f"puts the group {group!r} into {split}, and {before[1]} into {before[0]}",
                    path=path,
                    row=row,
                    remedy="Merge first and split then: `raymotion data split`.",
                )
