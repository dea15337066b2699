"""A linear probe in place of the first epoch, against scikit-learn, scipy and calculations by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import LossSettings, MultiLabelRecipe
from raymotion.models.registry import _kinds
from raymotion.models.student.recipe import StudentRecipe
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.train.fit import fit
from raymotion.train.loop import Run
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.vocabulary import VALENCE_3

Write, Student = Callable[..., str], Callable[..., StudentRecipe]
COLUMNS = ("arousal", "dominance", "valence_sd")


class Recipe(MultiLabelRecipe):
    kind: Literal["line"] = "line"


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(len(COLUMNS), width)

    def forward(self, values: Tensor, value_mask: Tensor) -> Tensor:
        return self.head(values)


class Line(Kind):
    """Emotions from three numbers."""

    name = "line"
    recipe = Recipe

    def inputs(self, recipe: Any) -> Any:
        return [ValuesInput(COLUMNS)]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: Any, training: Any) -> nn.Module:
        return Network(training.outputs[0].width)

    def shape(self, network: Any) -> Any:
        return {"width": network.head.out_features}

    def restore(self, model: Any, inputs: Any, outputs: Any) -> nn.Module:
        return Network(model["width"])


class Rating(Line):
    """Valence from three numbers."""

    def outputs(self, recipe: Any, facts: Any) -> Any:
        return [Dimensions.of_facts(facts, ["valence"], loss=LossSettings(name="mse"))]


class Headless(Line):
    """A kind whose last layer has another name."""

    def heads(self, network: Any, outputs: Any) -> Any:
        del network.head
        return super().heads(network, outputs)


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kinds, "registered", {**_kinds.registered, "line": Line})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Numbers of quite different spread, and labels that occur together."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        a, d, s = rng.uniform(1, 7), rng.normal(4, 0.5), rng.exponential(2)
        p = scipy.special.expit(np.array([a - 5, 4 * (d - 4), s - 3]) + rng.normal())
        labels = [label for label, own in zip(VALENCE_3.labels, p, strict=True) if rng.random() < own]
        rows.append({
            "sample_id": f"s{i}", "group_id": f"g{i}", "source": "t", "split": ("train", "train", "val", "test")[i % 4],
            "arousal": a, "dominance": d, "valence_sd": s, "valence": float(np.clip(a / 2 + d - 1, 1, 7)),
            "labels": labels or [VALENCE_3.labels[0]],
        })  # fmt: skip
    path = str(tmp_path_factory.mktemp("probe") / "samples.parquet")
    write_samples(path, table_from_rows(rows, VALENCE_3, scale=(1.0, 7.0)))
    return path


def recipe_of(samples: str, **groups: Any) -> Recipe:
    probe = {"strengths": 0.7, **groups.pop("probe", {})}
    optimiser = {"epochs": 1, "batch_size": 32, **groups.pop("optimiser", {})}
    return Recipe.model_validate(
        {"data": {"samples": samples}, "probe": probe, "optimiser": optimiser, "workers": 0, **groups}
    )


def probed(recipe: Any) -> Run:
    run = Run(Task(recipe, prepare_data(recipe)))
    run.step()
    return run


def features_of(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, 3) of training and validation, centred and of length 1 on average, and the targets (n, 3)."""
    data = run.task.data
    raw = {split: run.task.inputs["values"].evidence(data.splits[split]).tensors("cpu")["values"].double().numpy()
           for split in ("train", "val")}  # fmt: skip
    mean = raw["train"].mean(axis=0)
    scale = np.sqrt(((raw["train"] - mean) ** 2).sum(axis=1).mean())
    name = run.task.outputs[0].name
    arrays = data.targets[name].arrays
    targets = arrays["hard" if "hard" in arrays else "values"][data.splits["train"]]
    return (raw["train"] - mean) / scale, (raw["val"] - mean) / scale, targets.astype(np.float64)


@pytest.mark.parametrize("strength", [0.01, 0.7, 100.0])
def test_without_coupling_it_is_logistic_regression(samples: str, strength: float) -> None:
    run = probed(recipe_of(samples, probe={"strengths": [strength]}))
    train_x, val_x, y = features_of(run)
    found = run.predict("val")["emotions"]
    for label in range(3):
        reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(train_x, y[:, label])
        np.testing.assert_allclose(found[:, label], reference.predict_proba(val_x)[:, 1], atol=1e-3)


@pytest.mark.parametrize("coupling", [0.5, 1.0])
def test_coupled_labels_share_what_they_learn(samples: str, coupling: float) -> None:
    """The minimum over W of the loss with a Gaussian prior whose covariance over labels is the correlation's power."""
    run = probed(recipe_of(samples, probe={"strengths": 0.05, "coupling": coupling}))
    x, val_x, y = features_of(run)
    precision = scipy.linalg.fractional_matrix_power(np.corrcoef(y.T), -coupling)

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:9].reshape(3, 3), flat[9:]
        logits = x @ weight.T + bias
        loss = np.mean(np.logaddexp(0, logits) - y * logits)
        return float(loss + np.trace(weight.T @ precision @ weight) / (2 * 0.05 * y.size))

    best = scipy.optimize.minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-8}).x
    expected = scipy.special.expit(val_x @ best[:9].reshape(3, 3).T + best[9:])
    found = run.predict("val")["emotions"]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    alone = probed(recipe_of(samples, probe={"strengths": 0.05})).predict("val")["emotions"]
    assert np.abs(found - alone).max() > 0.01, "the coupling changed nothing"
    assert abs(run.state.history[0]["train_loss"] - objective(best)) < 0.05


def test_numbers_are_fitted_by_ridge_regression(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_kinds.registered, "line", Rating)
    run = probed(recipe_of(samples, probe={"strengths": 0.02, "coupling": 1.0}))
    x, val_x, y = features_of(run)
    reference = Ridge(alpha=1 / (2 * 0.02)).fit(x, y[:, 0])
    expected = np.clip(reference.predict(val_x), 1, 7)
    np.testing.assert_allclose(run.predict("val")["vad"][:, 0], expected, atol=1e-3)


def test_validation_chooses_among_strengths(samples: str) -> None:
    strengths = [1e-4, 0.3, 1e4]
    for metric, sign in (("bce", 1), ("macro_ap", -1)):
        alone = {own: probed(recipe_of(samples, probe={"strengths": own}, select_by=metric)) for own in strengths}
        scores = {strength: sign * run.state.history[0][f"val_{metric}"] for strength, run in alone.items()}
        assert len(set(scores.values())) == 3
        together = probed(recipe_of(samples, probe={"strengths": strengths}, select_by=metric))
        best = alone[min(scores, key=lambda strength: scores[strength])]
        np.testing.assert_array_equal(together.predict("val")["emotions"], best.predict("val")["emotions"])


def test_a_probe_of_some_samples(samples: str) -> None:
    every, some, same = (
        probed(recipe_of(samples, probe={"samples": count})).predict("val")["emotions"] for count in (1000, 40, 40)
    )
    assert np.array_equal(some, same) and np.abs(every - some).max() > 0.01


def test_a_probe_alone_is_the_model(write_set: Write, tmp_path: Path, runner: Callable[..., Any]) -> None:
    """One epoch: the last layer is fitted, and not a bit of the rest has moved."""
    recipe = teacher_of(write_set(tmp_path / "set", pictures=False))
    start = Run(Task(recipe, prepare_data(recipe))).best_weights
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = runner("train", tmp_path / "r.yaml", "--out", tmp_path / "m", "--progress", "lines")
    assert done.code == 0 and "best epoch: 1" in done.out, done.err
    kept = load_file(tmp_path / "m/model.safetensors")
    assert {name for name, own in start.items() if not torch.equal(own, kept[name])} == {"head.weight", "head.bias"}
    again = runner("train", tmp_path / "r.yaml", "--out", tmp_path / "m")
    assert again.code == 0 and "finished already" in again.out


def test_epochs_after_the_probe_fine_tune_from_it(write_set: Write, tmp_path: Path) -> None:
    samples = write_set(tmp_path / "set", pictures=False)
    probe = fit(teacher_of(samples), tmp_path / "probe").info
    tuned = fit(teacher_of(samples, optimiser={"epochs": 3, "lr": 1e-4, "backbone_lr": 1e-4}), tmp_path / "tuned").info
    first, *others = tuned.training["history"]
    assert first["val_bce"] == probe.training["history"][0]["val_bce"] and first["learning_rate"] == 0
    assert [line["epoch"] for line in others] == [2, 3] and all(line["learning_rate"] > 0 for line in others[:1])
    # A small step from the probe, not a fresh start, whose loss would be the prior's.
    assert others[0]["train_loss"] < first["train_loss"] + 0.15 < 0.5


# --- texts of the labels ----------------------------------------------------------------------------------------------
TEXTS = {"negative": ["a gloomy day", "gloomy"], "neutral": ["a plain day"], "positive": ["a sunny day, said number 1"]}


def teacher_of(samples: str, **groups: Any) -> TeacherRecipe:
    optimiser = {"epochs": 1, "batch_size": 8, **groups.pop("optimiser", {})}
    return TeacherRecipe.model_validate({
        "data": {"samples": samples}, "workers": 0, "use_gpu": False, "tokenizer": {"size": 200},
        "model": {"size": "tiny", "pooling": "mean-output", "pooled_layers": 2, "normalize_pooled": True},
        "probe": {"strengths": [0.5], "coupling": 0.5}, "optimiser": optimiser, **groups,
    })  # fmt: skip


def written(folder: Path, texts: Any, **more: Any) -> str:
    path = folder / "texts.yaml"
    path.write_text(yaml.safe_dump({"texts": texts, **more}))
    return str(path)


def captions_with_noise(folder: Path) -> str:
    """One caption a sample, whose word tells the label two times in three."""
    rng, rows = np.random.default_rng(0), []
    for i in range(240):
        label, word = rng.integers(3, size=2)
        word = label if rng.random() < 0.5 else word
        text = f"a {('gloomy', 'plain', 'sunny')[word]} day, said number {rng.integers(9)}"
        rows.append({
            "sample_id": f"s{i}", "group_id": f"s{i}", "source": "t", "captions": [text],
            "labels": [VALENCE_3.labels[label]], "split": ("train", "train", "val", "test")[i % 4],
        })  # fmt: skip
    write_samples(folder / "noisy.parquet", table_from_rows(rows, VALENCE_3))
    return str(folder / "noisy.parquet")


def test_without_freedom_the_texts_of_the_labels_decide(write_set: Write, tmp_path: Path) -> None:
    """A penalty that forbids all else leaves s * (features . mean features of the label's texts) + bias."""
    labels = written(tmp_path, TEXTS)
    recipe = teacher_of(captions_with_noise(tmp_path), probe={"strengths": 1e-9, "labels": labels})
    run = probed(recipe)
    found = scipy.special.logit(run.predict("val")["emotions"].astype(np.float64))
    network, captions = run.model.eval(), run.task.inputs["captions"]
    network.head = nn.Identity()  # type: ignore[attr-defined]

    def features(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            return np.concatenate(
                [network(**captions.texts([text], "cpu")).double().numpy() for text in texts]  # type: ignore[arg-type]
            )

    table = read_samples(recipe.data.samples)
    held_out = [row["captions"][0] for row in table.to_pylist() if row["split"] == "val"]
    own = np.stack([features(TEXTS[label]).mean(axis=0) for label in VALENCE_3.labels])
    scores = features(held_out) @ (own - own.mean(axis=0)).T
    slopes = []
    for label in range(3):
        slope, bias = np.polyfit(scores[:, label], found[:, label], 1)
        np.testing.assert_allclose(found[:, label], slope * scores[:, label] + bias, atol=1e-3)
        slopes.append(slope)
    assert slopes[0] > 0 and slopes == pytest.approx([slopes[0]] * 3, rel=1e-3)


def test_texts_that_tell_all_labels_apart_leave_finite_answers(write_set: Write, tmp_path: Path) -> None:
    samples = write_set(tmp_path / "set", captions=1, pictures=False)
    run = probed(teacher_of(samples, probe={"strengths": 1e-9, "labels": written(tmp_path, TEXTS)}))
    found = run.predict("val")["emotions"]
    assert 0 < found.min() < 0.1 and 0.9 < found.max() < 1
    assert run.state.history[0]["val_bce"] < 0.2


def test_texts_and_training_data_together(write_set: Write, tmp_path: Path) -> None:
    """Names are texts too; what the training split says is learned beside them."""
    samples = write_set(tmp_path / "set", captions=1, pictures=False)
    said = {name: probed(teacher_of(samples, probe={"strengths": 10.0, "coupling": 0.5, "labels": labels}))
            for name, labels in (("names", "names"), ("none", None))}  # fmt: skip
    bce = {name: run.state.history[0]["val_bce"] for name, run in said.items()}
    assert max(bce.values()) < 0.3  # the prior's is above 0.6: the words give the labels away
    assert bce["names"] != bce["none"]


def test_a_student_reads_texts_without_a_picture(write_set: Write, student_recipe: Student, tmp_path: Path) -> None:
    recipe = student_recipe(
        write_set(tmp_path / "set", 32), optimiser={"epochs": 1},
        probe={"strengths": 10.0, "labels": written(tmp_path, TEXTS)},
    )  # fmt: skip
    info = fit(recipe, tmp_path / "m").info
    assert info.training["best_epoch"] == 1 and len(info.training["history"]) == 1


def test_pictures_that_a_probe_can_not_read_are_counted(
    write_set: Write, student_recipe: Student, tmp_path: Path
) -> None:
    few = write_set(tmp_path / "few", 80, damaged=(1, 2))  # training and validation
    info = fit(student_recipe(few, optimiser={"epochs": 1}, probe={}), tmp_path / "m").info
    assert info.training["history"][0]["unreadable_images"] == 2
    many = write_set(tmp_path / "many", 80, damaged=tuple(range(0, 80, 4)))
    with pytest.raises(InputError, match=r"pictures could not be read .*Check the image folder"):
        fit(student_recipe(many, optimiser={"epochs": 1}, probe={}), tmp_path / "n")


# --- what is refused --------------------------------------------------------------------------------------------------
def test_a_kind_without_a_last_layer(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_kinds.registered, "line", Headless)
    with pytest.raises(InputError, match=r"Headless does not define heads.*Leave probe out"):
        probed(recipe_of(samples))


def test_texts_for_numbers(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_kinds.registered, "line", Rating)
    with pytest.raises(InputError, match=r"setting probe\.labels: the model predicts numbers, not labels"):
        prepare_data(recipe_of(samples, probe={"labels": "names"}))


def test_texts_for_a_model_that_reads_none(samples: str) -> None:
    with pytest.raises(InputError, match=r"setting probe\.labels: none of the model's inputs \(values\) reads texts"):
        probed(recipe_of(samples, probe={"labels": "names"}))


@pytest.mark.parametrize(
    "texts, more, told",
    [
        ({"negative": "sad", "positive": ["glad"]}, {}, r"texts\.yaml: has no list of texts for 'neutral'"),
        ({**TEXTS, "neutral": []}, {}, r"no list of texts for 'neutral'"),
        ({**TEXTS, "neutral": [3]}, {}, r"no list of texts for 'neutral'"),
        ([], {}, r"has no mapping `texts`"),
        (TEXTS, {"labels": 3}, r"unknown entry 'labels'"),
    ],
)
def test_a_file_of_texts_that_is_not_one(samples: str, tmp_path: Path, texts: Any, more: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        prepare_data(recipe_of(samples, probe={"labels": written(tmp_path, texts, **more)}))


def test_texts_of_another_vocabulary_and_a_name_that_is_none(samples: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyMismatch, match=r"texts for 'joy', which is not an emotion"):
        prepare_data(recipe_of(samples, probe={"labels": written(tmp_path, {**TEXTS, "joy": ["glad"]})}))
    with pytest.raises(InputError, match=r"/nowhere/socratis-29\.yaml: no such texts of labels"):
        prepare_data(recipe_of(samples, probe={"labels": "/nowhere/socratis-29.yaml"}))
    with pytest.raises(InputError, match=r"socratis-92: no such texts of labels\. Did you mean 'socratis-29'\?"):
        prepare_data(recipe_of(samples, probe={"labels": "socratis-92"}))


def test_a_name_stays_a_name_where_a_file_is_called_so(
    samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names").touch()
    written(tmp_path, TEXTS)
    for given, meant in (("names", "names"), ("texts.yaml", str(tmp_path / "texts.yaml"))):
        probe = recipe_of(samples, probe={"labels": given}).with_absolute_paths().probe
        assert probe is not None and probe.labels == meant


class Scaled(Network):
    def forward(self, values: Tensor, value_mask: Tensor) -> Tensor:
        return 3 * self.head(values)


def test_a_layer_that_does_not_give_the_output_is_refused(samples: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "build", lambda self, recipe, training: Scaled(training.outputs[0].width))
    with pytest.raises(InputError, match="does not give the numbers of Scaled"):
        probed(recipe_of(samples))


@pytest.mark.parametrize(
    "groups, told",
    [
        ({"optimiser": {"average": "ema"}}, "takes no step of training, so optimiser.average would do nothing"),
        ({"optimiser": {"interpolate": 0.5}}, "optimiser.interpolate would do nothing"),
        ({"optimiser": {"l2_sp": 0.1}}, "optimiser.l2_sp would do nothing"),
        ({"select_by": "last", "probe": {"strengths": [0.1, 1]}}, "give probe.strengths one value"),
    ],
)
def test_settings_that_would_do_nothing(samples: str, groups: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recipe_of(samples, **groups)


@pytest.mark.parametrize("strengths", [[], 0, [1.0, -1.0]])
def test_strengths_that_mean_nothing(samples: str, strengths: Any) -> None:
    with pytest.raises(ValueError, match="strengths are one number or more above 0"):
        recipe_of(samples, probe={"strengths": strengths})


# --- several workers --------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(500)  # three worker groups are started
def test_two_workers_probe_as_one_does_and_go_on_exactly(ray_local: Any, write_set: Write, tmp_path: Path) -> None:
    """The features of all workers are fitted once; killed after the probe, they end where undisturbed ones do."""
    samples = write_set(tmp_path / "set", 60, captions=1, pictures=False)
    settings: dict[str, Any] = {
        "probe": {"strengths": [0.1, 2.0], "coupling": 0.5, "labels": written(tmp_path, TEXTS)},
        "optimiser": {"epochs": 12, "patience": 12, "average": "ema", "interpolate": [0.5, 1.0]},
    }
    killed: list[int] = []

    def kill_once(metrics: Mapping[str, Any]) -> None:
        if not killed and metrics["epoch"] >= 3:  # Ray keeps a checkpoint a little after it was reported
            for child in psutil.Process().children(recursive=True):
                if any("RayTrainWorker" in part for part in child.cmdline()):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    whole = fit(teacher_of(samples, **settings, workers=2), tmp_path / "whole").info
    broken = fit(teacher_of(samples, **settings, workers=2), tmp_path / "broken", progress=kill_once).info
    assert killed and len({line["attempt"] for line in broken.training["history"]}) == 2
    assert broken.fingerprint == whole.fingerprint
    alone = fit(teacher_of(samples, **{**settings, "optimiser": {"epochs": 1}}), tmp_path / "alone").info
    for name, value in alone.training["history"][0].items():
        if name.startswith("val_"):
            assert whole.training["history"][0][name] == pytest.approx(value, abs=1e-4)
