"""Runs that are compared: which are left to train, and what is said of one whose result is not here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymotion.errors import RunFailed
from raymotion.models.fractal.recipe import FractalRecipe
from raymotion.train import runs
from raymotion.train.runs import folder_of, result_of, training_of, unfinished


@dataclass(frozen=True)
class Run:
    name: str


def recipe(seed: int = 0) -> FractalRecipe:
    return FractalRecipe.model_validate({"data": {"samples": "s.parquet"}, "seed": seed})


def test_runs_without_a_checkpoint_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = folder_of(Run("b"), str(tmp_path))
    assert done == str(tmp_path / "runs/b")
    monkeypatch.setattr(runs, "is_checkpoint", lambda folder: folder == done)
    given = [(Run(name), recipe(seed)) for seed, name in enumerate("abc")]
    assert list(unfinished(given, str(tmp_path))) == ["a", "c"]


def test_a_result_that_is_not_here_names_the_run_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"run a ended on another machine, .* a folder that all machines share"):
        result_of(Run("a"), str(tmp_path))


def test_a_task_gets_the_recipe_as_it_is(tmp_path: Path) -> None:
    kind, given, folder, _ = training_of(Run("a"), recipe(3), str(tmp_path))
    told: Any = kind.recipe.model_validate(given)
    assert told == recipe(3) and folder == folder_of(Run("a"), str(tmp_path))
