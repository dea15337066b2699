"""Models on one vector of each picture: against scikit-learn, and the bugs of the public valence study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.batch.labels import LabelSettings, label
from raymotion.config import load_settings
from raymotion.data.embeddings import Embeddings
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.evaluation.evaluate import choose_samples
from raymotion.learning.losses.dimensions import make_dimension_loss
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.outputs.dimensions import VALUES, Dimensions
from raymotion.models.registry import get_kind
from raymotion.models.vector.kind import copies_of_rare
from raymotion.models.vector.network import Similarities
from raymotion.models.vector.recipe import MlpRecipe, RegressorRecipe, TwoInputRecipe
from raymotion.pipeline.predictor import Predictor
from raymotion.train.crossfit import cross_fit
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.vocabulary import MIKELS_8

BACKBONE, SIZE, ROWS = "test_resnet", 32, 72
BASE: dict[str, Any] = {
    "kind": "regressor", "backbone": BACKBONE, "weights": "random:0", "size": SIZE, "pooled_stages": 2, "workers": 0,
    "use_gpu": False, "optimiser": {"epochs": 1},
}  # fmt: skip


def recipe_of(samples: str, embeddings: str | None = None, **changes: Any) -> Any:
    data = {"samples": samples, **({} if embeddings is None else {"embeddings": [embeddings]})}
    return load_settings(RegressorRecipe, options={**BASE, "data": data, **changes})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """72 pictures, three of each theme, whose brightness is their valence and whose redness is their arousal."""
    folder = tmp_path_factory.mktemp("ratings")
    rng, rows = np.random.default_rng(0), []
    for i in range(ROWS):
        light, red = rng.uniform(0.1, 0.9, 2)
        pixels = rng.normal(0, 12, (40, 48, 3)) + 255 * light
        pixels[..., 0] += 60 * (red - 0.5)
        path = folder / f"{i}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        label = MIKELS_8.labels[int(4 * light)]
        rows.append({
            "sample_id": f"p{i}", "group_id": f"theme-{i // 3}", "image_uri": str(path), "source": "toy",
            "valence": 1 + 6 * light, "arousal": 1 + 6 * red, "valence_sd": float(rng.uniform(0.5, 2)),
            "arousal_sd": 1.0, "labels": [label], "label_weights": [0.6 if i % 2 else 1.0],
            "split": ("train", "train", "train", "val", "test", "train")[i // 3 % 6],
        })  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, MIKELS_8, scale=(1.0, 7.0)))
    return str(folder / "samples.parquet")


@pytest.fixture(scope="module")
def embeddings(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("features") / "embeddings")
    embed(EmbeddingSettings(
        samples=samples, out=out, context=(BACKBONE,), backbone_weights=("random:0",), size=(str(SIZE),),
        pooled_stages=("2",), augment=("basic",), views=3, workers=0,
    ))  # fmt: skip
    return out


def vectors(folder: str, ids: list[str]) -> np.ndarray:
    found = Embeddings([folder])
    block = found.block("context", BACKBONE)
    return np.asarray(block.array[block.row_of[found.rows(ids)], 0], dtype=np.float64)


def learned(samples: str, embeddings: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised vectors of all rows, valence, and which rows are trained on."""
    table = read_samples(samples)
    x = vectors(embeddings, table.column("sample_id").to_pylist())
    training = np.array([split == "train" for split in table.column("split").to_pylist()])
    x = (x - x[training].mean(axis=0)) / np.maximum(x[training].std(axis=0), 1e-6)
    return x, table.column("valence").to_numpy().astype(np.float64), training


# --- the networks against scikit-learn -------------------------------------------------------------------------------
def test_probe_on_a_kernel_is_kernel_ridge(samples: str, embeddings: str, tmp_path: Path) -> None:
    strength, gamma = 2.0, 0.5
    changes = {"model": {"kernel": {"landmarks": 500, "gamma": gamma}}, "probe": {"strengths": [strength]}}
    model = load_model(
        fit(recipe_of(samples, embeddings, dimensions=["valence"], **changes), tmp_path / "m").info.folder
    )
    x, y, training = learned(samples, embeddings)
    ids = read_samples(samples).column("sample_id").to_pylist()
    raw = torch.from_numpy(vectors(embeddings, ids)).float()
    with torch.no_grad():
        said = model.outputs[0].decode(model.network(features=[raw])).numpy()[:, 0]
    # scikit-learn's has no intercept: kernel and targets are centred, as the probe's features are.
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    own = rbf_kernel(x[training], x[training], gamma=gamma / x.shape[1])
    centre = KernelCenterer().fit(own)
    scale = np.trace(centre.transform(own)) / training.sum()  # the probe scales its features to a length of 1
    mean = y[training].mean()
    reference = KernelRidge(alpha=scale / (2 * strength), kernel="precomputed").fit(
        centre.transform(own), y[training] - mean
    )
    expected = mean + reference.predict(centre.transform(rbf_kernel(x, x[training], gamma=gamma / x.shape[1])))
    np.testing.assert_allclose(said, np.clip(expected, 1, 7), atol=0.01)


def test_probe_of_a_linear_model_is_ridge(samples: str, embeddings: str, tmp_path: Path) -> None:
    changes = {"probe": {"strengths": [0.5]}, "dimensions": ["valence"]}
    out = fit(recipe_of(samples, embeddings, **changes), tmp_path / "m").info
    x, y, training = learned(samples, embeddings)
    scale = (x[training] ** 2).sum(axis=1).mean()
    expected = Ridge(alpha=scale / (2 * 0.5)).fit(x[training], y[training]).predict(x)
    answers = pq.read_table(f"{out.folder}/answers.parquet").to_pylist()
    place = {own: row for row, own in enumerate(read_samples(samples).column("sample_id").to_pylist())}
    assert len(answers) == 24
    for row in answers:
        assert row["valence"] == pytest.approx(np.clip(expected[place[row["sample_id"]]], 1, 7), abs=0.01)


def test_similarities_reproduce_the_kernel() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    layer = Similarities(20, 6, 0.7)
    layer.fit(x)
    found = layer(x)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.testing.assert_allclose((found @ found.T).numpy(), np.exp(-0.7 / 6 * distances.numpy()), atol=1e-4)


def test_similarities_are_not_computed_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator) @ torch.randn(3, 50, generator=generator)  # correlated, as features are
    layer = Similarities(40, 50, 0.5)
    layer.fit(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    torch.testing.assert_close(found, layer(x))


def test_same_model_from_pictures_and_from_cached_features(samples: str, embeddings: str, tmp_path: Path) -> None:
    changes = {"probe": {"strengths": [0.5]}, "dimensions": ["valence"]}
    cached, read = (
        fit(recipe_of(samples, folder, **changes), tmp_path / name).info
        for folder, name in ((embeddings, "cached"), (None, "pictures"))
    )
    one, other = (pq.read_table(f"{info.folder}/answers.parquet") for info in (cached, read))
    assert (cached.inputs[0].name, read.inputs[0].name) == ("streams", "crops")
    np.testing.assert_allclose(one.column("valence"), other.column("valence"), atol=0.02)  # float16 features


def test_labels_and_predictions_of_a_regressor(samples: str, embeddings: str, tmp_path: Path) -> None:
    changes = {"probe": {"strengths": [0.5]}, "dimensions": ["valence", "arousal"]}
    model = fit(recipe_of(samples, embeddings, **changes), tmp_path / "m").info
    label(LabelSettings(samples=samples, out=str(tmp_path / "labels"), model=(model.folder,), workers=0))
    rows = {row["sample_id"]: row for row in pq.read_table(tmp_path / "labels").to_pylist()}
    answers = pq.read_table(f"{model.folder}/answers.parquet").to_pylist()
    for row in answers:
        for name in ("valence", "arousal"):
            assert rows[row["sample_id"]][name] == pytest.approx(row[name], abs=0.02)
    one = read_samples(samples).to_pylist()[0]
    predictor = Predictor(load_model(model.folder))
    said = predictor.predict([one["image_uri"]])
    assert said[0, 0] == pytest.approx(rows[one["sample_id"]]["valence"], abs=0.02)


def test_tuned_blocks_move_and_frozen_ones_do_not(samples: str, tmp_path: Path) -> None:
    optimiser = {"epochs": 1, "batch_size": 24, "backbone_lr": 1e-3, "warmup": 0.0}
    recipe = recipe_of(samples, tuned_blocks=1, dimensions=["valence"], probe=None, optimiser=optimiser)
    before = Task(recipe, prepare_data(recipe)).build().state_dict()
    after = load_model(fit(recipe, tmp_path / "m").info.folder).network.state_dict()
    moved = {name for name in before if name.startswith("backbone.") and not torch.equal(before[name], after[name])}
    assert moved
    assert all("layer4" in name for name in moved), moved


# --- bugs of the public study (systems.md 4.5) -----------------------------------------------------------------------
def test_predictions_belong_to_their_rows_whatever_the_order_of_the_table(
    samples: str, embeddings: str, tmp_path: Path
) -> None:
    """4.5.1: the public test generator shuffled, and predictions were compared with targets in the file's order."""
    table = read_samples(samples)
    write_samples(tmp_path / "turned.parquet", table.take(np.random.default_rng(0).permutation(table.num_rows)))
    changes = {"probe": {"strengths": [0.5]}, "dimensions": ["valence"]}
    figures = []
    for path in (samples, str(tmp_path / "turned.parquet")):
        info = fit(recipe_of(path, embeddings, **changes), tmp_path / Path(path).stem).info
        figures.append(info.facts("vad")["test"]["metrics"]["r2"]["value"])
        assert figures[-1] > 0.5
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)


def test_epoch_and_strength_are_chosen_on_validation_alone(samples: str, embeddings: str, tmp_path: Path) -> None:
    """4.5.2: the public heads were chosen by their test score. Targets of the test split change nothing here."""
    table = read_samples(samples)
    test = np.array([split == "test" for split in table.column("split").to_pylist()])
    wrong = np.where(test, 8 - table.column("valence").to_numpy(), table.column("valence").to_numpy())
    index = table.schema.get_field_index("valence")
    write_samples(tmp_path / "wrong.parquet", table.set_column(index, "valence", pa.array(wrong, pa.float32())))
    changes = {"probe": {"strengths": [0.01, 0.1, 1.0, 10.0]}, "dimensions": ["valence"]}
    one, other = (
        load_model(fit(recipe_of(path, embeddings, **changes), tmp_path / Path(path).stem).info.folder).network
        for path in (samples, str(tmp_path / "wrong.parquet"))
    )
    assert torch.equal(one.head.weight, other.head.weight)


def test_only_training_rows_are_copied_and_augmented(samples: str, embeddings: str) -> None:
    """4.5.4: twins of one picture lay in train and validation, and the augmented test set counted each six times."""
    recipe = recipe_of(
        samples, embeddings, dimensions=["valence"], probe=None, augmentation="basic", balance={"bins": 4, "growth": 3},
        optimiser={"epochs": 1},
    )  # fmt: skip
    data = prepare_data(recipe)
    task = Task(recipe, data)
    assert task.extra is not None and task.extra.count > 0
    training = set(data.splits["train"].tolist())
    rows = data.splits["train"][task.extra.copies]  # type: ignore[attr-defined]
    assert set(rows.tolist()) <= training
    assert len(data.splits["test"]) == 12 and len(data.splits["val"]) == 12
    # Each copy has its row's target, and another view of its picture.
    bound: Any = task.inputs["streams"]
    bound.begin_epoch(recipe, 0, data.splits["train"])
    draft = bound.draft(data.splits["train"][:2], np.random.default_rng(0))
    chosen = np.arange(task.extra.count)
    made = task.extra.add("streams", draft, chosen)
    targets = task.extra.targets(task.outputs[0], chosen)
    np.testing.assert_array_equal(targets[VALUES][:, 0], data.targets["vad"].arrays[VALUES][rows, 0])
    views = np.stack([bound.streams[0].take(bound.rows[rows], np.full(len(rows), i)) for i in range(3)])
    shown = np.isclose(made.values["context"][2:], views).all(axis=-1).argmax(axis=0)
    own = bound.numbers[rows] % 3
    for row in set(rows.tolist()):  # three views: the row itself and two copies differ, a third copy is one of them
        several = shown[rows == row].tolist()
        assert own[rows == row][0] not in several[:2] and len(set(several[:2])) == len(several[:2])


def test_copies_fill_rare_bins_up() -> None:
    """4.5.8: the public augmentation multiplied every class by six, so none became less rare."""
    values = np.array([1.0] * 8 + [5.0] * 2 + [9.0, np.nan])
    found = copies_of_rare(values, np.array([0.0, 3.0, 6.0, 9.0]), growth=10, seed=0)
    counts = np.bincount(np.digitize(values[np.concatenate([np.arange(11), found])], [3.0, 6.0]), minlength=3)
    assert counts.tolist() == [8, 8, 8]
    assert np.bincount(found, minlength=12).tolist() == [0] * 8 + [3, 3, 7, 0]
    assert len(copies_of_rare(values, np.array([0.0, 3.0, 6.0, 9.0]), growth=1, seed=0)) == 3


def test_targets_are_standardised_and_come_back_on_the_scale() -> None:
    """4.5.7: raw targets of 0 to 100 at a small learning rate left the network to learn its bias."""
    table = table_from_rows(
        [{"sample_id": str(i), "group_id": str(i), "source": "x", "valence": v, "arousal": v / 2, "split": "train"}
         for i, v in enumerate((10.0, 50.0, 90.0))], scale=(0.0, 100.0),
    )  # fmt: skip
    output = Dimensions(["valence", "arousal"], scale=(0.0, 100.0), numbers="standardised")
    targets, rows = output.read(table, where="t"), np.arange(3)
    output.fit(targets, rows)
    assert output.centre.tolist() == [50.0, 25.0]
    np.testing.assert_allclose(output.unit, [np.sqrt(3200 / 3), np.sqrt(800 / 3)])
    numbers = torch.tensor([[0.0, 1.0], [9.0, 0.0]])
    again = Dimensions.from_dict(output.to_dict(), where="config.json")
    for own in (output, again):
        np.testing.assert_allclose(own.decode(numbers), [[50.0, 25 + np.sqrt(800 / 3)], [100.0, 25.0]], rtol=1e-6)
    perfect = torch.tensor((targets.arrays[VALUES] - output.centre) / output.unit).float()
    assert (
        float(output.criterion(targets, rows)(perfect, output.batch(targets, rows, "cpu"), epoch=0, weights=None))
        < 1e-12
    )
    assert output.first_numbers(targets, rows).tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="do not differ in valence"):
        output.fit(targets, rows[:1])


def test_spread_of_the_ratings_weighs_them(samples: str, embeddings: str, tmp_path: Path) -> None:
    """4.5.9: ratings have standard deviations of 5 to 31 points, which the public study did not read."""
    loss = make_dimension_loss("gaussian", {"floor": 0.5})
    values, targets = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]])
    sd = torch.tensor([[0.5], [2.0]])
    weights = [1 / (0.25 + 0.25), 1 / (4 + 0.25)]
    expected = (weights[0] * 1 + weights[1] * 4) / sum(weights)
    assert float(loss(values, targets, None, sd)) == pytest.approx(expected)
    recipe = recipe_of(samples, embeddings, loss={"name": "gaussian"}, dimensions=["valence"])
    data = prepare_data(recipe)
    assert data.targets["vad"].arrays["sd"].shape == (ROWS, 1)
    write_samples(tmp_path / "bare.parquet", read_samples(samples).drop_columns(["valence_sd"]))
    for names in (["valence"], ["arousal", "valence"]):
        bare = recipe_of(str(tmp_path / "bare.parquet"), loss={"name": "gaussian"}, dimensions=names)
        with pytest.raises(InputError, match="states valence_sd"):
            Task(bare, prepare_data(bare))
    # A search reads the targets once, by a recipe whose loss may not read the spread.
    plain = prepare_data(recipe_of(samples, embeddings, dimensions=["valence"]))
    task = Task(recipe, plain)
    batch = task.outputs[0].batch(plain.targets["vad"], plain.splits["train"], "cpu")
    raw = torch.zeros(len(plain.splits["train"]), 1)
    own, mse = (
        float(Task(each, plain).criteria["vad"](raw, batch, epoch=0, weights=None))
        for each in (recipe, recipe_of(samples, embeddings, dimensions=["valence"]))
    )
    assert own != pytest.approx(mse, rel=1e-3)


def test_a_search_cannot_vary_what_the_targets_are_read_by(samples: str, embeddings: str) -> None:
    kind, recipe = get_kind("regressor"), recipe_of(samples, embeddings, dimensions=["valence"])
    assert kind.targets_settings(recipe) != kind.targets_settings(
        recipe_of(samples, embeddings, dimensions=["arousal"])
    )


def test_raw_ratings_start_at_zero_as_in_the_public_study() -> None:
    output = Dimensions(["valence"], scale=(0.0, 100.0), numbers="raw")
    assert output.decode(torch.tensor([[39.0]])).tolist() == [[39.0]]
    assert output.first_numbers(output.read(_three(), where="t"), np.arange(3)) is None
    again = Dimensions.from_dict(output.to_dict(), where="config.json")
    assert again.decode(torch.tensor([[39.0]])).tolist() == [[39.0]]


def _three() -> pa.Table:
    rows = [{"sample_id": str(i), "group_id": str(i), "source": "x", "valence": v} for i, v in enumerate((10.0, 50.0))]
    return table_from_rows([*rows, {"sample_id": "2", "group_id": "2", "source": "x"}], scale=(0.0, 100.0))


# --- out of fold -----------------------------------------------------------------------------------------------------
def test_crossfit_never_predicts_a_row_that_its_model_saw(samples: str, embeddings: str, tmp_path: Path) -> None:
    recipe = recipe_of(samples, embeddings, dimensions=["valence"], probe={"strengths": [0.5]})
    out = tmp_path / "out"
    result = cross_fit(recipe, out, folds=4, parallel=False)
    table = read_samples(samples)
    groups = dict(zip(table.column("sample_id").to_pylist(), table.column("group_id").to_pylist(), strict=True))
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    held = [row for row in rows if row["fold"] is not None]
    assert sorted(row["sample_id"] for row in rows) == sorted(groups)
    assert {row["split"] for row in held} == {"train"} and len({row["fold"] for row in held}) == 4
    for fold in range(4):
        own = {groups[row["sample_id"]] for row in held if row["fold"] == fold}
        assert own and not own & {groups[row["sample_id"]] for row in held if row["fold"] != fold}
        trained = pq.read_table(out / "folds" / f"without-fold-{fold}.parquet").to_pylist()
        assert not own & {row["group_id"] for row in trained if row["split"] in ("train", "val")}
    # The reference: ridge regression by hand on the rows of the other folds.
    _, y, training = learned(samples, embeddings)
    raw = vectors(embeddings, table.column("sample_id").to_pylist())
    place = {own: row for row, own in enumerate(table.column("sample_id").to_pylist())}
    inside = np.array([place[row["sample_id"]] for row in held if row["fold"] == 0])
    rest = np.setdiff1d(np.flatnonzero(training), inside)
    scaled = (raw - raw[rest].mean(axis=0)) / np.maximum(raw[rest].std(axis=0), 1e-6)
    model = Ridge(alpha=(scaled[rest] ** 2).sum(axis=1).mean()).fit(scaled[rest], y[rest])
    found = {row["sample_id"]: row["valence"] for row in held}
    for row in inside:
        own = table.column("sample_id")[int(row)].as_py()
        assert found[own] == pytest.approx(np.clip(model.predict(scaled[[row]])[0], 1, 7), abs=0.01)
    made = read_samples(out / "samples.parquet")
    assert dict(
        zip(made.column("sample_id").to_pylist(), made.column("predicted_valence").to_pylist(), strict=True)
    ) == {row["sample_id"]: row["valence"] for row in rows}
    assert result.evaluations["vad"]["samples"] == len(held)
    told = read_checkpoint_info(out / "model").training["crossfit"]
    assert (told["folds"], told["samples"], len(told["marks"]["predicted_valence"])) == (4, len(held), len(rows))
    again = cross_fit(recipe, out, folds=4, parallel=False)
    assert again.evaluations == result.evaluations


def test_crossfit_of_few_rows_has_one_stratum(samples: str, embeddings: str, tmp_path: Path) -> None:
    table = read_samples(samples)
    splits = ["val" if i < 6 else "train" if i < 27 else None for i in range(ROWS)]
    index = table.schema.get_field_index("split")
    write_samples(tmp_path / "few.parquet", table.set_column(index, "split", pa.array(splits, pa.string())))
    recipe = recipe_of(str(tmp_path / "few.parquet"), embeddings, dimensions=["valence"], probe={})
    assert cross_fit(recipe, tmp_path / "out", folds=7, parallel=False).evaluations["vad"]["samples"] == 21


def test_crossfit_refuses_more_folds_than_groups(samples: str, embeddings: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than 40 folds"):
        cross_fit(recipe_of(samples, embeddings, probe={}), tmp_path / "out", folds=40, parallel=False)


# --- settings that would do nothing, or something else ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "text"),
    [({"size": 64}, "size = 64"), ({"pooled_stages": 1}, "pooled_stages = 1"), ({"weights": "random:1"}, "random:1"),
     ({"model": {"dim": 3}}, "model.dim"), ({"model": {"dropout": 0.5}}, "hidden names none"),
     ({"model": {"kernel": {}, "hidden": [3]}}, "in place of hidden"), ({"tuned_blocks": 1}, "data.embeddings"),
     ({"dimensions": ["joy"]}, "dimensions")],
)  # fmt: skip
def test_settings_that_contradict_the_features_are_refused(
    samples: str, embeddings: str, changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        fit(recipe_of(samples, embeddings, **{"probe": {}, **changes}), tmp_path / "m")


def test_a_table_without_the_rating_is_told_so(samples: str, embeddings: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row of a split has dominance"):
        prepare_data(recipe_of(samples, embeddings, dimensions=["dominance"]))
    model = fit(recipe_of(samples, embeddings, dimensions=["valence"], probe={}), tmp_path / "m").info
    write_samples(tmp_path / "bare.parquet", read_samples(samples).drop_columns(["valence"]))
    with pytest.raises(InputError, match="has no valence to compare with"):
        choose_samples(read_samples(tmp_path / "bare.parquet"), model.outputs[0], None)


def test_classifier_learns_its_label_from_a_vector(samples: str, embeddings: str, tmp_path: Path) -> None:
    own = {
        "kind": "mlp",
        "data": {"samples": samples, "embeddings": [embeddings]},
        "optimiser": {"epochs": 40, "lr": 0.01},
    }
    recipe = load_settings(MlpRecipe, options={**BASE, **own})
    info = fit(recipe, tmp_path / "m").info
    accuracy = info.facts("emotions")["test"]["metrics"]["accuracy"]
    assert accuracy["value"] > accuracy["prior"] + 0.2


# --- the two-step design (systems.md 4.4) ---------------------------------------------------------------------------
EDGES = {"bands": {"edges": [3.0, 5.0]}}


@pytest.fixture(scope="module")
def step_one(samples: str, embeddings: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("steps") / "one")
    cross_fit(
        recipe_of(samples, embeddings, dimensions=["valence"], probe={"strengths": [0.5]}), out, folds=3, parallel=False
    )
    return out


def two_input_of(step_one: str, embeddings: str, **changes: Any) -> Any:
    own = {
        "kind": "two-input", "data": {"samples": f"{step_one}/samples.parquet", "embeddings": [embeddings]},
        "first": f"{step_one}/model", "probe": {"strengths": [1.0]}, **EDGES, **changes,
    }  # fmt: skip
    return load_settings(TwoInputRecipe, options={**BASE, **own})


def test_two_input_learns_from_predictions_out_of_fold(step_one: str, embeddings: str, tmp_path: Path) -> None:
    """Step two of the public study was to read the predicted valence, and would have read that of training pictures."""
    recipe = two_input_of(step_one, embeddings)
    data = prepare_data(recipe)
    told = {row["sample_id"]: row for row in read_samples(f"{step_one}/samples.parquet").to_pylist()}
    source: Any = data.inputs["predicted"]
    raw = source.values[:, 0] * source.source.std[0] + source.source.mean[0]
    for own, value in zip(data.sample_ids, raw, strict=True):
        assert value == pytest.approx(told[own]["predicted_valence"], abs=1e-4)
    info = fit(recipe, tmp_path / "m").info
    accuracy = info.facts("emotions")["test"]["metrics"]["accuracy"]
    assert accuracy["value"] > accuracy["prior"] + 0.2


def test_two_input_predicts_the_valence_itself_where_none_is_given(
    step_one: str, samples: str, embeddings: str, tmp_path: Path
) -> None:
    model = load_model(fit(two_input_of(step_one, embeddings), tmp_path / "m").info.folder)
    table = read_samples(f"{step_one}/samples.parquet")
    test = [row for row in table.to_pylist() if row["split"] == "test"]
    raw = torch.from_numpy(vectors(embeddings, [row["sample_id"] for row in test])).float()
    source: Any = model.inputs[1]
    given = torch.tensor([[(row["predicted_valence"] - source.mean[0]) / source.std[0]] for row in test]).float()
    there, none = torch.ones(len(test), 1, dtype=torch.bool), torch.zeros(len(test), 1, dtype=torch.bool)
    with torch.no_grad():
        told = model.network(features=[raw], mask=there, values=given, value_mask=there)
        own = model.network(features=[raw], mask=there, values=torch.zeros_like(given), value_mask=none)
    np.testing.assert_allclose(own.numpy(), told.numpy(), atol=0.02)
    # A table without the column is labelled, and so is one picture.
    label(LabelSettings(samples=samples, out=str(tmp_path / "labels"), model=(str(tmp_path / "m"),), workers=0))
    rows = {row["sample_id"]: row for row in pq.read_table(tmp_path / "labels").to_pylist()}
    expected = told.softmax(dim=1).numpy()
    for row, values in zip(test, expected, strict=True):
        np.testing.assert_allclose(rows[row["sample_id"]]["probabilities"], values, atol=0.02)


def test_two_input_refuses_a_regressor_of_other_vectors(
    step_one: str, samples: str, embeddings: str, tmp_path: Path
) -> None:
    other = fit(recipe_of(samples, None, dimensions=["valence"], probe={}), tmp_path / "pictures").info.folder
    with pytest.raises(InputError, match="on the same vectors"):
        fit(two_input_of(step_one, embeddings, first=other), tmp_path / "m")
    arousal = fit(recipe_of(samples, embeddings, dimensions=["arousal"], probe={}), tmp_path / "arousal").info.folder
    with pytest.raises(InputError, match="predicts arousal"):
        fit(two_input_of(step_one, embeddings, first=arousal), tmp_path / "m2")


def test_two_input_refuses_to_learn_from_predictions_for_rows_that_the_regressor_saw(
    step_one: str, samples: str, embeddings: str, tmp_path: Path
) -> None:
    plain = fit(recipe_of(samples, embeddings, dimensions=["valence"], probe={}), tmp_path / "plain").info.folder
    with pytest.raises(InputError, match="not made by `raymotion crossfit`"):
        fit(two_input_of(step_one, embeddings, first=plain), tmp_path / "m")
    data = {"samples": samples, "embeddings": [embeddings]}
    with pytest.raises(InputError, match="48 of the 48 training samples have no predicted_valence"):
        fit(two_input_of(step_one, embeddings, data=data), tmp_path / "m2")


def test_two_input_learns_only_what_its_regressor_predicted(
    step_one: str, samples: str, embeddings: str, tmp_path: Path
) -> None:
    """A table of another cross-fit, or of predictions for seen pictures, is refused; a part of the right one is not."""
    other = str(tmp_path / "other")
    recipe = recipe_of(samples, embeddings, dimensions=["valence"], probe={"strengths": [0.5]}, seed=7)
    cross_fit(recipe, other, folds=2, parallel=False)
    with pytest.raises(InputError, match=r"predicted_valence of \d+ of \d+ samples is not what .*/one/model predicted"):
        fit(two_input_of(other, embeddings, first=f"{step_one}/model"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    table = read_samples(f"{step_one}/samples.parquet")
    place = table.schema.get_field_index("predicted_valence")
    values = table.column(place).to_pylist()
    train = [row for row, split in enumerate(table.column("split").to_pylist()) if split == "train"]
    values[train[2]] += 0.01
    changed = table.set_column(place, table.schema.field(place), pa.array(values, pa.float32()))
    write_samples(tmp_path / "changed.parquet", changed)
    data = {"samples": str(tmp_path / "changed.parquet"), "embeddings": [embeddings]}
    first = table["sample_id"][train[2]]
    with pytest.raises(InputError, match=f"predicted_valence of 1 of .*, of {first} for example"):
        fit(two_input_of(step_one, embeddings, data=data), tmp_path / "b")
    few = table.filter(pa.array([row % 9 > 0 for row in range(table.num_rows)]))
    write_samples(tmp_path / "few.parquet", few)
    data = {"samples": str(tmp_path / "few.parquet"), "embeddings": [embeddings]}
    info = fit(two_input_of(step_one, embeddings, data=data), tmp_path / "c").info
    assert info.training["settings"]["first_fingerprint"] == read_checkpoint_info(f"{step_one}/model").fingerprint


@pytest.mark.parametrize("changes", [{"vote_weights": True}, {"data": {"soft_targets": True}}])
def test_settings_of_labels_are_refused_for_bands(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are of labels"):
        load_settings(TwoInputRecipe, options={**BASE, "kind": "two-input", **EDGES, **changes})


def test_edges_of_another_scale_are_refused(step_one: str, embeddings: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ratings from 1 to 7, and .* on a scale of 0 to 100"):
        fit(two_input_of(step_one, embeddings, bands={"edges": [3.0, 5.0], "scale": [0, 100]}), tmp_path / "m")


def test_crossfit_that_was_refused_leaves_its_folder_free(samples: str, embeddings: str, tmp_path: Path) -> None:
    wrong = recipe_of(samples, embeddings, backbone="resnet18", weights="default", probe={})
    with pytest.raises(InputError, match="resnet18"):
        cross_fit(wrong, tmp_path / "out", folds=3, parallel=False)
    right = recipe_of(samples, embeddings, dimensions=["valence"], probe={})
    assert cross_fit(right, tmp_path / "out", folds=3, parallel=False).files


def test_crossfit_stopped_while_it_writes_the_folds_goes_on(
    samples: str, embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tables of folds and no run yet: the same call takes the folder for its own."""
    from raymotion.train import crossfit

    recipe, out = recipe_of(samples, embeddings, dimensions=["valence"], probe={}), tmp_path / "out"
    write = crossfit.write_samples

    def stops(path: str, table: pa.Table) -> None:
        if path.endswith("without-fold-1.parquet"):
            raise KeyboardInterrupt
        write(path, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(crossfit, "write_samples", stops)
        cross_fit(recipe, out, folds=3, parallel=False)
    assert [path.name for path in (out / "folds").iterdir()] == ["without-fold-0.parquet"]
    assert not (out / "runs").exists()
    assert cross_fit(recipe, out, folds=3, parallel=False).files


def test_bands_have_room(step_one: str, embeddings: str, tmp_path: Path) -> None:
    """4.5.5: the public neutral band was a valence of exactly 50, and had no picture."""
    with pytest.raises(InputError, match="edges"):
        fit(two_input_of(step_one, embeddings, bands={"edges": [4.0, 4.0]}), tmp_path / "m")


def test_regressors_of_other_training_rows_are_averaged_on_the_scale(
    samples: str, embeddings: str, tmp_path: Path
) -> None:
    """Each is standardised by its own training split, which is no part of what it predicts."""
    table = read_samples(samples)
    other = ["val" if split == "train" and own.endswith("1") else split for own, split in zip(
        table.column("group_id").to_pylist(), table.column("split").to_pylist(), strict=True)]  # fmt: skip
    index = table.schema.get_field_index("split")
    write_samples(tmp_path / "other.parquet", table.set_column(index, "split", pa.array(other, pa.string())))
    models = [
        fit(recipe_of(path, embeddings, dimensions=["valence"], probe={}), tmp_path / str(number)).info.folder
        for number, path in enumerate((samples, str(tmp_path / "other.parquet")))
    ]
    said = []
    for name, own in (("one", models[:1]), ("two", models[1:]), ("both", models)):
        label(LabelSettings(samples=samples, out=str(tmp_path / name), model=tuple(own), workers=0))
        said.append(pq.read_table(tmp_path / name).sort_by("sample_id").column("valence").to_numpy())
    assert not np.allclose(said[0], said[1])
    np.testing.assert_allclose(said[2], (said[0] + said[1]) / 2, atol=1e-4)
