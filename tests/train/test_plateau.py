"""`schedule: plateau` and `min_delta`, against PyTorch's scheduler, and through a run that is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raymotion.models.recipe import OptimiserSettings, Plateau
from raymotion.models.student.recipe import StudentRecipe
from raymotion.train.loop import Run, train
from raymotion.train.prepare import prepare_data
from raymotion.train.schedule import epochs_without_gain, lowered
from raymotion.train.task import Task

Write, Student = Callable[..., str], Callable[..., StudentRecipe]
SCORES = st.lists(st.floats(-3, 3, allow_nan=False).map(lambda score: round(score, 2)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(scores=SCORES, patience=st.integers(1, 5), delta=st.sampled_from([0.0, 0.015, 0.255]))
def test_the_rate_falls_where_pytorchs_scheduler_lets_it(scores: list[float], patience: int, delta: float) -> None:
    """Keras waits for `patience` bad epochs, PyTorch for one more."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.5)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.3, patience=patience - 1, threshold=delta, threshold_mode="abs", min_lr=0.01, eps=0.0
    )
    plateau = Plateau(factor=0.3, patience=patience, min_delta=delta, lowest=0.01)
    for count, score in enumerate(scores, start=1):
        reference.step(score)
        assert lowered(0.5, scores[:count], plateau) == pytest.approx(optimiser.param_groups[0]["lr"])


def test_a_rate_below_the_lowest_is_not_raised() -> None:
    assert lowered(1e-8, [1.0, 2.0, 2.0, 2.0], Plateau(patience=1, lowest=1e-7)) == 1e-8


def test_a_gain_below_min_delta_does_not_count() -> None:
    assert epochs_without_gain([], 0.1) == 0
    assert epochs_without_gain([1.0, 0.95, 0.91], 0.1) == 2  # the reference stays 1.0
    assert epochs_without_gain([1.0, 0.95, 0.89, 0.9], 0.1) == 1


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"plateau": {"patience": 2}}, "means something only with schedule plateau"),
        ({"schedule": "plateau", "plateau": {"patience": 5}}, "training would stop before its rate falls"),
        ({"schedule": "plateau", "plateau": {"factor": 1.0}}, "factor"),
    ],
)
def test_settings_that_would_do_nothing(given_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimiserSettings.model_validate(given_settings)


@pytest.fixture(scope="module")
def samples(write_set: Write, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), 32, captions=1)


def test_a_resumed_run_goes_on_with_the_same_rate_and_weights(
    samples: str, student_recipe: Student, tmp_path: Path
) -> None:
    """So large a rate that validation gets worse: the rate falls, and is counted from the history after a crash."""
    optimiser = {
        "lr": 0.3, "schedule": "plateau", "warmup": 0.0, "epochs": 6, "patience": 6, "clip": None,
        "plateau": {"patience": 1, "factor": 0.1, "lowest": 1e-6},
    }  # fmt: skip
    recipe = student_recipe(samples, optimiser=optimiser)
    data = prepare_data(recipe)

    def report(folder: Path) -> Callable[[Mapping[str, Any], str | None], None]:
        def keep(metrics: Mapping[str, Any], made: str | None) -> None:
            assert made is not None
            shutil.copytree(made, folder / str(metrics["epoch"]), dirs_exist_ok=True)

        return keep

    whole = train(Task(recipe, data), report=report(tmp_path / "whole"))
    rates = [line["learning_rate"] for line in whole.history]
    scores = [line["val_bce"] for line in whole.history]
    for epoch, rate in enumerate(rates):
        assert rate == pytest.approx(lowered(0.3, scores[:epoch], recipe.optimiser.plateau))
    assert len(set(rates)) > 1, "the rate falls, and an epoch before the last"

    first = Run(Task(recipe, data))
    for _ in range(3):
        first.step()
    first.save(str(_made(tmp_path / "third")))
    first.close()
    resumed = train(Task(recipe, data), report=report(tmp_path / "resumed"), resume_from=str(tmp_path / "third"))
    assert [line["learning_rate"] for line in resumed.history] == rates
    assert [line["val_bce"] for line in resumed.history] == scores


def test_min_delta_ends_training_and_the_best_epoch_is_still_the_best(
    samples: str, student_recipe: Student, tmp_path: Path
) -> None:
    recipe = student_recipe(samples, optimiser={"epochs": 8, "patience": 2, "min_delta": 10.0, "lr": 1e-3})
    state = train(Task(recipe, prepare_data(recipe)), report=lambda metrics, folder: None)
    assert state.epoch == 3, "the first epoch, and two that gain less"
    assert state.best_epoch == 1 + min(range(3), key=lambda epoch: state.history[epoch]["val_bce"])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
