"""`raymotion tune`: one search over any recipe, through real Ray Tune. A teacher of captions, and a toy of numbers."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, log_loss
from torch import Tensor, nn

from raymotion.cli.tune import tune
from raymotion.config import load_settings
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import register
from raymotion.study.record import MACRO_AP, StudyFolder, StudyRecord
from raymotion.study.settings import TuneSettings
from raymotion.study.space import base_recipe, check_spaces, read_spaces
from raymotion.train.recipe import load_recipe
from raymotion.vocabulary import VALENCE_3

pytestmark = pytest.mark.timeout(400)  # on a busy machine Ray and its actors take a minute to start
LABELS = VALENCE_3.labels
WORDS = dict(zip(LABELS, ("rain grave tears", "table street paper", "sun garden laughter"), strict=True))


class NumberRecipe(TrainRecipe):
    """Valence and arousal from dominance."""

    kind: Literal["numbers-of-a-test"] = "numbers-of-a-test"


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 2)

    def forward(self, values: Tensor, value_mask: Tensor) -> Any:
        return self.line(values)


@register
class NumberKind(Kind):
    """Numbers alone: it has no vocabulary."""

    name = "numbers-of-a-test"
    recipe = NumberRecipe

    def inputs(self, recipe: Any) -> Any:
        return [ValuesInput(["dominance"])]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        return [Dimensions.of_facts(facts, ["valence", "arousal"])]

    def build(self, recipe: Any, training: Any) -> Any:
        return Line()

    def shape(self, network: Any) -> Any:
        return {}

    def restore(self, model: Any, inputs: Any, outputs: Any) -> Any:
        return Line()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """150 captions, two to an image, whose words mostly tell the label; valence and arousal follow from dominance."""
    rng, rows = np.random.default_rng(0), []
    for i in range(150):
        label = LABELS[int(rng.integers(3))]
        dominance = rng.uniform(1, 9)
        told = label if rng.random() < 0.85 else LABELS[int(rng.integers(3))]
        words = rng.permutation([*WORDS[told].split(), "the", "a", "of"])[:4]
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"g{i // 2}", "source": "t", "labels": [label],
                "split": ("train", "train", "val", "test")[i // 2 % 4], "captions": [" ".join(words)],
                "valence": float(np.clip(dominance * 0.8 + rng.normal(0.5, 0.3), 1, 10)), "dominance": dominance,
                "arousal": float(np.clip(6 - dominance / 2 + rng.normal(0, 0.3), 1, 10)) if i % 5 else None,
            }
        )  # fmt: skip
    path = str(tmp_path_factory.mktemp("tune") / "samples.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3, scale=(1.0, 10.0)))
    return path


TEACHER = {
    "kind": "teacher-visualbert", "model": {"size": "tiny", "dropout": 0.0}, "workers": 0, "use_gpu": False,
    "tokenizer": {"size": 200}, "optimiser": {"epochs": 6, "batch_size": 16, "lr": 0.01, "backbone_lr": 0.005},
}  # fmt: skip
NUMBERS = {
    "kind": "numbers-of-a-test", "workers": 0, "use_gpu": False, "select_by": "mae",
    "optimiser": {"epochs": 8, "batch_size": 16, "lr": 0.1},
}  # fmt: skip
# `samples` of it draws two of these; the command names another recipe.
SPACE: dict[str, Any] = {
    "title": "Rate", "grid": {"optimiser.backbone_lr": [1.0e-6, 0.005], "loss.name": ["bce"]},
    "recipe": "somebody-elses",
}  # fmt: skip


def written(folder: Path, name: str, value: dict[str, Any]) -> str:
    (folder / name).write_text(yaml.safe_dump(value, sort_keys=False))
    return str(folder / name)


@pytest.fixture(scope="module")
def search(ray_local: Any, samples: str) -> Callable[..., tuple[StudyRecord, str]]:
    """Runs the command in a folder; gives the record and what the terminal showed."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test

    def run(folder: Path, recipe: dict[str, Any], space: dict[str, Any], *options: str) -> tuple[StudyRecord, str]:
        own = ["--space", written(folder, "space.yaml", space), "--samples", samples, "--out", str(folder / "out")]
        done = CliRunner().invoke(
            tune, [written(folder, "recipe.yaml", recipe), *own, "--seeds", "2", "--progress", "none", *options]
        )
        assert done.exit_code == 0, done.output
        return StudyFolder(folder / "out").require(), done.output

    return run


@pytest.fixture(scope="module")
def by_bce(
    search: Callable[..., tuple[StudyRecord, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StudyRecord, str]:
    folder = tmp_path_factory.mktemp("bce")
    return folder, *search(folder, TEACHER, {**SPACE, "samples": 2})


@pytest.fixture(scope="module")
def by_macro_ap(
    search: Callable[..., tuple[StudyRecord, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StudyRecord, str]:
    folder = tmp_path_factory.mktemp("map")
    space = {**SPACE, "grid": {**SPACE["grid"], "loss.name": ["bce", "focal"]}}
    return folder, *search(folder, TEACHER, space, "--set", "select_by=macro_ap")


def truth_of(samples: str, split: str, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 0 and 1, and valence and arousal, of samples in this order, from the table."""
    table = read_samples(samples).filter(pc.equal(read_samples(samples).column("split"), split)).to_pydict()
    place = {own: row for row, own in enumerate(table["sample_id"])}
    rows = [place[own] for own in ids]
    labels = np.array([[label in table["labels"][row] for label in LABELS] for row in rows])
    numbers = np.array([[table[name][row] for name in ("valence", "arousal")] for row in rows], dtype=np.float64)
    assert len(rows) == len(place)
    return labels, numbers


def said(folder: Path, record: StudyRecord, split: str, key: str) -> tuple[list[str], np.ndarray]:
    """What the seeds of a trial say of a split, (seeds, n, width)."""
    place = StudyFolder(folder)
    trial, final = place.read_trial(key), record.final
    assert trial is not None and final is not None
    files = trial.files if split == "val" else final.files
    found = [place.predictions(key, split, seed, files) for seed in record.seeds]
    return found[0].sample_ids, np.stack([own.values for own in found])


def bce(truth: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([log_loss(truth[:, j], p[:, j], labels=[0, 1]) for j in range(truth.shape[1])]))


def macro_ap(truth: np.ndarray, p: np.ndarray) -> float:
    return float(average_precision_score(truth, p, average="macro"))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["bce", "macro_ap"])
def test_a_teacher_is_searched_by_the_metric_of_its_recipe(
    request: pytest.FixtureRequest, samples: str, metric: str
) -> None:
    """Each figure again, from the predictions that were kept and the table."""
    folder, record, out = request.getfixturevalue(f"by_{metric}")
    measure, sign = (bce, -1) if metric == "bce" else (macro_ap, 1)
    (stage,) = record.stages
    assert record.complete and record.joint is None and len(stage.trials) == (2 if metric == "bce" else 4)
    assert (record.metric.name, record.metric.higher_is_better) == (metric, sign > 0)
    for own in stage.complete:
        ids, values = said(folder / "out", record, "val", own.key)
        truth, _ = truth_of(samples, "val", ids)
        assert own.score is not None
        assert own.score.seeds == pytest.approx([measure(truth, one) for one in values], abs=1e-5)
    means = [sign * own.score.mean for own in stage.complete if own.score]
    assert means == sorted(means, reverse=True) and stage.winner.leader == stage.complete[0].key
    assert stage.winner.config["optimiser.backbone_lr"] == 0.005
    for other in stage.winner.compared:
        line = next(own for own in stage.trials if own.key == other.key)
        assert line.score is not None
        assert other.difference == pytest.approx(means[0] - sign * line.score.mean, abs=1e-5) and other.difference >= 0
        assert other.low <= other.difference <= other.high or metric == "macro_ap"

    # Test, beside what never looks at a sample: the rates of training, which rank nothing.
    final = record.final
    assert final is not None and final.key == stage.winner.key
    ids, values = said(folder / "out", record, "test", final.key)
    truth, _ = truth_of(samples, "test", ids)
    assert final.score.seeds == pytest.approx([measure(truth, one) for one in values], abs=1e-5)
    assert final.score.low is not None and final.score.high is not None
    assert final.score.low < final.score.mean < final.score.high
    table = read_samples(samples)
    of_training = table.filter(pc.equal(table.column("split"), "train")).column("sample_id").to_pylist()
    prior = truth_of(samples, "train", of_training)[0].mean(axis=0)
    assert final.baseline == pytest.approx(measure(truth, np.broadcast_to(prior, truth.shape)), abs=1e-5)
    assert sign * final.score.mean > sign * final.baseline, "nothing was learned"
    assert final.mean_ap == pytest.approx(np.mean([macro_ap(truth, one) for one in values]), abs=1e-5)
    assert len(final.per_class) == 3

    # The terminal: every configuration, and the baseline under them.
    head, *rows = out[out.index("backbone_lr ") :].splitlines()
    assert f"val {record.metric.title} ± sd" in head and "leads" in rows[0]
    for own, row in zip(stage.trials, rows, strict=False):
        assert own.score is not None and f"{own.score.mean:.4f} ± {own.score.sd:.4f}" in row
    last = rows[len(stage.trials)]
    assert last.startswith(record.metric.baseline) and f"{record.baseline:.4f}" in last


@pytest.mark.slow
def test_what_it_leaves_is_trained_and_reported_and_the_same_command_does_nothing_more(
    by_bce: tuple[Path, StudyRecord, str],
    search: Callable[..., tuple[StudyRecord, str]],
    samples: str,
    tmp_path: Path,
    runner: Callable[..., Any],
) -> None:
    folder, record, _ = by_bce
    again, out = search(folder, TEACHER, {**SPACE, "samples": 2})
    assert again == record and "nothing to do" in out
    recipe = load_recipe(str(folder / "out" / "winner.yaml"))
    assert recipe.kind == "teacher-visualbert" and recipe.data.samples == samples
    for name, value in record.stages[0].winner.config.items():
        group, field = name.split(".")
        assert getattr(getattr(recipe, group), field) == value
    done = runner("train", folder / "out" / "winner.yaml", "--out", tmp_path / "teacher", "--progress", "none")
    assert done.code == 0 and (tmp_path / "teacher" / "model.safetensors").exists(), done.err

    done = runner("study", "report", folder / "out", "--out", tmp_path / "report")
    assert done.code == 0 and "the class prior scores" in done.out and "lower is better" in done.out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Of BCE less is better." in page and "Which emotions go together" in page and "Joint search" not in page
    assert all(label in page for label in LABELS) and "Stage 1:" not in page


@pytest.mark.slow
def test_numbers_are_searched_by_their_error_and_reported_without_labels(
    search: Callable[..., tuple[StudyRecord, str]], samples: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    record, out = search(tmp_path, NUMBERS, {"grid": {"optimiser.lr": [0.1, 0.0001]}, "stopping": None})
    (stage,) = record.stages
    assert (record.metric.name, record.metric.higher_is_better, record.data.labels) == ("mae", False, [])
    assert stage.winner.config == {"optimiser.lr": 0.1} and stage.trials[1].score is not None
    assert stage.winner.compared[0].difference > 0 and stage.winner.compared[0].low > 0

    def mae(truth: np.ndarray, values: np.ndarray) -> float:
        """The mean over the dimensions, of what is known."""
        return float(np.nanmean(np.abs(truth - values), axis=0).mean())

    final = record.final
    assert final is not None
    ids, values = said(tmp_path / "out", record, "test", final.key)
    _, truth = truth_of(samples, "test", ids)
    assert final.score.seeds == pytest.approx([mae(truth, one) for one in values], abs=1e-5)
    table = read_samples(samples)
    of_training = table.filter(pc.equal(table.column("split"), "train")).column("sample_id").to_pylist()
    mean = np.nanmean(truth_of(samples, "train", of_training)[1], axis=0)
    assert final.baseline == pytest.approx(mae(truth, np.broadcast_to(mean, truth.shape)), abs=1e-5)
    assert final.score.high is not None and final.score.high < final.baseline, "nothing was learned"
    assert "the training mean" in out and final.per_class == [] and final.mean_ap is None

    done = runner("study", "report", tmp_path / "out", "--out", tmp_path / "report")
    assert done.code == 0 and "test MAE is" in done.out and "the training mean scores" in done.out, done.err
    page = re.sub(r"(?s)<style>.*</style>|data:image/png[^\"]*", "", (tmp_path / "report" / "index.html").read_text())
    for absent in ("mAP", "emotion", "interpolated", "F1", "cooccurrence", "prevalence"):
        assert absent not in page, absent
    assert not (tmp_path / "report" / "per_class.csv").exists()
    (line,) = csv.DictReader((tmp_path / "report" / "stages.csv").open())
    assert float(line["test_score"]) == final.score.mean and float(line["test_baseline"]) == final.baseline


@pytest.mark.parametrize("choice", [{"tokenizer.size": [200, 400]}, {"model.max_text_length": [8, 64]}])
def test_what_the_data_would_have_to_be_prepared_anew_for_is_refused(tmp_path: Path, choice: dict[str, Any]) -> None:
    """Captions are cut and tokenized once: such a choice would change nothing, or lie."""
    spaces = read_spaces(written(tmp_path, "space.yaml", {"grid": choice}))
    base = base_recipe(spaces, recipe=written(tmp_path, "recipe.yaml", TEACHER))
    with pytest.raises(InputError, match=rf"space\.yaml: {next(iter(choice))} = .*prepared") as error:
        check_spaces(spaces, base)
    assert "--set" in str(error.value)


def test_the_shipped_space_fits_its_recipe_and_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spaces = read_spaces("tune_spaces/teacher-small.yaml")
    check_spaces(spaces, base_recipe(spaces, recipe="teacher-visualbert-small"))
    with pytest.raises(InputError, match="names no recipe"):
        base_recipe(spaces)
    Path("tune_spaces").mkdir()
    written(tmp_path / "tune_spaces", "teacher-small.yaml", {"name": "mine", "grid": {"optimiser.lr": [1]}})
    assert read_spaces("tune_spaces/teacher-small.yaml").stages[0].name == "mine"


def test_a_command_becomes_a_study_of_one_stage() -> None:
    own = load_settings(TuneSettings, options={"recipe": "r", "space": "s.yaml", "out": "o", "set": ["a.b=1"]})
    study = own.as_study()
    assert (study.recipe, study.spaces, study.joint, study.stages, study.set) == ("r", "s.yaml", False, None, ["a.b=1"])
    assert study.seeds == own.seeds and MACRO_AP.higher_is_better
