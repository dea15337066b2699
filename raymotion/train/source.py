"""Where training starts from: a table that people labelled, a folder that a teacher did, another student's layers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.batch.choice import matrix_of, read_labels_record, read_parts
from raymotion.data.samples import attach_vocabulary, read_samples, targets, validate, vocabulary_of
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.train.recipe import Transfer
from raymotion.vocabulary import Vocabulary

# What helps where a split has nothing to train or to validate on.
SPLIT_AGAIN = (
    "Training and validation both need labelled samples, of two images or more: add some, and prepare the table again."
)


def sample_table(path: str) -> tuple[pa.Table, np.ndarray, Vocabulary]:
    """A sample table with labels and splits, the shares of annotators (rows, L), and its vocabulary.

    Rows without labels have shares of 0; they are the caller's to leave out.
    """
    table = read_samples(path)
    vocabulary = vocabulary_of(table, where=path)
    labels = table.column("labels")
    if vocabulary is None or labels.null_count == table.num_rows:
        raise InputError("has no labels to learn from", path=path)
    _check_splits(table, path)
    soft = np.zeros((table.num_rows, len(vocabulary)), dtype=np.float32)
    known = np.asarray(labels.is_valid())
    soft[known] = targets(table.filter(pa.array(known)), vocabulary, soft=True)
    return table, soft, vocabulary


def pseudo_labelled(folder: str, val_fraction: float, seed: int) -> tuple[pa.Table, np.ndarray, Vocabulary]:
    """The selected rows of a `raymotion label` folder as a sample table, the teacher's probabilities, the vocabulary.

    The split is drawn by image, from a hash of its address: a share `val_fraction` is validation (of how well the
    student agrees with its teacher), the rest is training. There is no test: what the student is worth, human labels
    tell.
    """
    record = read_labels_record(folder)
    vocabulary = Vocabulary.from_dict(record["vocabulary"], where=storage.join(folder, "job.json"))
    tables, probabilities = [], []
    for _, part in read_parts(folder, ["sample_id", "image_uri", "captions", "probabilities", "labels", "selected"]):
        chosen = part.filter(part.column("selected"))
        probabilities.append(matrix_of(chosen).reshape(chosen.num_rows, len(vocabulary)))
        tables.append(chosen.drop_columns(["probabilities", "selected"]))
    table = pa.concat_tables(tables)
    if table.num_rows < 2:
        raise InputError(
            f"has {table.num_rows} selected image{'s' if table.num_rows != 1 else ''}",
            path=folder,
            remedy="Label more, or choose anew with `raymotion select`.",
        )
    groups = [
        uri or sample_id
        for uri, sample_id in zip(
            table.column("image_uri").to_pylist(), table.column("sample_id").to_pylist(), strict=True
        )
    ]
    table = table.append_column("group_id", pa.array(groups, pa.string()))
    table = table.append_column("split", pa.array(_hashed_splits(groups, val_fraction, seed), pa.string()))
    table = table.append_column("source", pa.array(["pseudo-labels"] * table.num_rows, pa.string()))
    samples = validate(attach_vocabulary(table, vocabulary), where=folder)
    return samples, np.concatenate(probabilities).astype(np.float32), vocabulary


def source_of(transfer: Transfer) -> CheckpointInfo:
    """The student that layers are taken from."""
    info = read_checkpoint_info(transfer.source)
    if info.architecture != "student":
        raise InputError(f"is a {info.architecture}; layers are taken from a student", path=transfer.source)
    return info


def require_positives(hard: np.ndarray, splits: Mapping[str, np.ndarray], path: str) -> None:
    """Raises unless some label occurs in training and in validation.

    Without one there is nothing to learn, and no average precision to choose an epoch by.

    Args:
        hard: targets (n, L); splits: name -> positions of its samples.
    """
    for name in ("train", "val"):
        if not hard[splits[name]].any():
            count = len(splits[name])
            raise InputError(
                f"not one of the {count} sample{'s' if count != 1 else ''} of the split {name} has a label",
                path=path,
                remedy="Label more samples, or split them otherwise (another --seed of `raymotion data prepare`).",
            )


def _hashed_splits(groups: list[str], val_fraction: float, seed: int) -> list[str]:
    """The groups whose seeded hashes are lowest are validation: at least one, and never all."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    held_out = set(order[: min(max(1, round(val_fraction * len(order))), max(1, len(order) - 1))])
    return ["val" if group in held_out else "train" for group in groups]


def _check_splits(table: pa.Table, path: Any) -> None:
    if table.column("split").null_count == table.num_rows:
        raise InputError(
            "has no splits",
            path=path,
            remedy="Prepare it with splits: `raymotion data prepare ...` without --no-split.",
        )
    seen: dict[str, str] = {}
    for row, (group, split) in enumerate(
        zip(table.column("group_id").to_pylist(), table.column("split").to_pylist(), strict=True)
    ):
        if split is not None and seen.setdefault(group, split) != split:
            raise InputError(
                f"group {group!r} is in {seen[group]} and in {split}",
                path=path,
                row=row,
                remedy="A model would be tested on images it was trained on: split by group.",
            )
