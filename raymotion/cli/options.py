"""Options shared by several commands, and a decorator that makes a command's options from its settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from raymotion.cli.settings_options import options_from
from raymotion.config import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combines several options, in the order of the help, into one decorator."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def _set_access(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Stores the value in the environment of this process and its children, for the duration of the command."""
    from raymotion.stores import access

    if value is not None:
        chosen: dict[str, Any] = {"allow_http": value} if parameter.name == "allow_http" else {"patience": value}
        context.with_resource(access.using(**chosen))


# Which addresses may be read, and the timeout of stores, for commands that read pictures. The settings of batch jobs
# include both.
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
no_ray_option = click.option(
    "--no-ray", is_flag=True, help="One run after the other, in this process.  [default: one for each CPU at once]"
)
config_option = click.option(
    "--config", metavar="YAML", help="File of settings, the required ones too; options override it."
)


def settings_from(
    model: type[Settings], *, part: str | None = None, file: bool = True, without: Collection[str] = (), **shape: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds options for the fields of `model` to a command, and passes it the resulting settings.

    The command takes `settings`, and the values of further options by name. Options common to all jobs come last.

    Args:
        part: field with nested settings, whose fields also become options.
        file: adds `--config` and `--set`. Missing values are then reported by `load_settings`, since the file may
            contain them.
        without, shape: passed to `options_from`.
    """
    inner: Any = Settings if part is None else model.model_fields[part].annotation
    root = [base for base in model.__mro__ if issubclass(base, Settings)][-2]  # JobSettings, for a job
    shared = set(root.model_fields) - {"samples", "out"} if root is not model and "out" in root.model_fields else set()
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
