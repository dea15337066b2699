"""Cached features of made-up persons whose streams carry different evidence, and small spaces over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from raymotion import storage
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.provenance import BOXES, MADE_FROM
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.data.streams import STREAMS
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.vocabulary import Vocabulary

VOCABULARY = Vocabulary("five", ("Anger", "Fear", "Joy", "Peace", "Sadness"))
# How much of each label a stream's features carry, by backbone: `good` is worth choosing, `poor` is noise.
EVIDENCE = {"good": {"context": 1.2, "body": 0.8, "face": 0.5}, "poor": dict.fromkeys(STREAMS, 0.02)}


def _identity(name: str, dim: int) -> dict[str, Any]:
    shown = {"size": 32, "crop_pct": 1.0, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return BackboneIdentity(name=name, weights="random:0", dim=dim, token_dim=dim, **shown).to_dict()


def write_features(
    folder: Path,
    persons: int = 240,
    *,
    backbones: dict[str, dict[str, float]] = EVIDENCE,
    levels: dict[str, int] | None = None,
    dim: int = 12,
    seed: int = 0,
    vocabulary: Vocabulary = VOCABULARY,
) -> tuple[str, str]:
    """A sample table, two persons to an image, and its embeddings as the job writes them; returns both paths."""
    rng = np.random.default_rng(seed)
    levels = {"none": 1} if levels is None else levels
    width = len(vocabulary)
    hard = rng.random((persons, width)) < np.linspace(0.15, 0.5, width)
    images = [i // 2 for i in range(persons)]
    splits = [("train", "train", "train", "val", "test")[image % 5] for image in images]
    face = rng.random(persons) < 0.8
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"p{i}", "group_id": f"g{images[i]}", "source": "t", "split": splits[i],
            "labels": [vocabulary.labels[j] for j in np.flatnonzero(hard[i])],
            "valence": 5.0, "arousal": 4.0, "dominance": None,
        }
        for i in range(persons)
    ]  # fmt: skip
    samples = str(folder / "samples.parquet")
    write_samples(samples, table_from_rows(rows, vocabulary, scale=(1, 10)))
    shapes = {
        FeatureKey(stream, name, level): FeatureShape(views, dim)
        for name in backbones for stream in STREAMS for level, views in levels.items()
    }  # fmt: skip
    layout = EmbeddingLayout(shapes, {name: _identity(name, dim) for name in backbones}, levels, seed=0)
    columns: dict[str, Any] = {
        "sample_id": [row["sample_id"] for row in rows], "group_id": [row["group_id"] for row in rows],
        "split": splits, "context_of": [f"p{2 * image}" for image in images],
        **{own.name: [None] * persons for own in (*MADE_FROM, *BOXES)},
    }  # fmt: skip
    mixes = {(name, stream): rng.normal(size=(width, dim)) for name in backbones for stream in STREAMS}
    for key, shape in shapes.items():
        mix = mixes[key.backbone, key.stream]
        strength = backbones[key.backbone][key.stream]
        values: list[list[float] | None] = []
        for i in range(persons):
            own = hard[i - i % 2 : i - i % 2 + 2].mean(axis=0) if key.stream == "context" else hard[i]
            made = strength * (own @ mix) + rng.normal(size=(shape.views, dim))
            there = (key.stream != "face" or face[i]) and (key.stream != "context" or i % 2 == 0)
            there = there and (key.level == "none" or splits[i] == "train")
            values.append(made.astype(np.float16).ravel().tolist() if there else None)
        columns[key.column] = values
    embeddings = folder / "embeddings"
    storage.write_table(embeddings / "data/part-00000.parquet", pa.Table.from_pydict(columns, schema=layout.schema()))
    storage.write_json(
        embeddings / "_job.json", {"job": "embeddings", "status": "complete", "settings": {"samples": samples}}
    )
    return samples, str(embeddings)


STAGES: dict[str, dict[str, Any]] = {
    "stage1.yaml": {
        "stage": 1, "name": "backbones", "title": "Backbones", "recipe": "RECIPE",
        "grid": {"backbones.context": ["poor", "good"], "backbones.body": ["good"]},
        "published": "emotic_study",
    },
    "stage2.yaml": {
        "stage": 2, "name": "fusion", "title": "Fusion", "recipe": "RECIPE",
        "grid": {"model.fusion": ["simple", "weighted"]},
    },
    "stage3.yaml": {
        "stage": 3, "name": "loss", "title": "Loss", "recipe": "RECIPE",
        "grid": {"loss.name": ["discrete", "bce", "dice"]},
    },
    "joint.yaml": {
        "title": "Joint", "recipe": "RECIPE", "samples": 4,
        "choices": {
            "backbones.context": ["poor", "good"], "model.fusion": ["simple", "weighted"],
            "loss.name": ["discrete", "bce", "dice"],
        },
    },
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "kind": "fusion", "backbones": {"context": "poor", "body": "good", "face": "good"},
    "model": {"fusion": "simple", "hidden": 16, "dropout": 0.1},
    "optimiser": {"epochs": 3, "batch_size": 64, "lr": 0.01, "patience": 5}, "workers": 0,
}  # fmt: skip


def write_spaces(folder: Path, stages: dict[str, dict[str, Any]] = STAGES, recipe: dict[str, Any] = RECIPE) -> str:
    """A folder of spaces beside their recipe."""
    (folder / "spaces").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, space in stages.items():
        written = {**space, "recipe": str(folder / "recipe.yaml")} if space.get("recipe") == "RECIPE" else space
        (folder / "spaces" / name).write_text(yaml.safe_dump(written, sort_keys=False))
    return str(folder / "spaces")


@pytest.fixture(scope="session", name="write_features")
def write_features_fixture() -> Callable[..., tuple[str, str]]:
    return write_features


@pytest.fixture(scope="session", name="write_spaces")
def write_spaces_fixture() -> Callable[..., str]:
    return write_spaces


@pytest.fixture(scope="session", name="stages")
def stages_fixture() -> dict[str, dict[str, Any]]:
    return STAGES


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of features go where the tests' files go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
