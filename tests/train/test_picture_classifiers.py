"""FractalNet and ResNet as kinds: trained, saved, opened, and the faults of the public ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import raymotion
from raymotion.batch.labels import LabelSettings, label
from raymotion.config import recipes_folder
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.checkpoint import load_model
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.picture_classifier.recipe import PictureClassifierRecipe
from raymotion.pipeline.stages import Item
from raymotion.study.space import base_recipe, check_spaces, read_spaces
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import BEST, CURRENT, Run, train
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, load_recipe
from raymotion.train.task import Task
from raymotion.train.workers import ALONE
from raymotion.vocabulary import VOCABULARIES

MIKELS = VOCABULARIES["mikels-8"]
KINDS = ("fractal", "preact-resnet")
SHAPES: dict[str, dict[str, Any]] = {
    "fractal": {"image_size": 16, "columns": 3, "filters": [8, 16]},
    "preact-resnet": {"image_size": 16, "width": 4},
}
PALETTE = (
    (220, 180, 60), (200, 40, 40), (60, 120, 220), (90, 190, 110), (110, 110, 20), (240, 120, 200), (20, 20, 40),
    (130, 130, 150),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_pictures(folder: Path, n: int = 160, *, damaged: tuple[int, ...] = (), without: tuple[int, ...] = ()) -> str:
    """A sample table of n noisy pictures, of which the colour or a pattern of stripes tells the emotion."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        k = i % 8
        pixels = np.array(PALETTE[k]) + rng.normal(0, 40, (20, 22, 3))
        pixels += 40.0 * np.sin(np.arange(22) * (0.5 + k % 2))[:, None]
        path = folder / f"{i:03d}.png"
        Image.fromarray(np.clip(pixels, 1, 255).astype(np.uint8)).save(path)
        if i in damaged:
            path.write_bytes(path.read_bytes()[:60])
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"s{i}", "image_uri": None if i in without else str(path),
                "captions": [], "source": "t", "labels": [MIKELS.labels[k]],
                "split": ("train", "train", "val", "test")[i // 8 % 4],
            }
        )  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, MIKELS))
    return str(folder / "samples.parquet")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("set") / "pictures")


def recipe_of(kind: str, samples: str, **groups: Any) -> PictureClassifierRecipe:
    """A tiny model of the kind; `groups` override settings of the recipe."""
    options = {
        "data": {"samples": samples, "augmentation": "none", **groups.pop("data", {})},
        "model": {**SHAPES[kind], **groups.pop("model", {})},
        "optimiser": {"epochs": 6, "patience": 9, "batch_size": 16, "lr": 5e-3, **groups.pop("optimiser", {})},
        "workers": 0, "use_gpu": False, "kind": kind, **groups,
    }  # fmt: skip
    recipe = _kind(kind).recipe.model_validate(json.loads(json.dumps(options)))
    assert isinstance(recipe, PictureClassifierRecipe)
    return recipe


def _kind(name: str) -> Any:
    from raymotion.models.registry import get_kind

    return get_kind(name)


def quiet(metrics: Mapping[str, Any], folder: str | None) -> None:
    """Reports nothing."""


# --- training -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_more_than_the_majority(kind: str, samples: str, tmp_path: Path, seed: int) -> None:
    info = fit(recipe_of(kind, samples, seed=seed), tmp_path / "model").info
    history = info.training["history"]
    assert np.isfinite([line["train_loss"] for line in history]).all()
    found = info.training["outputs"]["emotions"]["test"]["metrics"]["accuracy"]
    assert found["low"] > found["constant"], found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_bug_3_5_4_a_large_rate_without_clipping_gives_no_nan(samples: str, seed: int, share: float) -> None:
    """Ten times the usual rate, and one column in all batches or half of them: the public loss was NaN at once."""
    recipe = recipe_of(
        "fractal", samples, seed=seed, model={"columns": 4, "global_share": share},
        optimiser={"lr": 0.02, "clip": None, "epochs": 2},
    )  # fmt: skip
    state = train(Task(recipe, prepare_data(recipe)), report=quiet)  # which raises `Diverged` for a NaN
    assert np.isfinite([line["train_loss"] for line in state.history]).all() and state.epoch == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_weights(kind: str, samples: str, tmp_path: Path) -> None:
    recipe = recipe_of(kind, samples, optimiser={"epochs": 3}, model={"dropout": 0.2})
    data = prepare_data(recipe)
    whole, first = Run(Task(recipe, data)), Run(Task(recipe, data))
    for _ in range(3):
        whole.step()
    first.step()
    first.save(str(tmp_path))
    first.close()
    resumed = Run(Task(recipe, data), resume_from=str(tmp_path))
    for _ in range(2):
        resumed.step()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    whole.close(), resumed.close()


def test_bug_3_5_5_the_weights_of_the_best_epoch_are_kept(
    samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public scripts saved those of the last epoch."""
    task = Task(recipe := recipe_of("preact-resnet", samples, optimiser={"epochs": 4}), prepare_data(recipe))
    losses = iter([2.0, 1.0, 1.5, 1.6])
    monkeypatch.setattr(task, "measure", lambda _: (loss := next(losses), {"val_log_loss": loss}))
    folders: list[Path] = []

    def keep(metrics: Mapping[str, Any], folder: str | None) -> None:
        assert folder is not None
        folders.append(Path(shutil.copytree(folder, tmp_path / str(len(folders)))))

    assert train(task, report=keep).best_epoch == 2
    best, last, final = load_file(folders[1] / CURRENT), load_file(folders[3] / CURRENT), load_file(folders[4] / BEST)
    assert all(torch.equal(best[name], final[name]) for name in final)
    assert not torch.equal(last["head.weight"], final["head.weight"])


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_bug_3_5_7_red_comes_first_in_training_and_in_prediction(tmp_path: Path) -> None:
    """The public features were of pictures whose colours OpenCV reads in the order blue, green, red."""
    rows: list[dict[str, Any]] = []
    for i in range(24):
        path = tmp_path / f"{i}.jpg"
        Image.new("RGB", (24, 20), (250, 30, 10) if i % 3 else (10, 30, 250)).save(path, quality=95)
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"s{i}", "image_uri": str(path), "captions": [], "source": "t",
                "labels": ["anger" if i % 3 else "sadness"], "split": ("train", "train", "val", "test")[i // 3 % 4],
            }
        )  # fmt: skip
    write_samples(tmp_path / "samples.parquet", table_from_rows(rows, MIKELS))
    recipe = recipe_of("preact-resnet", str(tmp_path / "samples.parquet"), optimiser={"epochs": 8})
    info = fit(recipe, tmp_path / "model").info
    mean = load_model(tmp_path / "model").network.mean.flatten().tolist()  # two of three pictures are red
    assert mean == pytest.approx([170, 30, 90], abs=6)
    reads = info.input("picture")
    assert isinstance(reads, PictureInput)
    with Image.open(tmp_path / "1.jpg") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    seen = reads.collect([Item({"sample_id": "s"}, pixels=pixels)]).values["images"]
    assert seen[0, 4, 4, 0] > 200 and seen[0, 4, 4, 2] < 60
    model = raymotion.load(tmp_path / "model")
    by_path, by_array = model.predict([str(tmp_path / "1.jpg")]), model.predict([pixels])
    np.testing.assert_allclose(by_path, by_array, atol=1e-6)
    assert next(iter(model.label(tmp_path / "1.jpg"))) == "anger"
    assert next(iter(model.label(tmp_path / "0.jpg"))) == "sadness"


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_told_which_pictures_there_are(kind: str, samples: str) -> None:
    """An absent one neither enters the statistics of the others nor changes what is said of them."""
    recipe = recipe_of(kind, samples)
    task = Task(recipe, prepare_data(recipe))
    torch.manual_seed(0)
    own: Any = task.build()
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    mask = torch.tensor([True, True, False, True, True])
    for mode in (True, False):
        own.train(mode)
        torch.manual_seed(3)
        some = own(images, mask)
        torch.manual_seed(3)
        torch.testing.assert_close(some[mask], own(images[mask], mask[mask]))
        torch.testing.assert_close(some[2], own.head.bias)
        assert bool(own(images[:1], mask[:1]).isfinite().all()), "a batch of one"
        torch.testing.assert_close(own(images, torch.zeros(5, dtype=torch.bool)), own.head.bias.expand(5, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32(kind: str, samples: str) -> None:
    """As on a GPU, where a step runs under autocast: the same loss, and gradients in the same direction."""
    recipe = recipe_of(kind, samples, model={"width": 16} if kind == "preact-resnet" else {"global_share": 0.0})
    own: Any = Task(recipe, prepare_data(recipe)).build()
    images = torch.randint(0, 256, (16, 16, 16, 3), dtype=torch.uint8)
    mask = torch.arange(16) > 0
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for enabled in (False, True):
        own.train().zero_grad()
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            raw = own(images, mask)
        loss = torch.nn.functional.cross_entropy(raw.float(), torch.arange(16) % 8)
        loss.backward()
        gradients = [weight.grad.flatten() for weight in own.parameters() if weight.grad is not None]
        found.append((loss.detach(), torch.cat(gradients)))
    (loss, plain), (half_loss, half) = found
    assert float(half_loss) == pytest.approx(float(loss), rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(plain, half, dim=0)) > 0.95


def test_pictures_that_cannot_be_read_are_not_learned_from(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "set", 48, damaged=(3, 33), without=(4,))
    recipe = recipe_of("fractal", samples, optimiser={"batch_size": 64})
    task = Task(recipe, prepare_data(recipe))
    assert task.data.counts["without_input"] == 1
    (batch,) = BatchLoader(task, ALONE, first_epoch=0).train(0)
    there = batch.inputs["image_mask"]
    assert batch.weights is not None and torch.equal(batch.weights, there.float()) and int((~there).sum()) == 2
    raw = torch.randn(len(there), 8, requires_grad=True)
    task.loss({"emotions": raw}, batch).backward()
    assert raw.grad is not None and bool((raw.grad[~there] == 0).all()) and bool((raw.grad[there] != 0).all())


@pytest.mark.parametrize(
    ("normalise", "mean", "scale"),
    [("unit", lambda x: 0.0, lambda x: 255.0), ("pixels", lambda x: x.mean(0), lambda x: 128.0),
     ("channels", lambda x: x.mean((0, 2, 3))[:, None, None], lambda x: x.std((0, 2, 3))[:, None, None])],
)  # fmt: skip
def test_pictures_are_normalised_by_the_training_split(
    samples: str, normalise: str, mean: Callable[[np.ndarray], Any], scale: Callable[[np.ndarray], Any]
) -> None:
    recipe = recipe_of("preact-resnet", samples, model={"normalise": normalise})
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build()
    pixels = np.concatenate([read.pixels for _, read in task.read(task.reader(), task.data.splits["train"], 16)])
    plain = pixels.transpose(0, 3, 1, 2).astype(np.float64)
    np.testing.assert_allclose(network.mean.numpy(), np.broadcast_to(mean(plain), network.mean.shape), rtol=1e-4)
    np.testing.assert_allclose(network.scale.numpy(), np.broadcast_to(scale(plain), (3, 1, 1)), rtol=1e-3)


# --- saved and opened -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_predicts_the_same_everywhere(kind: str, samples: str, tmp_path: Path) -> None:
    """Training's own predictions of the test split, plain Python, and the labelling job; a bad picture is set aside."""
    recipe = recipe_of(kind, samples, optimiser={"epochs": 2})
    run = Run(Task(recipe, data := prepare_data(recipe)))
    while not run.done:
        run.step()
    expected = run.predict("test")["emotions"]
    run.close()
    fit(recipe, tmp_path / "model")
    rows = data.splits["test"]
    uris = [data.inputs["picture"].image_uris[row] for row in rows]  # type: ignore[attr-defined]
    found = raymotion.load(tmp_path / "model").predict(uris)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    bad = write_pictures(tmp_path / "bad", 16, damaged=(2,), without=(5,))
    result = label(LabelSettings(samples=bad, model=str(tmp_path / "model"), out=str(tmp_path / "labels"), workers=0))
    assert (result.counts["good"], result.counts["quarantined"]) == (14, 2), result.counts


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("fractal", {"filters": [4, 4, 4, 4]}, "block 4 of 4 gets maps of 2 x 2"),
        ("preact-resnet", {"depth": 101}, "setting model.depth"),
    ],
)
def test_a_recipe_of_a_bad_shape_is_refused(kind: str, model: dict[str, Any], message: str, samples: str) -> None:
    recipe = recipe_of(kind, samples, model=model)
    with pytest.raises(InputError, match=message):
        kind_of(recipe).check_recipe(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_size": 32}, "image_size is 32"), ({"columns": 99}, "columns"), ({"filters": [8, 16, 4]}, "blocks.2")],
)
def test_a_checkpoint_that_was_changed_is_refused(
    samples: str, tmp_path: Path, rebind: Callable[[Path], None], change: dict[str, Any], message: str
) -> None:
    fit(recipe_of("fractal", samples, optimiser={"epochs": 1}), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"].update(change)
    path.write_text(json.dumps(config))
    rebind(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["fractal", "fractal-published", "preact-resnet-18", "preact-resnet-published"])
def test_recipes_are_of_what_their_names_say(name: str, samples: str) -> None:
    recipe = load_recipe(name, options={"data": {"samples": samples}})
    assert name.startswith(recipe.kind) and (recipes_folder() / f"{name}.yaml").is_file()
    kind_of(recipe).check_recipe(recipe)


@pytest.mark.parametrize("name", ["fractal", "preact-resnet", "deep-connotation-published"])
def test_the_shipped_spaces_fit_their_recipes(name: str) -> None:
    spaces = read_spaces(f"tune_spaces/{name}.yaml")
    check_spaces(spaces, base_recipe(spaces, recipe=None if spaces.stages[0].recipe else "fractal"))


def test_a_search_may_vary_the_size_of_the_pictures(samples: str) -> None:
    """Its data are prepared once, for the base recipe."""
    data = prepare_data(recipe_of("preact-resnet", samples))
    task = Task(recipe_of("preact-resnet", samples, model={"image_size": 24}), data)
    batch = next(iter(BatchLoader(task, ALONE, first_epoch=0).train(0)))
    assert batch.inputs["images"].shape[1:] == (24, 24, 3)
    task.rehearse(network := task.build(), task.shape_of(network))


# --- several workers --------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(600)  # on a busy machine a worker group takes minutes to start
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_train_one_model(ray_local: Any, kind: str, samples: str, tmp_path: Path) -> None:
    """Each draws its own paths, so that a step leaves out weights on one worker, the other, or both."""
    recipe = recipe_of(kind, samples, workers=2, optimiser={"epochs": 3})
    info = fit(recipe, tmp_path / "model").info
    history = info.training["history"]
    assert len(history) == 3 and history[-1]["train_loss"] < history[0]["train_loss"]
    if kind == "fractal":
        assert fit(recipe, tmp_path / "again").info.fingerprint == info.fingerprint, "each worker has its own seed"
