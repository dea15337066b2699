"""One configuration in training, without Ray: its seeds, its best epochs, and what it never sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

from raymotion.errors import Damaged
from raymotion.learning.bootstrap import resample_counts, sampling_units
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.outputs.base import Output, Targets
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.training_set import TrainingSet
from raymotion.study.data import ids_of, study_data
from raymotion.study.record import COMPLETE, FAILED, MACRO_AP, StudyFolder, TrialRecord
from raymotion.study.score import BOOTSTRAP, score_interval, score_test
from raymotion.study.space import base_recipe, build_recipe, read_spaces, trial_key
from raymotion.study.trial import Trial, predict_test
from raymotion.train.prepare import prepare_data
from raymotion.vocabulary import Vocabulary

FUSION = get_kind("fusion")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trial")


@pytest.fixture
def data(place: Path, write_features: Callable[..., tuple[str, str]], own_cache: None) -> TrainingSet:
    if not (place / "samples.parquet").exists():
        write_features(place, 160)
    return prepare_data(recipe_of(place))


def recipe_of(place: Path, **changes: Any) -> FusionRecipe:
    settings: dict[str, Any] = {
        "kind": "fusion",
        "data": {"samples": str(place / "samples.parquet"), "embeddings": [str(place / "embeddings")]},
        "backbones": {"context": "good", "body": "good", "face": "good"},
        "model": {"fusion": "simple", "hidden": 16, "dropout": 0.0},
        "optimiser": {"epochs": 8, "batch_size": 32, "lr": 0.05, "patience": 3},
        **changes,
    }
    return FusionRecipe.model_validate(settings)


def emotions(recipe: FusionRecipe, data: TrainingSet) -> Output:
    return FUSION.outputs(recipe, data.facts)[0]


def hard(data: TrainingSet) -> np.ndarray:
    return data.targets["emotions"].arrays["hard"]


def run(recipe: FusionRecipe, data: TrainingSet, out: Path, seeds: tuple[int, ...] = (0, 1)) -> TrialRecord:
    key = trial_key(recipe, seeds, data.fingerprint)
    spec = {"key": key, "config": {"a": 1}, "seeds": seeds, "stage": "s", "recipe": recipe.model_dump(mode="json")}
    trial = Trial({**spec, "study": str(out)}, FUSION, data)
    for _ in range(recipe.optimiser.epochs + 1):
        if trial.finished:
            break
        result = trial.step()
        json.dumps(result)
    assert trial.finished
    found = StudyFolder(out).read_trial(key)
    assert found is not None
    return found


def test_the_best_epoch_is_kept_of_each_seed_and_not_the_last(data: TrainingSet, place: Path, tmp_path: Path) -> None:
    """Defects 13.3 and 13.5: the public study keeps the last epoch of one seed."""
    found = run(recipe_of(place), data.without_test(), tmp_path)
    assert found.status == COMPLETE and found.attempts == 1 and len(found.best) == 2
    curves = [[epoch.score[seed] for epoch in found.epochs] for seed in range(2)]
    for seed, (curve, best) in enumerate(zip(curves, found.best, strict=True)):
        known = [value for value in curve if value is not None]
        assert best.score == max(known) and known[best.epoch - 1] == max(known)
        assert len(known) == min(8, best.epoch + 3)  # its own patience ended it, not the other's
        kept = StudyFolder(tmp_path).validation(found.key, [seed], ids_of(data, "val"))[0]
        truth = hard(data)[data.splits["val"]]
        assert average_precision_score(truth, kept, average="macro") == pytest.approx(max(known), abs=1e-6)
    assert any(best.epoch < len(found.epochs) for best in found.best), "no curve fell: nothing was tested"
    assert curves[0] != curves[1], "the seeds are the same"
    assert [epoch.best for epoch in found.epochs] == sorted(epoch.best for epoch in found.epochs)
    assert found.epochs[-1].best == pytest.approx(found.mean)


def test_a_trial_has_no_test_sample_to_look_at(data: TrainingSet, place: Path, tmp_path: Path) -> None:
    """Defect 13.2: selection on test. What trials load holds neither test samples nor their labels."""
    test = {data.sample_ids[row] for row in data.splits["test"]}
    data.without_test().save(str(tmp_path))
    seen = study_data(str(tmp_path), FUSION.inputs(recipe_of(place)))
    assert test and not test & set(seen.sample_ids)
    assert len(seen.splits["test"]) == 0 and len(hard(seen)) == len(seen.sample_ids) == len(data.sample_ids) - len(test)
    for name in ("train", "val"):
        ids = [data.sample_ids[row] for row in data.splits[name]]
        assert [seen.sample_ids[row] for row in seen.splits[name]] == ids
        assert np.array_equal(hard(seen)[seen.splits[name]], hard(data)[data.splits[name]])
        assert [seen.groups[row] for row in seen.splits[name]] == [data.groups[row] for row in data.splits[name]]
    streams: Any = seen.inputs["streams"]
    assert not test & {streams.embeddings.sample_ids[row] for row in streams.rows}
    assert seen.fingerprint == data.fingerprint


def test_the_same_configuration_gives_the_same_result_and_scores_test_with_the_kept_weights(
    data: TrainingSet, place: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(place)
    first, again = (run(recipe, data.without_test(), tmp_path / name) for name in "ab")
    assert first.scores == again.scores and first.key == again.key
    folder = StudyFolder(tmp_path / "a")
    test = predict_test(folder, first.key, recipe, [0, 1], data, emotions(recipe, data))
    validation = folder.validation(first.key, [0, 1], ids_of(data, "val"))
    found = score_test("s", first.key, {}, test, validation, data, emotions(recipe, data), MACRO_AP)
    score = found.score
    truth = hard(data)[data.splits["test"]]
    by_seed = [average_precision_score(truth, own, average="macro") for own in test]
    assert score.seeds == pytest.approx(by_seed, abs=1e-6)
    assert score.sd == pytest.approx(np.std(by_seed, ddof=1), abs=1e-6)
    assert score.low is not None and score.high is not None
    assert score.low < score.mean < score.high and score.resamples == 1000
    assert found.baseline == pytest.approx(truth.mean())  # every label has a positive here
    assert found.interpolated is not None and found.interpolated >= score.mean
    assert score.mean > truth.mean() + 0.1, "nothing was learned"
    assert [own.positives for own in found.per_class] == truth.sum(axis=0).tolist()


def test_predictions_are_joined_by_id_and_those_of_other_samples_are_refused(tmp_path: Path) -> None:
    folder, values = StudyFolder(tmp_path), np.arange(6, dtype=np.float32).reshape(3, 2)
    record = TrialRecord(key="k", config={}, seeds=[0])
    record.files |= folder.write_predictions("k", "val", 0, ["a", "b", "c"], values)
    folder.write_trial(record)
    table = pq.read_table(tmp_path / "predictions" / "k" / "val-seed-0.parquet").to_pydict()
    assert table["sample_id"] == ["a", "b", "c"] and table["values"] == values.tolist()
    assert folder.validation("k", [0], ["c", "a", "b"])[0].tolist() == values[[2, 0, 1]].tolist()
    for others in (["a", "b"], ["a", "b", "d"], ["a", "b", "c", "d"]):
        with pytest.raises(Damaged, match="other samples"):
            folder.validation("k", [0], others)
        assert not folder.has_result("k", [0], others)


def test_what_fails_is_told_in_one_line_and_is_an_end(data: TrainingSet, place: Path, tmp_path: Path) -> None:
    refused = run(recipe_of(place, backbones={"context": "absent"}), data.without_test(), tmp_path)
    assert refused.status == FAILED and "context/absent/none" in (refused.error or "")
    broken = run(recipe_of(place, optimiser={"epochs": 3, "lr": 1e30, "batch_size": 32}), data.without_test(), tmp_path)
    assert broken.status == FAILED and (broken.error or "").startswith("training diverged: ")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_end_an_epoch_as_no_numbers_are_a_failure_that_is_written(
    data: TrainingSet, place: Path, tmp_path: Path
) -> None:
    """A loss that was a number, and answers that are none: such a record is no JSON."""
    recipe = recipe_of(place)
    spec = {"key": "k", "config": {}, "seeds": [0], "stage": "s", "recipe": recipe.model_dump(mode="json")}
    trial = Trial({**spec, "study": str(tmp_path)}, FUSION, data.without_test())
    (own,) = trial.runs
    left = [-(-len(data.splits["train"]) // 32)]

    def spoil(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            with torch.no_grad():
                for group in optimiser.param_groups:
                    for weights in group["params"]:
                        weights.fill_(torch.nan)

    own.optimiser.register_step_post_hook(spoil)
    assert trial.step()["finished"] and left == [0]
    found = StudyFolder(tmp_path).read_trial("k")
    assert found is not None and found.status == FAILED and found.epochs == []
    assert found.error is not None and found.error.startswith("training diverged: weight fuse.join.bias holds NaN")


def test_a_record_torn_by_a_power_cut_is_one_that_never_began(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(TrialRecord(key="k", config={}, seeds=[0]))
    path = tmp_path / "trials" / "k" / "trial.json"
    whole = path.read_bytes()
    assert folder.read_trial("k") is not None
    for torn in (b"", whole[:40], bytes(len(whole)), b"\xff" + whole):
        path.write_bytes(torn)
        assert folder.read_trial("k") is None


@pytest.mark.slow
def test_the_interval_of_test_map_is_that_of_1000_drawn_samples() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((30, 2)) < 0.4).astype(np.float32)
    scores = rng.random((2, 30, 2)).round(1)  # with ties
    images = [f"g{i // 2}" for i in range(30)]
    drawn = []
    for counts in resample_counts(15, 1000, 0, 1000):
        for own in counts.astype(int):
            rows = np.repeat(np.arange(30), np.repeat(own, 2))
            known = [j for j in range(2) if truth[rows, j].any()]
            each = [[average_precision_score(truth[rows, j], one[rows, j]) for j in known] for one in scores]
            drawn.append(np.mean(each))
    expected = np.percentile(np.array(drawn) - np.mean(drawn) + 0.5, (2.5, 97.5))
    output = MultiLabel(Vocabulary("two", ("Joy", "Fear")))
    targets = Targets({"hard": truth}, np.ones(30, dtype=bool))
    weighed = [output.weighed("macro_ap", targets, np.arange(30), one, sampling_units(images, 30)) for one in scores]
    found = score_interval(weighed, 15, seed=0, around=0.5)
    assert found == pytest.approx(tuple(expected)) and BOOTSTRAP == 1000


def test_a_key_tells_apart_what_decides_a_result_and_nothing_else(place: Path) -> None:
    recipe = recipe_of(place)

    def key(changes: dict[str, Any], seeds: tuple[int, ...] = (0, 1), data: str = "d") -> str:
        return trial_key(recipe.model_copy(update=changes), seeds, data)

    assert key({}) == key({"seed": 7}) == key({"workers": 3})
    moved = recipe.data.model_copy(update={"samples": "elsewhere", "embeddings": ["there"]})
    assert key({"data": moved}) == key({})
    assert len({key({}), key({"augmentation": "basic"}), key({}, (0, 1, 2)), key({}, data="e")}) == 4


def test_stages_share_what_is_the_same_configuration(write_spaces: Callable[..., str], tmp_path: Path) -> None:
    """Stage 2's `simple` is stage 1's winner: one key, so it is trained once."""
    spaces = read_spaces(write_spaces(tmp_path))
    base = base_recipe(spaces)
    winner = {"backbones.context": "good", "backbones.body": "good"}
    first = build_recipe(base, spaces, winner)
    second = build_recipe(base, spaces, {**winner, "model.fusion": "simple", "loss.name": "discrete"})
    assert trial_key(first, [0], "d") == trial_key(second, [0], "d")
