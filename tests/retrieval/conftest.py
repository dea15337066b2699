"""A small kind of a joint space, and a collection in which captions say the colour of their picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from raymotion.config import load_settings
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.recipe import TrainRecipe, WholePictureSettings
from raymotion.models.registry import register
from raymotion.train.fit import fit

SIDE, DIM = 8, 16
LEVELS = ("none", "low", "some", "high")


class PairRecipe(TrainRecipe):
    """Pictures and captions in one space."""

    kind: Literal["toy-pair"] = "toy-pair"
    data: WholePictureSettings = WholePictureSettings()
    # Text vectors that do not depend on the text, as in the public system (bug 8).
    constant_text: bool = False
    # A second output, whose main figures are those of numbers.
    valence: bool = False


class PairNetwork(nn.Module):
    def __init__(self, pieces: int, constant_text: bool, valence: bool) -> None:
        super().__init__()
        self.pieces, self.constant_text = pieces, constant_text
        self.image = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, DIM))
        self.words = nn.Embedding(pieces, DIM)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.valence = nn.Linear(3, 1) if valence else None

    def forward(
        self,
        images: Tensor,
        image_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        owners: Tensor | None = None,
    ) -> dict[str, Tensor]:
        colour = images.float().mean(dim=(1, 2)) / 255
        first = self.image(colour) * image_mask[:, None]
        inner = attention_mask[:, :, None].float()
        texts = (self.words(input_ids) * inner).sum(dim=1) / inner.sum(dim=1)
        texts = torch.nn.functional.normalize(texts, dim=1)
        known = (attention_mask.sum(dim=1) > 2).float()[:, None]
        if self.constant_text:
            texts = torch.ones_like(texts)
        texts = texts * known
        if owners is not None:
            texts = torch.zeros(len(images), DIM, device=texts.device).index_add(0, owners, texts)
        output = Embedding(DIM)
        found = {"embedding": output.raw_of(first, texts, self.log_scale, torch.zeros(()))}
        return found if self.valence is None else {"valence": self.valence(colour), **found}


@register
class PairKind(Kind):
    """Mean colour of a picture, and mean word of a caption."""

    name, recipe = "toy-pair", PairRecipe

    def inputs(self, recipe: Any) -> Any:
        return [PictureInput(SIDE), Captions(24, size=200)]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        own = [Dimensions.of_facts(facts, ["valence"], name="valence")] if recipe.valence else []
        return [*own, Embedding(DIM)]

    def build(self, recipe: Any, training: Any) -> PairNetwork:
        pieces = len(training.inputs["captions"].described(training.data.splits["train"]).tokenizer)
        return PairNetwork(pieces, recipe.constant_text, recipe.valence)

    def shape(self, network: PairNetwork) -> dict[str, Any]:
        return {
            "pieces": network.pieces, "constant_text": network.constant_text, "valence": network.valence is not None
        }  # fmt: skip

    def restore(self, model: Any, inputs: Any, outputs: Any) -> PairNetwork:
        return PairNetwork(**model)


def caption_of(colour: np.ndarray, number: int, rng: np.random.Generator) -> str:
    """Says the level of each channel, as one word each; the first caption of all, the others of two."""
    words = [f"{name}{LEVELS[min(3, int(value) // 64)]}" for name, value in zip("rgb", colour, strict=True)]
    if number:
        del words[int(rng.integers(3))]
    rng.shuffle(words)
    return " ".join(["picture", str(number), *words])


def collection(folder: Path, images: int = 80, *, captions: int = 5, rng: int = 0) -> str:
    """Writes pictures of one colour each and a sample table; returns the table's path."""
    generator = np.random.default_rng(rng)
    rows = []
    for i in range(images):
        colour = generator.integers(0, 256, 3)
        path = folder / f"{i:03d}.png"
        Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in colour)).save(path)
        rows.append(
            {
                "sample_id": f"s{i:03d}", "group_id": f"g{i:03d}", "image_uri": str(path), "source": "toy",
                "captions": [caption_of(colour, k, generator) for k in range(captions)],
                "split": ("train", "train", "val", "test")[i % 4], "valence": 1 + 6 * float(colour[0]) / 255,
            }
        )  # fmt: skip
    path = str(folder / "samples.parquet")
    write_samples(path, table_from_rows(rows, scale=(1.0, 7.0)))
    return path


def train(samples: str, out: Path, *, epochs: int = 40, **more: Any) -> str:
    """Trains a `toy-pair` and returns its folder."""
    options = {
        "kind": "toy-pair", "data": {"samples": samples}, "workers": 0, "use_gpu": False,
        "optimiser": {"epochs": epochs, "patience": epochs, "batch_size": 40, "lr": 0.03}, **more,
    }  # fmt: skip
    return fit(load_settings(PairRecipe, options=options), out).info.folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sample table of 80 pictures with five captions each."""
    return collection(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def pair_model(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was trained on `pairs`."""
    return train(pairs, tmp_path_factory.mktemp("pair") / "model")
