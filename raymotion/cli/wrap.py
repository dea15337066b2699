"""`raymotion wrap`: makes checkpoints of models of somebody else's."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from raymotion.cli.options import access_options
from raymotion.cli.settings_options import options_from
from raymotion.errors import InputError
from raymotion.models.kind import Kind


class WrapGroup(click.Group):
    """Group with a command for each kind that needs no training, made from its class on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from raymotion.models.registry import get_kind, kind_names

        found = []
        for name in kind_names():
            with contextlib.suppress(InputError):  # a kind that is at fault hides no other
                if get_kind(name).wraps is not None:
                    found.append(name)
        return found

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from raymotion.models.registry import get_kind, kind_names

        if ":" not in cmd_name and cmd_name not in kind_names():
            return None
        kind = get_kind(cmd_name, may_import=True)
        return None if kind.wraps is None else _wrap_command(cmd_name, kind)


@click.group(cls=WrapGroup)
def wrap() -> None:
    """Make a checkpoint of a model from elsewhere, as it comes: it labels, predicts and is evaluated like any other.

    \b
    Example:
      raymotion wrap zero-shot openai/clip-vit-base-patch32 --vocabulary mikels-8 --out clip/
      raymotion label coco.parquet --model clip/ --out labels/
    """


def _wrap_command(name: str, kind: Kind) -> click.Command:
    assert kind.wraps is not None
    text = f"{(kind.wraps.settings.__doc__ or '').strip()}\n\n\b\nExample:\n  raymotion wrap {kind.wraps.example}\n"

    @click.command(name, help=text)
    @options_from(kind.wraps.settings, arguments=kind.wraps.arguments, names=kind.wraps.names)
    @click.option("--out", required=True, metavar="FOLDER", help="Folder of the checkpoint; may be an s3:// address.")
    @access_options
    def command(out: str, **options: Any) -> None:
        from raymotion.config import load_settings
        from raymotion.models.wrap import wrap_model

        info = wrap_model(load_settings(kind.recipe, options={**options, "kind": kind.name}), out)
        vocabulary = info.vocabulary
        click.echo(f"{vocabulary.name}: {len(vocabulary)} labels; reads: {', '.join(info.reads)}")
        click.echo("No sample was looked at: `raymotion evaluate` says what its answers are worth.")
        for caution in kind.cautions(info.model):
            click.secho(f"warning: {caution}", fg="red", err=True)
        click.echo(f"wrote {info.folder} (fingerprint {info.fingerprint})")

    return command
