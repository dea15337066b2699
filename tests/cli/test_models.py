"""`raymotion models`: the kinds by name, what else a recipe can name, and a kind's settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field

from raymotion.config import Settings


class Optimiser(Settings):
    lr: float = Field(0.1, gt=0, description="Rate of what starts from nothing.")


class Recipe(Settings):
    kind: Literal["toy"] = "toy"
    source: str
    optimiser: Optimiser = Optimiser()
    distillation: Optimiser | None = None


class Toy:
    """A mean of numbers.

    It learns nothing.
    """

    name = "toy"
    recipe = Recipe


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = f"{__name__}:Toy"
    for name, table in (("registry", "KINDS"), ("inputs.table", "INPUTS"), ("outputs.table", "OUTPUTS")):
        module = ModuleType(name)
        setattr(module, table, {"toy": toy, "absent": "no.such.module:Kind"} if table == "KINDS" else {"number": toy})
        monkeypatch.setitem(sys.modules, f"raymotion.models.{name}", module)


def test_names_stand_beside_what_they_are(runner: Callable[..., Any]) -> None:
    lines = [" ".join(line.split()) for line in runner("models").out.splitlines()]
    assert lines[:2] == ["Kinds:", "toy A mean of numbers."] and lines[2].startswith("absent cannot be imported: ")
    assert lines.count("number A mean of numbers.") == 2
    assert any("fasterrcnn_resnet50_fpn_v2" in line for line in lines)
    for start in ("bce Binary", "swin swin_large"):
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.parametrize("name", ["toy", f"{__name__}:Toy"])
def test_a_kind_tells_the_settings_of_its_recipe(runner: Callable[..., Any], name: str) -> None:
    done = runner("models", name)
    assert done.code == 0 and done.out.startswith("A mean of numbers.")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    for line in (
        "kind Literal['toy'] = 'toy'",
        "source str",
        "optimiser.lr float = 0.1. Rate of what starts from nothing.",
        "distillation.lr float = 0.1. Rate of what starts from nothing.",
    ):
        assert line in lines


@pytest.mark.parametrize("name", ["toi", "absent", "no.such.module:Kind"])
def test_a_kind_that_is_not_there_is_one_line(runner: Callable[..., Any], name: str) -> None:
    done = runner("models", name)
    assert done.code == 2 and name in done.err and done.err.count("\n") == 1
    assert name != "toi" or "toy" in done.err
