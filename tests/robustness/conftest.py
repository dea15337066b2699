"""Small picture sets, and models trained on them in a few seconds: one label, several labels, and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.registry import get_kind
from raymotion.train.fit import fit
from raymotion.vocabulary import VALENCE_3, VOCABULARIES

MIKELS = VOCABULARIES["mikels-8"]
SIZE = 16
SPLITS = ("train", "train", "val", "test")


@dataclass(frozen=True)
class Trained:
    """A sample table, and a model trained on it."""

    samples: str
    model: str


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_set(
    folder: Path, n: int, draw: Callable[[int, np.random.Generator], tuple[np.ndarray, dict[str, Any]]],
    vocabulary: Any = None, scale: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """A sample table of n pictures; two of each image group."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        pixels, cells = draw(i, rng)
        path = folder / f"{i:03d}.{'jpg' if i % 5 == 0 else 'png'}"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=95)
        rows.append({
            "sample_id": f"s:{i}", "group_id": f"g{i // 2}", "image_uri": str(path), "captions": [], "source": "t",
            "split": SPLITS[i // 2 % 4], **cells,
        })  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, vocabulary, scale=scale))
    return str(folder / "samples.parquet")


def train(kind: str, samples: str, out: Path, **groups: Any) -> Trained:
    """Trains a tiny model in this process."""
    options = {"kind": kind, "data": {"samples": samples}, "workers": 0, "use_gpu": False, **groups}
    recipe = get_kind(kind).recipe.model_validate(json.loads(json.dumps(options)))
    return Trained(samples, fit(recipe, out).info.folder)


def colours(k: int, rng: np.random.Generator, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A noisy picture of the k-th colour of eight, not far from each other."""
    middle = 128 + 40 * (np.array([k & 1, k >> 1 & 1, k >> 2 & 1]) * 2 - 1)
    return np.asarray(middle + rng.normal(0, 45, (height, width, 3)))


def optimiser(epochs: int, lr: float = 5e-3) -> dict[str, Any]:
    return {"epochs": epochs, "patience": epochs, "batch_size": 16, "lr": lr}


def train_on_colours(folder: Path, epochs: int) -> Trained:
    """A ResNet that tells eight colours, of pictures of its own size."""
    samples = write_set(
        folder / "pictures", 256, lambda i, rng: (colours(i // 8 % 8, rng), {"labels": [MIKELS.labels[i // 8 % 8]]}),
        MIKELS,
    )  # fmt: skip
    return train(
        "preact-resnet", samples, folder / "model", model={"image_size": SIZE, "width": 4}, optimiser=optimiser(epochs)
    )


@pytest.fixture(scope="session")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network that few changed pixels mislead."""
    return train_on_colours(tmp_path_factory.mktemp("one-label"), 5)


@pytest.fixture(scope="session")
def sure_of_one_label(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same, trained until it is nearly always right."""
    return train_on_colours(tmp_path_factory.mktemp("one-label"), 10)


@pytest.fixture(scope="session")
def several_labels(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A student without captions: one label for a warm left half, one for a blue right half, one for neither."""
    folder = tmp_path_factory.mktemp("several-labels")

    def draw(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        warm, blue = rng.random(2) < 0.5
        pixels = rng.normal(110, 35, (20, 24, 3))
        pixels[:, :12] += (24, 12, -12) if warm else 0
        pixels[:, 12:] += (-12, -4, 24) if blue else 0
        chosen = (warm, not (warm or blue), blue)
        return pixels, {"labels": [own for own, there in zip(VALENCE_3.labels, chosen, strict=True) if there]}

    samples = write_set(folder / "pictures", 256, draw, VALENCE_3)
    shape = {"image_size": SIZE, "channels": [8, 16], "embedding_size": 8, "text_size": 8, "hidden_size": 16}
    return train(
        "student", samples, folder / "model", model=shape, tokenizer={"size": 200}, optimiser=optimiser(10),
        data={"samples": samples, "augmentation": "none"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures whose brightness is their valence, and whose redness is their arousal."""

    def draw(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        light, red = rng.uniform(0.1, 0.9, 2)
        pixels = rng.normal(0, 12, (SIZE, SIZE, 3)) + 255 * light
        pixels[..., 0] += 60 * (red - 0.5)
        return pixels, {"valence": 1 + 6 * light, "arousal": 1 + 6 * red}

    return write_set(tmp_path_factory.mktemp("ratings") / "pictures", 320, draw, scale=(1.0, 7.0))


def regressor(samples: str, out: Path, **more: Any) -> Trained:
    return train(
        "regressor", samples, out, backbone="test_resnet", weights="random:0", size=32, pooled_stages=2,
        dimensions=["valence", "arousal"], optimiser={**optimiser(6), "backbone_lr": 2e-3}, **more,
    )  # fmt: skip


@pytest.fixture(scope="session")
def numbers(ratings: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A regressor whose backbone is inside it, and learned too."""
    return regressor(ratings, tmp_path_factory.mktemp("numbers") / "model", tuned_blocks=2)


PALETTE = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "white": (245, 245, 245)}


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A joint space; captions say the colours of the thirds of their picture, once each in the split test."""
    folder, names = tmp_path_factory.mktemp("vectors"), list(PALETTE)

    def draw(i: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        first, second, third = names[i % 64 // 16], names[i % 16 // 4], names[i % 4]
        pixels = rng.normal(0, 50, (24, 24, 3))
        for part, name in enumerate((first, second, third)):
            pixels[:, 8 * part : 8 * part + 8] += PALETTE[name]
        split = ("train", "train", "train", "val", "test")[i // 64]
        captions = [f"{first} at the left, {second} in the middle, {third} at the right"]
        return pixels, {"captions": captions, "split": split, "group_id": f"g{i}"}

    samples = write_set(folder / "pictures", 320, draw)
    shape = {"text": "lstm", "dim": 16, "image_hidden": [32], "text_size": 32, "embedding_size": 16}
    return train(
        "joint", samples, folder / "model", backbone="test_resnet", weights="random:0", size=24, pooled_stages=2,
        tuned_blocks=2, model=shape, optimiser={**optimiser(40, 0.01), "batch_size": 64, "backbone_lr": 3e-3},
    )  # fmt: skip


@pytest.fixture(scope="session", name="regressor")
def regressor_fixture() -> Callable[..., Trained]:
    return regressor


@pytest.fixture(scope="session")
def captioned() -> Callable[[str, Path, Sequence[str]], str]:
    """`captioned(samples, path, captions)`: the same table, with these captions for every sample."""

    def write(samples: str, path: Path, captions: Sequence[str]) -> str:
        import pyarrow as pa

        from raymotion.data.samples import read_samples

        table = read_samples(samples)
        place = table.schema.get_field_index("captions")
        column = pa.array([list(captions)] * table.num_rows, table.schema.field("captions").type)
        write_samples(path, table.set_column(place, table.schema.field("captions"), column))
        return str(path)

    return write
