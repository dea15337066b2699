"""The synthetic EMOTIC through real backbones and heads: more streams tell more, and how they are weighed matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score

from raymotion import storage
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.images.decode import decode_rgb
from raymotion.data.provenance import BOXES, MADE_FROM
from raymotion.data.readers.emotic import EmoticReader
from raymotion.data.samples import write_samples
from raymotion.data.streams import ABLATIONS, STREAMS
from raymotion.data.synthetic.emotic import write_emotic
from raymotion.data.views.streams import crop
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.models.vision.backbones import Backbone, identify
from raymotion.train.loop import Run
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task

pytestmark = pytest.mark.slow
PERSONS, SIZE = 1200, 64
# One backbone for all, so that streams are compared and not backbones. `NOISE` is another person's face.
BACKBONE, NOISE = "test_resnet", "noise"
SEEDS = (0, 1)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Trained:
    """Over the seeds: mean of the mAP on validation and test, and the weight of each stream, (seeds, 3)."""

    map: float
    weights: np.ndarray


@dataclass(frozen=True)
class Persons:
    recipe: FusionRecipe
    data: TrainingSet

    def truth(self, split: str) -> np.ndarray:
        return self.data.targets["emotions"].arrays["hard"][self.data.splits[split]]

    def train(self, *, scores: tuple[float, ...] | None = None, face: str = BACKBONE, ablation: str = "all") -> Trained:
        """Heads `weighted` of all seeds.

        Args:
            scores: whose softmax the weights of the streams are; None: they are learned.
            face: backbone of the face.
        """
        maps, weights = [], []
        for seed in SEEDS:
            recipe = self.recipe.model_copy(
                update={
                    "seed": seed,
                    "model": {**self.recipe.model, "ablation": ablation},
                    "backbones": self.recipe.backbones.model_copy(update={"face": face}),
                }
            )
            run = Run(Task(recipe, self.data))
            own = run.model.get_parameter("fuse.scores")
            if scores is not None:
                own.requires_grad_(False).copy_(torch.tensor(scores))
            while not run.done:
                run.step()
            for split in ("val", "test"):
                answers, truth = run.predict(split)["emotions"], self.truth(split)
                there = truth.sum(axis=0) > 0
                maps.append(average_precision_score(truth[:, there], answers[:, there], average="macro"))
            weights.append(torch.softmax(own.detach(), dim=0).numpy())
        return Trained(mean(maps), np.stack(weights))


@pytest.fixture(scope="module")
def persons(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Persons:
    folder = tmp_path_factory.mktemp("emotic")
    write_emotic(folder, PERSONS, seed=1, kind="csv")
    table, _ = EmoticReader(root=folder, faces=folder / "faces.csv").read()
    samples, embeddings = str(folder / "samples.parquet"), folder / "embeddings"
    write_samples(samples, table)
    write_features(embeddings, table)
    recipe = FusionRecipe.model_validate(
        {
            "data": {"samples": samples, "embeddings": [str(embeddings)]},
            "backbones": dict.fromkeys(STREAMS, BACKBONE),
            "model": {"fusion": "weighted", "hidden": 128, "dropout": 0.3},
            "loss": {"name": "bce"},
            "workers": 0,
            "optimiser": {"epochs": 20, "batch_size": 64, "lr": 2e-3, "patience": 20},
        }
    )
    return Persons(recipe, prepare_data(recipe))


def write_features(folder: Path, table: pa.Table) -> None:
    """The folder that an embedding job makes, without the job: clean features, context on an image's first row."""
    identity = identify(BACKBONE, "random:0", size=SIZE)
    backbone, rows = Backbone(identity), table.to_pylist()
    holders: dict[str, str] = {}
    for row in rows:
        holders.setdefault(row["group_id"], row["sample_id"])
    pictures = {row["image_uri"]: decode_rgb(storage.read_bytes(row["image_uri"])) for row in rows}
    written = {"sample_id", "group_id", "split", *(own.name for own in (*MADE_FROM, *BOXES))}
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in written}
    columns["context_of"] = [holders[row["group_id"]] for row in rows]
    for stream in STREAMS:
        squares: dict[int, np.ndarray] = {}
        for place, row in enumerate(rows):
            seen: np.ndarray | None = pictures[row["image_uri"]]
            if stream != "context":
                seen = crop(pictures[row["image_uri"]], row[f"{stream}_box"])
            if seen is not None and (stream != "context" or columns["context_of"][place] == row["sample_id"]):
                squares[place] = backbone.prepare(seen)
        values: list[list[float] | None] = [None] * len(rows)
        places = list(squares)
        for start in range(0, len(places), 32):
            some = places[start : start + 32]
            features, _ = backbone(np.stack([squares[place] for place in some]))
            for place, own in zip(some, features, strict=True):
                values[place] = own.astype(np.float16).tolist()
        columns[FeatureKey(stream, BACKBONE).column] = values
    shuffled: list[list[float] | None] = [None] * len(rows)  # of the faces, which come last
    for place, other in zip(places, np.random.default_rng(0).permutation(places), strict=True):
        shuffled[place] = values[other]
    columns[FeatureKey("face", NOISE).column] = shuffled
    keys = [*(FeatureKey(stream, BACKBONE) for stream in STREAMS), FeatureKey("face", NOISE)]
    described = {name: identity.to_dict() for name in (BACKBONE, NOISE)}
    layout = EmbeddingLayout({key: FeatureShape(1, identity.dim) for key in keys}, described, {"none": 1}, seed=0)
    storage.write_table(folder / "data/part-00000.parquet", pa.Table.from_pydict(columns, schema=layout.schema()))
    storage.write_json(folder / "_job.json", {"job": "embeddings", "status": "complete"})


@pytest.fixture(scope="module")
def learned(persons: Persons) -> Trained:
    return persons.train()


def test_all_streams_tell_more_than_every_pair_and_every_pair_more_than_any_one(
    persons: Persons, learned: Trained
) -> None:
    """Issue 4's order of the ablations. Measured: all 0.44, pairs 0.35 to 0.39, singles 0.29 to 0.31."""
    found = {name: persons.train(ablation=name).map for name in ABLATIONS if name != "all"}
    singles = [found[stream] for stream in STREAMS]
    pairs = [found[name] for name, streams in ABLATIONS.items() if len(streams) == 2]
    assert len(pairs) == 3
    truth = np.concatenate([persons.truth(split) for split in ("val", "test")])
    assert min(singles) > truth.mean() + 0.02, found
    assert min(pairs) > max(singles) + 0.02, found
    assert learned.map > max(pairs) + 0.02, found


def test_how_streams_are_weighed_matters(persons: Persons, learned: Trained) -> None:
    """What is true of it, and no more: weights that rest on one stream cost much, whichever it is (0.35 to 0.39 instead
    of 0.44). Learned ones leave 1/3, but are as good as equal ones here, where each stream tells about as much as any
    other: the projections below them can weigh, too.
    """
    assert np.abs(learned.weights - 1 / 3).max(axis=1).min() > 0.005
    assert learned.weights.sum(axis=1) == pytest.approx(1.0)
    assert learned.map > persons.train(scores=(0.0, 0.0, 0.0)).map - 0.01
    for place in range(3):
        lopsided = [0.0, 0.0, 0.0]
        lopsided[place] = 3.0  # 0.91 of all
        assert persons.train(scores=tuple(lopsided)).map < learned.map - 0.02


def test_a_stream_that_tells_nothing_gets_the_lowest_weight(persons: Persons, learned: Trained) -> None:
    """In place of each face the features of somebody else's."""
    misled = persons.train(face=NOISE)
    assert (misled.weights.argmin(axis=1) == 2).all() and (misled.weights[:, 2] < 1 / 3 - 0.01).all()
    assert (misled.weights[:, 2] < learned.weights[:, 2] - 0.005).all()
    assert misled.map < learned.map - 0.05
