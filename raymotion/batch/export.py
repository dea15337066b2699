"""A labelled data set in the formats of other programs."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable
from typing import Any

from raymotion import outputs, storage
from raymotion.batch.choice import matrix_of, read_labels_record, read_parts
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

# Column order of the public system's coco_predictions.csv (its position of each label in the later notebooks).
PUBLISHED_ORDER = (
    "curious", "amazed", "fear", "awe", "neutral", "disgusted", "worried", "intrigued", "confused", "beautiful",
    "happy",
    "annoyed", "impressed", "sad", "proud", "inspired", "angry", "excited", "nostalgic", "upset", "concerned", "good",
    "hopeful", "anger", "joy", "interested", "calm", "bored", "scared",
)  # fmt: skip


def export(labels: storage.PathLike, out: storage.PathLike, kind: str) -> int:
    """Writes the selected rows of a labelled data set as `csv` or `coco-json`; returns how many."""
    folder = storage.absolute(labels)
    record = read_labels_record(folder)
    vocabulary = Vocabulary.from_dict(record["vocabulary"], where=folder)
    writer: Callable[[str, Vocabulary], tuple[str, int]] = {"csv": _csv, "coco-json": _coco_json}[kind]
    text, rows = writer(folder, vocabulary)
    outputs.require_replaceable(out, f"{kind} export", lambda head: head[:9] == text.encode()[:9])
    storage.write_text(out, text)
    return rows


def image_url(row: dict[str, Any]) -> str:
    """The address that COCO publishes for its images, whose file's folder names the split; other images: their own."""
    uri = row["image_uri"] or ""
    if row["sample_id"].startswith("coco:") and uri:
        folder, name = posixpath.split(uri.replace("\\", "/"))
        return f"http://images.cocodataset.org/{posixpath.basename(folder)}/{name}"
    return uri


def _csv(folder: str, vocabulary: Vocabulary) -> tuple[str, int]:
    """The public system's table: coco_url, captions as a Python list in text, then 0.0 or 1.0 for each label."""
    columns = PUBLISHED_ORDER if vocabulary.labels == SOCRATIS_29.labels else vocabulary.labels
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["coco_url", "captions", *columns])
    rows = 0
    for _, table in read_parts(folder):
        for row in table.drop_columns(["probabilities"]).to_pylist():
            if row["selected"]:
                chosen = set(row["labels"])
                marks = [1.0 if column in chosen else 0.0 for column in columns]
                writer.writerow([image_url(row), str(row["captions"]), *marks])
                rows += 1
    return buffer.getvalue(), rows


def _coco_json(folder: str, vocabulary: Vocabulary) -> tuple[str, int]:
    """COCO's layout: images, categories (the vocabulary, from 1), and one annotation with a score for each label."""
    images: list[dict[str, Any]] = []
    known = [_coco_number(sample_id) for sample_id in _ids(folder)]
    free = max((number for number in known if number is not None), default=0)
    annotations: list[dict[str, Any]] = []
    for _, table in read_parts(folder):
        matrix = matrix_of(table)
        for row, probabilities in zip(table.drop_columns(["probabilities"]).to_pylist(), matrix, strict=True):
            if not row["selected"]:
                continue
            image_id = _coco_number(row["sample_id"])
            if image_id is None:  # numbered above all of COCO's own, so that no annotation finds the wrong image
                free += 1
                image_id = free
            name = posixpath.basename((row["image_uri"] or "").replace("\\", "/"))
            if row["sample_id"].startswith("folder:"):  # the path below the folder, subfolders included
                name = row["sample_id"].removeprefix("folder:")
            images.append(
                {"id": image_id, "file_name": name, "coco_url": image_url(row), "sample_id": row["sample_id"]}
            )
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
        "info": {"description": "Emotion pseudo-labels made with raymotion", "vocabulary": vocabulary.to_dict()},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": label, "supercategory": "emotion"} for i, label in enumerate(vocabulary.labels)
        ],
    }
    return json.dumps(value, ensure_ascii=False) + "\n", len(images)


def _coco_number(sample_id: str) -> int | None:
    """The number that COCO gave to an image, or None for other samples (persons in an image among them)."""
    number = sample_id.removeprefix("coco:")
    return int(number) if sample_id.startswith("coco:") and number.isdecimal() else None


def _ids(folder: str) -> list[str]:
    return [i for _, table in read_parts(folder, ["sample_id"]) for i in table.column("sample_id").to_pylist()]
