"""A number that is NaN or infinite never reaches a file: runs that diverge, models that answer it, features of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion.data.features import RegionFeatures
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import Diverged, InputError, NotFinite
from raymotion.folders.outputs import run_folder
from raymotion.models.checkpoint import is_checkpoint, load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.vision.regions import Regions, identify
from raymotion.pipeline.predict import FiniteAnswers, Predict
from raymotion.pipeline.stages import ExtractRegions, Item
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.vocabulary import VALENCE_3

Write, Recipe = Callable[..., str], Callable[..., StudentRecipe]


@pytest.fixture(scope="module")
def samples(write_set: Write, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), 32, pictures=False)


@pytest.fixture(scope="module")
def huge(samples: str, student_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose weights are numbers, and so large that its answers are none."""
    folder = tmp_path_factory.mktemp("huge")
    fit(student_recipe(samples, optimiser={"epochs": 1}), folder / "good")
    good = load_model(folder / "good")
    torch.nn.init.constant_(good.network.get_parameter("fusion.bias"), 3e38)
    values = torch.nn.init.constant_(good.network.get_parameter("head.weight"), 3e38)
    values.data.view(-1)[::2] *= -1  # infinity less infinity
    save_checkpoint(
        folder / "huge", good.info.kind, good.network, good.inputs, good.outputs, training=good.info.training
    )
    return folder / "huge"


@pytest.mark.parametrize("batch_size", [4, 4096])
@pytest.mark.parametrize("clip", [1.0, None])
def test_divergence_names_epoch_step_and_remedy_and_leaves_nothing(
    samples: str, student_recipe: Recipe, tmp_path: Path, batch_size: int, clip: float | None
) -> None:
    steps: dict[str, Any] = {"batch_size": batch_size, "clip": clip, "warmup": 0.0, "epochs": 4}
    with pytest.raises(Diverged) as caught:
        fit(student_recipe(samples, optimiser={**steps, "lr": 1e30}), tmp_path / "s")
    text = str(caught.value)
    assert "training diverged" in text and "\n" not in text and caught.value.exit_code == 1
    assert "epoch 1" in text and "--set optimiser.lr=1e+29" in text
    assert [path.name for path in tmp_path.iterdir()] == [], "it would refuse the mended command"
    if batch_size == 4:
        assert "step 2 of 4, at a learning rate of" in text
        fit(student_recipe(samples, optimiser={**steps, "lr": 1e-3, "epochs": 1}), tmp_path / "s")
        assert is_checkpoint(tmp_path / "s")


def test_a_run_that_diverges_late_is_told_with_its_best_epoch(
    samples: str, student_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, steps = Task.loss, iter(range(99))
    monkeypatch.setattr(Task, "loss", lambda self, *given: usual(self, *given) / (next(steps) < 4))
    told = r"in epoch 3, step 1 of 2, .* The best epoch before was [12] \(BCE [01]\.\d{4}\)"
    with pytest.raises(Diverged, match=told):
        fit(student_recipe(samples), tmp_path / "s")
    assert not Path(run_folder(tmp_path / "s")).exists()


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_are_finite(samples: str, student_recipe: Recipe, name: str, value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        StudentRecipe.model_validate({"data": {"samples": samples}, "optimiser": {name: value}})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_label_is_refused_before_training(student_recipe: Recipe, tmp_path: Path, split: str) -> None:
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"s{i}", "captions": ["a day"], "source": "t",
            "labels": [] if own == split else ["positive"], "split": own,
        }
        for i, own in enumerate(["train", "train", "val", "test"])
    ]  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, VALENCE_3))
    with pytest.raises(InputError, match=rf"s\.parquet: not one of the \d samples? of the split {split} has a label\."):
        prepare_data(student_recipe(str(tmp_path / "s.parquet")))


def test_a_test_split_without_a_label_has_no_average_precision(student_recipe: Recipe, tmp_path: Path) -> None:
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"s{i}", "captions": [f"a {i % 3} day"], "source": "t",
            "labels": [] if i % 4 == 3 else ["positive"], "split": ("train", "train", "val", "test")[i % 4],
        }
        for i in range(16)
    ]  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, VALENCE_3))
    info = fit(student_recipe(str(tmp_path / "s.parquet"), optimiser={"epochs": 1}), tmp_path / "s").info
    assert info.test is not None and info.test["metrics"]["macro_ap"]["value"] is None


# Models that answer it


def test_a_model_that_answers_no_numbers_labels_nothing(huge: Path) -> None:
    info = read_checkpoint_info(huge)
    stage = Predict(str(huge), info.fingerprint, type(info.kind))
    stage.setup(1, "cpu")
    row = {"sample_id": "a", "image_uri": None, "captions": ["a sunny day"]}
    few = [Item(dict(row)) for _ in range(3)]
    stage.process(few)
    assert [item.failure and item.failure.reason for item in few] == ["not_finite"] * 3
    assert all("emotions" not in item.output for item in few)
    with pytest.raises(NotFinite, match=r"huge: the model answers with NaN or infinity to all of the first 5 samples"):
        stage.process([Item(dict(row)) for _ in range(2)])


def test_one_answer_that_is_no_number_is_one_bad_row() -> None:
    answers = FiniteAnswers("predict", "t")
    items = [Item({"sample_id": str(i)}) for i in range(6)]
    emotions, numbers = np.full((6, 2), 0.5), np.full((6, 3), 4.0)
    emotions[1, 0], numbers[4, 1] = np.nan, np.inf
    good = answers.check(items, {"emotions": emotions, "vad": numbers})
    assert good.tolist() == [True, False, True, True, False, True]
    assert [item.failure is None for item in items] == good.tolist()
    bad = [item.failure for item in items if item.failure]
    assert [(one.stage, one.reason) for one in bad] == [("predict", "not_finite")] * 2
    # Not the model's fault as a whole: it has answered before.
    assert not answers.check([Item({}) for _ in range(9)], {"emotions": np.full((9, 2), np.nan)}).any()


@pytest.mark.parametrize("option", ["--json", "--all"])
def test_predict_says_so_in_one_line(huge: Path, runner: Callable[..., Any], option: str) -> None:
    result = runner("predict", huge, "--caption", "a sunny day", option)
    assert result.code == 1
    assert "the model answers sample 0 with NaN or infinity" in result.err and "fault of" not in result.err
    assert result.out == ""


# Features of it


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("features", 7e4, "the features reach 70000, more than float16 holds"),
        ("features", -math.inf, "the features reach inf"),
        ("features", math.nan, "the features reach nan"),
        ("boxes", math.nan, "boxes or scores are NaN"),
        ("scores", math.inf, "boxes or scores are NaN"),
    ],
)
def test_regions_that_float16_can_not_hold_fail(name: str, value: float, reason: str) -> None:
    def extractor(pictures: list[np.ndarray]) -> Regions:
        found = Regions.stack([None] * len(pictures), 2, 3)
        found.mask[:] = True
        getattr(found, name)[1].flat[0] = value
        return found

    stage = ExtractRegions(identify("fasterrcnn_resnet50_fpn", "random:0", 2), "random:0", "float32")
    stage.extractor = extractor  # type: ignore[assignment]
    items = [Item({}, pixels=np.zeros((4, 4, 3), np.uint8)) for _ in range(3)]
    stage.process(items)
    assert [item.failure is None for item in items] == [True, False, True]
    failure = items[1].failure
    assert failure is not None and (failure.stage, failure.reason) == ("regions", "not_finite")
    assert failure.message.startswith(reason) and items[1].regions is None
    assert items[0].regions is not None


def test_features_of_others_are_looked_at(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.zeros((3, 4), np.float16)
    values[2, 1] = np.inf
    table = pa.table(
        {
            "sample_id": ["a", "b", "c"],
            "image_uri": pa.nulls(3, pa.string()),
            "image_bytes": pa.nulls(3, pa.int64()),
            "image_digest": pa.nulls(3, pa.string()),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4),
            "mask": pa.FixedSizeListArray.from_arrays(pa.array([True] * 6), 2),
        }
    ).replace_schema_metadata({b"raymotion.regions": json.dumps({"name": "d", "count": 2, "dim": 2}).encode()})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/part-0.parquet")
    (tmp_path / "_job.json").write_text('{"status": "complete"}')
    told = r"part-0\.parquet: features hold NaN or infinity \(sample c\)"
    with pytest.raises(InputError, match=told):
        RegionFeatures(tmp_path, cache=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["valence", "arousal", "dominance", "body_box", "label_weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sample_tables_hold_numbers(name: str, value: float) -> None:
    good: dict[str, Any] = {
        "group_id": "g", "source": "t", "labels": ["positive"], "valence": 5.0, "arousal": None, "dominance": 1.0,
        "body_box": [0.0, 0.0, 9.0, 9.0], "label_weights": [0.5],
    }  # fmt: skip
    bad = {**good, name: {"body_box": [0.0, 0.0, value, 9.0], "label_weights": [value]}.get(name, value)}
    with pytest.raises(InputError, match=rf"b: {name}") as caught:
        table_from_rows([{**good, "sample_id": "a"}, {**bad, "sample_id": "b"}], VALENCE_3)
    assert str(value) in str(caught.value)
