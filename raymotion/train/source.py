"""Sources of a training run: a human-labelled table, a folder of pseudo-labels, or the layers of another student."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.batch.label_dataset import labels_vocabulary, matrix_of, read_labels_record, read_parts
from raymotion.data.domains import hold_out
from raymotion.data.provenance import MADE_FROM_COLUMNS, begun_at, require_columns, require_same_pictures
from raymotion.data.samples import attach_vocabulary, read_samples, validate
from raymotion.errors import InputError
from raymotion.learning.significance import voids_results
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.models.recipe import TrainRecipe

# Remedy for an empty training or validation split.
SPLIT_AGAIN = (
    "Training and validation both need labelled samples, of two images or more: add some, or "
    "split the table anew: raymotion data split TABLE --out SPLIT."
)


def labelled_table(path: str, holdout: Sequence[str] = ()) -> tuple[pa.Table, dict[str, int]]:
    """Reads a sample table and checks its splits.

    Args:
        holdout: domains that become the test split (`data.domains.hold_out`).

    Returns:
        The table, and how many rows were left out because of the held-out domains, by reason.

    Raises:
        InputError: the table has no splits, a group is in two of them, or there is no such domain.
    """
    table = read_samples(path)
    left_out: dict[str, int] = {}
    if holdout:
        table, left_out = hold_out(table, holdout, where=path)
    _check_splits(table, path)
    return table, left_out


def pseudo_labelled(folder: str, val_fraction: float, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Returns the selected rows of a `raymotion label` folder as a sample table, and the teacher's probabilities
    (rows, L).

    Images are split by a hash of their address: a share `val_fraction` is validation (of the student's agreement with
    its teacher), the rest training. There is no test split, because only human labels can test the student.

    Raises:
        InputError: fewer than two rows are selected, or the pictures have changed since they were labelled.
    """
    record = read_labels_record(folder)
    vocabulary = labels_vocabulary(record, folder)
    tables, probabilities = [], []
    columns = ["sample_id", *MADE_FROM_COLUMNS, "captions", "probabilities", "labels", "selected"]
    for _, part in read_parts(folder, columns):
        require_columns(part.schema, folder, remedy="Label again.")
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
    require_same_pictures(
        table.select(["sample_id", "image_uri"]),
        table,
        what="labels",
        where=folder,
        remedy="Put those pictures back, or label again: a student would learn the old labels from new pictures.",
        since=begun_at(record),
    )
    table = table.drop_columns(["image_bytes", "image_digest"])
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
    return samples, np.concatenate(probabilities).astype(np.float32)


def describe_targets(recipe: TrainRecipe) -> dict[str, Any]:
    """Describes the targets of a recipe, for the checkpoint's record and model card.

    Returns:
        `kind`: `annotations` or `pseudo-labels`. Pseudo-labels have `folder`, `digest` (of their job), `selected` (how
        many were selected), `teacher` (fingerprint, kind and inputs), `collapse` (the collapse check) and `notices`.
        Annotations of a student with copied layers have `copied_from`: the targets of the source.
    """
    labels = getattr(recipe.data, "labels", None)
    if labels:
        record = read_labels_record(labels)
        teacher = record.get("model") or {}
        return {
            "kind": "pseudo-labels",
            "folder": storage.absolute(labels).rsplit("/", 1)[-1],
            "digest": record.get("digest"),
            "selected": (record.get("choice") or {}).get("selected"),
            "teacher": {name: teacher.get(name) for name in ("fingerprint", "kind", "reads")},
            "collapse": record.get("collapse"),
            "notices": list(record.get("notices") or ()),
        }
    targets: dict[str, Any] = {"kind": "annotations"}
    for path in recipe.sources().values():
        source = read_checkpoint_info(path)
        earlier = source.training.get("targets") or {}
        targets["copied_from"] = {"fingerprint": source.fingerprint, "targets": earlier.get("kind")}
    return targets


def label_warnings(recipe: TrainRecipe) -> list[str]:
    """Returns warnings to show before training on these labels; none for human labels."""
    return doubts_about(describe_targets(recipe))


def doubts_about(targets: Mapping[str, Any]) -> list[str]:
    """Returns reasons why the pseudo-labels of a `describe_targets` may be useless; empty for annotations."""
    if targets.get("kind") != "pseudo-labels":
        return []
    collapse = targets.get("collapse")
    if collapse is None:
        found = ["these pseudo-labels were never checked for a collapse"]
    elif collapse.get("collapsed"):
        found = [f"a student of these pseudo-labels learns their few answers. {collapse.get('headline')}"]
    else:
        found = []
    return [*found, *(notice for notice in targets.get("notices") or () if voids_results(notice))]


def _hashed_splits(groups: list[str], val_fraction: float, seed: int) -> list[str]:
    """Assigns the groups with the lowest seeded hashes to validation: at least one, but not all."""
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
