"""`raymotion data export`: labels as tasks for people, in annotation programs of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raymotion.cli.options import progress_option
from raymotion.cli.settings_options import options_from

if TYPE_CHECKING:
    from raymotion.batch.annotation.tool import Tool


class ToolGroup(click.Group):
    """Group with a command for each program, made from its class on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from raymotion.batch.annotation.tool import TOOLS

        return list(TOOLS.places())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from raymotion.batch.annotation.tool import TOOLS

        return _export_command(cmd_name, TOOLS.get(cmd_name))


@click.group(cls=ToolGroup)
def export() -> None:
    """Write labels as tasks for people, for an annotation program; `data prepare` reads what comes back.

    Pictures are addressed, not copied. Only selected rows are written: `raymotion select --policy uncertain` selects
    those that people should look at first.

    \b
    Example:
      raymotion data export label-studio ask/ --image-root /data/pictures --out tasks/
    """


def _export_command(name: str, tool: type[Tool]) -> click.Command:
    @click.command(name, help=tool.__doc__)
    @click.argument("labels")
    @options_from(tool)
    @click.option("--out", required=True, metavar="FOLDER", help="Folder to write to (local path or s3://).")
    @progress_option
    def command(labels: str, out: str, progress: Any, **options: Any) -> None:
        from raymotion.batch.annotation.tool import export_tasks
        from raymotion.batch.progress import Progress
        from raymotion.config import load_settings

        settings = load_settings(tool, options=options)
        with Progress(progress, total=None, done=0, title="tasks", unit="tasks") as bar:

            def told(done: int, total: int) -> None:
                bar.total = total
                bar.advance(done - bar.done, 0)

            done = export_tasks(settings, labels, out, told=told)
        click.echo(f"{done.rows:,} tasks in {done.chunks:,} file{'s' if done.chunks != 1 else ''} -> {out}")
        if done.without_picture:
            click.echo(f"note: {done.without_picture:,} rows have no picture, and are left out")
        click.echo(f"next: raymotion data prepare {name} EXPORT SAMPLES {out} --out corrected.parquet")

    return command
