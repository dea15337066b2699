"""Options made from the fields of a settings class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from raymotion.cli.settings_options import options_from
from raymotion.config import Folder, Metavar, Settings, load_settings


class Toy(Settings):
    samples: str = Field(description="sample table")
    out: Folder = Field(description="where it goes")
    count: int = Field(36, ge=1, description="regions of an image")
    share: float | None = Field(None, gt=0, le=1, description="share of rows.  [default: all]")
    patience: Annotated[float, Metavar("SECONDS")] | None = None
    mode: Literal["fast", "exact"] = "fast"
    weights: tuple[str, ...] = Field((), description="weights files")
    verify: bool = False
    joint: bool = True
    hidden: int = 3


def parsed(*arguments: str) -> Any:
    seen: dict[str, Any] = {}

    @click.command()
    @options_from(Toy, arguments=["samples"], without=["hidden"], names={"mode": "quality"})
    def command(**options: Any) -> None:
        seen.update(options)

    done = CliRunner().invoke(command, arguments)
    return seen if done.exit_code == 0 and seen else done.output


def test_what_is_given_arrives_and_the_rest_is_none():
    assert parsed("s.parquet", "--out", "o") == {
        "samples": "s.parquet", "out": "o", "count": None, "share": None, "patience": None, "mode": None,
        "weights": None, "verify": None, "joint": None,
    }  # fmt: skip
    options = parsed(
        "s.parquet", "--out", "o", "--count", "2", "--share", "0.5", "--patience", "3", "--quality", "exact",
        "--weights", "a", "--weights", "b=c", "--verify", "--no-joint",
    )  # fmt: skip
    settings = load_settings(Toy, options=options)
    assert settings.model_dump() == {
        "samples": "s.parquet", "out": "o", "count": 2, "share": 0.5, "patience": 3.0, "mode": "exact",
        "weights": ("a", "b=c"), "verify": True, "joint": False, "hidden": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((), "SAMPLES"),
        (("s",), "--out"),
        (("s", "--out", "o", "--count", "0"), "x>=1"),
        (("s", "--out", "o", "--share", "0"), "0<x<=1"),
        (("s", "--out", "o", "--quality", "other"), "'fast', 'exact'"),
        (("s", "--out", "o", "--hidden", "2"), "--hidden"),
    ],
)
def test_what_the_fields_do_not_allow_is_refused_by_the_parser(arguments, reason):
    assert reason in parsed(*arguments)


def test_the_help_shows_description_default_choices_and_what_stands_for_a_value():
    lines = " ".join(parsed("--help").split())
    for text in (
        "SAMPLES",
        "--out FOLDER Where it goes. [required]",
        "Regions of an image. [default: 36]",
        "Share of rows. [default: all]",
        "--patience SECONDS",
        "--quality [fast|exact] [default: fast]",
        "--no-joint",
    ):
        assert text in lines
    assert lines.count("default: all") == 1


def test_a_field_that_no_option_can_stand_for_is_named():
    class Nested(Settings):
        inner: Toy

    with pytest.raises(TypeError, match="inner"):
        options_from(Nested)(lambda: None)
