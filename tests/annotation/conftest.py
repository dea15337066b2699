"""A folder of labels as `raymotion label` writes it, of a few pictures with awkward names and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.learning.selection import top_per_image
from raymotion.vocabulary import Vocabulary

# Labels and names that a careless writer of XML, JSON or addresses would spoil.
FEELINGS = Vocabulary("feelings", ("joy & awe", 'say "hi"', "Doubt/Confusion", "日本 <x>", "sad"))
NAMES = [f"{folder}/{i:02d} é#&'%.jpg" for i, folder in enumerate(["b", "a a", "a a", "b", "c", "a a", "b", "c"])]


@dataclass(frozen=True)
class Labelled:
    """Paths of the labels and of the table, and what is in them."""

    labels: Path
    samples: Path
    pictures: Path
    ids: list[str]
    chosen: list[list[str]]
    probabilities: np.ndarray


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., Labelled]:
    """`labelled(uris=None, selected=None, captions=None, ...)`: builds the folder and its sample table."""

    def build(
        uris: Sequence[str | None] | None = None,
        selected: Sequence[bool] | None = None,
        captions: Sequence[list[str]] | None = None,
        vocabulary: Vocabulary = FEELINGS,
        groups: Sequence[str] | None = None,
        one_label: bool = False,
    ) -> Labelled:
        pictures = tmp_path / "pictures"
        own: list[str | None] = [str(pictures / name) for name in NAMES] if uris is None else list(uris)
        n = len(own)
        ids = [f"mine:{i}" for i in range(n)]
        p = np.random.default_rng(3).random((n, len(vocabulary))).astype(np.float32)
        if one_label:
            # Every other row is between two labels, the others nearly sure of one: as independent labels the first
            # are less certain, as one distribution the second.
            between = np.array([0.51, 0.49, 0, 0, 0]), np.array([0.8, 0.05, 0.05, 0.05, 0.05])
            p = np.stack([np.roll(between[i % 2], i // 2 % 5) for i in range(n)]) + p / 1000
            p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
        chosen = [vocabulary.decode(np.flatnonzero(row).tolist()) for row in top_per_image(p, 1 if one_label else 2)]
        texts = [["One.", "Two."]] * n if captions is None else list(captions)
        columns: dict[str, Any] = {
            "sample_id": ids, "image_uri": own, "image_bytes": [None] * n, "image_digest": [None] * n,
            "captions": texts, "probabilities": p.tolist(), "labels": chosen,
            "selected": [True] * n if selected is None else list(selected),
        }  # fmt: skip
        types = [pa.string(), pa.string(), pa.int64(), pa.string(), pa.list_(pa.string()),
                 pa.list_(pa.float32(), len(vocabulary)), pa.list_(pa.string()), pa.bool_()]  # fmt: skip
        schema = pa.schema(list(zip(columns, types, strict=True)), metadata=vocabulary.to_metadata())
        folder = tmp_path / "labels"
        for number, start in enumerate(range(0, n, 3)):
            part = {name: values[start : start + 3] for name, values in columns.items()}
            storage.write_table(folder / f"data/part-{number:05d}.parquet", pa.Table.from_pydict(part, schema=schema))
        record = {
            "job": "labels", "status": "complete", "settings": {}, "identity": {}, "digest": "ab",
            "model": {"one_label": True} if one_label else {},
            "counts": {"in": n, "good": n, "quarantined": 0, "by_reason": {}}, "vocabulary": vocabulary.to_dict(),
            "collapse": {"headline": "No collapse found.", "collapsed": False, "reasons": [], "notes": []},
            "notices": [],
        }  # fmt: skip
        storage.write_json(folder / "_job.json", record)
        rows = [
            {"sample_id": name, "group_id": groups[i] if groups else name, "image_uri": own[i], "source": "mine",
             "captions": texts[i]}
            for i, name in enumerate(ids)
        ]  # fmt: skip
        write_samples(tmp_path / "samples.parquet", table_from_rows(rows))
        return Labelled(folder, tmp_path / "samples.parquet", pictures, ids, chosen, p)

    return build
