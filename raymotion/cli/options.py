"""Options that several commands share, and commands whose options are the fields of their settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from raymotion.cli.settings_options import options_from
from raymotion.config import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, which the help shows in this order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def _set_access(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keeps the answer in the environment, where this process and those that it starts find it, for this command."""
    from raymotion.stores import access

    if value is not None:
        chosen: dict[str, Any] = {"allow_http": value} if parameter.name == "allow_http" else {"patience": value}
        context.with_resource(access.using(**chosen))


# What may be read from outside, and how long a store is waited for: of every command that reads pictures. The settings
# of a batch job have both.
access_options = _together(
    click.option(
        "--allow-http",
        is_flag=True,
        default=None,
        expose_value=False,
        callback=_set_access,
        help="Read http:// and https:// addresses, within limits of time, bytes and redirects.",
    ),
    click.option(
        "--store-patience",
        type=click.FloatRange(0, max=1e6),
        metavar="SECONDS",
        expose_value=False,
        callback=_set_access,
        help="How long requests are retried while an object store fails.  [default: 120]",
    ),
)
progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    show_default=True,
    help="auto: a bar on a terminal, nothing elsewhere. lines: one every 30 s, for logs.",
)
cluster_option = click.option(
    "--address",
    metavar="ADDRESS",
    envvar="RAYMOTION_ADDRESS",
    help="Ray cluster to use: host:port, ray://host:port, or auto. Default: start one on this machine.",
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override one setting (repeatable)."
)
config_option = click.option("--config", metavar="YAML", help="Settings file; options override it.")


def settings_from(
    model: type[Settings], *, part: str | None = None, file: bool = True, without: Collection[str] = (), **shape: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes the options of a command from the fields of `model`, and hands it the settings that were given.

    The command takes `settings`, and the values of further options by name. The options that all jobs have come last.

    Args:
        part: field that holds settings of its own, whose fields become options beside the others.
        file: adds `--config` and `--set`. What is missing then is told by `load_settings`, since a file may hold it.
        without, shape: for `options_from`.
    """
    inner: Any = Settings if part is None else model.model_fields[part].annotation
    root = [base for base in model.__mro__ if issubclass(base, Settings)][-2]  # JobSettings, or `model` itself
    shared = set(root.model_fields) - {"samples", "out"} if root is not model else set()
    own = set(model.model_fields) - shared
    shape |= {"required": not file}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(config: str | None = None, assignments: Sequence[str] = (), **options: Any) -> None:
            given = {name: options.pop(name) for name in model.model_fields if name in options}
            if part is not None:
                values = {name: options.pop(name) for name in inner.model_fields}
                given[part] = {name: value for name, value in values.items() if value is not None}
            settings = load_settings(model, file=config, options=given, assignments=assignments)
            command(settings=settings, **options)

        return _together(
            options_from(model, without={*without, *shared, *([part] if part else [])}, **shape),
            options_from(inner),
            options_from(model, without={*without, *own}, **{**shape, "arguments": ()}),
            *([config_option, set_option] if file else []),
        )(run)

    return decorate
