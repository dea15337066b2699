"""A kind of model of somebody else's: it comes in by its class alone, and does all that raymotion's own kinds do.

Two toys. The first says a number and has no vocabulary; the second says emotions and a number. Nothing of raymotion
knows them by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import raymotion
from raymotion.batch.labels import LabelSettings, label
from raymotion.config import load_settings
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import MultiLabelRecipe, TrainRecipe
from raymotion.models.registry import _kinds, get_kind, register
from raymotion.report.evaluation_page import write
from raymotion.study.run import run_study
from raymotion.study.settings import StudySettings
from raymotion.study.status import study_status
from raymotion.train.fit import fit
from raymotion.vocabulary import VALENCE_3


# --- the toy: a kind of model in less than 80 lines ------------------------------------------------------------------
class ToyRecipe(TrainRecipe):
    """Valence from arousal and dominance."""

    kind: Literal["toy"] = "toy"
    width: int = 8


class ToyNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, values: Tensor, value_mask: Tensor) -> Tensor:
        return self.layers(torch.cat([values, value_mask.float()], dim=1))


@register
class ToyKind(Kind):
    """Valence from two other numbers."""

    name = "toy"
    recipe = ToyRecipe

    def inputs(self, recipe):
        return [ValuesInput(["arousal", "dominance"])]

    def outputs(self, recipe, facts):
        return [Dimensions.of_facts(facts, ["valence"], name="valence")]

    def build(self, recipe, training):
        return ToyNetwork(recipe.width)

    def shape(self, network):
        return {"width": network.width}

    def restore(self, model, inputs, outputs):
        return ToyNetwork(model["width"])


# --- the second: two outputs, one of them over a vocabulary -----------------------------------------------------------
class TwoRecipe(MultiLabelRecipe):
    """Emotions and valence from arousal and dominance."""

    kind: Literal["two"] = "two"


class TwoNetwork(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.Tanh())
        self.emotions, self.valence = nn.Linear(16, labels), nn.Linear(16, 1)

    def forward(self, values: Tensor, value_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.body(values)
        return {"valence": self.valence(hidden), "emotions": self.emotions(hidden)}


@register
class TwoKind(Kind):
    """Emotions and valence from two other numbers."""

    name = "two"
    recipe = TwoRecipe

    def inputs(self, recipe):
        return [ValuesInput(["arousal", "dominance"])]

    def outputs(self, recipe, facts):
        own = Dimensions.of_facts(facts, ["valence"], name="valence", weight=2.0)
        return [MultiLabel.of_recipe(recipe, facts), own]

    def build(self, recipe, training):
        return TwoNetwork(training.outputs[0].width)

    def shape(self, network):
        return {}

    def restore(self, model, inputs, outputs):
        return TwoNetwork(outputs[0].width)


# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """160 rows whose valence follows from arousal and dominance, on a scale of 1 to 7."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(160):
        arousal, dominance = rng.uniform(1, 7, 2)
        valence = float(np.clip(0.7 * arousal - 0.4 * dominance + 3 + rng.normal(0, 0.2), 1, 7))
        split = ("train", "train", "val", "test")[i % 4]
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"g{i}", "source": "toy", "split": split,
                "arousal": arousal, "dominance": dominance if i % 10 else None, "valence": valence,
                "labels": [VALENCE_3.labels[min(2, int((valence - 1) / 2))]],
            }
        )  # fmt: skip
    path = str(tmp_path_factory.mktemp("toy") / "samples.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3, scale=(1.0, 7.0)))
    return path


def recipe_of(kind: str, samples: str, workers: int = 0, epochs: int = 25, **more: Any) -> TrainRecipe:
    optimiser = {"epochs": epochs, "patience": 25, "batch_size": 16, "lr": 0.03}
    options = {"kind": kind, "data": {"samples": samples}, "optimiser": optimiser, "workers": workers, "use_gpu": False}
    return load_settings(get_kind(kind).recipe, options={**options, **more})


@pytest.fixture(scope="module")
def toy(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fit(recipe_of("toy", samples), tmp_path_factory.mktemp("toy") / "model").info.folder


@pytest.fixture(scope="module")
def two(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fit(recipe_of("two", samples, select_by="valence.mae"), tmp_path_factory.mktemp("two") / "model").info.folder


@pytest.fixture(scope="module")
def ray_toys(ray_local: Any) -> Any:
    """The shared Ray, whose workers get the classes of this file by value: they cannot import a test."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray_local


def test_the_toy_is_short() -> None:
    lines = Path(__file__).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("# --- the toy"))
    last = next(i for i, line in enumerate(lines) if line.startswith("# --- the second"))
    assert last - first <= 80


def test_it_trains_is_saved_and_says_what_it_is(toy: str) -> None:
    info = read_checkpoint_info(toy)
    assert (info.kind.name, info.reads, info.labels) == ("toy", ("values",), None)
    test = Evaluation.from_dict(info.facts("valence")["test"])
    # The rule is in the data: far above the mean, which explains nothing.
    assert test["ccc"].value > 0.8 and test["mae"].verdict == "better"
    assert test["mae"].value < 0.5 * test["mae"].prior
    assert info.training["selected_by"] == "val_ccc"
    card = Path(toy, "README.md").read_text()
    assert "scale of 1 to 7" in card and "Reads numbers (arousal, dominance) alone" in card
    with pytest.raises(InputError, match="vocabulary"):
        _ = info.vocabulary


@pytest.mark.slow
def test_it_trains_on_ray_to_the_same_weights(samples: str, ray_toys: Any, tmp_path: Path) -> None:
    here, there = (tmp_path / name for name in ("here", "there"))
    fit(recipe_of("toy", samples, epochs=4), here)
    fit(recipe_of("toy", samples, epochs=4, workers=1), there, address="auto")
    own, other = (load_file(folder / "model.safetensors") for folder in (here, there))
    assert own.keys() == other.keys()
    for name, weight in own.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-6)


def test_it_predicts_in_plain_python(samples: str, toy: str) -> None:
    model = raymotion.load(toy)
    high = model.label(values={"arousal": 6.5, "dominance": 1.5})
    low = model.label(values={"arousal": 1.5, "dominance": 6.5})
    assert list(high) == ["valence"] and high["valence"] > low["valence"] + 2
    frame = pd.read_parquet(samples)
    said = model.predict(frame)
    assert list(said.columns) == ["sample_id", "image_uri", "valence", "failure"]
    assert np.corrcoef(said["valence"], frame["valence"])[0, 1] > 0.9
    with pytest.raises(InputError, match="arousal"):
        model.label(caption="a caption")


def test_it_labels_a_table_through_the_job(
    samples: str, toy: str, ray_toys: Any, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    out = tmp_path / "labels"
    done = runner("label", samples, "--model", toy, "--out", out, "--workers", 1, "--address", "auto")
    assert done.code == 0 and "160 in = 160 good" in done.out, done.err
    assert f"next: raymotion export {out} " in done.out, "a report shows labels, of which there are none"
    table = pd.read_parquet(out)
    assert len(table) == 160 and "probabilities" not in table.columns and "selected" not in table.columns
    said = raymotion.load(toy).predict(pd.read_parquet(samples)).set_index("sample_id")["valence"]
    assert table.set_index("sample_id")["valence"].to_dict() == pytest.approx(said.to_dict(), abs=1e-5)
    part = next((out / "data").glob("*.parquet"))
    assert json.loads(pq.read_schema(part).metadata[b"raymotion.scale"]) == [1.0, 7.0]


def test_it_is_evaluated_beside_the_mean(samples: str, toy: str, ray_toys: Any, tmp_path: Path) -> None:
    settings = EvaluateSettings(samples=samples, model=toy, out=str(tmp_path / "eval"), workers=1, bootstrap=50)
    summary = evaluate_checkpoint(settings, address="auto", progress="none", write_page=write)
    truth = pd.read_parquet(samples).query("split == 'test'").set_index("sample_id")["valence"]
    said = pd.read_parquet(tmp_path / "eval" / "predictions.parquet").set_index("sample_id")["valence"]
    found = summary.record["numbers"]["valence"]["metrics"]["mae"]
    assert found["value"] == pytest.approx(float((truth - said.loc[truth.index]).abs().mean()), abs=1e-5)
    training = pd.read_parquet(samples).query("split == 'train'")["valence"].mean()
    assert found["prior"] == pytest.approx(float((truth - training).abs().mean()), abs=1e-5)
    assert "predicted valence" not in (page := Path(tmp_path, "eval", "evaluation.html").read_text())
    assert "beside the mean" in page


@pytest.mark.slow
def test_tune_searches_it(samples: str, ray_toys: Any, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(
        yaml.safe_dump(recipe_of("toy", "").model_dump(mode="json", exclude={"data"}), sort_keys=False)
    )
    space = {"name": "width", "title": "Width", "grid": {"width": [8, 16], "optimiser.lr": [0.0001, 0.03]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**space, "stopping": None}))
    record = run_study(
        StudySettings(
            spaces=str(tmp_path / "space.yaml"), recipe=str(tmp_path / "toy.yaml"), samples=samples, seeds=2,
            out=str(tmp_path / "study"), epochs=10,
        ),
        address="auto", progress="none", say=lambda line: None,
    )  # fmt: skip
    scores = {(own.config["width"], own.config["optimiser.lr"]): own.score.mean for own in record.stages[0].trials}
    assert len(scores) == 4 and record.metric.name == "ccc" and record.metric.higher_is_better
    assert record.stages[0].winner.config["optimiser.lr"] == 0.03
    status = study_status(tmp_path / "study")
    assert (status.state, status.done) == ("complete", 1) and "4 of 4 configurations" in status.lines[0]
    assert record.test.entries[0].score.mean > 0.5
    assert yaml.safe_load((tmp_path / "study" / "winner.yaml").read_text())["kind"] == f"{__name__}:ToyKind", (
        "`raymotion train winner.yaml` imports it"
    )


@pytest.mark.slow
def test_two_outputs_are_learned_chosen_and_labelled_together(
    samples: str, two: str, ray_toys: Any, tmp_path: Path
) -> None:
    info = read_checkpoint_info(two)
    assert info.training["selected_by"] == "val_valence_mae"
    best = min(info.training["history"], key=lambda line: line["val_valence_mae"])
    assert info.training["best_epoch"] == best["epoch"]
    assert Evaluation.from_dict(info.facts("emotions")["test"])["macro_ap"].verdict == "better"
    assert Evaluation.from_dict(info.facts("valence")["test"])["ccc"].value > 0.7
    out = tmp_path / "labels"
    label(LabelSettings(samples=samples, model=two, out=str(out), workers=1), address="auto", progress="none")
    table = pd.read_parquet(out)
    assert {"probabilities", "labels", "selected", "valence"} <= set(table.columns)
    named = raymotion.open_labels(out)
    assert set(VALENCE_3.labels) <= set(named.columns)
    model = raymotion.load(two)
    said = model.label(values={"arousal": 6.0, "dominance": 2.0})
    assert set(said) == set(VALENCE_3.labels) and model.numbers is not None and 1 <= model.numbers["valence"] <= 8


def test_a_checkpoint_of_a_kind_that_is_not_known_is_refused_by_name(toy: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(toy).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "kind": "os:system"}))
    with pytest.raises(InputError, match=r"os:system.*teacher-visualbert"):
        read_checkpoint_info(copy)


KIND_IN_A_FILE = """
from typing import Literal
from torch import nn
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.recipe import TrainRecipe, WholePictureSettings

class Recipe(TrainRecipe):
    kind: Literal["{name}"] = "{name}"
    {data}

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)
    def forward(self, images, image_mask):
        return self.line(images.float().mean(dim=(1, 2)) / 255)

class PictureKind(Kind):
    name, recipe = "{name}", Recipe
    def inputs(self, recipe): return [PictureInput(16)]
    def outputs(self, recipe, facts): return [Dimensions.of_facts(facts, ["valence"], name="valence")]
    def build(self, recipe, training): return Mean()
    def shape(self, network): return {{}}
    def restore(self, model, inputs, outputs): return Mean()
"""


def test_a_kind_of_a_users_file_trains_and_predicts_by_the_command(
    tmp_path: Path, runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe names the class; when only a checkpoint names it, the environment has to."""
    rows = []
    for i in range(16):
        Image.new("RGB", (20, 20), (16 * i, 0, 0)).save(tmp_path / f"{i}.png")
        row = {"sample_id": f"s{i}", "group_id": f"g{i}", "source": "toy", "image_uri": str(tmp_path / f"{i}.png")}
        rows.append({**row, "valence": 1.0 + i / 3, "split": ("train", "train", "val", "test")[i % 4]})
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, scale=(1.0, 7.0)))
    whole = "data: WholePictureSettings = WholePictureSettings()"
    for module, data in (("kind_without_settings", ""), ("kind_of_a_user", whole)):
        (tmp_path / f"{module}.py").write_text(KIND_IN_A_FILE.format(name=module, data=data))

    def train(module: str) -> Any:
        (tmp_path / "r.yaml").write_text(f"kind: {module}:PictureKind\nworkers: 0\noptimiser: {{epochs: 2}}\n")
        return runner("train", tmp_path / "r.yaml", "--samples", tmp_path / "s.parquet", "--out", tmp_path / "model")

    outcome = train("kind_of_a_user")
    assert outcome.code == 2 and "put the folder that holds it on PYTHONPATH" in outcome.err
    monkeypatch.syspath_prepend(tmp_path)
    outcome = train("kind_without_settings")
    assert outcome.code == 2 and f"declare `{whole}`" in outcome.err
    outcome = train("kind_of_a_user")
    assert outcome.code == 0, outcome.err

    monkeypatch.delitem(_kinds.registered, "kind_of_a_user")  # as in a process that has not read the recipe
    predict = ("predict", tmp_path / "model", tmp_path / "3.png")
    outcome = runner(*predict)
    assert outcome.code == 2 and "export RAYMOTION_KINDS=" in outcome.err
    monkeypatch.setenv("RAYMOTION_KINDS", "kind_of_a_user:PictureKind")
    outcome = runner(*predict)
    assert outcome.code == 0 and outcome.out.startswith("valence "), outcome.err


@pytest.mark.parametrize(
    "change, said",
    [
        (('name, recipe = "{name}"', 'name, recipe = "student"'), "is called 'student', as another kind of model is"),
        (("def restore", "def restored"), "PictureKind does not define restore. Add it to the class."),
        (('    name, recipe = "{name}", Recipe\n', ""), "PictureKind has no name"),
        (("return self.line(images", "return self.lines(images"), ".py, line 18: --debug shows more)"),
    ],
)
def test_faults_of_a_users_kind_are_told_as_such(
    tmp_path: Path, runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], said: str
) -> None:
    """A name that is taken would train the other kind without a word."""
    module = f"kind_with_fault_{abs(hash(said))}"
    source = KIND_IN_A_FILE.replace(*change)
    assert source != KIND_IN_A_FILE
    whole = "data: WholePictureSettings = WholePictureSettings()"
    (tmp_path / f"{module}.py").write_text(source.format(name=module, data=whole))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    row = {"source": "toy", "image_uri": str(tmp_path / "a.png"), "valence": 2.0}
    rows = [{**row, "sample_id": str(i), "group_id": str(i), "split": ("train", "val")[i % 2]} for i in range(6)]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, scale=(1.0, 7.0)))
    (tmp_path / "r.yaml").write_text(f"kind: {module}:PictureKind\nworkers: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = runner("train", tmp_path / "r.yaml", "--samples", tmp_path / "s.parquet", "--out", tmp_path / "model")
    assert done.code != 0 and said in done.err and "fault of raymotion" not in done.err, done.err


class Namesake(ToyKind):
    """Of raymotion's own student."""

    name = "student"


def test_classes_listed_in_the_environment_need_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMOTION_KINDS", f"{__name__}:Namesake")
    with pytest.raises(InputError, match=r"RAYMOTION_KINDS: .*Namesake is called 'student', as another"):
        get_kind("nobody")
    monkeypatch.setenv("RAYMOTION_KINDS", "raymotion.models.student.nothing:Nobody")
    with pytest.raises(InputError, match=r"RAYMOTION_KINDS: .*cannot be imported"):
        get_kind("nobody")


def test_a_recipe_may_name_a_class_and_a_taken_name_is_refused(tmp_path: Path, runner: Callable[..., Any]) -> None:
    class Again(ToyKind):
        name = "student"

    with pytest.raises(InputError, match="student"):
        register(Again)
    (tmp_path / "r.yaml").write_text("kind: no_such_package.kinds:Mine\n")
    outcome = runner("train", tmp_path / "r.yaml", "--samples", "x.parquet", "--out", tmp_path / "m")
    assert outcome.code == 2 and "no_such_package" in outcome.err
