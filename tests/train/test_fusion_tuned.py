"""Backbones and fusion head learned end to end: what is shown to them, what moves, and that a stop changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from raymotion.data.images.decode import decode_rgb, fetch
from raymotion.data.readers.emotic import EmoticReader
from raymotion.data.samples import read_samples, write_samples
from raymotion.data.streams import STREAMS
from raymotion.data.synthetic.emotic import write_emotic
from raymotion.data.views.streams import View, mirrored
from raymotion.errors import InputError
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.fusion.network import FusionConfig, FusionHead
from raymotion.models.fusion_tuned.network import TunedStreams
from raymotion.models.fusion_tuned.recipe import FusionTunedRecipe
from raymotion.models.inputs.person_crops import MASK, PersonReader
from raymotion.models.inputs.reading import ABSENT, READ, UNREADABLE
from raymotion.models.inputs.streams import PreparedCrops, Stream, StreamInput
from raymotion.models.outputs.base import Targets
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.training_set import TrainingSet
from raymotion.models.vision.backbones import BackboneIdentity, build
from raymotion.models.vision.tuned_backbone import tuned_parameters
from raymotion.records import read_record
from raymotion.train import loop
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import PREDICTIONS, Run, train
from raymotion.train.pictures import Portion, read_here
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, load_recipe
from raymotion.train.task import Task
from raymotion.train.workers import ALONE

SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 synthetic persons, some without a face that can be seen."""
    folder = tmp_path_factory.mktemp("persons")
    write_emotic(folder / "emotic", 48, seed=3, kind="csv")
    table, _ = EmoticReader(root=folder / "emotic", faces=folder / "emotic" / "faces.csv").read()
    write_samples(folder / "samples.parquet", table)
    return str(folder / "samples.parquet")


def recipe_of(samples: str, **changes: Any) -> FusionTunedRecipe:
    settings: dict[str, Any] = {
        "data": {"samples": samples, "decode_tasks": 1},
        "backbones": dict.fromkeys(STREAMS, "test_resnet"),
        "weights": dict.fromkeys(STREAMS, "random:0"),
        "sizes": dict.fromkeys(STREAMS, SIZE),
        "tuned_blocks": 1,
        "model": {"fusion": "weighted", "hidden": 16, "dropout": 0.0},
        "loss": {"name": "bce"},
        "statistics_samples": 16,
        "workers": 0,
    }
    optimiser = {"epochs": 2, "batch_size": 8, "lr": 0.01, "backbone_lr": 0.003, "patience": 9, "schedule": "constant"}
    optimiser |= changes.pop("optimiser", {})
    return FusionTunedRecipe.model_validate({**settings, "optimiser": optimiser, **changes})


@pytest.fixture(scope="module")
def data(samples: str) -> TrainingSet:
    return prepare_data(recipe_of(samples))


def crops_of(data: TrainingSet) -> PreparedCrops:
    own = data.inputs["crops"]
    assert isinstance(own, PreparedCrops)
    return own


def identities_of(data: TrainingSet) -> dict[str, BackboneIdentity]:
    """Of the streams that are looked at."""
    return {own.stream: own.identity for own in crops_of(data).source.kept}


def read_clean(data: TrainingSet, rows: np.ndarray) -> Any:
    """Crops of some persons as validation sees them."""
    reader = PersonReader(identities_of(data))
    return reader.read_all([crops_of(data).addresses[row] for row in rows], rows.tolist(), 0, False)


# --- what is shown -----------------------------------------------------------------------------------------------


def test_crops_are_cut_by_the_boxes_and_missing_faces_are_masked(data: TrainingSet) -> None:
    reader = PersonReader(identities_of(data))
    rows = np.arange(len(data.sample_ids))
    ((_, found),) = read_here([Portion("val", 0, rows)], crops_of(data).addresses, reader, threads=1)
    has_face = ~np.isnan(crops_of(data).boxes["face"]).any(axis=1)
    assert 0 < has_face.sum() < len(rows)
    assert found.arrays[MASK].tolist() == [[True, True, bool(face)] for face in has_face]
    assert all(found.arrays[name].dtype == np.uint8 for name in STREAMS), "float is four times as much on its way"
    assert reader.row_bytes == sum(found.arrays[name][0].nbytes for name in STREAMS)
    for row in (0, int(np.flatnonzero(~has_face)[0])):
        picture = Image.fromarray(decode_rgb(fetch(str(crops_of(data).image_uris[row]))))
        x1, y1, x2, y2 = (round(float(value)) for value in crops_of(data).boxes["body"][row])
        for name, crop in (("context", picture), ("body", picture.crop((x1, y1, x2, y2)))):
            # Of the backbone's own interpolation, and every pixel of the crop: nothing is cut off.
            own = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=3.0))
            np.testing.assert_array_equal(found.arrays[name][row], own)
    assert not found.arrays["face"][~has_face].any()


def test_views_are_those_of_the_epoch_whatever_the_batch_and_training_alone_is_augmented(data: TrainingSet) -> None:
    """The study augmented validation too (13.1), and mirrored each stream by itself."""
    reader = PersonReader(identities_of(data), "basic", seed=5)
    rows = data.splits["train"][:8]
    one = [(Portion("train", 3, rows), pictures) for _, pictures in read_here(
        [Portion("train", 3, rows)], crops_of(data).addresses, reader, threads=1)]  # fmt: skip
    single = [Portion("train", 3, rows[i : i + 1]) for i in reversed(range(8))]
    others = list(read_here(single, crops_of(data).addresses, reader, threads=1))
    for i, (_, own) in enumerate(reversed(others)):
        for name in STREAMS:
            np.testing.assert_array_equal(own.arrays[name][0], one[0][1].arrays[name][i])
    ((_, later),) = read_here([Portion("train", 4, rows)], crops_of(data).addresses, reader, threads=1)
    ((_, checked),) = read_here([Portion("val", 3, rows)], crops_of(data).addresses, reader, threads=1)
    plain = PersonReader(identities_of(data)).read_all([crops_of(data).addresses[row] for row in rows], rows, 3, True)
    for name in STREAMS:
        assert not np.array_equal(later.arrays[name], one[0][1].arrays[name])
        np.testing.assert_array_equal(checked.arrays[name], plain.arrays[name])
    # Which of a crop and its mirror image the view is nearer to, as zero-mean grey pictures.
    for i, row in enumerate(rows):
        expected = mirrored(5, data.groups[row], View("basic", 3))
        for name in ("context", "body"):
            view, clean = (part.arrays[name][i].mean(axis=2) for part in (one[0][1], plain))
            view, clean = view - view.mean(), clean - clean.mean()
            assert ((view * clean[:, ::-1]).sum() > (view * clean).sum()) == expected, (name, row)


def test_a_damaged_picture_is_masked_and_named(data: TrainingSet, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(fetch(str(crops_of(data).image_uris[1]))[:400])
    addresses = [
        crops_of(data).addresses[0],
        {**crops_of(data).addresses[1], "uri": str(cut)},
        {**crops_of(data).addresses[2], "uri": None},
    ]
    found = PersonReader(identities_of(data)).read_all(addresses, [7, 8, 9], 0, True)
    assert found.status.tolist() == [READ, UNREADABLE, ABSENT]
    assert found.arrays[MASK].any(axis=1).tolist() == [True, False, False]
    assert list(found.reasons) == [8] and str(cut) in found.reasons[8]
    assert not any(found.arrays[name][1:].any() for name in STREAMS)


def test_a_picture_that_can_not_be_read_is_asked_for_once(data: TrainingSet, s3: str, store_proxy: Any) -> None:
    lost, last = f"{s3}/lost.jpg", crops_of(data).addresses[0]
    found = PersonReader(identities_of(data)).read_all(
        [*({**own, "uri": lost} for own in crops_of(data).addresses[:5]), last], range(6), 0, False
    )
    assert found.status.tolist() == [UNREADABLE] * 5 + [READ]
    assert list(found.reasons) == [0, 1, 2, 3, 4] and all(lost in why for why in found.reasons.values())
    assert len([request for request in store_proxy.requests if request.path.endswith("lost.jpg")]) == 1


def test_of_a_person_whose_picture_can_not_be_read_nothing_is_learned(
    data: TrainingSet, samples: str, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(fetch(str(crops_of(data).image_uris[0]))[:400])
    train = data.splits["train"][:6]
    lost = int(train[2])
    uris = [str(cut) if row == lost else uri for row, uri in enumerate(crops_of(data).image_uris)]
    model = {"fusion": "weighted", "hidden": 16, "dropout": 0.0, "vad": True}
    recipe = recipe_of(samples, model=model, vad_weight=1.0, optimiser={"batch_size": 6})
    whole = prepare_data(recipe)
    own = crops_of(whole)
    moved = PreparedCrops(own.source, uris, own.groups, own.sample_ids, own.boxes)
    vad = Targets({"values": np.full((len(uris), 3), 4.0, dtype=np.float32)}, np.ones(len(uris), dtype=bool))
    found = []
    for rows in (train, train[train != lost]):
        splits, targets = {**data.splits, "train": rows}, {**whole.targets, "vad": vad}
        task = Task(recipe, replace(whole, inputs={"crops": moved}, targets=targets, splits=splits))
        loader = BatchLoader(task, ALONE, first_epoch=0)
        (batch,) = loader.train(0)
        loader.close()
        assert batch.rows == len(rows) and (lost in loader.unreadable) == (lost in rows)
        # Answers that tell the persons apart, whatever their order in the batch.
        raw = {"emotions": batch.targets["emotions"]["learned"], "vad": batch.inputs["mask"].float()}
        found.append(float(task.loss(raw, batch)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# --- what moves --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[FusionTunedRecipe, str]:
    recipe = recipe_of(samples, optimiser={"epochs": 3})
    out = str(tmp_path_factory.mktemp("out") / "tuned")
    fit(recipe, out)
    return recipe, out


def test_a_checkpoint_holds_what_was_tuned_and_frozen_parts_as_they_were(
    trained: tuple[FusionTunedRecipe, str], data: TrainingSet
) -> None:
    _, out = trained
    info = read_checkpoint_info(out)
    assert (info.kind.name, info.reads) == ("fusion-tuned", STREAMS)
    history = info.training["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    weights = load_file(Path(out, "model.safetensors"))
    for stream in STREAMS:
        identity = identities_of(data)[stream]
        tuned = set(tuned_parameters(identity, 1))
        for name, value in build(identity, "random:0").state_dict().items():
            assert torch.equal(weights[f"backbones.{stream}.model.{name}"], value) == (name not in tuned), name


def test_the_checkpoint_gives_the_scores_that_it_was_written_with(
    trained: tuple[FusionTunedRecipe, str], data: TrainingSet, tmp_path: Path
) -> None:
    """Opened from another place, by an independent way: crops, model, sigmoid, scikit-learn."""
    _, out = trained
    shutil.copytree(out, tmp_path / "moved")
    model = load_model(tmp_path / "moved", kind="fusion-tuned")
    rows = data.splits["test"]
    pictures = read_clean(data, rows)
    crops = [torch.from_numpy(pictures.arrays[name]) for name in STREAMS]
    with torch.no_grad():
        scores = torch.sigmoid(model.network(crops, torch.from_numpy(pictures.arrays[MASK]))).numpy()
    hard = data.targets["emotions"].arrays["hard"][rows]
    there = hard.sum(axis=0) > 0
    expected = np.mean([average_precision_score(hard[:, j], scores[:, j]) for j in np.flatnonzero(there)])
    assert model.info.test is not None
    assert model.info.test["metrics"]["macro_ap"]["value"] == pytest.approx(expected, abs=1e-5)


def test_a_head_is_standardised_by_clean_features_and_begins_with_the_class_rates(
    data: TrainingSet, samples: str
) -> None:
    recipe = recipe_of(samples, statistics_samples=1000)
    model = Task(recipe, data).build()
    rows = data.splits["train"]
    pictures = read_clean(data, rows)
    shown = crops_of(data).evidence(rows, pictures).tensors("cpu")
    crops, mask = shown["crops"], shown["mask"]
    with torch.no_grad():
        features = model.eval().features(crops, mask)
    for number, stream in enumerate(STREAMS):
        values = features[number]
        assert values is not None
        own = values[mask[:, number]].double()
        torch.testing.assert_close(getattr(model.head, f"mean_{stream}"), own.mean(dim=0).float(), rtol=1e-3, atol=1e-4)
        varied = own.std(dim=0, correction=0) > 1e-4
        scale = getattr(model.head, f"scale_{stream}")[varied]
        torch.testing.assert_close(
            scale, (1 / own.std(dim=0, correction=0)).float()[varied], rtol=1e-2, atol=1e-3
        )  # fmt: skip
    rates = data.targets["emotions"].arrays["hard"][rows].mean(axis=0).clip(1e-3, 1 - 1e-3)
    torch.testing.assert_close(torch.sigmoid(model.head.head.bias), torch.from_numpy(rates).float())


class Recorded(torch.optim.SGD):
    """Keeps the gradients of each step, and changes nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.steps: list[dict[str, torch.Tensor]] = []
        super().__init__([{"params": list(self.named.values()), "base_lr": 1.0}], lr=1.0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps.append({name: p.grad.clone() for name, p in self.named.items() if p.grad is not None})


def test_four_batches_of_four_give_the_gradient_of_one_of_sixteen(data: TrainingSet, samples: str) -> None:
    found = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        settings = {"batch_size": batch_size, "accumulate": accumulate, "clip": None}
        recipe = recipe_of(samples, optimiser=settings, tuned_blocks=2)
        sixteen = replace(data, splits={**data.splits, "train": data.splits["train"][:16]})
        task = Task(recipe, sixteen)
        torch.manual_seed(0)
        model = task.build()
        optimiser = Recorded(model)
        loader = BatchLoader(task, ALONE, first_epoch=0)
        loop._train_epoch(model, model, optimiser, loop.Served(model, task), task, loader, loop.State(), ALONE)
        loader.close()
        found.append(optimiser.steps)
    (whole,), (parts,) = found
    assert whole.keys() == parts.keys() and any(name.startswith("backbones.") for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)


def test_tuned_blocks_and_head_have_rates_of_their_own(data: TrainingSet, samples: str) -> None:
    run = Run(Task(recipe_of(samples), data))
    rates = {id(p): group["base_lr"] for group in run.optimiser.param_groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        expected = None if not parameter.requires_grad else 0.003 if name.startswith("backbones.") else 0.01
        assert rates.get(id(parameter)) == expected, name
    assert set(rates.values()) == {0.003, 0.01}
    run.close()


# --- runs --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_after_a_stop_the_weights_are_those_of_an_undisturbed_run(
    data: TrainingSet, samples: str, tmp_path: Path
) -> None:
    recipe = recipe_of(samples, augmentation="full", model={"hidden": 16, "dropout": 0.3}, optimiser={"accumulate": 2})

    def keep(name: str, stop: bool = False) -> loop.Report:
        def report(metrics: Mapping[str, Any], folder: str | None) -> None:
            assert folder is not None
            shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
            if stop:
                raise Stop

        return report

    data.save(str(tmp_path / "data"))
    loaded = TrainingSet.load(str(tmp_path / "data"), kind_of(recipe).inputs(recipe))
    train(Task(recipe, data, threads=2), report=keep("whole"))
    with pytest.raises(Stop):
        train(Task(recipe, data), report=keep("stopped", stop=True))
    assert json.loads(read_record(tmp_path / "stopped" / "state.json")["state"])["epoch"] == 1
    train(Task(recipe, loaded), report=keep("resumed"), resume_from=str(tmp_path / "stopped"))
    for name in ("best.safetensors", PREDICTIONS):
        first, second = load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_ray_one_worker_learns_what_one_process_learns(
    ray_local: Any, trained: tuple[FusionTunedRecipe, str], tmp_path: Path
) -> None:
    recipe, out = trained
    info = fit(recipe.model_copy(update={"workers": 1, "use_gpu": False}), tmp_path / "ray").info
    alone = read_checkpoint_info(out).training["history"]
    for ours, theirs in zip(info.training["history"], alone, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["val_macro_ap"] == pytest.approx(theirs["val_macro_ap"], abs=0.02)


def write_head(data: TrainingSet, out: Path, identities: Mapping[str, BackboneIdentity], **changes: Any) -> FusionHead:
    """A fusion head as training on cached features writes it, of random weights."""
    torch.manual_seed(7)
    config = FusionConfig.model_validate(
        {"fusion": "simple", "hidden": 8, "dims": {name: own.dim for name, own in identities.items()}, **changes}
    )
    assert data.facts.vocabulary is not None
    output = MultiLabel(data.facts.vocabulary)
    head = FusionHead(config, output.width)
    ones = {name: torch.ones(size) for name, size in config.dims.items()}
    head.set_statistics(ones, {name: 3 * own for name, own in ones.items()})
    reads = StreamInput([Stream(name, "test_resnet", own) for name, own in identities.items()])
    save_checkpoint(out, get_kind("fusion"), head, [reads], [output], training={})
    return head


def test_init_goes_on_from_a_head_of_the_same_backbones_alone(data: TrainingSet, samples: str, tmp_path: Path) -> None:
    head = write_head(data, tmp_path / "head", identities_of(data))
    recipe = recipe_of(samples, init=str(tmp_path / "head"), model={"dropout": 0.25})
    started = Task(recipe, prepare_data(recipe)).build()
    assert isinstance(started, TunedStreams) and started.head.config.dropout == 0.25
    for name, value in head.state_dict().items():
        assert torch.equal(started.head.state_dict()[name], value), name
    assert started.head.standardises
    with pytest.raises(InputError, match=r"model\.hidden 8, the recipe 16"):
        prepare_data(recipe_of(samples, init=str(tmp_path / "head"), model={"hidden": 16}))
    known = identities_of(data)
    other = {**known, "face": known["face"].model_copy(update={"weights": "random:1"})}
    write_head(data, tmp_path / "other", other)
    with pytest.raises(InputError, match=r"was trained on face features of .*random:1"):
        prepare_data(recipe_of(samples, init=str(tmp_path / "other"), model={}))
    write_head(data, tmp_path / "two", {name: known[name] for name in ("context", "body")})
    with pytest.raises(InputError, match="reads the streams context, body, the recipe"):
        prepare_data(recipe_of(samples, init=str(tmp_path / "two"), model={}))


def test_samples_without_any_face_box_are_refused_for_a_face_stream(samples: str, tmp_path: Path) -> None:
    table = read_samples(samples)
    place = table.schema.get_field_index("face_box")
    field = table.schema.field("face_box")
    bare = table.set_column(place, field, pa.nulls(table.num_rows, field.type))
    write_samples(tmp_path / "bare.parquet", bare)
    with pytest.raises(InputError, match="has no face box") as refused:
        prepare_data(recipe_of(str(tmp_path / "bare.parquet")))
    assert "raymotion data faces" in str(refused.value.remedy)
    recipe = recipe_of(str(tmp_path / "bare.parquet"), backbones={"context": "test_resnet", "body": "test_resnet"})
    assert list(identities_of(prepare_data(recipe))) == ["context", "body"]


@pytest.mark.parametrize("name", ["fusion-emotic-tuned", "fusion-emotic-tuned-demo"])
def test_shipped_recipes_are_read(name: str) -> None:
    recipe = load_recipe(name, options={"data": {"samples": "s.parquet"}})
    assert isinstance(recipe, FusionTunedRecipe) and list(recipe.backbones.chosen()) == list(STREAMS)
    FusionConfig.model_validate({**recipe.model, "dims": dict.fromkeys(STREAMS, 8)})
