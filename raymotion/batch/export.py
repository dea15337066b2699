"""Export of a labelled data set to other formats."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.batch.label_dataset import labels_vocabulary, matrix_of, read_labels_record, read_parts
from raymotion.data.readers.coco import coco_url
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

# Column order of the public system's coco_predictions.csv (its position of each label in the later notebooks).
PUBLISHED_ORDER = (
    "curious", "amazed", "fear", "awe", "neutral", "disgusted", "worried", "intrigued", "confused", "beautiful",
    "happy",
    "annoyed", "impressed", "sad", "proud", "inspired", "angry", "excited", "nostalgic", "upset", "concerned", "good",
    "hopeful", "anger", "joy", "interested", "calm", "bored", "scared",
)  # fmt: skip

# Distinguishes a coco-json export from COCO's own annotation files, which begin alike.
DESCRIPTION = "Emotion pseudo-labels made with raymotion"

# The id of a COCO sample, or of a person in its image.
_COCO_ID = re.compile(r"coco:(\d{12})(?::person:\d+)?")


# Columns not copied to a full-csv; probabilities get one column each instead.
NOT_EXPORTED = ("probabilities", "selected", "image_bytes", "image_digest", "unknown_words")


@dataclass(frozen=True)
class Exported:
    """Result of an export: rows written, and how many of them give no address or file name of their image."""

    rows: int
    without_address: int = 0


def export(labels: storage.PathLike, out: storage.PathLike, kind: str, *, coco_split: str | None = None) -> Exported:
    """Writes the selected rows of a labelled data set to one file.

    Args:
        kind: `full-csv` (id, address, captions and labels as JSON, a probability for each label, and all other
            predictions), `csv` (the public system's 31 columns) or `coco-json`. The last two need labels of a
            vocabulary.
        coco_split: COCO's split of the images (`val2017`), for rows whose address does not contain it.

    Raises:
        InputError: no row has a public address, which `csv` requires, or `out` exists and is not such an export.
    """
    suffix, wanted = storage.suffix(out), ".json" if kind == "coco-json" else ".csv"
    if suffix not in (wanted, ""):
        raise InputError(f"ends in {suffix}, and {kind} is written", path=out, remedy=f"Name a {wanted} file.")
    folder = storage.absolute(labels)
    record = read_labels_record(folder)
    if kind == "full-csv":
        text, done = _full_csv(
            folder, labels_vocabulary(record, folder) if record.get("vocabulary") else None, coco_split
        )
    else:
        text, done = {"csv": _csv, "coco-json": _coco_json}[kind](folder, labels_vocabulary(record, folder), coco_split)
    if kind == "csv" and done.rows and done.without_address == done.rows:
        raise InputError(
            "no image has a public address, and the column coco_url would be empty in every row",
            path=folder,
            remedy="Pass --coco-split val2017 (or another split) for pictures of COCO, or use --format full-csv.",
        )
    outputs.require_replaceable(out, f"a {kind} export", lambda head: _is_export(head, kind, text))
    storage.write_text(out, text)
    return done


def _is_export(head: bytes, kind: str, text: str) -> bool:
    """Returns whether a file that begins with `head` is an earlier export, by its first line or its description."""
    if kind == "coco-json":
        return head.startswith(f'{{"info": {{"description": "{DESCRIPTION}"'.encode())
    ours = text[: len(head) + 1].encode()[: len(head)]  # the first line may be longer than `head`
    return outputs.first_line(head) == outputs.first_line(ours)


def public_address(row: dict[str, Any], coco_split: str | None = None) -> str:
    """Returns the public address of a row's image, or an empty string.

    For a COCO image this is its address in COCO's archives, derived from its file and folder; `coco_split` replaces an
    unknown folder, and the sample's id a missing file name. Other images have one if they were read from the web or an
    object store.
    """
    uri = row["image_uri"] or ""
    number = _COCO_ID.fullmatch(row["sample_id"])
    if number is not None:
        name = posixpath.basename(uri.replace("\\", "/"))
        if coco_split is not None and not uri:
            year = coco_split[-4:]
            name = f"COCO_{coco_split}_{number.group(1)}.jpg" if year in ("2014", "2015") else f"{number.group(1)}.jpg"
        return coco_url(uri) or coco_url(f"{coco_split}/{name}") or (uri if storage.is_remote(uri) else "")
    return uri if storage.is_remote(uri) else ""


def _full_csv(folder: str, vocabulary: Vocabulary | None, coco_split: str | None) -> tuple[str, Exported]:
    """Returns a CSV of sample_id, image_uri, public_url, lists as JSON, `p_LABEL` per label, and other predictions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = without = 0
    head: list[str] = []
    for _, table in read_parts(folder):
        names = [name for name in table.column_names if name not in NOT_EXPORTED]
        matrix = np.zeros((table.num_rows, 0)) if vocabulary is None else matrix_of(table)
        if not head:
            head = ["sample_id", "image_uri", "public_url", *(name for name in ("captions", "labels") if name in names)]
            others = [name for name in names if name not in head]
            writer.writerow([*head, *(f"p_{label}" for label in (vocabulary.labels if vocabulary else ())), *others])
        for row, probabilities in zip(
            table.drop_columns(["probabilities"] if vocabulary else []).to_pylist(), matrix, strict=True
        ):
            if row.get("selected", True):
                url = row["public_url"] = public_address(row, coco_split)
                writer.writerow(
                    [_text(row[name]) for name in head]
                    + [_text(p) for p in probabilities.tolist()]
                    + [_text(row[name]) for name in others]
                )
                rows += 1
                without += not (row["image_uri"] or url)
    return buffer.getvalue(), Exported(rows, without)


def _text(value: Any) -> str:
    """Formats a value as a CSV field: lists as JSON, floats with six digits, null as an empty string."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and value and all(isinstance(own, float) for own in value):  # a vector
        return f"[{', '.join(map(_text, value))}]"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _selected(folder: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields the selected rows in order, without their probabilities, and the probabilities: float32 (L)."""
    for _, table in read_parts(folder):
        rows = table.drop_columns(["probabilities"]).to_pylist()
        yield from (both for both in zip(rows, matrix_of(table), strict=True) if both[0]["selected"])


def _csv(folder: str, vocabulary: Vocabulary, coco_split: str | None) -> tuple[str, Exported]:
    """Returns the public system's table: coco_url, captions as the text of a Python list, 0.0 or 1.0 per label."""
    columns = PUBLISHED_ORDER if vocabulary.labels == SOCRATIS_29.labels else vocabulary.labels
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["coco_url", "captions", *columns])
    rows = without = 0
    for row, _ in _selected(folder):
        url = public_address(row, coco_split)
        writer.writerow([url, str(row["captions"]), *(float(column in row["labels"]) for column in columns)])
        rows += 1
        without += not url
    return buffer.getvalue(), Exported(rows, without)


def _coco_json(folder: str, vocabulary: Vocabulary, coco_split: str | None) -> tuple[str, Exported]:
    """Returns COCO's layout: images, categories (the vocabulary, from 1), and an annotation with a score per label."""
    images: list[dict[str, Any]] = []
    known = [_coco_number(sample_id) for sample_id in _ids(folder)]
    free = max((number for number in known if number is not None), default=0)
    annotations: list[dict[str, Any]] = []
    without = 0
    for row, probabilities in _selected(folder):
        image_id = _coco_number(row["sample_id"])
        if image_id is None:  # numbered above all COCO ids, so that no annotation refers to the wrong image
            free += 1
            image_id = free
        name = posixpath.basename((row["image_uri"] or "").replace("\\", "/"))
        for reader in ("folder:", "coco:file:"):  # the path relative to the folder, with subfolders
            if row["sample_id"].startswith(reader):
                name = row["sample_id"].removeprefix(reader)
        url = public_address(row, coco_split)
        without += not (name or url)
        images.append({"id": image_id, "file_name": name, "coco_url": url, "sample_id": row["sample_id"]})
        for label in row["labels"]:
            index = vocabulary.index(label)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": index + 1,
                    "score": round(float(probabilities[index]), 6),
                }
            )
    value = {
        "info": {"description": DESCRIPTION, "vocabulary": vocabulary.to_dict()},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": label, "supercategory": "emotion"} for i, label in enumerate(vocabulary.labels)
        ],
    }
    return json.dumps(value, ensure_ascii=False) + "\n", Exported(len(images), without)


def _coco_number(sample_id: str) -> int | None:
    """Returns COCO's number of an image, or None for other samples, including persons in an image."""
    number = sample_id.removeprefix("coco:")
    return int(number) if sample_id.startswith("coco:") and number.isdecimal() else None


def _ids(folder: str) -> list[str]:
    return [i for _, table in read_parts(folder, ["sample_id"]) for i in table.column("sample_id").to_pylist()]
