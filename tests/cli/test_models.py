"""`raymotion models`: the kinds by name, what else a recipe can name, and a kind's settings."""

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
    lines = [" ".join(line.split()) for line in runner("models").out.splitlines()]
    assert lines[0] == "Kinds:" and "mean A mean of numbers." in lines
    for start in (
        "teacher-visualbert A", "captions Captions", "dimensions Numbers", "bce Binary", "smooth_l1 d^2", "bilinear ",
        "swin swin_large",
    ):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start
    assert any("fasterrcnn_resnet50_fpn_v2" in line for line in lines)


@pytest.mark.parametrize("name", ["mean", f"{__name__}:MeanKind"])
def test_a_kind_tells_the_settings_of_its_recipe(runner: Callable[..., Any], name: str) -> None:
    done = runner("models", name)
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
    done = runner("models", name)
    assert done.code == 2 and name in done.err and done.err.count("\n") == 1
    assert name != "toi" or "mean" in done.err
