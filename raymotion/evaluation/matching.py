"""Matching of labelled images with human-labelled samples, with the reasons why others are left out.

There are two keys. `sample`: the sample_id. `image-name`: the image's file name, because data sets that share pictures
(EMOTIC's `mscoco` part is COCO) name their samples differently. COCO's numbers are recognised in all their forms:
`000000000139.jpg`, `COCO_val2014_000000000139.jpg`, `coco:000000000139`. A sample of EMOTIC is one person, so an image
can have several: their labels are united, or each label gets the share of persons with it.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from raymotion.data.images.files import EXTENSIONS
from raymotion.data.samples import vocabulary_of
from raymotion.errors import InputError

Key = Literal["auto", "sample", "image-name"]
Persons = Literal["union", "share"]

COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_|coco:)?(\d{12})")
EXTENSION = re.compile(rf"({'|'.join(map(re.escape, EXTENSIONS))})$", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """Labelled rows matched with human-labelled samples.

    Attributes:
        key: `sample` or `image-name`.
        rows: (m,) positions of the labelled rows, ascending.
        shares: (m, L) float64, share of the matched samples (persons) with each label; 0 or 1 for a single sample.
        persons: (m,) number of human-labelled samples per image.
        truth_rows: for each match, the positions of its samples in the truth table.
        counts: matched and unmatched rows, by reason; see `explain`.
    """

    key: str
    rows: np.ndarray
    shares: np.ndarray
    persons: np.ndarray
    truth_rows: list[list[int]]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def targets(self, persons: Persons) -> np.ndarray:
        """Returns (m, L) of 0 and 1. `union`: any person has the label. `share`: at least half of them do."""
        return (self.shares > 0 if persons == "union" else self.shares >= 0.5).astype(np.float64)

    def explain(self) -> list[str]:
        """Explains in sentences how many rows matched and why the others did not."""
        c = self.counts
        by = "sample_id" if self.key == "sample" else "the image's file name"
        lines = [
            f"{c['matched']:,} of {c['labelled']:,} labelled images were matched by {by} with "
            f"{c['truth_matched']:,} of {c['truth']:,} human-labelled samples."
        ]
        reasons = (
            ("labelled_without_truth", "labelled images have no sample with human labels"),
            ("truth_without_image", "samples are of images that are not in the labelled data set"),
            ("truth_without_labels", "samples carry no human labels"),
            ("truth_without_name", "samples name no image"),
            ("ambiguous", "labelled images share their file's name with another one"),
            ("ambiguous_truth", "samples have a file name that different images of theirs share"),
        )
        return lines + [f"Left out: {c[name]:,} {text}." for name, text in reasons if c[name]]


def image_key(uri: str | None, sample_id: str) -> str | None:
    """Returns a key of the picture that is equal across data sets; None if neither address nor id gives one.

    The file name takes precedence over the id, because the ids of a COCO-format set with its own file names are not
    COCO's numbers.
    """
    name = unquote(posixpath.basename((uri or "").replace("\\", "/")))
    stem = EXTENSION.sub("", name)
    found = COCO_NUMBER.fullmatch(stem or sample_id)
    return f"coco:{found.group(1)}" if found else stem or None


def match(
    ids: Sequence[str],
    uris: Sequence[str | None],
    truth: pa.Table,
    *,
    on: Key = "auto",
    where: object = None,
) -> Match:
    """Joins n labelled rows with a sample table of human labels.

    Args:
        ids, uris: of the labelled rows.
        truth: a sample table with labels and their vocabulary.
        on: `auto` uses sample_id if both have one in common, else the image's name.
        where: location of `truth`, for messages.

    Raises:
        InputError: nothing matches, or `truth` has no labels.
    """
    vocabulary = vocabulary_of(truth, where=where)
    if vocabulary is None or truth.column("labels").null_count == truth.num_rows:
        raise InputError("has no labels to compare with", path=where, remedy="Give samples that people labelled.")
    truth_ids: list[str] = truth.column("sample_id").to_pylist()
    key = on
    if on == "auto":
        key = "sample" if not set(ids).isdisjoint(truth_ids) else "image-name"
    truth_uris = truth.column("image_uri").to_pylist()
    if key == "sample":
        own_keys: list[str | None] = list(ids)
        other_keys: list[str | None] = list(truth_ids)
    else:
        own_keys = [image_key(uri, sample_id) for uri, sample_id in zip(uris, ids, strict=True)]
        other_keys = [image_key(uri, sample_id) for uri, sample_id in zip(truth_uris, truth_ids, strict=True)]
    times = Counter(own_keys)
    place = {name: row for row, name in enumerate(own_keys) if name is not None and times[name] == 1}
    shared = _shared_names(other_keys, truth.column("group_id").to_pylist()) if key == "image-name" else set()

    left_out = ("truth_without_labels", "truth_without_name", "truth_without_image", "ambiguous_truth")
    counts = dict.fromkeys(left_out, 0)
    members: dict[int, list[int]] = {}
    labels = truth.column("labels").to_pylist()
    for row, name in enumerate(other_keys):
        if labels[row] is None:
            counts["truth_without_labels"] += 1
        elif name is None:
            counts["truth_without_name"] += 1
        elif name in shared:
            counts["ambiguous_truth"] += 1
        elif name not in place:
            counts["truth_without_image"] += 1
        else:
            members.setdefault(place[name], []).append(row)
    ambiguous = sum(1 for name in own_keys if name is not None and times[name] > 1)
    rows = np.array(sorted(members), dtype=np.int64)
    if not len(rows):
        raise InputError(
            f"none of the {len(ids):,} labelled images is among its {truth.num_rows:,} samples "
            f"(compared by {'sample_id' if key == 'sample' else 'image name'}; such as {ids[0] if ids else 'none'!r} "
            f"here, {truth_ids[0]!r} there)",
            path=where,
            remedy="Check that both are about the same images, or try the other --on.",
        )
    shares = np.zeros((len(rows), len(vocabulary)))
    for i, row in enumerate(rows.tolist()):
        for other in members[row]:
            shares[i, [vocabulary.index(label) for label in labels[other]]] += 1.0
        shares[i] /= len(members[row])
    truth_rows = [members[row] for row in rows.tolist()]
    return Match(
        key=key,
        rows=rows,
        shares=shares,
        persons=np.array([len(own) for own in truth_rows], dtype=np.int64),
        truth_rows=truth_rows,
        counts={
            "labelled": len(ids),
            "truth": truth.num_rows,
            "matched": len(rows),
            "truth_matched": sum(len(own) for own in truth_rows),
            "labelled_without_truth": len(ids) - len(rows) - ambiguous,
            "ambiguous": ambiguous,
            **counts,
        },
    )


def _shared_names(keys: Sequence[str | None], groups: Sequence[str]) -> set[str]:
    """Returns file names shared by several images (groups) of the truth table; COCO's numbers are never ambiguous."""
    owners: dict[str, set[str]] = {}
    for name, group in zip(keys, groups, strict=True):
        if name is not None and not name.startswith("coco:"):
            owners.setdefault(name, set()).add(group)
    return {name for name, own in owners.items() if len(own) > 1}
