"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """`--config FILE` and `--set name=value`, for every command whose settings are a typed object."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override one setting (repeatable)."
    )(command)
    return click.option("--config", "config_file", metavar="YAML", help="Settings file; options override it.")(command)


def cluster_option(command: F) -> F:
    """`--address`, for every command that runs on Ray."""
    return click.option(
        "--address",
        metavar="ADDRESS",
        envvar="RAYMOTION_ADDRESS",
        help="Ray cluster to use: host:port, ray://host:port, or auto. Default: start one on this machine.",
    )(command)
