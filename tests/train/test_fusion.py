"""Training of fusion heads on cached features: what is fed to them, what is kept of it, and that they learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score

from raymotion import storage
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.provenance import BOXES, MADE_FROM
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.learning.selection import fit_class_thresholds
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.fusion.kind import SyntheticPersons
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.inputs.streams import BoundStreams, PreparedStreams, StreamEvidence, StreamInput
from raymotion.models.training_set import TrainingSet
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import Run, train
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.train.workers import ALONE, Workers
from raymotion.vocabulary import Vocabulary

VOCABULARY = Vocabulary("five", ("Anger", "Fear", "Joy", "Peace", "Sadness"))
N, DIM, VIEWS, TOKENS = 300, 8, 3, 4
# The features of `coded` say whose they are (0) and which view (1); people outside the training split start here.
OUTSIDE = 1000


@dataclass(frozen=True)
class Made:
    """A sample table of 300 persons, two to an image, its embeddings, and what was put into them."""

    samples: str
    embeddings: str
    hard: np.ndarray
    vad: np.ndarray
    splits: np.ndarray
    codes: np.ndarray
    has_face: np.ndarray
    data: TrainingSet

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == split)

    def recipe(self, **changes: Any) -> FusionRecipe:
        base: dict[str, Any] = {
            "data": {"samples": self.samples, "embeddings": [self.embeddings]},
            "backbones": dict.fromkeys(STREAMS, "good"), "model": {"fusion": "simple", "hidden": 16, "dropout": 0.2},
            "loss": {"name": "bce"}, "workers": 0,
            "optimiser": {"epochs": 8, "batch_size": 32, "lr": 0.01, "patience": 20},
        }  # fmt: skip
        optimiser = {**base["optimiser"], **changes.pop("optimiser", {})}
        return FusionRecipe.model_validate({**base, **changes, "optimiser": optimiser})

    def features(self) -> dict[str, np.ndarray]:
        """Clean features of all persons, read past the code that is tested."""
        blocks = {stream: self.streams.embeddings.block(stream, "good") for stream in STREAMS}
        return {stream: block.array[np.maximum(block.row_of, 0), 0] for stream, block in blocks.items()}

    @property
    def streams(self) -> PreparedStreams:
        own = self.data.inputs["streams"]
        assert isinstance(own, PreparedStreams)
        return own

    def task(self, **changes: Any) -> Task:
        return Task(self.recipe(**changes), self.data)

    def said(self, folder: Path) -> dict[str, np.ndarray]:
        """What a checkpoint says of all persons, by output."""
        there = {"context": np.ones(N, dtype=bool), "body": np.ones(N, dtype=bool), "face": self.has_face}
        evidence = StreamEvidence("features", STREAMS, self.features(), there, N)
        return load_model(folder).predict({"streams": evidence})


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, rng, width = tmp_path_factory.mktemp("fusion"), np.random.default_rng(7), len(VOCABULARY)
    hard = (rng.random((N, width)) < np.linspace(0.12, 0.5, width)).astype(np.float32)
    splits = np.array([("train", "train", "train", "val", "test")[i // 2 % 5] for i in range(N)])
    has_face = rng.random(N) < 0.8
    vad = np.stack([5 + 2 * hard[:, 2] - 2 * hard[:, 4], 4 + 3 * hard[:, 3], np.full(N, np.nan)], axis=1)
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"p{i}", "group_id": f"g{i // 2}", "source": "t", "split": str(splits[i]),
            "labels": [VOCABULARY.labels[j] for j in np.flatnonzero(hard[i])],
            "valence": float(vad[i, 0]), "arousal": float(vad[i, 1]), "dominance": None,
        }
        for i in range(N)
    ]  # fmt: skip
    samples = str(folder / "samples.parquet")
    write_samples(samples, table_from_rows(rows, VOCABULARY, scale=(1, 10)))
    codes = np.where(splits == "train", np.arange(N), OUTSIDE + np.arange(N))
    shapes = {
        FeatureKey(stream, name, level): FeatureShape(views, DIM)
        for name in ("good", "coded")
        for stream in STREAMS
        for level, views in (("none", 1), ("basic", VIEWS))
    }
    shapes[FeatureKey("body", "grid")] = FeatureShape(1, DIM)
    shapes[FeatureKey("body", "grid", tokens=True)] = FeatureShape(1, DIM, TOKENS)
    shape = {"dim": DIM, "token_dim": DIM, "size": 32, "crop_pct": 1.0, "interpolation": "bilinear"}
    shown = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    backbones = [
        BackboneIdentity(name=name, weights="random:0", **shape, **shown) for name in ("good", "coded", "grid")
    ]
    identities = {own.name: own.to_dict() for own in backbones}
    layout = EmbeddingLayout(shapes, identities, {"none": 1, "basic": VIEWS}, seed=0, token_grid=2)
    columns: dict[str, Any] = {
        "sample_id": [row["sample_id"] for row in rows], "group_id": [row["group_id"] for row in rows],
        "split": splits.tolist(), "context_of": [f"p{i - i % 2}" for i in range(N)],
        **{own.name: [None] * N for own in (*MADE_FROM, *BOXES)},
    }  # fmt: skip
    mixes = {stream: rng.normal(size=(width, DIM)) for stream in STREAMS}
    for key, shape in shapes.items():
        values: list[list[float] | None] = []
        for i in range(N):
            there = (key.stream != "face" or has_face[i]) and (key.stream != "context" or i % 2 == 0)
            if not there or (key.level != "none" and splits[i] != "train"):
                values.append(None)
                continue
            own = hard[i - i % 2 : i - i % 2 + 2].mean(axis=0) if key.stream == "context" else hard[i]
            of_sample = 0.7 * (own @ mixes[key.stream]) + rng.normal(size=shape.of_sample)
            if key.backbone == "coded":
                of_sample[..., 0] = codes[i]
                of_sample[..., 1] = 0 if key.level == "none" else 1 + np.arange(VIEWS)
            values.append(of_sample.astype(np.float16).ravel().tolist())
        columns[key.column] = values
    embeddings = folder / "embeddings"
    storage.write_table(embeddings / "data/part-00000.parquet", pa.Table.from_pydict(columns, schema=layout.schema()))
    storage.write_json(embeddings / "_job.json", {"job": "embeddings", "status": "complete"})
    recipe = FusionRecipe.model_validate(
        {"data": {"samples": samples, "embeddings": [str(embeddings)]}, "backbones": dict.fromkeys(STREAMS, "good")}
    )
    return Made(samples, str(embeddings), hard, vad, splits, codes, has_face, prepare_data(recipe))


def bound(task: Task) -> BoundStreams:
    own = task.inputs["streams"]
    assert isinstance(own, BoundStreams)
    return own


def synthetic(task: Task) -> SyntheticPersons:
    assert isinstance(task.extra, SyntheticPersons)
    return task.extra


def features_of(persons: SyntheticPersons) -> list[np.ndarray]:
    """Of all synthetic persons, each stream's."""
    nobody = persons.bound.draft(np.zeros(0, dtype=np.int64), np.random.default_rng(0))
    return list(persons.add("streams", nobody, np.arange(persons.count)).values.values())


def batches(task: Task, epoch: int, workers: Workers = ALONE) -> list[Any]:
    return list(BatchLoader(task, workers, first_epoch=0).train(epoch))


def trained(task: Task) -> Run:
    run = Run(task)
    while not run.done:
        run.step()
    return run


def sklearn_map(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean([average_precision_score(truth[:, j], scores[:, j]) for j in range(truth.shape[1])]))


CODED = dict.fromkeys(STREAMS, "coded")


class Recorder(torch.nn.Module):
    """Stands where a head stands, and keeps what it is shown."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[list[np.ndarray], np.ndarray]] = []
        self.modes: set[bool] = set()

    def forward(self, features: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        self.seen.append(([own.numpy() for own in features], mask.numpy()))
        self.modes.add(self.training)
        return torch.zeros(len(mask), self.columns)


# What is learned


def test_training_finds_planted_evidence_and_all_streams_know_more_than_one(made: Made) -> None:
    truth = made.hard[np.concatenate([made.rows("val"), made.rows("test")])]
    scores = {}
    for ablation in ("all", "context", "body", "face"):
        run = trained(made.task(model={"fusion": "simple", "hidden": 16, "dropout": 0.2, "ablation": ablation}))
        scores[ablation] = sklearn_map(
            truth, np.concatenate([run.predict(name)["emotions"] for name in ("val", "test")])
        )
    chance = truth.mean(axis=0).mean()
    assert scores["all"] > chance + 0.25
    assert scores["all"] > max(scores[name] for name in ("context", "body", "face")) + 0.02
    assert min(scores.values()) > chance + 0.03


def test_the_class_prior_is_the_first_answer(made: Made) -> None:
    rates = made.hard[made.rows("train")].mean(axis=0)
    head = made.task().build()
    assert torch.sigmoid(head.head.bias).detach().numpy() == pytest.approx(rates, abs=1e-5)
    vad = made.task(model={"fusion": "simple", "hidden": 16, "vad": True}).build().vad_head
    assert vad is not None
    means = made.vad[made.rows("train")].mean(axis=0) / 10  # nobody annotated dominance: the middle, 5.5 of 1 to 10
    assert vad.bias.tolist() == pytest.approx([means[0], means[1], 0.55], abs=1e-6)
    # Not so where outputs are scores in themselves: a logit would be an answer far off.
    raw = made.task(loss={"name": "discrete_published"}).build()
    assert raw.head.bias.detach().abs().max() < 1


def test_inputs_are_standardised_by_the_training_rows_that_have_the_stream_alone(made: Made) -> None:
    head = made.task(backbones=CODED).build()
    train = made.rows("train")
    for stream, rows in (("body", train), ("face", train[made.has_face[train]])):
        codes = made.codes[rows].astype(np.float16).astype(np.float64)
        assert float(head.get_buffer(f"mean_{stream}")[0]) == pytest.approx(codes.mean(), rel=1e-5)
        assert float(head.get_buffer(f"scale_{stream}")[0]) == pytest.approx(1 / codes.std(), rel=1e-4)
        assert float(head.get_buffer(f"scale_{stream}")[1]) == 1.0  # never varies: shifted alone
    published = made.task(backbones=CODED, model={"fusion": "simple_published", "hidden": 16}).build()
    assert not published.standardises


# What is fed


def test_defect_13_4_validation_sees_clean_features_in_evaluation_mode(made: Made) -> None:
    loader = BatchLoader(made.task(backbones=CODED, augmentation="basic"), ALONE, first_epoch=0)
    model = Recorder(len(VOCABULARY)).train()
    answers = loader.predict(model, "val")["emotions"]
    features, mask = (np.concatenate(parts) for parts in zip(*((f[1], m) for f, m in model.seen), strict=True))
    assert answers.shape == (len(made.rows("val")), len(VOCABULARY)) and model.modes == {False} and model.training
    assert features[:, 0].tolist() == made.codes[made.rows("val")].tolist()  # every row, in the order of the split
    assert set(features[:, 1]) == {0.0}
    assert mask.tolist() == [[True, True, bool(face)] for face in made.has_face[made.rows("val")]]


def test_augmented_training_draws_one_view_for_all_streams_and_another_in_other_epochs(made: Made) -> None:
    task = made.task(backbones=CODED, augmentation="basic")
    drawn: list[dict[float, float]] = []
    for epoch in range(3):
        views: dict[float, float] = {}
        for batch in batches(task, epoch):
            (context, body, face), mask = batch.inputs["features"], batch.inputs["mask"]
            assert torch.equal(context[:, 1], body[:, 1]) and torch.equal(face[mask[:, 2], 1], body[mask[:, 2], 1])
            assert (face[~mask[:, 2]] == 0).all()
            views |= dict(zip(body[:, 0].tolist(), body[:, 1].tolist(), strict=True))
        assert sorted(views) == made.codes[made.rows("train")].tolist()  # training rows, each once, and no others
        drawn.append(views)
    assert {view for views in drawn for view in views.values()} == {1.0, 2.0, 3.0}
    assert all(sum(a[code] != b[code] for code in a) > 60 for a, b in pairwise(drawn))


@pytest.mark.parametrize("world", [1, 2])
def test_defect_13_6_each_original_is_seen_once_an_epoch_beside_the_synthetic_rows(made: Made, world: int) -> None:
    task = made.task(backbones=CODED, resampling={"method": "smote", "level": "full"})
    rows = synthetic(task).made
    (first, second), share = rows.parents.T, rows.shares
    codes = made.codes[made.rows("train")].astype(np.float32)
    mixed = share * codes[first] + (1 - share) * codes[second]
    between = Counter(mixed.astype(np.float16).tolist())
    assert sum(between.values()) > 20 and max(between) < OUTSIDE  # made of training rows alone
    rare = np.argmin(made.hard[made.rows("train")].sum(axis=0))
    assert rows.per_class[rare] > 0  # the rarest class, which the public study left out
    for epoch in (0, 1):
        seen: Counter[float] = Counter()
        for rank in range(world):
            for batch in batches(task, epoch, Workers(rank, world)):
                body, learned = batch.inputs["features"][1], batch.targets["emotions"]["learned"]
                assert body.dtype == torch.float16 and learned.dtype == torch.float32
                seen.update(body[:, 0].tolist())
        once = Counter(made.codes[made.rows("train")].astype(float).tolist())
        assert not (once + between) - seen
        assert sum((seen - (once + between)).values()) < world  # what is seen twice fills the last worker's share up


def test_spatial_tokens_of_a_synthetic_row_are_mixed_as_its_pooled_features_were(made: Made) -> None:
    changes = {"backbones": {"body": "grid"}, "resampling": {"method": "smote", "level": "full"}}
    task = made.task(**changes, model={"fusion": "attention"})
    rows = synthetic(task).made
    assert len(rows) > 10 and bound(task).streams[0].clean.tokens
    pooled = made.task(**changes, model={"fusion": "weighted"})
    assert np.array_equal(synthetic(pooled).made.parents, rows.parents)
    train = made.streams.rows[made.rows("train")]
    for other in (task, pooled):
        made_of = features_of(synthetic(other))
        both = bound(other).streams[0].take(train).astype(np.float64)
        for i in (0, len(rows) // 2, len(rows) - 1):
            (a, b), share = rows.parents[i], float(rows.shares[i])
            np.testing.assert_allclose(made_of[0][i], share * both[a] + (1 - share) * both[b], atol=2e-3)
    assert ((rows.shares > 0) & (rows.shares < 1)).mean() > 0.9


def test_an_original_keeps_its_own_labels_in_a_batch_with_synthetic_rows(made: Made) -> None:
    task = made.task(backbones=CODED, resampling={"method": "random", "level": "full"})
    for batch in batches(task, 0):
        codes = batch.inputs["features"][1][:, 0].numpy().astype(int)
        assert np.array_equal(
            batch.targets["emotions"]["learned"].numpy(), made.hard[codes]
        )  # copies too: they are whole


def test_a_stream_that_one_parent_lacks_is_zero_in_a_synthetic_row_whatever_the_other_has(made: Made) -> None:
    task = made.task(backbones=CODED, resampling={"method": "smote", "level": "full"})
    rows = synthetic(task).made
    face = features_of(synthetic(task))[STREAMS.index("face")]
    both = made.has_face[made.rows("train")][rows.parents].sum(axis=1)
    assert set(both) == {0, 1, 2} and not face[both < 2].any() and face[both == 2].any(axis=1).all()


def test_a_search_keeps_no_synthetic_features_and_a_head_that_only_predicts_makes_no_rows(made: Made) -> None:
    """Of EMOTIC they are some 80 MB for each setting and seed that a trial's process has met."""
    data = replace(made.data, memory={})
    task = Task(made.recipe(resampling={"method": "adasyn", "level": "full"}), data)
    head = task.restore(task.kind.shape(task.build()))
    assert np.isfinite(BatchLoader(task, ALONE, first_epoch=0).predict(head, "test")["emotions"]).all()
    assert not any(key[0] == "resampled" for key in data.memory)
    assert task.samples_per_epoch > len(data.splits["train"])
    (kept,) = (value for key, value in data.memory.items() if key[0] == "resampled")
    assert len(kept) > 10 and sum(own.nbytes for own in kept.features) == 0


def test_rows_of_other_splits_do_not_change_the_views_that_training_draws(made: Made) -> None:
    """A study's trials never see the test rows; training its winner from the whole table must show the same views."""
    kept = np.flatnonzero(made.splits != "test")
    part = made.data.without_test()
    assert part.sample_ids == [made.data.sample_ids[i] for i in kept] and not len(part.splits["test"])
    assert kept[-1] != len(kept) - 1, "the splits do not interleave"
    seen = []
    for data in (made.data, part):
        task = Task(made.recipe(backbones=CODED, augmentation="basic"), data)
        seen.append([batch.inputs["features"][1][:, :2] for batch in batches(task, 1)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_training_samples_without_views_of_the_level_are_refused_not_learned_as_zeros(made: Made) -> None:
    """The table was split anew after its embeddings had been made."""
    splits = made.data.splits
    moved = replace(
        made.data, splits={**splits, "train": np.sort(np.concatenate([splits["train"], splits["val"][:7]]))}, memory={}
    )
    with pytest.raises(InputError) as caught:
        Task(made.recipe(backbones=CODED, augmentation="basic"), moved)
    told = str(caught.value)
    assert f"7 of the {len(splits['train']) + 7} training samples" in told and "\n" not in told
    assert f"raymotion features embeddings {made.samples}" in told and "--augment basic" in told
    assert Task(made.recipe(backbones=CODED), moved).samples_per_epoch == len(splits["train"]) + 7


# What is kept


def test_defect_13_3_the_best_epoch_is_kept_not_the_last(made: Made) -> None:
    # A rate that climbs until nothing learned is left: the last epoch is none to keep.
    run = trained(made.task(optimiser={"epochs": 8, "lr": 30.0, "warmup": 1.0, "clip": None}, model={"hidden": 16}))
    history = [epoch["val_macro_ap"] for epoch in run.state.history]
    best = int(np.argmax(history)) + 1
    assert run.state.best_epoch == best < 8 and history[best - 1] > history[-1] + 0.02
    last = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    score = sklearn_map(made.hard[made.rows("val")], run.predict("val")["emotions"])
    assert score == pytest.approx(history[best - 1], abs=1e-6)
    assert not torch.equal(last["head.weight"], run.best_weights["head.weight"])


def test_a_resumed_run_ends_with_the_same_weights_and_another_seed_with_others(made: Made, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optimiser": {"epochs": 4}, "augmentation": "basic", "resampling": {"method": "adasyn"},
        "model": {"fusion": "gated_residual", "hidden": 16, "dropout": 0.4},
    }  # fmt: skip
    whole = trained(made.task(**changes))
    first = Run(made.task(**changes))
    first.step()
    first.step()
    first.save(str(tmp_path))
    again = Run(made.task(**changes), resume_from=str(tmp_path))
    while not again.done:
        again.step()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert [e["val_macro_ap"] for e in whole.state.history] == [e["val_macro_ap"] for e in again.state.history]
    other = trained(made.task(**changes, seed=1))
    assert not torch.equal(other.model.head.weight, whole.model.head.weight)


@pytest.mark.parametrize("ablation,kept", [("body", {"body"}), ("face_context", {"face", "context"})])
def test_an_ablated_stream_changes_nothing(made: Made, ablation: str, kept: set[str]) -> None:
    task = made.task(model={"fusion": "attention", "hidden": 16, "ablation": ablation}, optimiser={"epochs": 2})
    run = trained(task)
    before, model = run.predict("test")["emotions"], run.model.eval()
    test = made.data.splits["test"]
    rows, mask = made.streams.rows[test], torch.from_numpy(bound(task).mask[test])
    for number, stream in enumerate(STREAMS):
        features = [torch.from_numpy(own.take(rows)) for own in bound(task).streams]
        features[number] = torch.randn(features[number].shape)
        with torch.no_grad():
            after = torch.sigmoid(model(features, mask)).numpy()
        assert np.allclose(after, before, atol=1e-6) == (stream not in kept)


@pytest.mark.parametrize("fusion", ["weighted_published", "attention"])
def test_a_last_batch_of_one_row_and_a_head_on_tokens_train(made: Made, fusion: str) -> None:
    grid = {"backbones": {"context": "good", "body": "grid", "face": "good"}} if fusion == "attention" else {}
    task = made.task(model={"fusion": fusion, "hidden": 16}, optimiser={"epochs": 1, "batch_size": 179}, **grid)
    run = trained(task)
    assert run.model.config.tokens == ({"body": TOKENS} if grid else {})
    assert np.isfinite(run.predict("val")["emotions"]).all()


# The end of a run


def test_vad_head_reports_its_error_beside_the_training_means(made: Made, tmp_path: Path) -> None:
    recipe = made.recipe(model={"fusion": "simple", "hidden": 16, "vad": True, "dropout": 0.0}, vad_weight=20.0)
    info = fit(recipe, tmp_path / "vad").info
    metrics = info.facts("vad")["test"]["metrics"]
    rows = made.rows("test")
    answers = made.said(tmp_path / "vad")["vad"][rows]
    train = made.rows("train")
    for j, name in enumerate(("valence", "arousal")):
        truth, found = made.vad[rows, j], metrics[f"{name}_mae"]
        assert found["value"] == pytest.approx(np.abs(answers[:, j] - truth).mean(), abs=1e-4)
        assert found["prior"] == pytest.approx(np.abs(made.vad[train, j].mean() - truth).mean(), abs=1e-4)
        assert found["value"] < found["prior"] - 0.1
    assert metrics["dominance_mae"]["value"] is None  # nobody annotated it


def test_train_command_writes_a_checkpoint_and_says_finished_when_it_stands(
    made: Made, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    command = [
        "train", "fusion-emotic", "--samples", made.samples, "--embeddings", made.embeddings, "--epochs", 3,
        "--set", "backbones.context=good", "--set", "backbones.body=good", "--set", "backbones.face=good",
        "--set", "model.hidden=16", "--set",
        "optimiser.batch_size=64", "--set", "optimiser.lr=0.01", "--out", tmp_path / "head",
    ]  # fmt: skip
    first = runner(*command)
    assert first.code == 0, first.err
    info = read_checkpoint_info(tmp_path / "head")
    assert info.kind.name == "fusion" and info.reads == STREAMS
    reads = info.input("streams")
    assert isinstance(reads, StreamInput) and {own.stream: own.name for own in reads.streams}["face"] == "good"
    rows = made.rows("test")
    scores = made.said(tmp_path / "head")["emotions"][rows]
    figures = info.test
    assert figures is not None
    own = figures["metrics"]["macro_ap"]["value"]
    assert own == pytest.approx(sklearn_map(made.hard[rows], scores), abs=1e-6)
    assert figures["chance_map"] == pytest.approx(made.hard[rows].mean(axis=0).mean(), abs=1e-6)
    assert f"mAP {own:.4f}" in first.out and f"{figures['interpolated_map']:.4f} interpolated" in first.out
    assert f"{figures['chance_map']:.4f}" in first.out
    assert not list(tmp_path.glob(".head.run"))
    again = runner(*command)
    assert again.code == 0 and "finished already" in again.out
    other = runner(*command, "--set", "model.hidden=24")
    assert other.code == 2 and "model.hidden" in other.err and other.err.count("\n") <= 2


def test_a_mended_command_is_not_held_up_by_the_one_that_was_refused(
    made: Made, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    command = [
        "train", "fusion-emotic", "--samples", made.samples, "--embeddings", made.embeddings, "--epochs", 1,
        "--set", "backbones.context=good", "--set", "backbones.body=good", "--set", "model.hidden=16",
        "--out", tmp_path / "head",
    ]  # fmt: skip
    wrong = runner(*command, "--set", "backbones.face=", "--set", "loss.name=hinge")
    assert wrong.code == 2 and "hinge" in wrong.err and not list(tmp_path.iterdir())
    right = runner(*command, "--set", "backbones.face=")  # the recipe's face is left out
    assert right.code == 0 and read_checkpoint_info(tmp_path / "head").reads == ("context", "body")


@pytest.mark.parametrize(
    "changes,named",
    [
        ({"backbones": {"body": "swin"}}, "body/swin/none"),
        ({"augmentation": "full"}, "context/good/full"),
        ({"loss": {"name": "hinge"}}, "hinge"),
        ({"loss": {"name": "focal", "options": {"gama": 2}}}, "gama"),
        ({"model": {"fusion": "blend"}}, "blend"),
        ({"model": {"ablation": "head"}}, "head"),
        ({"model": {"hiden": 4}}, "hiden"),
        ({"backbones": {"body": "good"}, "model": {"fusion": "bilinear"}}, "body"),
    ],
)
def test_what_can_not_be_trained_is_refused_in_one_line(made: Made, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        made.task(**changes)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_test_rows_are_predicted_only_when_all_is_chosen(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 13.2: the public study carries forward what was best on test."""
    asked: list[tuple[int, str]] = []
    real = BatchLoader.predict_each

    def note(loader: BatchLoader, networks: Any, split: str) -> list[dict[str, np.ndarray]]:
        asked.append((reported[0], split))
        return real(loader, networks, split)

    reported = [0]

    def report(metrics: Any, folder: str | None) -> None:
        reported[0] += 1

    monkeypatch.setattr(BatchLoader, "predict_each", note)
    train(made.task(optimiser={"epochs": 3}), report=report)
    assert asked == [(0, "val"), (1, "val"), (2, "val"), (3, "val"), (3, "test")]


def test_defects_13_9_12_13_thresholds_from_validation_a_head_alone_and_a_record(made: Made, tmp_path: Path) -> None:
    """The public study tunes on no split and compares across splits, saves 1.8 GB of backbones, and seeds nothing."""
    recipe = made.recipe(model={"fusion": "simple", "hidden": 16})
    info = fit(recipe, tmp_path / "one").info
    # 13.9: fitted on validation's labels and answers, which alone give these thresholds.
    answers, rows = made.said(tmp_path / "one")["emotions"], made.rows("val")
    assert info.thresholds == pytest.approx(fit_class_thresholds(made.hard[rows], answers[rows]), abs=1e-5)
    # 13.12: what is stored is the head; its backbones are named.
    network = load_model(tmp_path / "one").network
    weights = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert weights < 4 * sum(weight.numel() for weight in network.state_dict().values()) + 10_000
    reads = info.input("streams")
    assert isinstance(reads, StreamInput) and reads.order == STREAMS
    assert all(own.identity.to_dict() for own in reads.streams)
    # 13.13: the settings are kept, the same seed gives the same weights, another one others.
    assert info.training["settings"]["optimiser"]["epochs"] == recipe.optimiser.epochs
    again, other = (
        fit(recipe, tmp_path / "two").info,
        fit(made.recipe(model={"fusion": "simple", "hidden": 16}, seed=1), tmp_path / "three").info,
    )
    assert again.fingerprint == info.fingerprint != other.fingerprint
