"""The faults of the public teacher-student system, number by number: each has a test that would catch its return.

One small world for all: 150 labelled samples whose captions tell the emotion, a teacher of them, 120 samples that the
teacher labels, a student of those labels, and the fine-tuning table. Every fourth picture is grey.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import raymotion
from raymotion.batch import job
from raymotion.batch.choice import select
from raymotion.batch.label_dataset import matrix_of, read_parts
from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.config import read_yaml, recipes_folder
from raymotion.data.readers.socratis import SocratisReader
from raymotion.data.samples import read_samples, table_from_rows, targets, vocabulary_of, write_samples
from raymotion.data.splits import split_samples
from raymotion.errors import InputError
from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from raymotion.learning.collapse import check_collapse
from raymotion.learning.metrics.multilabel import Evaluation, evaluate
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.inputs.captions import Captions, PreparedCaptions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.inputs.reading import READ, Pictures
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import MultiLabelRecipe
from raymotion.models.registry import get_kind
from raymotion.models.student.network import Student, StudentConfig
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.text.tokenizer import encode, train_tokenizer
from raymotion.models.vision.regions import architecture, identify
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import DecodeImages, ExtractRegions, Item
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import _optimiser, train
from raymotion.train.pictures import Portion, read_here
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import read_recipe
from raymotion.train.schedule import schedule
from raymotion.train.stream import _Decode
from raymotion.train.task import Task
from raymotion.train.transfer import CONDITIONS, compare
from raymotion.train.workers import ALONE
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

LABELS = Vocabulary("weather-3", ("calm", "happy", "sad"))
WORDS = {"happy": ("sunny", "laughing"), "sad": ("grey", "crying"), "calm": ("lake", "quiet")}
COLOURS = {"happy": (230, 200, 40), "sad": (40, 60, 120), "calm": (60, 160, 90)}
SHAPE = {"image_size": 16, "channels": [4], "embedding_size": 16, "text_size": 16, "hidden_size": 16}
EXTRACTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
DEPTH, SEEDS, SHARD = 2, (0, 1), 20


def grey(number: int) -> bool:
    return number % 4 == 0


def samples(folder: Path, count: int, *, labelled: bool, seed: int) -> Path:
    """Samples of one to three captions of unlike length, and a JPEG of 24 x 24: of one channel where `grey`."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        name = LABELS.labels[rng.choice(3, p=[0.3, 0.45, 0.25])]
        word = rng.choice(WORDS[name if rng.random() < 0.85 else "calm"])
        noise = rng.normal(0, 40, (24, 24, 3)) + COLOURS[name]
        picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        path = folder / f"{i:04d}.jpg"
        (picture.convert("L") if grey(i) else picture).save(path, quality=90)
        captions = [f"a {word} scene", f"what a {word} view of people and a house far away", f"{word}"]
        rows.append(
            {
                "sample_id": f"{folder.name}:{i}", "group_id": str(path), "image_uri": str(path), "source": "x",
                "captions": captions[: 1 + i % 3], "labels": [name] if labelled else None,
                "split": ("train", "train", "train", "val", "test")[i % 5] if labelled else None,
            }
        )  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, LABELS if labelled else None))
    return folder / "samples.parquet"


def teacher_recipe(table: Path, **more: Any) -> TeacherRecipe:
    optimiser = {"lr": 5e-3, "backbone_lr": 5e-3, "epochs": 3, "batch_size": 16, **more.pop("optimiser", {})}
    data = {"samples": str(table), **more.pop("data", {})}
    values = {"workers": 0, "tokenizer": {"size": 200}, "data": data, "optimiser": optimiser, "model": {"size": "tiny"}}
    return TeacherRecipe.model_validate({**values, **more})


def student_recipe(**more: Any) -> StudentRecipe:
    """The pictures as they are: a run's own test predictions are then those of its checkpoint to the last digit."""
    optimiser = {"lr": 1e-2, "backbone_lr": 3e-3, "epochs": 3, "batch_size": 16, **more.pop("optimiser", {})}
    data = {"augmentation": "none", "decode_tasks": 1, **more.pop("data", {})}
    values = {"workers": 0, "tokenizer": {"size": 200}, "data": data, "optimiser": optimiser}
    return StudentRecipe.model_validate({**values, **more})


@dataclass(frozen=True)
class World:
    """What a user of the whole system has in the end; see the module's docstring."""

    people: Path
    unlabelled: Path
    teacher: str
    labels: Path
    committed_before: dict[str, int]
    labelling: Mapping[str, Any]
    a: str
    a_before: str
    compared: Path

    def run(self, name: str) -> str:
        return str(self.compared / "runs" / name)

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [row for row in read_samples(self.people).to_pylist() if row["split"] == split]


def in_this_process(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
    """In place of `job._stream`: the worker itself, without Ray. tests/batch has it on Ray."""
    worker = ShardWorker(plan)
    for shard in shards:
        yield json.loads(worker({"shard": [shard]})["record"][0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the worker sets them
            patch.setenv(name, "1")
        patch.setattr(job, "_stream", in_this_process)
        patch.setattr(job, "connect", lambda address: nullcontext())
        patch.setattr(job, "node_resources", lambda: [{"CPU": 2.0}])
        people, unlabelled = (samples(base / n, k, labelled=k == 150, seed=k) for n, k in (("p", 150), ("u", 120)))
        teacher = fit(teacher_recipe(people, optimiser={"epochs": 6}), base / "teacher").info.folder
        before, record = label_in_two_runs(base, unlabelled, teacher)
        a = fit(student_recipe(data={"labels": str(base / "labels")}, model=SHAPE), base / "a").info
        # Shape and tokenizer come from A.
        tuning = student_recipe(data={"samples": str(people)}, tokenizer={})
        compare(tuning, a.folder, base / "compared", depths=[DEPTH], seeds=SEEDS, parallel=False)
        yield World(
            people, unlabelled, teacher, base / "labels", before, record, a.folder, a.fingerprint, base / "compared"
        )


def label_in_two_runs(base: Path, table: Path, teacher: str) -> tuple[dict[str, int], Mapping[str, Any]]:
    """Labels `table`, interrupted after four shards of six: what was committed then, and the finished record."""
    settings = LabelSettings(
        samples=str(table), model=teacher, out=str(base / "labels"), workers=1, shard_rows=SHARD,
        selection=SelectionPolicy(policy="top-per-image", count=1),
    )  # fmt: skip

    def interrupted(*arguments: Any) -> Iterator[dict[str, Any]]:
        for number, answer in enumerate(in_this_process(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield answer

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "_stream", interrupted)
        label(settings)
    # Killed between a shard's data and its commit: the data file is there, and nobody counts it.
    commits = base / "labels" / "_commits"
    (commits / "part-00001.json").unlink()
    assert (base / "labels" / "data/part-00001.parquet").exists() and len(list(commits.iterdir())) == 3
    before = {path.name: path.stat().st_mtime_ns for path in commits.glob("part-*")}
    return before, label(settings).record


def labelled(folder: Path) -> pa.Table:
    return pa.concat_tables([part for _, part in read_parts(folder)])


def predict_rows(model: Any, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    images = [np.asarray(Image.open(row["image_uri"]).convert("RGB")) for row in rows]
    return np.asarray(model.predict(images, [row["captions"] for row in rows]))


def said(folder: str, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """What a checkpoint says of captions alone."""
    return np.asarray(raymotion.load(folder).predict(None, captions))


def network_of(folder: str) -> Any:
    return load_model(folder).network


def truth_of(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[float(name in row["labels"]) for name in LABELS.labels] for row in rows])


def mean_ap(rows: Sequence[Mapping[str, Any]], probabilities: np.ndarray) -> float:
    return float(average_precision_score(truth_of(rows), probabilities, average="macro"))


def storages(model: torch.nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


def keeper(folder: Path, *, stop_at: int | None = None) -> Callable[[Mapping[str, Any], str | None], None]:
    """A `Report` of the training loop: keeps the last epoch in `folder`; an interruption after epoch `stop_at`."""

    def report(metrics: Mapping[str, Any], made: str | None) -> None:
        assert made is not None
        folder.mkdir(exist_ok=True)
        for path in Path(made).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if metrics["epoch"] == stop_at:
            raise KeyboardInterrupt

    return report


def test_01_a_constant_answer_is_called_a_collapse(world: World) -> None:
    """The four AnB+ numbers equal a constant ranking inspired > angry > confused: "transfer gain" was two constants."""
    rng = np.random.default_rng(0)
    prior = np.linspace(0.02, 0.4, 29)
    truth = (rng.random((400, 29)) < prior).astype(float)
    constant = np.full((400, 29), 0.05)
    for place, name in enumerate(("inspired", "angry", "confused")):
        constant[:, SOCRATIS_29.index(name)] = 0.9 - place / 10
    constant += rng.normal(0, 1e-9, constant.shape)  # as the public numbers: equal to 1e-9, not to the bit
    found = evaluate(truth, constant, prior=prior, labels=SOCRATIS_29.labels, bootstrap=50)
    assert found.distinct_top3 == 1
    top, best = found["top_1"], truth.mean(axis=0).max()
    assert top.constant == pytest.approx(best) and top.value is not None and top.value < best
    mask = np.zeros((400, 29), bool)
    mask[:, [SOCRATIS_29.index(name) for name in ("inspired", "angry", "confused")]] = True
    verdict = check_collapse(constant, mask, SOCRATIS_29.labels, prior=prior, evaluation=found)
    assert verdict.collapsed and verdict.headline.startswith("Collapse check FAILED")
    # Whatever is written of a model has the baselines beside it: checkpoint, labels, table.
    written = [read_checkpoint_info(folder).test or {} for folder in (world.teacher, world.run("scratch-seed0"))]
    for record in written:
        assert record["distinct_top3"] >= 1
        for name in ("macro_ap", "bce", "top_1", "top_2", "recall_at_3"):
            assert record["metrics"][name]["prior"] is not None and record["metrics"][name]["constant"] is not None
    assert "collapse" in world.labelling
    for row in json.loads((world.compared / "finetune.json").read_text())["rows"]:
        assert len(row["distinct_top3"]) == len(SEEDS)
        assert all({"prior", "constant"} <= score.keys() for score in row["metrics"].values())


def test_02_rates_are_small_warmed_up_and_decayed(world: World) -> None:
    """lr 0.1 with Adam on a full transformer: ~1e-3 for the head, ~2e-5 for the backbone, warm-up, weight decay."""
    shipped = sorted(recipes_folder().glob("*.yaml"))
    assert len(shipped) >= 9
    for path in shipped:
        if path.stem.endswith("-published"):  # they are there to be compared with; their backbones are frozen
            continue
        if get_kind(read_yaml(path)["kind"]).wraps is not None:  # learns one number for each label: a calibration
            continue
        recipe = read_recipe(str(path))
        own = recipe.optimiser
        assert own.kind == "adamw" and own.lr <= 3e-3 and own.weight_decay > 0 and own.schedule == "cosine", path
        # A head on features of frozen backbones is a layer or two: nothing to clip.
        assert 0.05 <= own.warmup <= 0.2 and (own.clip is not None or recipe.kind == "fusion"), path
        pretrained = any(getattr(recipe, name, None) for name in ("init", "text_init", "image_init"))
        assert own.backbone_lr <= (1e-4 if pretrained else 3e-3), path
    # And the optimiser does what they say.
    recipe = teacher_recipe(world.people, optimiser={"lr": 1e-3, "backbone_lr": 2e-5, "weight_decay": 0.05})
    task = Task(recipe, prepare_data(recipe))
    model = task.build()
    groups = _optimiser(model, task).param_groups
    of = {id(p): (group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        rate = 2e-5 if name.startswith("backbone.") else 1e-3
        assert of[id(parameter)] == (rate, 0.05 if parameter.ndim > 1 else 0.0), name
    factors = [schedule(step, 100, recipe.optimiser.warmup) for step in range(100)]
    assert factors[0] < 0.1 and factors[:10] == sorted(factors[:10]) and factors[9] > 0.9 and factors[-1] < 0.01


def test_03_the_order_of_labels_is_the_same_in_every_interpreter(tmp_path: Path, world: World) -> None:
    """Label order built from an unordered Python set, so it changed with each interpreter (hash seed)."""
    words = ["zest", "awe", "joy", "calm", "moved", "bliss", "dread", "hope", "envy", "pride"]
    own_words = [[words[i], words[(i + 3) % 10]] for i in range(10)]
    raw = {str(i): [[f"{i}.jpg", "a caption", own, [], {}]] for i, own in enumerate(own_words)}
    (tmp_path / "s.json").write_text(json.dumps(raw))
    code = (
        "import json; from raymotion.data.samples import targets, vocabulary_of;"
        "from raymotion.data.readers.socratis import SocratisReader;"
        f"table, _ = SocratisReader(path={str(tmp_path / 's.json')!r}, min_images=1, no_split=True).read();"
        "own = vocabulary_of(table);"
        "print(json.dumps([own.labels, own.fingerprint, targets(table, own).tolist(), list({'a', 'b', 'c', 'd'})]))"
    )
    done = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    one, two = (json.loads(process.communicate()[0]) for process in done)
    assert one[3] != two[3], "the two interpreters do order sets differently"
    assert one[:3] == two[:3] and one[0] == sorted(words)
    for i, row in enumerate(one[2]):  # row 0 of the public system held other indices than its labels'
        assert {one[0][j] for j in np.flatnonzero(row)} == set(own_words[i])
    # A checkpoint and a labelled set carry the order with them.
    own = read_checkpoint_info(world.run("A2B-seed0")).vocabulary
    assert own.labels == LABELS.labels == Vocabulary.from_dict(world.labelling["vocabulary"]).labels


def test_04_what_is_scored_was_not_trained_on(world: World, tmp_path: Path) -> None:
    """No train/val/test split anywhere; every metric was on training data."""
    rng = np.random.default_rng(0)
    rows = [
        {"sample_id": f"s{i}", "group_id": f"g{i // 3}", "captions": ["a"], "source": "x",
         "labels": [LABELS.labels[rng.choice(3, p=[0.7, 0.2, 0.1])]]}
        for i in range(600)
    ]  # fmt: skip
    table = table_from_rows(rows, LABELS)
    split = split_samples(table, seed=3).to_pylist()
    groups = {name: {row["group_id"] for row in split if row["split"] == name} for name in ("train", "val", "test")}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 200, "a group is in two splits"
    assert {name: len(own) for name, own in groups.items()} == {"train": 160, "val": 20, "test": 20}
    for name in LABELS.labels:  # stratified: a tenth of each label, give or take two groups
        share = [row["split"] for row in split if row["labels"] == [name]].count("test")
        assert abs(share - 0.1 * sum(row["labels"] == [name] for row in rows)) <= 6
    assert split == split_samples(table, seed=3).to_pylist() != split_samples(table, seed=4).to_pylist()
    # Training refuses what is not split, or not by image.
    for change, message in ((None, "has no splits"), ("leak", "is in test and in train")):
        marks = [None if change is None else ("train" if i % 3 else "test") for i in range(600)]
        path = tmp_path / f"{change}.parquet"
        write_samples(path, table_from_rows([{**row, "split": m} for row, m in zip(rows, marks, strict=True)], LABELS))
        with pytest.raises(InputError, match=message):
            prepare_data(teacher_recipe(path))
    # What stands in a checkpoint is of the held-out rows: recomputed here.
    info = read_checkpoint_info(world.teacher)
    for name, record in (("val", info.validation), ("test", info.test)):
        own = world.rows(name)
        expected = mean_ap(own, said(world.teacher, [row["captions"] for row in own]))
        assert record is not None and record["samples"] == 30
        assert record["metrics"]["macro_ap"]["value"] == pytest.approx(expected, abs=1e-6)
    train_rows = world.rows("train")
    assert abs(mean_ap(train_rows, said(world.teacher, [row["captions"] for row in train_rows])) - expected) > 1e-3


def test_05_evaluating_a_model_uses_that_model(world: World, tmp_path: Path) -> None:
    """The metric function used a global model, and all models shared one VisualBERT: loading one overwrote the rest."""
    rows = world.rows("test")
    one, two = world.run("A2B-seed0"), world.run("A2Bplus-seed0")
    first = raymotion.load(one)
    before = predict_rows(first, rows)
    second = raymotion.load(two)
    other = predict_rows(second, rows)
    np.testing.assert_array_equal(predict_rows(first, rows), before)
    assert np.abs(before - other).max() > 1e-3
    assert not storages(network_of(one)) & storages(network_of(two))
    a, b = raymotion.load(world.teacher), raymotion.load(world.teacher)
    with torch.no_grad():
        for parameter in a.model.network.parameters():
            parameter.zero_()
    assert not np.array_equal(a.predict(None, [["a sunny scene"]]), b.predict(None, [["a sunny scene"]]))
    # `raymotion evaluate`, one after the other in one process.
    for folder, probabilities in ((one, before), (two, other)):
        labels = evaluate_checkpoint(
            EvaluateSettings(
                model=folder,
                samples=str(world.people),
                out=str(tmp_path / Path(folder).name),
                bootstrap=20,
                workers=1,
            )
        ).labels
        assert labels is not None
        assert labels.measured.evaluation["macro_ap"].value == pytest.approx(mean_ap(rows, probabilities), abs=1e-5)
    # Fine-tuning: two runs from one student share no weights with each other, and none with it.
    recipe = student_recipe(data={"samples": str(world.people)}, transfer={"source": world.a, "depth": DEPTH})
    data = prepare_data(recipe)
    models = [Task(recipe, data).build() for _ in range(2)]
    assert not storages(models[0]) & storages(models[1])
    assert read_checkpoint_info(world.a).fingerprint == world.a_before, "fine-tuning changed the student it began with"
    student = network_of(world.a)
    moved, kept = network_of(two).state_dict(), network_of(one).state_dict()
    copied = [name for block in student.blocks()[:DEPTH] for name in block]
    assert all(torch.equal(kept[name], student.state_dict()[name]) for name in copied), "AnB's frozen layers are A's"
    assert any(not torch.equal(moved[name], student.state_dict()[name]) for name in copied), "AnB+'s are not"


def test_06_written_metrics_are_those_of_the_named_model(world: World) -> None:
    """anbp_metrics.pkl contained the AnB metrics: the wrong variable was dumped, the two files are identical."""
    record = json.loads((world.compared / "finetune.json").read_text())
    rows, seen = world.rows("test"), {}
    for row in record["rows"]:
        name = row["condition"].replace("n", str(DEPTH)).replace("+", "plus")
        name = "scratch" if row["condition"] == "scratch" else name
        for seed, value in zip(SEEDS, row["metrics"]["macro_ap"]["values"], strict=True):
            own = predict_rows(raymotion.load(world.run(f"{name}-seed{seed}")), rows)
            assert value == pytest.approx(mean_ap(rows, own), abs=1e-6), f"{row['condition']} seed {seed}"
            bce = -np.mean(np.log(np.where(truth_of(rows) == 1, own, 1 - own.astype(np.float64))))
            written = row["metrics"]["bce"]["values"][SEEDS.index(seed)]
            assert written == pytest.approx(bce, abs=1e-5), f"{row['condition']} seed {seed}"
            seen[name, seed] = round(written, 9)
    assert len(seen) == len(CONDITIONS) * len(SEEDS) and len(set(seen.values())) == len(seen), "two models, one figure"


def test_07_captions_are_never_averaged_as_token_ids(world: World) -> None:
    """COCO's 5 captions were merged by averaging token ids; the attention mask became the shortest caption's."""
    captions = [["a sunny scene", "what a crying view of people and a house far away", "quiet"], ["a lake scene"]]
    flat = [text for own in captions for text in own]

    def watch(module: torch.nn.Module, run: Callable[[], Any]) -> tuple[Any, set[tuple[int, ...]]]:
        """The result, and every sequence of word pieces that the module read, as its mask cuts it."""
        read: set[tuple[int, ...]] = set()

        def note(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            ids, mask = (named["input_ids"], named["attention_mask"]) if named else positional
            read.update(tuple(row[keep == 1].tolist()) for row, keep in zip(ids, mask, strict=True))

        handle = module.register_forward_pre_hook(note, with_kwargs=True)
        result = run()
        handle.remove()
        return result, read

    for folder, part in ((world.teacher, "backbone"), (world.a, "text")):
        model = raymotion.load(folder)
        module, reads = getattr(model.model.network, part), model.info.input("captions")
        assert isinstance(reads, Captions)
        alone = np.concatenate([model.predict(None, [[text]]) for text in flat])
        together, read = watch(module, lambda model=model: model.predict(None, captions))  # type: ignore[misc]
        np.testing.assert_allclose(together, [alone[:3].mean(axis=0), alone[3]], atol=1e-6)
        assert read == {tuple(pieces) for pieces in encode(reads.tokenizer, flat, 64)}
    # In training one caption is drawn, and another one in another epoch.
    recipe = student_recipe(data={"samples": str(world.people), "caption_dropout": 0}, model=SHAPE)
    data = prepare_data(recipe)
    given = data.inputs["captions"]
    assert isinstance(given, PreparedCaptions)
    loader = BatchLoader(Task(recipe, data), ALONE, first_epoch=0)
    shown: list[list[tuple[int, ...]]] = []
    for epoch in (0, 1):
        portions, own = iter(loader._portions(epoch, "train")), {}
        for batch in loader.train(epoch):
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            for row, pieces, keep in zip(next(portions).rows.tolist(), ids, mask, strict=True):
                own[row] = tuple(pieces[keep == 1].tolist())
                texts = range(given.first[row], given.first[row + 1])
                assert own[row] in {tuple(given.tokens[i].tolist()) for i in texts}
        for portion in loader._portions(epoch, "val"):  # the stream holds validation between two epochs
            loader._next(portion)
        shown.append([own[row] for row in sorted(own)])
    loader.close()
    assert shown[0] != shown[1]


def test_08_the_loss_of_a_resumed_run_is_the_mean_of_its_own_epoch(world: World, tmp_path: Path) -> None:
    """The running loss went on from the previous sum: epoch 49 was logged as 0.7478, where it was about 0.35."""
    recipe = teacher_recipe(world.people)
    data = prepare_data(recipe)

    class Recording(Task):
        def __init__(self) -> None:
            super().__init__(recipe, data)
            self.losses: list[tuple[float, int]] = []

        def loss(self, raw: Mapping[str, torch.Tensor], batch: Any) -> torch.Tensor:
            value = super().loss(raw, batch)
            self.losses.append((float(value.detach()), batch.rows))
            return value

    first, second = Recording(), Recording()
    with pytest.raises(KeyboardInterrupt):
        train(first, report=keeper(tmp_path / "state", stop_at=2))
    state = train(second, report=keeper(tmp_path / "end"), resume_from=str(tmp_path / "state"))
    steps = -(-len(data.splits["train"]) // 16)
    batches = first.losses[:steps], first.losses[steps:], second.losses
    assert [len(own) for own in batches] == [steps] * 3
    expected = [sum(value * n for value, n in own) / sum(n for _, n in own) for own in batches]
    assert [epoch["train_loss"] for epoch in state.history] == pytest.approx(expected, rel=1e-6)


def test_09_an_interrupted_labelling_leaves_no_duplicates(world: World) -> None:
    """Stored COCO batches: at least 12 too many and no short last one, so labels shifted against their images."""
    wanted = read_samples(world.unlabelled).to_pylist()
    got = labelled(world.labels)
    assert got.column("sample_id").to_pylist() == [row["sample_id"] for row in wanted], "once each, and in order"
    assert world.labelling["counts"]["in"] == world.labelling["counts"]["good"] == 120
    expected = said(world.teacher, [row["captions"] for row in wanted])
    np.testing.assert_allclose(matrix_of(got), expected, atol=1e-5)  # of its own captions, not of a neighbour's
    best = [[LABELS.labels[int(row.argmax())]] for row in expected]
    assert got.column("labels").to_pylist() == best and len({name for own in best for name in own}) >= 2


def test_10_what_is_frozen_is_in_evaluation_mode(world: World, tmp_path: Path) -> None:
    """Frozen backbone but model.train(): dropout 0.1 stayed active in the "feature extractor"."""
    torch.manual_seed(0)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"image": "test_resnet", "image_size": 32, "text": "bert", "bert": bert, "vocab_size": 50}
    student = Student(StudentConfig.model_validate(config), 3)
    encoders = len(student.blocks()) - 2
    ids, mask = torch.randint(5, 50, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    pictures = torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)

    def outputs() -> list[torch.Tensor]:
        student.train()
        return [student.encode_texts(ids, mask), student.encode_images(pictures, None, 4)]

    drifting = [outputs(), outputs()]
    assert not torch.equal(drifting[0][0], drifting[1][0]), "without freezing, dropout does act"
    student.freeze(encoders)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for a, b in zip(outputs(), outputs(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items()), "statistics moved"
    assert student.fusion.training and not any(module.training for module in student.text.modules())
    assert {n for n, p in student.named_parameters() if p.requires_grad} == {
        "fusion.weight", "fusion.bias", "no_image", "no_text", "head.weight", "head.bias"
    }  # fmt: skip
    # Whatever the training loop says: the teacher's frozen backbone, seen at each of its steps.
    recipe = teacher_recipe(world.people, model={"size": "tiny", "freeze_backbone": True, "dropout": 0.5})
    modes: list[bool] = []

    class Watched(Task):
        def build(self) -> VisualBertTeacher:
            model: Any = super().build()
            self.start = {name: value.clone() for name, value in model.state_dict().items()}
            model.backbone.register_forward_pre_hook(lambda module, _: modes.append(module.training))
            model.head.register_forward_pre_hook(lambda module, _: modes.append(not module.training))
            return model

    task = Watched(recipe, prepare_data(recipe))
    train(task, report=keeper(tmp_path / "end"))
    steps = -(-90 // 16) * 3
    assert modes.count(False) >= 2 * steps and not any(modes[: 2 * steps // 3])
    from safetensors.torch import load_file

    after = load_file(tmp_path / "end" / "best.safetensors")
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], task.start[name])}
    assert changed == {"head"}


def test_11_the_layers_that_are_transferred_were_trained(world: World) -> None:
    """The only thing "transferred" in AnB was the fc initialisation; BnB and from-scratch controls were missing."""
    recipe = student_recipe(data={"labels": str(world.labels)}, model=SHAPE)
    torch.manual_seed(recipe.seed)  # as the training loop does
    start = Task(recipe, prepare_data(recipe)).build()
    trained = network_of(world.a)
    blocks = trained.blocks()
    assert len(blocks) == 4 and DEPTH == 2
    for block in blocks[:DEPTH]:
        for name in block:
            assert not torch.equal(start.state_dict()[name], trained.state_dict()[name]), f"{name} is as it was drawn"
    for condition, donor in (("A2B", world.a), ("B2B", world.run("scratch-seed1"))):
        own, theirs = (network_of(f).state_dict() for f in (world.run(f"{condition}-seed1"), donor))
        for number, block in enumerate(blocks):
            same = [torch.equal(own[name], theirs[name]) for name in block if not name.startswith("no_")]
            assert all(same) if number < DEPTH else not any(same), f"{condition}, layer {number}"
    rows = json.loads((world.compared / "finetune.json").read_text())["rows"]
    assert [row["condition"] for row in rows] == ["scratch", "AnB", "AnB+", "BnB", "BnB+"]
    for row in rows:
        gains = np.subtract(row["metrics"]["macro_ap"]["values"], rows[0]["metrics"]["macro_ap"]["values"])
        np.testing.assert_allclose(row["metrics"]["macro_ap"]["against_scratch"], gains)


def test_12_images_are_selected_per_class_and_scores_kept(world: World, tmp_path: Path) -> None:
    """No P>=score/K selection: pseudo-labels near-constant. Per-class top-K with a floor, and soft scores kept."""
    probabilities = matrix_of(labelled(world.labels))
    floor = float(np.sort(probabilities[:, 2])[-4])  # of "sad", fewer than K reach it
    record = select(world.labels, tmp_path / "s", SelectionPolicy(policy="top-per-class", count=9, minimum=floor))
    got = labelled(tmp_path / "s")
    for column, name in enumerate(LABELS.labels):
        order = np.argsort(-probabilities[:, column], kind="stable")[:9]
        expected = {int(i) for i in order if probabilities[i, column] >= floor}
        assert {i for i, labels in enumerate(got.column("labels").to_pylist()) if name in labels} == expected
    assert 0 < sum("sad" in labels for labels in got.column("labels").to_pylist()) < 9
    assert got.column("selected").to_pylist() == [bool(labels) for labels in got.column("labels").to_pylist()]
    np.testing.assert_array_equal(matrix_of(got), probabilities)
    # The student learns the scores, of the selected images alone.
    recipe = student_recipe(data={"labels": str(tmp_path / "s"), "soft_targets": True}, model=SHAPE)
    data = prepare_data(recipe)
    place = {name: i for i, name in enumerate(got.column("sample_id").to_pylist())}
    assert len(data.sample_ids) == sum(got.column("selected").to_pylist()) < 120
    soft = data.targets["emotions"].arrays["soft"]
    np.testing.assert_array_equal(soft, probabilities[[place[name] for name in data.sample_ids]])
    # And the job says so where labels are near-constant, as the public ones: "calm" and "bored" on 99.9 %.
    assert {"collapsed", "headline"} <= record["collapse"].keys()
    spread = np.random.default_rng(0).random((2000, 29)).astype(np.float32)
    mask = np.zeros((2000, 29), bool)
    mask[:, [SOCRATIS_29.index("calm"), SOCRATIS_29.index("bored")]] = True
    mask[0] = False
    verdict = check_collapse(spread, mask, SOCRATIS_29.labels, prior=np.full(29, 0.1))
    assert verdict.collapsed and "'bored' (99.95 %), 'calm' (99.95 %)" in verdict.reasons[0]


def test_13_lists_in_a_csv_are_parsed_and_never_run(tmp_path: Path) -> None:
    """eval() was used on CSV strings, and __getitem__ reused idx while building labels."""
    trap = tmp_path / "ran"

    def read(*emotions: str) -> pa.Table:
        with open(tmp_path / "s.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_name", "caption", "emotions"])
            writer.writerows([f"{i}.jpg", "a caption", value] for i, value in enumerate(emotions))
        return SocratisReader(path=tmp_path / "s.csv", no_split=True).read()[0]

    for code in (f"open({str(trap)!r}, 'w')", f"[open({str(trap)!r}, 'w').name]", "[str(1)]", "['a' for _ in 'b']"):
        with pytest.raises(InputError, match=r"line 3.*not a list of words"):
            read("['happy']", code)
    assert not trap.exists()
    table = read("['happy', 'sad']", "['calm']", "['sad', 'calm', 'happy']", "['awe']")
    own = vocabulary_of(table)
    assert own is not None
    marked = [{own.labels[j] for j in np.flatnonzero(row)} for row in targets(table, own)]
    assert marked == [{"happy", "sad"}, {"calm"}, {"sad", "calm", "happy"}, {"awe"}]


@pytest.mark.slow
def test_14_grey_pictures_pass_everywhere_and_nothing_is_done_twice(world: World, tmp_path: Path) -> None:
    """COCO's grey JPEGs failed in the channel swap; a resumed run processed all batches again."""
    rows = read_samples(world.people).to_pylist()[:6]
    assert [Image.open(row["image_uri"]).mode for row in rows] == ["L", "RGB", "RGB", "RGB", "L", "RGB"]
    # Labelling, by a teacher that reads regions, and by a student.
    tokenizer = train_tokenizer(["a sunny scene"], size=120, min_frequency=1)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 1024})
    identity = identify(EXTRACTOR, "random:0", 4)
    reads = [Captions(64, tokenizer=tokenizer, used=False), RegionInput(identity)]
    info = save_checkpoint(
        tmp_path / "t", get_kind("teacher-visualbert"), VisualBertTeacher(config, 3), reads, [MultiLabel(LABELS)],
        training={},
    )  # fmt: skip
    small = read_checkpoint_info(world.a)
    picture = small.input("picture")
    assert isinstance(picture, PictureInput)
    for stages in (
        (DecodeImages(architecture(EXTRACTOR).min_side), ExtractRegions(identity, "random:0", "float32"),
         Predict(info.folder, info.fingerprint, type(info.kind))),
        (DecodeImages(picture.size), Predict(small.folder, small.fingerprint, type(small.kind))),
    ):  # fmt: skip
        items = [Item({**row, "captions": []}) for row in rows]
        for stage in stages:
            stage.setup(1, "cpu")
            stage.process(items)
        assert [item.failure for item in items] == [None] * 6
        assert all(np.isfinite(item.output["emotions"]).all() for item in items)
    assert set(raymotion.load(info.folder).label(rows[0]["image_uri"])) == set(LABELS.labels)
    # Training, by threads and by the step that Ray Data runs.
    reader, uris = PictureReader(16, "full"), [row["image_uri"] for row in rows]
    portion = Portion("train", 0, np.arange(6))
    ((_, threads),) = read_here([portion], uris, reader, threads=1)
    columns = {"portion": [0] * 6, "row": list(range(6)), "epoch": [0] * 6, "training": [True] * 6, "address": uris}
    step = _Decode(reader)(pa.table(columns))
    for pixels, status in ((threads.pixels, threads.status), (step["pixels"], step["status"])):
        assert status.tolist() == [READ] * 6
        spread = pixels.max(axis=3).astype(int) - pixels.min(axis=3)
        assert (spread[[0, 4]] <= 2).all() and (spread[[1, 2, 3, 5]].max(axis=(1, 2)) > 20).all()
    counts = read_checkpoint_info(world.a).training["data"]["splits"]
    assert sum(counts.values()) == 120, "the grey pictures of the labelled set were left out"
    # A resumed labelling left the committed shards alone,
    commits = world.labels / "_commits"
    assert set(world.committed_before) == {"part-00000.json", "part-00002.json", "part-00003.json"}
    assert {name: (commits / name).stat().st_mtime_ns for name in world.committed_before} == world.committed_before
    assert world.labelling["runs"][-1]["resumed_from_shards"] == len(world.committed_before)
    # and a resumed training reads no picture of a finished epoch.
    recipe = student_recipe(data={"samples": str(world.people)}, model=SHAPE)
    data = prepare_data(recipe)
    read: list[tuple[str, int]] = []

    def source(portions: Sequence[Portion], reader: PictureReader) -> Iterator[tuple[Portion, Pictures]]:
        for portion, pictures in read_here(portions, data.streamed.addresses, reader, threads=1):
            read.append((portion.split, portion.epoch))
            yield portion, pictures

    with pytest.raises(KeyboardInterrupt):
        train(Task(recipe, data, source=source), report=keeper(tmp_path / "state", stop_at=2))
    read.clear()
    resumed = Task(recipe, data, source=source)
    train(resumed, report=keeper(tmp_path / "end"), resume_from=str(tmp_path / "state"))
    assert read.count(("train", 2)) == 6 and {epoch for split, epoch in read if split == "train"} == {2}


def test_15_the_share_of_annotators_is_what_is_learned(tmp_path: Path) -> None:
    """Annotator counts were dropped: the share that names an emotion gives soft targets."""
    votes = {
        "1": [["happy"], ["happy", "sad"], ["happy"], ["calm"]],
        "2": [["sad"], ["", "sad"], ["calm", "sad"]],
        "3": [["calm"]],
    }
    raw = {
        key: [[f"{key}.jpg", f"caption {key}", own, ["because"], {}] for own in answers]
        for key, answers in votes.items()
    }
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    table, report = SocratisReader(path=tmp_path / "raw.json", min_images=1, no_split=True).read()
    assert report.weighted and report.annotators == 8
    marks = pa.array(["train", "train", "val"])
    place = table.schema.get_field_index("split")
    write_samples(tmp_path / "s.parquet", table.set_column(place, table.schema.field("split"), marks))
    shares = [[0.25, 0.75, 0.25], [1 / 3, 0, 1]]  # calm, happy, sad
    for make in (
        lambda soft: teacher_recipe(tmp_path / "s.parquet", data={"soft_targets": soft}),
        lambda soft: student_recipe(data={"samples": str(tmp_path / "s.parquet"), "soft_targets": soft}, model=SHAPE),
    ):
        for soft in (True, False):
            recipe: MultiLabelRecipe = make(soft)
            data = prepare_data(recipe)
            task = Task(recipe, data)
            model: Any = task.build()
            (batch,) = BatchLoader(task, ALONE, first_epoch=0).train(0)
            learned = batch.targets["emotions"]["learned"].tolist()
            expected = np.array(shares) if soft else np.sign(shares)
            np.testing.assert_allclose(sorted(learned), sorted(expected.tolist()), atol=1e-6)
            prior = expected.mean(axis=0).clip(1e-3, 1 - 1e-3)
            np.testing.assert_allclose(torch.sigmoid(model.head.bias).detach(), prior, atol=1e-5)


def test_the_world_is_worth_testing_in(world: World) -> None:
    """The models did learn: what the tests above compare are not noise and noise."""
    for folder in (world.teacher, world.run("scratch-seed0")):
        found = Evaluation.from_dict(read_checkpoint_info(folder).test or {})["macro_ap"]
        assert found.value is not None and found.constant is not None and found.value > found.constant + 0.2
