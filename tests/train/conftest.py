"""Small picture sets whose colour tells the emotion, and students small enough to train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.checkpoint import load_model
from raymotion.models.inputs.base import Arrays, Evidence
from raymotion.models.inputs.captions import Captions
from raymotion.models.student.recipe import StudentRecipe
from raymotion.vocabulary import VALENCE_3

COLOURS = ((40, 60, 160), (120, 120, 120), (230, 190, 40))
WORDS = ("gloomy", "plain", "sunny")
SIZE = 32


def write_set(
    folder: Path,
    n: int = 48,
    *,
    captions: int = 2,
    pictures: bool = True,
    damaged: tuple[int, ...] = (),
    test: bool = True,
) -> str:
    """A sample table of `n` pictures of 40 x 36 pixels; each row has a label weight of its own.

    Args:
        captions: of each sample. damaged: rows whose picture is cut off.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        k = int(rng.integers(3))
        path = folder / f"{i:03d}.png"
        if pictures:
            pixels = np.clip(np.array(COLOURS[k]) + rng.normal(0, 40, (36, 40, 3)), 1, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            if i in damaged:
                path.write_bytes(path.read_bytes()[:100])
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"s{i}", "image_uri": str(path) if pictures else None,
                "captions": [f"a {WORDS[k]} day, said number {j}" for j in range(captions)], "source": "t",
                "labels": [VALENCE_3.labels[k]], "label_weights": [(i + 1) / 1000],
                "split": ("train", "train", "val", "test" if test else "train")[i % 4],
            }
        )  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, VALENCE_3))
    return str(folder / "samples.parquet")


@pytest.fixture(scope="session", name="write_set")
def write_set_fixture() -> Callable[..., str]:
    return write_set


def student_recipe(samples: str, *, workers: int = 0, **groups: Any) -> StudentRecipe:
    """A tiny student of the published shape: 4 layers of it in a few thousand weights."""
    made: dict[str, Any] = {
        "data": {"samples": samples, **groups.pop("data", {})},
        "model": {"image_size": SIZE, "channels": [4, 8], "embedding_size": 8, "text_size": 8, "hidden_size": 16},
        "tokenizer": {"size": 200},
        "optimiser": {"epochs": 3, "patience": 9, "batch_size": 8, "lr": 5e-3, **groups.pop("optimiser", {})},
        "workers": workers,
        "use_gpu": False,
        **groups,
    }
    return StudentRecipe.model_validate(json.loads(json.dumps(made)))


@pytest.fixture(scope="session", name="student_recipe")
def student_recipe_fixture() -> Callable[..., StudentRecipe]:
    return student_recipe


def said(folder: storage.PathLike, captions: Sequence[Sequence[str]], **others: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probabilities (n, L) of a checkpoint; `others` are arrays of other inputs by the network's names for them."""
    model = load_model(folder)
    reads = model.info.input("captions")
    assert isinstance(reads, Captions)
    evidence: dict[str, Evidence] = {"captions": reads.tokens(captions)}
    for name, arrays in others.items():
        (mask,) = (own for own in arrays.values() if own.dtype == bool)
        evidence[name] = Arrays(name, mask.reshape(len(mask), -1).any(axis=1), dict(arrays))
    return model.predict(evidence)["emotions"]


@pytest.fixture(scope="session", name="said")
def said_fixture() -> Callable[..., np.ndarray]:
    return said
