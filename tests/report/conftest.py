"""A labels folder as the labelling job writes it, with real pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from raymotion import storage
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.learning.selection import top_per_image
from raymotion.vocabulary import SOCRATIS_29

WIDTH = len(SOCRATIS_29)
PRIOR = np.linspace(0.19, 0.02, WIDTH)
for _name, _rate in {"happy": 0.67, "sad": 0.35, "excited": 0.3, "curious": 0.295, "interested": 0.27}.items():
    PRIOR[SOCRATIS_29.index(_name)] = _rate


def picture(path: Path, seed: int) -> None:
    """A landscape whose colours depend on the seed."""
    rng = np.random.default_rng(seed)
    size = [(320, 240), (240, 320), (640, 300)][seed % 3]
    image = Image.new("RGB", size, tuple(rng.integers(120, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, size[1] * 0.6, *size), fill=tuple(rng.integers(0, 140, 3).tolist()))
    draw.ellipse((size[0] * 0.6, 20, size[0] * 0.6 + 60, 80), fill=(255, 230, 120))
    image.save(path, quality=85)


def validation(skill: float, n: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    targets = (rng.random((n, WIDTH)) < PRIOR).astype(float)
    logits = np.log(PRIOR / (1 - PRIOR)) + 2 * skill * (targets - PRIOR)
    p = 1 / (1 + np.exp(-logits))
    return evaluate(targets, p, prior=PRIOR, labels=SOCRATIS_29.labels, bootstrap=100).to_dict()


def write_parts(folder: Path, columns: dict[str, Any], vocabulary: Any = SOCRATIS_29, part_rows: int = 25) -> None:
    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            ("image_uri", pa.string()),
            ("image_bytes", pa.int64()),
            ("image_digest", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("probabilities", pa.list_(pa.float32(), len(vocabulary))),
            ("labels", pa.list_(pa.string())),
            ("selected", pa.bool_()),
        ],
        metadata=vocabulary.to_metadata(),
    )
    n = len(columns["sample_id"])
    for number, start in enumerate(range(0, n, part_rows)):
        rows = {name: values[start : start + part_rows] for name, values in columns.items()}
        storage.write_table(folder / f"data/part-{number:05d}.parquet", pa.Table.from_pydict(rows, schema=schema))


@pytest.fixture
def labels_folder(tmp_path: Path) -> Callable[..., Path]:
    """Builds a folder; `skill` 0 predicts the prior for every image, `job` replaces keys of _job.json."""

    def build(
        n: int = 60, *, skill: float = 1.0, teacher_skill: float | None = None, job: dict[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / "labels"
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for i in range(min(n, 6)):
            picture(pictures / f"{i}.jpg", i)
        rng = np.random.default_rng(0)
        logits = np.log(PRIOR / (1 - PRIOR)) + skill * rng.normal(size=(n, WIDTH))
        p = (1 / (1 + np.exp(-logits))).astype(np.float32)
        mask = top_per_image(p, 4)
        more = ["Water below a hill.", "third", "fourth", "fifth"]
        captions = [[f"A quiet lake at number {i}.", *more] for i in range(n)]
        captions[0] = ["<script>alert('caption')</script> & \"quotes\""]
        if n > 1:
            captions[1] = []
        uris: list[str | None] = [str(pictures / f"{i % 6}.jpg") for i in range(n)]
        if n > 2:
            uris[2] = None
            uris[1] = str(pictures / "gone.jpg")
        columns = {
            "sample_id": [f"coco:{i:012d}" for i in range(n)],
            "image_uri": uris,
            "image_bytes": [None] * n,
            "image_digest": [None] * n,
            "captions": captions,
            "probabilities": p.tolist(),
            "labels": [SOCRATIS_29.decode(np.flatnonzero(row).tolist()) for row in mask],
            "selected": [True] * n,
        }
        write_parts(folder, columns)
        bad = {
            "sample_id": ["coco:900", "coco:901", "coco:902"],
            "image_uri": ["a/900.jpg", "a/901.jpg", None],
            "stage": ["decode", "decode", "read"],
            "reason": ["image_truncated", "image_truncated", "image_missing"],
            "message": ["image file is truncated", "<b>bold</b>", None],
        }
        strings = pa.schema([(name, pa.string()) for name in bad])
        storage.write_table(folder / "_quarantine/part-00000.pq", pa.Table.from_pydict(bad, schema=strings))
        record = {
            "job": "labels",
            "status": "complete",
            "settings": {"batch_size": 32, "selection": {"policy": "top-per-image", "count": 4}},
            "digest": "0123456789abcdef",
            "input": {"path": "coco.parquet", "rows": n + 3, "sha256": "ab" * 32},
            "model": {
                "path": "teacher/",
                "fingerprint": "feedfacefeedface",
                "kind": "teacher-visualbert",
                "reads": ["captions", "regions"],
                "prior": PRIOR.tolist(),
                "validation": None if teacher_skill is None else validation(teacher_skill),
                "extractor": {"name": "fasterrcnn_mobilenet_v3_large_fpn", "weights": "random", "count": 36},
            },
            "vocabulary": SOCRATIS_29.to_dict(),
            "counts": {"in": n + 3, "good": n, "quarantined": 3,
                       "by_reason": {"image_truncated": 2, "image_missing": 1}},
            "throughput": {"images_per_second": 41.7, "seconds": 130.2, "startup_seconds": 6.4, "finish_seconds": 0.8,
                           "decode_seconds": 12.0, "model_seconds": 36.0},
            "versions": {"raymotion": "0.1.0", "ray": "2.60.0"},
            "notices": ["The region extractor has random weights."],
            **(job or {}),
        }  # fmt: skip
        storage.write_json(folder / "_job.json", record)
        return folder

    return build
