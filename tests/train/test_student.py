"""What a student learns from, and how: without Ray."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from raymotion import storage
from raymotion.batch.labels import LabelSink
from raymotion.data.images.decode import decode_rgb
from raymotion.data.samples import vocabulary_of
from raymotion.data.views.pictures import render
from raymotion.errors import AccessDenied, InputError, RunFailed
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import load_model
from raymotion.models.inputs.captions import Captions, PreparedCaptions
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.inputs.reading import ABSENT, READ, UNREADABLE
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.pipeline.predictor import Predictor
from raymotion.pipeline.stages import Item
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import BEST, CURRENT, PREDICTIONS, train
from raymotion.train.pictures import Portion, cache_pictures, read_here
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, load_recipe
from raymotion.train.source import label_warnings, pseudo_labelled
from raymotion.train.task import Task
from raymotion.train.workers import ALONE, Workers
from raymotion.vocabulary import VALENCE_3

Write, Recipe = Callable[..., str], Callable[..., StudentRecipe]


@pytest.fixture(scope="module")
def samples(write_set: Write, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers: a second thread costs more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


# Pseudo-labels


def write_labels(folder: Path, uris: list[str | None], *, vocabulary: Any = VALENCE_3, parts: int = 3) -> np.ndarray:
    """A finished `raymotion label` folder: two labels a row, every fourth row not selected. Returns probabilities."""
    policy = SelectionPolicy(policy="top-per-image", count=2)
    sink = LabelSink([MultiLabel(vocabulary)], policy, None, True)
    probabilities = np.random.default_rng(1).random((len(uris), len(vocabulary))).astype(np.float32)
    for number, rows in enumerate(np.array_split(np.arange(len(uris)), parts)):
        items = [
            Item(
                {"sample_id": f"c{i}", "image_uri": uris[i], "captions": [f"caption {i}"]},
                output={"emotions": probabilities[i]},
            )
            for i in rows
        ]
        table = sink.encode(items)
        place = table.schema.get_field_index("selected")
        table = table.set_column(place, table.schema.field("selected"), [[bool(i % 4 != 3) for i in rows]])
        storage.write_table(folder / f"data/part-{number:05d}.parquet", table)
    storage.write_json(
        folder / "_job.json", {"job": "labels", "status": "complete", "vocabulary": vocabulary.to_dict()}
    )
    return probabilities


def test_pseudo_labels_are_the_selected_rows_their_choice_and_their_probabilities(tmp_path: Path) -> None:
    uris: list[str | None] = [f"{i // 2}.jpg" for i in range(40)]  # two samples of each image
    uris[38:] = [None, None]
    probabilities = write_labels(tmp_path / "l", uris)
    table, soft = pseudo_labelled(str(tmp_path / "l"), 0.2, 0)
    kept = [i for i in range(40) if i % 4 != 3]
    assert vocabulary_of(table) == VALENCE_3 and table.column("sample_id").to_pylist() == [f"c{i}" for i in kept]
    np.testing.assert_array_equal(soft, probabilities[kept])
    for row, labels in zip(probabilities[kept], table.column("labels").to_pylist(), strict=True):
        assert set(labels) == {VALENCE_3.labels[j] for j in np.argsort(-row)[:2]}
    split = dict(zip(table.column("sample_id").to_pylist(), table.column("split").to_pylist(), strict=True))
    for i in range(0, 38, 4):
        assert split[f"c{i}"] == split[f"c{i + 1}"], "one image in two splits"
    images = {uris[i] or f"c{i}" for i in kept}
    held_out = {uris[i] or f"c{i}" for i in kept if split[f"c{i}"] == "val"}
    assert len(held_out) == round(0.2 * len(images)) and set(split.values()) == {"train", "val"}
    assert pseudo_labelled(str(tmp_path / "l"), 0.2, 0)[0].equals(table)
    assert pseudo_labelled(str(tmp_path / "l"), 0.2, 1)[0].column("split") != table.column("split")
    # A share that rounds to none, or to all, leaves one on each side.
    for share in (0.001, 0.999):
        splits = pseudo_labelled(str(tmp_path / "l"), share, 0)[0].column("split").to_pylist()
        assert {"train", "val"} == set(splits)


@pytest.mark.parametrize("soft", [False, True])
def test_a_student_of_pseudo_labels_learns_one_or_the_other(tmp_path: Path, student_recipe: Recipe, soft: bool) -> None:
    probabilities = write_labels(tmp_path / "l", [None] * 20)
    recipe = student_recipe("", data={"labels": str(tmp_path / "l"), "soft_targets": soft, "val_fraction": 0.2})
    data = prepare_data(recipe)
    rows = [int(sample_id[1:]) for sample_id in data.sample_ids]
    targets = data.targets["emotions"].arrays
    np.testing.assert_array_equal(targets["soft"], probabilities[rows])
    assert (targets["hard"].sum(axis=1) == 2).all() and set(np.unique(targets["hard"])) == {0, 1}
    whole = student_recipe("", data={"labels": "l", "soft_targets": soft}, optimiser={"batch_size": 99})
    (batch,) = BatchLoader(Task(whole, data), ALONE, first_epoch=0).train(0)
    learned = batch.targets["emotions"]["learned"]
    fractions = ((learned > 0) & (learned < 1)).any()
    assert bool(fractions) is soft
    expected = targets["soft" if soft else "hard"][data.splits["train"]].mean(axis=0)
    np.testing.assert_allclose(learned.mean(0).numpy(), expected, atol=1e-6)
    info = fit(recipe, tmp_path / "s").info
    assert info.vocabulary == VALENCE_3 and info.test is None and info.validation is not None
    np.testing.assert_allclose(info.prior, targets["hard"][data.splits["train"]].mean(axis=0), atol=1e-6)
    assert info.training["targets"]["kind"] == "pseudo-labels"
    card = (tmp_path / "s/README.md").read_text()
    assert "annotators reported" not in card and "Agreement with the teacher's labels" in card


def test_labels_whose_check_failed_are_named_before_training_begins(tmp_path: Path, runner: Any) -> None:
    write_labels(tmp_path / "l", [None] * 8)
    record = storage.read_json(tmp_path / "l/_job.json")
    headline = "Collapse check FAILED: 97 % of the images have the same label set: calm."
    record["collapse"] = {"headline": headline, "collapsed": True}
    storage.write_json(tmp_path / "l/_job.json", record)
    (tmp_path / "taken").write_text("a file where the checkpoint should go")
    done = runner("train", "student-gru-cnn", "--labels", tmp_path / "l", "--out", tmp_path / "taken")
    warning, error = done.err.splitlines()
    assert warning == f"warning: a student of these pseudo-labels learns their few answers. {headline}"
    assert error.startswith("error: ") and done.code == 2
    for changed, doubts in (({"collapsed": False, "headline": "passed"}, 0), (None, 1)):
        storage.write_json(tmp_path / "l/_job.json", {**record, "collapse": changed})
        recipe = load_recipe("student-gru-cnn", options={"data": {"labels": str(tmp_path / "l")}})
        assert len(label_warnings(recipe)) == doubts


def test_labels_that_are_not_finished_and_both_or_neither_source(tmp_path: Path) -> None:
    write_labels(tmp_path / "l", [None] * 8)
    record = storage.read_json(tmp_path / "l/_job.json")
    storage.write_json(tmp_path / "l/_job.json", {**record, "status": "running"})
    with pytest.raises(InputError, match="the labelling job is not complete"):
        pseudo_labelled(str(tmp_path / "l"), 0.1, 0)
    with pytest.raises(InputError, match="names both samples and labels"):
        load_recipe("student-gru-cnn", options={"data": {"samples": "s", "labels": "l"}})
    with pytest.raises(InputError, match=r"names no data\. Give either --samples"):
        load_recipe("student-gru-cnn")
    write_labels(tmp_path / "few", [None] * 1, parts=1)
    with pytest.raises(InputError, match="has 1 selected image"):
        pseudo_labelled(str(tmp_path / "few"), 0.1, 0)


# Pictures


def test_training_sees_views_and_validation_the_whole_picture(samples: str, student_recipe: Recipe) -> None:
    uris = prepare_data(student_recipe(samples)).streamed.image_uris
    reader = PictureReader(32, "full", 0.3, seed=4)
    rows = np.arange(6)
    portions = [
        Portion("train", 0, rows),
        Portion("val", 0, rows),
        Portion("train", 1, rows),
        Portion("train", 0, rows[::-1]),
    ]
    first, val, second, again = (p.pixels for _, p in read_here(portions, uris, reader, threads=3))
    whole = [render(decode_rgb(Path(str(uris[row])).read_bytes()), 32) for row in rows]
    np.testing.assert_array_equal(val, whole)
    np.testing.assert_array_equal(again[::-1], first)  # the row decides, not its neighbours
    for view in (first, second):
        assert all(not np.array_equal(view[i], whole[i]) for i in range(6))
    assert not np.array_equal(first, second)
    other = PictureReader(32, "full", 0.3, seed=5).read_all(uris[:6], rows.tolist(), 0, True).pixels
    assert not np.array_equal(first, other)
    plain = PictureReader(32, "none").read_all(uris[:6], rows.tolist(), 0, True).pixels
    np.testing.assert_array_equal(plain, whole)


def test_a_picture_that_can_not_be_read_is_told_from_one_that_is_not_there(write_set: Write, tmp_path: Path) -> None:
    write_set(tmp_path, 4, damaged=(1,))
    uris = [str(tmp_path / "000.png"), str(tmp_path / "001.png"), None, str(tmp_path / "absent.png")]
    for cached in (False, True):
        cache = cache_pictures(uris, 32, threads=2, folder=str(tmp_path / "cache")) if cached else None
        got = PictureReader(32, cache=cache).read_all(uris, [0, 1, 2, 3], 0, False)
        assert got.status.tolist() == [READ, UNREADABLE, ABSENT, UNREADABLE]
        assert set(got.reasons) == {1, 3} and "001.png" in got.reasons[1]
        assert got.pixels[0].any() and not got.pixels[1:].any()
    np.testing.assert_array_equal(got.pixels[0], render(decode_rgb((tmp_path / "000.png").read_bytes()), 32))
    # The file that is mended is another picture: the cache does not go on saying that it cannot be read.
    shutil.copy(tmp_path / "000.png", tmp_path / "001.png")
    cache = cache_pictures(uris, 32, threads=2, folder=str(tmp_path / "cache"))
    assert PictureReader(32, cache=cache).read_all(uris, [0, 1, 2, 3], 0, False).status[1] == READ


def test_a_damaged_picture_is_shown_where_the_recipe_keeps_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    uris, folder = [str(tmp_path / "whole.jpg"), str(tmp_path / "half.jpg")], str(tmp_path / "cache")
    strict, keeping = PictureReader(32), PictureReader(32, damaged="keep")
    assert strict.read_all(uris, [0, 1], 0, False).status.tolist() == [READ, UNREADABLE]
    kept = keeping.read_all(uris, [0, 1], 0, False)
    assert kept.status.tolist() == [READ, READ] and kept.pixels[1].any()
    assert set(kept.reasons) == {1} and "half.jpg: image_damaged" in kept.reasons[1]
    # One cache would give the pictures of the other policy.
    caches = [cache_pictures(uris, 32, threads=1, folder=folder, damaged=own) for own in ("quarantine", "keep")]
    status = [PictureReader(32, cache=cache).read_all(uris, [0, 1], 0, False).status.tolist() for cache in caches]
    assert status == [[READ, UNREADABLE], [READ, READ]]


def test_few_damaged_pictures_are_masked_and_many_end_the_run(
    write_set: Write, student_recipe: Recipe, tmp_path: Path
) -> None:
    few = write_set(tmp_path / "few", damaged=(0, 4, 8))
    masked = fit(student_recipe(few), tmp_path / "a").info
    assert masked.reads == ("captions", "picture")
    assert [epoch["unreadable_images"] for epoch in masked.training["history"]] == [3, 3, 3]
    many = write_set(tmp_path / "many", damaged=(0, 4, 8, 12))  # all of them train
    with pytest.raises(
        InputError, match=r"4 of the first 36 pictures could not be read \(such as .*0\d\d\.png: image_"
    ) as told:
        fit(student_recipe(many), tmp_path / "b")
    assert "\n" not in str(told.value) and not decoding_threads()


def test_a_store_that_refuses_ends_the_run(refusing_store: None, samples: str, student_recipe: Recipe) -> None:
    uris = ["s3://bucket/a.png"] * 3
    with pytest.raises(AccessDenied):
        list(read_here([Portion("val", 0, np.arange(3))], uris, PictureReader(32), threads=2))
    assert not decoding_threads()


def test_a_store_that_is_down_ends_the_run_and_is_cached_as_nothing(
    dead_store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailed, match="When the store answers again, the same command goes on"):
        cache_pictures(["s3://bucket/a.png"], 32, threads=1, folder=str(tmp_path))
    assert not list(tmp_path.iterdir()) and not decoding_threads()


# The stream of an epoch


def batches(recipe: StudentRecipe, data: TrainingSet, epochs: int, *, world: int = 1) -> list[list[list[Any]]]:
    """[rank][epoch]: the batches, the stream of each worker read to its end as the loop does."""
    result = []
    for rank in range(world):
        task = Task(recipe, data, threads=2)
        model = task.build()
        loader = BatchLoader(task, Workers(rank, world), first_epoch=0)
        own = []
        for epoch in range(epochs):
            own.append(list(loader.train(epoch)))
            loader.predict(model, "val")
        loader.close()
        result.append(own)
    return result


def rows_of(some: list[Any]) -> list[int]:
    """The rows of batches: each sample's soft target is a number of its own."""
    return [round(float(own.max()) * 1000) - 1 for batch in some for own in batch.targets["emotions"]["learned"]]


@pytest.mark.parametrize("world", [1, 2, 5])  # 24 rows are not 5 times anything
def test_every_training_row_is_seen_once_in_each_epoch(samples: str, student_recipe: Recipe, world: int) -> None:
    recipe = student_recipe(samples, data={"soft_targets": True}, optimiser={"epochs": 2, "batch_size": 7})
    data = prepare_data(recipe)
    expected = sorted(data.splits["train"].tolist())
    seen = batches(recipe, data, 2, world=world)
    for epoch in range(2):
        own = [rows_of(rank[epoch]) for rank in seen]
        together = sorted(row for rows in own for row in rows)
        assert sorted(set(together)) == expected and len(together) < len(expected) + world
        assert len({len(rows) for rows in own}) == 1, "a worker with fewer batches leaves the others waiting"
        assert len({len(rank[epoch]) for rank in seen}) == 1
    assert rows_of(seen[0][0]) != rows_of(seen[0][1]), "shuffled anew"
    assert not decoding_threads()


def test_short_epochs_lose_no_row(samples: str, student_recipe: Recipe) -> None:
    recipe = student_recipe(samples, data={"soft_targets": True, "epoch_samples": 10}, optimiser={"epochs": 12})
    data = prepare_data(recipe)
    (seen,) = batches(recipe, data, 12)
    assert [len(rows_of(epoch)) for epoch in seen] == [10] * 12
    rows = [row for epoch in seen for row in rows_of(epoch)]
    n = len(data.splits["train"])
    for start in range(0, 120 - n + 1, n):  # one whole shuffle after the other
        assert sorted(rows[start : start + n]) == sorted(data.splits["train"].tolist())


def test_a_caption_is_drawn_anew_and_now_and_then_one_side_is_withheld(
    write_set: Write, student_recipe: Recipe, tmp_path: Path
) -> None:
    table = write_set(tmp_path, captions=3)
    recipe = student_recipe(
        table, data={"soft_targets": True, "image_dropout": 0.2, "caption_dropout": 0.3}, optimiser={"epochs": 40}
    )
    data = prepare_data(recipe)
    (seen,) = batches(recipe, data, 40)
    captions: dict[int, list[tuple[int, ...]]] = {}
    hidden = []
    for epoch in seen:
        for batch in epoch:
            ids, attention, mask = (batch.inputs[name] for name in ("input_ids", "attention_mask", "image_mask"))
            for row, pieces, length, shown in zip(rows_of([batch]), ids, attention.sum(1), mask, strict=True):
                captions.setdefault(row, []).append(tuple(pieces[: int(length)].tolist()))
                hidden.append((not bool(shown), int(length) == 2))
    image, text = np.array(hidden).T
    assert abs(image.mean() - 0.2) < 0.04 and abs(text.mean() - 0.3) < 0.04 and not (image & text).any()
    given = data.inputs["captions"]
    assert isinstance(given, PreparedCaptions)
    for row, drawn in captions.items():
        own = {tuple(int(p) for p in given.tokens[i]) for i in range(given.first[row], given.first[row + 1])}
        assert len(own) == 3 and own <= set(drawn) and set(drawn) - own <= {tuple(drawn[0][:1] + drawn[0][-1:])}


def test_where_one_side_is_all_there_is_it_is_never_withheld(
    write_set: Write, student_recipe: Recipe, tmp_path: Path
) -> None:
    half = {"image_dropout": 0.5, "caption_dropout": 0.5}
    recipe = student_recipe(write_set(tmp_path / "i", captions=0), data=half)
    (seen,) = batches(recipe, prepare_data(recipe), 3)
    assert all(batch.inputs["image_mask"].all() for epoch in seen for batch in epoch)
    recipe = student_recipe(write_set(tmp_path / "t", pictures=False), data=half)
    (seen,) = batches(recipe, prepare_data(recipe), 3)
    for batch in (batch for epoch in seen for batch in epoch):
        assert batch.inputs["attention_mask"].sum(1).min() > 2 and "images" not in batch.inputs


# Training


@pytest.mark.parametrize("kind", ["pictures", "captions"])
def test_a_set_of_one_kind_is_learned(write_set: Write, student_recipe: Recipe, tmp_path: Path, kind: str) -> None:
    table = write_set(tmp_path, 120, captions=0 if kind == "pictures" else 1, pictures=kind == "pictures")
    info = fit(student_recipe(table, optimiser={"epochs": 12, "lr": 2e-2}), tmp_path / "s").info
    assert info.reads == (("picture",) if kind == "pictures" else ("captions",))
    assert info.test is not None
    # Colour, or word, gives the label away.
    assert info.test["metrics"]["bce"]["value"] < info.test["metrics"]["bce"]["prior"] - 0.1
    student = Predictor(load_model(tmp_path / "s"))
    pictures = list(np.arange(2 * 40 * 36 * 3).reshape(2, 40, 36, 3).astype(np.uint8))
    usable = student.usable([None, pictures[0]], [["a sunny day"], []])
    assert usable.tolist() == ([False, True] if kind == "pictures" else [True, False])
    # What it never saw has no say.
    a = student.predict(pictures, [["a sunny day"], ["a sunny day"]])
    b = student.predict(
        pictures if kind == "pictures" else None,
        [["a gloomy day"], ["plain"]] if kind == "pictures" else [["a sunny day"]] * 2,
    )
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_recorded_validation_is_that_of_the_checkpoint(
    samples: str, student_recipe: Recipe, tmp_path: Path, said: Callable[..., np.ndarray]
) -> None:
    """From the pictures and captions again, by the definition, through nothing of the training code."""
    info = fit(student_recipe(samples), tmp_path / "s").info
    table = pq.read_table(samples).filter(np.array([i % 4 == 2 for i in range(48)]))
    pictures = np.stack(
        [render(decode_rgb(Path(uri).read_bytes()), 32) for uri in table.column("image_uri").to_pylist()]
    )
    shown = {"images": pictures, "image_mask": np.ones(len(pictures), dtype=bool)}
    p = said(tmp_path / "s", table.column("captions").to_pylist(), picture=shown).astype(np.float64)
    y = np.stack([VALENCE_3.encode(labels) for labels in table.column("labels").to_pylist()])
    assert info.validation is not None
    assert info.validation["metrics"]["bce"]["value"] == pytest.approx(
        -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), abs=1e-5
    )
    best = info.training["history"][info.training["best_epoch"] - 1]
    assert best["val_bce"] == pytest.approx(info.validation["metrics"]["bce"]["value"], abs=1e-6)
    assert best["val_bce"] == min(epoch["val_bce"] for epoch in info.training["history"])


@pytest.mark.parametrize(
    ("loss", "decoded"),
    [
        ({"name": "focal"}, torch.sigmoid),
        ({"name": "mllsc", "options": {"warmup": 1}}, torch.sigmoid),
        ({"name": "bce", "options": {"class_weights": "sqrt_inverse", "label_smoothing": 0.1}}, torch.sigmoid),
        ({"name": "discrete_published"}, lambda raw: raw.clamp(0, 1)),
    ],
)
def test_a_student_learns_by_any_loss_of_labels(
    samples: str, student_recipe: Recipe, tmp_path: Path, said: Callable[..., np.ndarray], loss: Any, decoded: Any
) -> None:
    """The loss says what its numbers mean, and where they are logits the first answer is the class prior."""
    recipe = student_recipe(samples, loss=loss, data={"augmentation": "none"})
    data = prepare_data(recipe)
    network: Any = Task(recipe, data).build()
    rates = data.targets["emotions"].arrays["hard"][data.splits["train"]].mean(axis=0)
    if decoded is torch.sigmoid:
        np.testing.assert_allclose(torch.sigmoid(network.head.bias).detach(), rates, atol=1e-5)
    else:
        assert network.head.bias.detach().abs().max() < 1
    info = fit(recipe, tmp_path / "s").info
    assert info.outputs[0].to_dict()["loss"]["name"] == loss["name"] and info.validation is not None
    model, table = load_model(tmp_path / "s"), pq.read_table(samples).slice(0, 6)
    texts = [own[:1] for own in table.column("captions").to_pylist()]
    shown = [render(decode_rgb(Path(uri).read_bytes()), 32) for uri in table.column("image_uri").to_pylist()]
    pictures = {"images": np.stack(shown), "image_mask": np.ones(6, dtype=bool)}
    reads = model.info.input("captions")
    assert isinstance(reads, Captions)
    words = reads.tokens(texts).tensors("cpu")
    with torch.no_grad():
        raw = model.network(
            words["input_ids"], words["attention_mask"], *(torch.from_numpy(own) for own in pictures.values())
        )
    np.testing.assert_allclose(said(tmp_path / "s", texts, picture=pictures), decoded(raw), atol=1e-6)


def test_distillation_needs_a_loss_of_logits(samples: str, student_recipe: Recipe) -> None:
    recipe = student_recipe(
        samples, loss={"name": "discrete_published"}, data={"soft_targets": True}, distillation={"weight": 0.5}
    )
    with pytest.raises(InputError, match=r"discrete_published gives no logits"):
        Task(recipe, prepare_data(recipe))


@pytest.mark.slow
def test_after_a_crash_in_any_epoch_the_weights_are_those_of_an_undisturbed_run(
    samples: str, student_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = student_recipe(
        samples,
        data={"augmentation": "full", "soft_targets": True, "epoch_samples": 15},
        optimiser={"epochs": 4, "word_dropout": 0.1, "patience": 9},
        model={
            "image_size": 32,
            "image": "test_resnet",
            "embedding_size": 8,
            "text_size": 8,
            "hidden_size": 8,
            "dropout": 0.2,
        },
        distillation={"temperature": 2.0, "weight": 0.7},
    )
    data = prepare_data(recipe)

    def run(folder: Path, *, crash_after: int | None = None, resume_from: str | None = None) -> None:
        def report(metrics: Mapping[str, Any], kept: str | None) -> None:
            assert kept is not None
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            if metrics["epoch"] == crash_after:
                raise RuntimeError("power cut")

        train(Task(recipe, data, threads=2), report=report, resume_from=resume_from)

    run(tmp_path / "whole")
    for epoch in (1, 2, 3, 4):
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path / "first", crash_after=epoch)
        assert not decoding_threads()
        run(tmp_path / "second", resume_from=str(tmp_path / "first"))
        for name in (CURRENT, BEST, PREDICTIONS):
            expected, got = load_file(tmp_path / "whole" / name), load_file(tmp_path / "second" / name)
            assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected), (
                epoch,
                name,
            )
        ours, theirs = (json.loads((tmp_path / n / "state.json").read_text()) for n in ("second", "whole"))
        assert ours == theirs


def test_early_stopping_leaves_nothing_running(samples: str, student_recipe: Recipe, tmp_path: Path) -> None:
    recipe = student_recipe(samples, optimiser={"epochs": 60, "patience": 2, "lr": 0.5})
    info = fit(recipe, tmp_path / "s").info
    history = info.training["history"]
    assert len(history) < 60 and len(history) == info.training["best_epoch"] + 2
    assert info.test is not None and not decoding_threads()


@pytest.mark.slow
def test_a_cache_of_pictures_gives_what_the_files_give(
    samples: str, student_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    plain = {"augmentation": "none"}
    infos = [
        fit(student_recipe(samples, data={**plain, "cache_images": cached}), tmp_path / str(cached)).info
        for cached in (False, True)
    ]
    a, b = (load_file(tmp_path / str(cached) / "model.safetensors") for cached in (False, True))
    assert all(torch.equal(a[name], b[name]) for name in a) and infos[0].fingerprint == infos[1].fingerprint
    assert len(list((tmp_path / "xdg").rglob("*.npy"))) == 1


@pytest.mark.slow
def test_two_workers_validate_the_norms_that_are_saved(samples: str, student_recipe: Recipe, tmp_path: Path) -> None:
    """Each worker's batch norm sees its own batches: what validates, and what is kept, must be one model's."""
    recipe = student_recipe(
        samples, model={"image": "test_resnet", "image_size": 32, "embedding_size": 8, "text_size": 8},
        data={"augmentation": "none"}, optimiser={"epochs": 2},
    )  # fmt: skip
    data = prepare_data(recipe)
    data.save(str(tmp_path / "data"))
    torch.multiprocessing.start_processes(
        _ddp_worker, args=(recipe.model_dump(mode="json"), str(tmp_path)), nprocs=2, start_method="spawn"
    )
    zero, one = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert any(name.endswith("running_mean") for name in zero)
    assert all(torch.equal(zero[name], one[name]) for name in zero)
    history = json.loads((tmp_path / "state0.json").read_text())
    task = Task(recipe, data)
    model = task.restore(history["model"])
    model.load_state_dict(zero)
    p = BatchLoader(task, ALONE, first_epoch=0).predict(model, "val")["emotions"].astype(np.float64)
    y = data.targets["emotions"].arrays["hard"][data.splits["val"]]
    bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert history["history"][-1]["val_bce"] == pytest.approx(bce, abs=1e-5)


def _ddp_worker(rank: int, settings: dict[str, Any], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    models: list[torch.nn.Module] = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    last: dict[str, Any] = {}

    def report(metrics: Mapping[str, Any], kept: str | None) -> None:
        if not last or metrics["epoch"] > last["epoch"]:  # after the last epoch, before the best is put back
            last.update(metrics)
            weights = {name: value.clone().contiguous() for name, value in models[0].state_dict().items()}
            save_file(weights, f"{folder}/rank{rank}.safetensors")

    recipe = StudentRecipe.model_validate(settings)
    task = Task(recipe, TrainingSet.load(f"{folder}/data", kind_of(recipe).inputs(recipe)))
    state = train(task, report=report, workers=Workers(rank, 2, wrap=wrap))
    Path(folder, f"state{rank}.json").write_text(json.dumps({"history": state.history, "model": state.model}))
    torch.distributed.destroy_process_group()
