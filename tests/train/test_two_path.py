"""The two-path model: the public EMOTIC baseline and its joint variant, beside sound settings.

Tests called after a number hold a bug of the published code: systems.md, section 2.8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.batch.label_dataset import read_parts
from raymotion.data.embeddings import Embeddings, FeatureBlock
from raymotion.data.readers.emotic import EmoticReader
from raymotion.data.samples import read_samples, write_samples
from raymotion.data.streams import STREAMS
from raymotion.data.synthetic.emotic import write_emotic
from raymotion.errors import InputError
from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.inputs.streams import BoundStreams, PreparedStreams, StreamEvidence, StreamFeatures
from raymotion.models.outputs.base import Targets
from raymotion.models.outputs.dimensions import VALUES, Dimensions
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.multilabel import HARD, SOFT, MultiLabel
from raymotion.models.outputs.paths import PathLabels, PathNumbers
from raymotion.models.outputs.table import read_outputs
from raymotion.models.recipe import LossSettings
from raymotion.models.two_path.config import TwoPathConfig
from raymotion.models.two_path.kind import TwoPathKind
from raymotion.models.two_path.network import TwoPath
from raymotion.models.two_path.recipe import TwoPathRecipe
from raymotion.models.vision.backbones import Backbone
from raymotion.report.evaluation_page import write
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import find_recipe, read_recipe
from raymotion.train.schedule import schedule
from raymotion.train.task import Task
from raymotion.vocabulary import Vocabulary

FIVE = Vocabulary("five", ("Anger", "Fear", "Joy", "Peace", "Sadness"))
NET = "test_resnet"
DIMS = {"context": 7, "body": 6}


@dataclass(frozen=True)
class World:
    """Synthetic persons and their features of a small backbone."""

    samples: str
    embeddings: str

    def recipe(self, name: str = "two-path", **changes: Any) -> TwoPathRecipe:
        base = read_recipe(find_recipe(name)).model_dump(mode="json", exclude_defaults=True)
        data = {"samples": self.samples, "embeddings": [self.embeddings]}
        backbones = {"context": NET, "body": NET}
        optimiser = {**base["optimiser"], "epochs": 6, "patience": 9, **changes.pop("optimiser", {})}
        model = {**base["model"], **changes.pop("model", {})}
        return TwoPathRecipe.model_validate(
            {**base, "data": data, "backbones": backbones, "optimiser": optimiser, "model": model, **changes}
        )


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("two-path")
    write_emotic(folder / "emotic", 420, 0, kind="mat")
    table, _ = EmoticReader(root=str(folder / "emotic")).read()
    write_samples(folder / "e.parquet", table)
    settings = EmbeddingSettings(
        samples=str(folder / "e.parquet"), out=str(folder / "embeddings"), context=(NET,), body=(NET,),
        backbone_weights=("random:0",), size=("48",), workers=0, damaged="keep",
    )  # fmt: skip
    embed(settings, progress="none")
    return World(str(folder / "e.parquet"), str(folder / "embeddings"))


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of both sound recipes."""
    found = {}
    for name in ("two-path", "two-path-joint"):
        found[name] = str(tmp_path_factory.mktemp("trained") / name)
        fit(world.recipe(name), found[name])
    return found


def outputs_of(config: TwoPathConfig, **options: Any) -> list[Any]:
    scale = (1.0, 10.0)
    if config.join == "separate":
        return [PathLabels(FIVE, **options), PathNumbers(scale=scale)]
    return [
        MultiLabel(FIVE, **options), Dimensions(scale=scale),
        Embedding(config.joint, sides=("context", "body"), name="space"),
    ]  # fmt: skip


def network_of(join: str, **options: Any) -> TwoPath:
    torch.manual_seed(0)
    config = TwoPathConfig(join=join, dims=DIMS, hidden=16, joint=8, **options)
    return TwoPath(config, outputs_of(config))


def features_of(rows: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((rows, size), generator=generator) for size in DIMS.values()]


# the network


def test_separate_paths_are_those_of_the_public_baseline():
    """Linear, BatchNorm, ReLU and two heads for each path; the reference is written out here."""
    network = network_of("separate").eval()
    features = features_of(9)
    raw = network(features, torch.ones(9, 2, dtype=torch.bool))
    for name, width in (("emotions", 5), ("vad", 3)):
        values, present = network.outputs[name].parts(raw[name])
        assert present.eq(1).all()
        for own, stream, given in zip(values, DIMS, features, strict=True):
            path = network.paths[stream]
            reference = torch.nn.Sequential(path.linear, path.norm, torch.nn.ReLU(), network.heads[name][stream])
            torch.testing.assert_close(own, reference(given))
            assert own.shape == (9, width)
    names = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert names == {"paths", "heads"}


def test_joint_paths_are_those_of_the_public_variant():
    """256 -> 128 for each path, averaged; heads on the mean; the two vectors are aligned at a temperature of 0.07."""
    network = network_of("joint").eval()
    features, mask = features_of(9), torch.ones(9, 2, dtype=torch.bool)
    raw = network(features, mask)
    both = [
        network.into[name](torch.relu(network.paths[name].norm(network.paths[name].linear(own))))
        for name, own in zip(DIMS, features, strict=True)
    ]
    mean = (both[0] + both[1]) / 2
    torch.testing.assert_close(raw["emotions"], network.heads["emotions"](mean))
    torch.testing.assert_close(raw["vad"], network.heads["vad"](mean))
    groups = {"group": torch.arange(9), "known": torch.ones(9)}
    space = network.outputs["space"]
    found = space.criterion(Targets({}, np.ones(9, bool)), np.arange(9))(raw["space"], groups, epoch=0, weights=None)
    u, v = (torch.nn.functional.normalize(own, dim=1) for own in both)
    logits, own = u @ v.T / 0.07, torch.arange(9)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(found, (cross(logits, own) + cross(logits.T, own)) / 2)


@pytest.mark.parametrize("join", ["separate", "joint"])
@pytest.mark.parametrize("training", [True, False])
def test_a_missing_stream_says_nothing_whatever_stands_in_its_place(join, training):
    network = network_of(join).train(training)
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False], [True, True], [True, False]])
    features = features_of(6)
    plain = {name: own.clone() for name, own in network(features, mask).items()}
    network = network_of(join).train(training)  # statistics of BatchNorm anew
    for number, own in enumerate(features):
        own[~mask[:, number]] = torch.nan
    again = network(features, mask)
    for name, own in plain.items():
        assert own.isfinite().all()
        torch.testing.assert_close(own, again[name])
    sum(own.sum() for own in again.values()).backward()
    assert all(own.grad is not None and own.grad.isfinite().all() for own in network.parameters())


@pytest.mark.parametrize("join", ["separate", "joint"])
def test_a_batch_of_one_row_and_a_stream_that_no_sample_has(join):
    network = network_of(join).train()
    first, _ = features_of(1)
    raw = network([first.half(), None], torch.tensor([[True, False]]))
    assert all(own.isfinite().all() for own in raw.values())
    sum(own.sum() for own in raw.values()).backward()
    # A distributed run would wait for a gradient that is missing.
    assert all(own.grad is not None for own in network.parameters())


def test_the_prediction_is_the_mean_of_the_paths_that_a_person_has():
    output = PathLabels(FIVE)
    values = [torch.randn(4, 5), torch.randn(4, 5)]
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    found = output.decode(output.raw_of(values, mask))
    p, q = (own.sigmoid() for own in values)
    torch.testing.assert_close(found, torch.stack([(p + q)[0] / 2, p[1], q[2], (p + q)[3] / 2]))


# the losses


def targets(rows: int, seed: int = 0) -> tuple[Targets, Targets]:
    rng = np.random.default_rng(seed)
    hard = (rng.random((rows, 5)) < 0.4).astype(np.float32)
    vad = rng.uniform(1, 10, (rows, 3)).astype(np.float32)
    known = np.ones(rows, bool)
    return Targets({HARD: hard, SOFT: hard}, known), Targets({VALUES: vad}, known)


def test_the_published_losses_of_both_paths_are_added():
    """0.5 x weighted squared error + 0.5 x smooth-L1, of each path; the public code, written out here."""
    labels, numbers = targets(7)
    made = torch.randn(2, 7, 5), torch.rand(2, 7, 3)
    emotions = PathLabels(FIVE, loss=LossSettings(name="discrete_published"), weight=0.5)
    vad = PathNumbers(scale=(1.0, 10.0), loss=LossSettings(name="smooth_l1_published"), weight=0.5)
    total = 0.0
    for output, own, raw in ((emotions, labels, made[0]), (vad, numbers, made[1])):
        rows = np.arange(7)
        criterion = output.criterion(own, rows)
        given = output.raw_of(list(raw), torch.ones(7, 2, dtype=torch.bool))
        total += output.weight * float(criterion(given, output.batch(own, rows, "cpu"), epoch=0, weights=None))
    wanted = 0.0
    hard, truth = torch.from_numpy(labels.arrays[HARD]), torch.from_numpy(numbers.arrays[VALUES]) / 10
    for path in range(2):
        counts = hard.sum(dim=0)
        weights = torch.where(counts > 0, 1 / torch.log(counts + 1.2), torch.tensor(0.0001))
        squared = ((made[0][path] - hard) ** 2 * weights).sum()
        error = (made[1][path] * 10 - truth * 10).abs()
        smooth = torch.where(error > 1, error - 0.5, 0.5 * error**2).sum()
        wanted += 0.5 * float(squared) + 0.5 * float(smooth)
    assert total == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name, grows", [("two-path", False), ("two-path-published", True)])
def test_2_8_14_sound_losses_are_means_whatever_the_batch(world, name, grows):
    """Summed losses tied the published result to the batch size: twice the rows, twice the step."""
    recipe = world.recipe(name)
    task = Task(recipe, prepare_data(recipe))
    network = task.build().eval()
    rows = task.data.splits["train"][:20]
    losses = []
    for some in (rows, np.concatenate([rows, rows])):
        evidence = task.inputs["streams"].evidence(some)
        raw = network(**evidence.tensors("cpu"))
        losses.append(
            sum(
                own.weight
                * float(
                    task.criteria[own.name](
                        raw[own.name], own.batch(task.data.targets_of(own), some, "cpu"), epoch=0, weights=None
                    )
                )
                for own in task.outputs
            )
        )
    assert (losses[1] / losses[0] > 1.5) == grows
    if not grows:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name, even", [("two-path", True), ("two-path-published", False)])
def test_2_8_14_no_dimension_dominates(name, even):
    """On ten times the network's numbers, the dimension with the widest ratings was nearly all of the loss."""
    recipe = read_recipe(find_recipe(name))
    rng, rows = np.random.default_rng(0), np.arange(400)
    values = (5.5 + rng.normal(size=(400, 3)) * [2.0, 0.5, 0.5]).astype(np.float32)
    output = PathNumbers(scale=(1.0, 10.0), loss=recipe.vad_loss, numbers=recipe.numbers)
    losses = []
    for dimension in range(3):
        own = Targets({VALUES: values.copy()}, np.ones(400, bool))
        output.fit(own, rows)
        start = output.first_numbers(own, rows).expand(400, 3)
        raw = output.raw_of([start, start], torch.ones(400, 2, dtype=torch.bool))
        own.arrays[VALUES][:, [other for other in range(3) if other != dimension]] = np.nan
        losses.append(float(output.criterion(own, rows)(raw, output.batch(own, rows, "cpu"), epoch=0, weights=None)))
    assert (max(losses) / sum(losses) < 0.4) == even and (max(losses) / sum(losses) > 0.8) != even


def test_2_8_14_a_view_is_mirrored_for_both_streams_of_a_person():
    """One number of a view is drawn for a person, not one for each stream."""
    # Row r, view v of either stream holds 10 r + v: what is drawn for a row must be the same number in both.
    array = (10 * np.arange(30)[:, None, None] + np.arange(4)[None, :, None]).astype(np.float16)
    block = FeatureBlock(array, np.arange(30), 4, 1)
    bound = BoundStreams.__new__(BoundStreams)
    bound.prepared = PreparedStreams([], np.arange(30))
    bound.streams = [StreamFeatures(name, block, block) for name in ("context", "body")]
    bound.mask, bound.numbers = np.ones((30, 2), bool), np.zeros(30, np.int64)
    recipe, seen = TwoPathRecipe(), set()
    for epoch in range(3):
        bound.begin_epoch(recipe, epoch, np.arange(30))
        values = bound.draft(np.arange(30), np.random.default_rng(epoch)).values
        assert np.array_equal(values["context"], values["body"])
        seen |= set((values["body"][:, 0] % 10).tolist())
    assert seen == {0, 1, 2, 3}


# training


@pytest.mark.parametrize("name", ["two-path-published", "two-path-joint-published"])
def test_the_published_recipes_train(world, tmp_path, name):
    recipe = world.recipe(name, optimiser={"epochs": 2})
    assert (recipe.optimiser.kind, recipe.optimiser.lr, recipe.optimiser.weight_decay) == ("adam", 1e-3, 5e-4)
    assert (recipe.optimiser.batch_size, recipe.label_weight, recipe.vad_weight) == (26, 0.5, 0.5)
    assert (recipe.model["hidden"], recipe.model["standardise"]) == (256, False)
    fit(recipe, str(tmp_path / "x"))
    info = read_checkpoint_info(str(tmp_path / "x"))
    assert [own.name for own in info.outputs] == ["emotions", "vad"] + (["space"] if "joint" in name else [])
    network = load_model(str(tmp_path / "x")).network
    assert network.paths["body"].get_buffer("scale").eq(1).all()


def test_the_rate_falls_every_seven_of_fifteen_epochs():
    recipe = read_recipe(find_recipe("two-path-published"))
    own, steps = recipe.optimiser, 40
    factors = [
        schedule(epoch * steps, 15 * steps, own.warmup, own.schedule, own.step_at) for epoch in range(own.epochs)
    ]
    weights = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weights], lr=1.0)
    reference = torch.optim.lr_scheduler.StepLR(optimiser, 7, 0.1)
    wanted = []
    for _ in range(15):
        wanted.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
    assert factors == pytest.approx(wanted)


def test_it_learns_and_what_it_says_is_the_same_after_loading(world, trained):
    table = read_samples(world.samples)
    rows = np.flatnonzero(np.array(table["split"].to_pylist()) == "test")
    for name, folder in trained.items():
        model = load_model(folder)
        info = model.info
        evidence = evidence_of(world, info, rows)
        said = model.predict({"streams": evidence})
        hard = info.outputs[0].read(table, where="e").arrays[HARD][rows]
        there = hard.sum(axis=0) > 0
        ap = average_precision_score(hard[:, there], said["emotions"][:, there], average="macro")
        assert ap > hard[:, there].mean() + 0.03, name
        vad = info.outputs[1].read(table, where="e").arrays[VALUES][rows]
        assert np.abs(said["vad"] - vad).mean() < np.abs(vad - vad.mean(axis=0)).mean()
        again = load_model(folder).predict({"streams": evidence})
        assert all(np.array_equal(said[key], again[key]) for key in said)


def evidence_of(world: World, info: Any, rows: np.ndarray) -> StreamEvidence:
    table, found = read_samples(world.samples), Embeddings(world.embeddings)
    places = found.rows([table["sample_id"][int(row)].as_py() for row in rows])
    values, there = {}, {}
    for stream in ("context", "body"):
        block = found.block(stream, NET)
        own = block.row_of[places]
        values[stream] = block.array[np.maximum(own, 0), 0]
        there[stream] = own >= 0
    return StreamEvidence("features", tuple(name for name in STREAMS if name in values), values, there, len(rows))


def test_2_8_12_the_backbones_are_frozen_and_no_part_of_the_model(world, trained):
    """Frozen ResNets in training mode let the statistics of their BatchNorms drift; features are computed once here."""
    before = Embeddings(world.embeddings)
    digest = before.digest
    for folder in trained.values():
        network = load_model(folder).network
        assert not network.training and not any(module.training for module in network.modules())
        assert {name.split(".")[0] for name in network.state_dict()} <= {"paths", "into", "heads"}
    assert Embeddings(world.embeddings).digest == digest
    identity = read_checkpoint_info(trained["two-path"]).inputs[0].streams[0].identity
    backbone = Backbone(identity, "random:0")
    pixels = np.random.default_rng(0).normal(size=(4, 3, identity.size, identity.size)).astype(np.float32)
    first = backbone(pixels)[0]
    for _ in range(3):
        backbone(pixels * 3 + 5)
    assert np.array_equal(backbone(pixels)[0], first)


def test_2_8_13_thresholds_come_from_validation_and_labels_are_given(world, trained):
    """At 0.5, 20 of the 26 published labels never fired; the search for other thresholds was never used."""
    table = read_samples(world.samples)
    splits = np.array(table["split"].to_pylist())
    for folder in trained.values():
        info = read_checkpoint_info(folder)
        thresholds = np.array(info.thresholds)
        assert len(thresholds) == 26 and (thresholds >= 0).all()
        rows = np.flatnonzero(splits == "test")
        said = load_model(folder).predict({"streams": evidence_of(world, info, rows)})["emotions"]
        assert said.min() >= 0 and said.max() <= 1  # probabilities, not raw numbers
        hard = info.outputs[0].read(table, where="e").arrays[HARD]
        fires, at_half = (said >= thresholds).any(axis=0), (said >= 0.5).any(axis=0)
        assert fires.sum() > at_half.sum() + 5
        # A label that validation lacks is never given, and costs no error.
        assert (thresholds[hard[splits == "val"].sum(axis=0) == 0] > 1).all()


def test_2_8_15_all_rows_are_predicted_and_scored(world, trained, tmp_path):
    """The published tables were of the first 520 or 1,000 rows."""
    model = load_model(trained["two-path-joint"])
    rows = np.arange(2500) % 300
    said = model.predict({"streams": evidence_of(world, model.info, rows)})
    few = model.predict({"streams": evidence_of(world, model.info, np.arange(300))})
    for name, own in said.items():
        assert len(own) == 2500
        np.testing.assert_allclose(own, few[name][rows], atol=1e-5)
    summary = evaluate(world, trained["two-path-joint"], tmp_path / "out")
    count = read_samples(world.samples)["split"].to_pylist().count("test")
    assert summary.record["samples"]["good"] == count == len(summary.labels.targets)
    assert len((tmp_path / "out/per_class.csv").read_text().splitlines()) == 27


def evaluate(world: World, model: str, out: Path, **more: Any) -> Any:
    settings = EvaluateSettings(
        model=model, samples=world.samples, out=str(out), features=world.embeddings, workers=0, bootstrap=100, **more
    )
    return evaluate_checkpoint(settings, progress="none", write_page=write)


def test_each_path_is_scored_by_itself_under_an_ablation(world, trained, tmp_path):
    folder = trained["two-path"]
    summary = evaluate(world, folder, tmp_path / "body", ablation="body")
    model = load_model(folder)
    table = read_samples(world.samples)
    rows = np.flatnonzero(np.array(table["split"].to_pylist()) == "test")
    evidence = evidence_of(world, model.info, rows)
    with torch.no_grad():
        raw = model.network(**evidence.tensors("cpu"))
    values, _ = model.outputs[0].parts(raw["emotions"])
    place = {sample_id: row for row, sample_id in enumerate(table["sample_id"].take(rows).to_pylist())}
    ids = [own for _, part in read_parts(str(tmp_path / "body/predictions"), ["sample_id"])
           for own in part["sample_id"].to_pylist()]  # fmt: skip
    wanted = values[1].sigmoid().numpy()[[place[own] for own in ids]]
    np.testing.assert_allclose(summary.labels.probabilities, wanted, atol=1e-5)


# recipes and checkpoints


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"backbones": {"context": NET}}, "reads two streams of context, body, face, not context"),
        ({"backbones": dict.fromkeys(STREAMS, NET)}, "not context, body, face"),
        ({"model": {"join": "apart"}}, "model.join"),
        ({"model": {"hidden": 0}}, "model.hidden"),
        ({"vad_loss": {"name": "nothing"}}, "nothing"),
        ({"alignment": {"name": "nothing"}}, "nothing"),
        ({"probe": {"strengths": 1.0}}, "leave probe out"),
    ],
)
def test_recipes_that_cannot_be(world, changes, reason):
    with pytest.raises((InputError, ValueError), match=reason):
        base = world.recipe()
        recipe = TwoPathRecipe.model_validate({**base.model_dump(mode="json"), **changes})
        TwoPathKind().check_recipe(recipe)


@pytest.mark.parametrize("name", ["two-path", "two-path-joint"])
def test_a_checkpoint_of_another_shape_is_refused(trained, name):
    info = read_checkpoint_info(trained[name])
    kind = TwoPathKind()
    other = {**info.model, "join": "joint" if name == "two-path" else "separate"}
    with pytest.raises(InputError, match="the model has the outputs"):
        kind.restore(other, info.inputs, info.outputs)
    with pytest.raises(InputError, match="other streams or sizes"):
        kind.restore({**info.model, "dims": {"context": 3, "body": 4}}, info.inputs, info.outputs)
    with pytest.raises(InputError, match=r"model.*hidden"):
        kind.check({**info.model, "hidden": "wide"}, where="config.json")
    for own in info.outputs:
        (read,) = read_outputs([json.loads(json.dumps(own.to_dict()))], where="x")
        assert type(read) is type(own) and read.raw_width == own.raw_width
    if name == "two-path":
        with pytest.raises(InputError, match="has 0 paths"):
            read_outputs([{**info.outputs[0].to_dict(), "paths": 0}], where="x")


def test_the_card_says_what_the_prediction_is(trained):
    texts = {name: (Path(folder) / "README.md").read_text() for name, folder in trained.items()}
    assert "the prediction is the mean of both" in texts["two-path"]
    assert "joint space of 128 numbers" in texts["two-path-joint"]
