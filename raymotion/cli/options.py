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


def _set_access(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Keeps the answer in the environment, where this process and those that it starts find it, for this command."""
    from raymotion.stores import access

    if value is not None:
        chosen: dict[str, Any] = {"allow_http": value} if parameter.name == "allow_http" else {"patience": value}
        context.with_resource(access.using(**chosen))
    return value


def _access_options(command: F, *, expose_value: bool) -> F:
    command = click.option(
        "--store-patience",
        type=click.FloatRange(0, max=1e6),
        metavar="SECONDS",
        expose_value=expose_value,
        callback=_set_access,
        help="How long requests are retried while an object store fails.  [default: 120]",
    )(command)
    return click.option(
        "--allow-http",
        is_flag=True,
        default=None,
        expose_value=expose_value,
        callback=_set_access,
        help="Read http:// and https:// addresses, within limits of time, bytes and redirects.",
    )(command)


def access_options(command: F) -> F:
    """What may be read from outside, and how long a store is waited for: of every command that reads pictures."""
    return _access_options(command, expose_value=False)


progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    show_default=True,
    help="auto: a bar on a terminal, nothing elsewhere. lines: one every 30 s, for logs.",
)


def job_options(command: F) -> F:
    """Options of every batch job; None stands for "not given", so that a settings file can say it."""
    command = _access_options(command, expose_value=True)  # settings too: what is given here beats the file
    for option in reversed(
        (
            click.option(
                "--batch-size", type=click.IntRange(1), help="Images a forward pass.  [default: 16 on a GPU, else 2]"
            ),
            click.option(
                "--shard-rows",
                type=click.IntRange(1),
                help="Rows of a shard, the unit of commit.  [default: by size, 8-256]",
            ),
            click.option(
                "--precision",
                type=click.Choice(["float32", "bfloat16", "float16"]),
                help="Of the region extractor.  [default: bfloat16 on a GPU, else float32]",
            ),
            click.option("--workers", type=click.IntRange(1), help="Actors.  [default: as many as fit]"),
            click.option(
                "--cpus-per-worker",
                type=click.FloatRange(0, min_open=True),
                help="CPUs of an actor.  [default: 1; with a GPU its share, up to 8]",
            ),
            click.option(
                "--gpus-per-worker",
                type=click.FloatRange(0),
                help="GPUs of an actor.  [default: 1 where there are any]",
            ),
            click.option(
                "--decode-threads",
                type=click.IntRange(0),
                help="Threads that decode ahead of the model; 0: in turn with it.  "
                "[default: a GPU worker's CPUs, else 0]",
            ),
            click.option(
                "--autoscale",
                is_flag=True,
                default=None,
                help="The cluster starts nodes for actors that wait: refuse no plan for want of room. Needs --workers.",
            ),
            click.option(
                "--verify",
                is_flag=True,
                default=None,
                help="Read all files that were committed and compare their digests; damaged shards are "
                "redone. Without it: sizes and footers now, digests once before the job counts as complete.",
            ),
            click.option(
                "--max-failed",
                type=click.FloatRange(0, 1),
                help="Share of rows that may fail; 3 always may, unless it is 0.  [default: 0.05]",
            ),
            click.option(
                "--damaged",
                type=click.Choice(["quarantine", "keep"]),
                help="A picture that decodes, but not to what was stored (bytes lost or overwritten): put its row in "
                "quarantine, or keep what the decoder makes of it, and count it.  [default: quarantine]",
            ),
            progress_option,
        )
    ):
        command = option(command)
    return command
